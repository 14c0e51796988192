"""What `titok push` does."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, CLIPTokenizer

from titok_hf import (
    MaskGitUViTModel,
    TiTokImageProcessor,
    TiTokModel,
    TiTokPipeline,
    VTPImageProcessor,
    VTPModel,
    VTPProcessor,
)
from titok_hf.publish import publish_folder


def is_same(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


@pytest.fixture
def vtp(make_vtp_config):
    return VTPModel(make_vtp_config())


@pytest.fixture
def vtp_processor(clip_files):
    return VTPProcessor(VTPImageProcessor.from_image_size(32), CLIPTokenizer.from_pretrained(clip_files))


@pytest.mark.parametrize("with_text", [True, False])
def test_a_vtp_with_its_processor(hub, vtp, vtp_processor, tmp_path, with_text):
    vtp_processor.image_processor.crop = "squash"
    vtp.save_pretrained(tmp_path / "vtp")
    (vtp_processor if with_text else vtp_processor.image_processor).save_pretrained(tmp_path / "vtp")
    repo_id = f"user/vtp-{with_text}"
    publish_folder(tmp_path / "vtp", repo_id)

    assert is_same(VTPModel.from_pretrained(repo_id), vtp)
    assert "# VTP\n" in hub.files(repo_id)["README.md"].decode()
    if with_text:
        processor = AutoProcessor.from_pretrained(repo_id)
        assert type(processor) is VTPProcessor
        assert processor.tokenizer("ab").input_ids == vtp_processor.tokenizer("ab").input_ids
    else:
        processor = AutoImageProcessor.from_pretrained(repo_id)
        assert type(processor) is VTPImageProcessor
    assert getattr(processor, "image_processor", processor).crop == "squash"


def test_processor_pushed_first_gives_way_to_the_models_card(hub, vtp, vtp_processor):
    vtp_processor.push_to_hub("user/vtp")
    assert "# VTP processor" in hub.files("user/vtp")["README.md"].decode()
    vtp.push_to_hub("user/vtp")
    assert "# VTP\n" in hub.files("user/vtp")["README.md"].decode()


@pytest.fixture
def tokenizer_folder(titok, tmp_path):
    titok.save_pretrained(tmp_path / "titok")
    TiTokImageProcessor.from_image_size(32).save_pretrained(tmp_path / "titok")
    return tmp_path / "titok"


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_a_pipeline(hub, pipeline, tmp_path, kind):
    pipeline.save_pretrained(tmp_path / "pipeline")
    publish_folder(kind(tmp_path / "pipeline"), "user/pipeline")
    loaded = TiTokPipeline.from_pretrained("user/pipeline")
    assert is_same(loaded.tokenizer, pipeline.tokenizer) and is_same(loaded.generator, pipeline.generator)
    assert 'TiTokPipeline.from_pretrained("user/pipeline")' in hub.files("user/pipeline")["README.md"].decode()


def test_a_tokenizer_with_its_processor(hub, tokenizer_folder, titok):
    publish_folder(tokenizer_folder, "user/titok")
    assert is_same(AutoModel.from_pretrained("user/titok"), titok)
    assert AutoImageProcessor.from_pretrained("user/titok").to_dict()["crop_size"] == {"height": 32, "width": 32}
    assert set(hub.files("user/titok")) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert "# TiTok tokenizer" in hub.files("user/titok")["README.md"].decode()


def test_a_processor_that_was_changed(hub, tokenizer_folder):
    processor = TiTokImageProcessor.from_image_size(32)
    processor.do_center_crop = False
    processor.save_pretrained(tokenizer_folder)
    publish_folder(tokenizer_folder, "user/titok")
    assert not AutoImageProcessor.from_pretrained("user/titok").do_center_crop


@pytest.mark.parametrize("name", ["vqgan", "generator", "uvit"])
def test_a_model_alone(hub, request, tmp_path, uvit_config, name):
    model = MaskGitUViTModel(uvit_config) if name == "uvit" else request.getfixturevalue(name)
    model.save_pretrained(tmp_path)
    publish_folder(tmp_path, f"user/{name}")
    assert set(hub.files(f"user/{name}")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert is_same(type(model).from_pretrained(f"user/{name}"), model)


def test_provenance_is_published(hub, titok, tmp_path):
    titok.config.provenance = {"license": "mit", "training_data": "Ten pictures."}
    titok.save_pretrained(tmp_path)
    publish_folder(tmp_path, "user/known")
    card = hub.files("user/known")["README.md"].decode()
    assert "license: mit" in card and "Ten pictures." in card
    assert TiTokModel.from_pretrained("user/known").provenance() == titok.config.provenance


def test_a_private_branch(hub, tokenizer_folder, titok):
    publish_folder(tokenizer_folder, "user/secret", private=True, token="hf_user", revision="v2")
    assert hub.repositories["model", "user/secret"].private
    assert set(hub.files("user/secret")) == {".gitattributes"}
    assert is_same(TiTokModel.from_pretrained("user/secret", revision="v2"), titok)
    assert TiTokImageProcessor.from_pretrained("user/secret", revision="v2").size["shortest_edge"] == 32


def test_the_card_of_the_folder(hub, tokenizer_folder, titok):
    readme = tokenizer_folder / "README.md"
    titok.model_card("user/titok").save(readme)
    readme.write_text(readme.read_text() + "\nA note that the next push forgets.\n")
    publish_folder(tokenizer_folder, "user/titok")
    assert "A note" not in hub.files("user/titok")["README.md"].decode()

    readme.write_text("# Written by hand\n")
    publish_folder(tokenizer_folder, "user/titok")
    assert hub.files("user/titok")["README.md"] == b"# Written by hand\n"


@pytest.mark.parametrize("token", ["hf_reader", "hf_stranger"])
def test_no_permission(hub, tokenizer_folder, token):
    with pytest.raises(PermissionError, match="user/titok"):
        publish_folder(tokenizer_folder, "user/titok", token=token)
    assert not hub.repositories


def test_a_cut_upload(hub, tokenizer_folder, titok):
    hub.break_connection("POST", "/commit/", times=None)
    with pytest.raises(ConnectionError, match="user/titok"):
        publish_folder(tokenizer_folder, "user/titok")
    assert set(hub.files("user/titok")) == {".gitattributes"}
    hub.faults.clear()
    publish_folder(tokenizer_folder, "user/titok")
    assert is_same(TiTokModel.from_pretrained("user/titok"), titok)


def test_what_does_not_load_is_not_published(hub, tokenizer_folder, pipeline, tmp_path):
    weights = tokenizer_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"titok.* truncated or corrupt"):
        publish_folder(tokenizer_folder, "user/broken")

    pipeline.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "generator" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        publish_folder(tmp_path / "pipeline", "user/broken")

    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises((OSError, ValueError), match=folder.name):
            publish_folder(folder, "user/broken")
    assert not hub.repositories
