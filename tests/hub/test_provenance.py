"""`provenance.json` beside the weights: read, written and carried along."""

import copy
import json

import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from transformers import AutoModel

from titok_hf import MaskGitModel, TiTokModel, TiTokPipeline
from titok_hf.hub.provenance import provenance_of, read_provenance

RESULT = {"task": "t", "dataset": "d", "metric": "rFID", "value": 1.5, "protocol": "p"}
KNOWN = {"license": "mit", "training_data": "Ten pictures: ä.", "results": [RESULT]}


def test_it_is_a_file_of_its_own(titok, tmp_path):
    titok.provenance = KNOWN
    titok.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text("utf-8")) == KNOWN
    assert "Ten pictures" not in (tmp_path / "config.json").read_text()
    assert read_provenance(tmp_path) == TiTokModel.from_pretrained(tmp_path).provenance == KNOWN


def test_nothing_known_is_no_file(titok, tmp_path):
    titok.provenance = KNOWN
    titok.save_pretrained(tmp_path)
    titok.provenance = {}
    titok.save_pretrained(tmp_path)
    assert not (tmp_path / "provenance.json").exists()
    assert TiTokModel.from_pretrained(tmp_path).provenance == {}


def test_nothing_known_replaces_what_was_published(hub, pipeline):
    pipeline.tokenizer.provenance = pipeline.transformer.provenance = KNOWN
    pipeline.push_to_hub("user/known")
    assert {path for path in hub.files("user/known") if "provenance" in path} == {
        "tokenizer/provenance.json",
        "transformer/provenance.json",
    }
    pipeline.transformer.provenance = {}
    pipeline.push_to_hub("user/known")
    assert "transformer/provenance.json" not in hub.files("user/known")
    assert TiTokPipeline.from_pretrained("user/known").tokenizer.provenance == KNOWN


def test_diffusers_finds_it_in_a_folder_and_leaves_it_on_the_hub(hub, pipeline, tmp_path):
    pipeline.transformer.provenance = KNOWN
    pipeline.save_pretrained(tmp_path)
    pipeline.push_to_hub("user/known")
    trusted = {"trust_remote_code": True}
    assert provenance_of(DiffusionPipeline.from_pretrained(tmp_path, **trusted)) == KNOWN
    assert provenance_of(DiffusionPipeline.from_pretrained("user/known", **trusted)) == {}
    assert provenance_of(TiTokPipeline.from_pretrained("user/known")) == KNOWN


def test_a_processor_and_a_scheduler_leave_it(hub, titok, processor, scheduler, tmp_path):
    titok.provenance = KNOWN
    titok.save_pretrained(tmp_path)
    titok.push_to_hub("user/known")
    for thing in (processor, scheduler):
        thing.save_pretrained(tmp_path)
        thing.push_to_hub("user/known")
        assert provenance_of(thing) == {}
    assert read_provenance(tmp_path) == read_provenance("user/known") == KNOWN


def test_another_process_writes_nothing(titok, tmp_path):
    titok.provenance = KNOWN
    titok.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_of_a_branch_and_a_subfolder(hub, titok, tmp_path):
    titok.provenance = KNOWN
    titok.push_to_hub("user/deep", revision="v2", subfolder="some/where")
    where = {"revision": "v2", "subfolder": "some/where"}
    for model_class in (TiTokModel, AutoModel):
        assert model_class.from_pretrained("user/deep", **where).provenance == KNOWN
    titok.save_pretrained(tmp_path / "some" / "where")
    assert TiTokModel.from_pretrained(tmp_path, subfolder="some/where").provenance == KNOWN


@pytest.mark.parametrize("known", [{}, KNOWN])
def test_from_the_cache(hub, titok, monkeypatch, known):
    titok.provenance = known
    repo_id = f"user/cached-{bool(known)}"
    titok.push_to_hub(repo_id)
    assert TiTokModel.from_pretrained(repo_id).provenance == known
    hub.stop()
    try:
        assert TiTokModel.from_pretrained(repo_id, local_files_only=True).provenance == known
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert TiTokModel.from_pretrained(repo_id).provenance == known
    finally:
        hub.start()


@pytest.mark.parametrize(("content", "problem"), [("{", "not valid JSON"), ("[]", "got a list")])
def test_a_broken_file_is_named(titok, tmp_path, content, problem):
    titok.save_pretrained(tmp_path)
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(ValueError, match=rf"provenance\.json.*{problem}"):
        TiTokModel.from_pretrained(tmp_path)


def test_models_do_not_share_it(generator_config):
    first, second = MaskGitModel(generator_config), MaskGitModel(generator_config)
    first.provenance["license"] = "mit"
    assert second.provenance == {} and copy.deepcopy(first).provenance == {"license": "mit"}


def test_a_pixel_decoder_keeps_it(make_titok_config, vqgan):
    warm = TiTokModel(make_titok_config("proxy_codes"))
    warm.provenance = copy.deepcopy(KNOWN)
    tuned = warm.with_pixel_decoder(vqgan)
    assert tuned.provenance == KNOWN
    tuned.provenance["results"].clear()
    assert warm.provenance == KNOWN
