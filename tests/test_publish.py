"""Tests of `titok push`."""

import dataclasses
import json

import pytest
import torch
from evaluation.tiny_models import make_kl
from huggingface_hub import ModelCard
from pipelines.latent_pipelines import make_pipeline, make_transformer
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
from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import (
    Evaluation,
    evaluate_generation,
    evaluate_learnability,
    evaluate_reconstruction,
)
from titok_hf.publish import publish_folder

pytestmark = pytest.mark.slow


def is_same(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


@pytest.fixture
def vtp(make_vtp_config):
    return VTPModel(make_vtp_config(text_vocab_size=514))  # that of the tokenizer


@pytest.fixture
def vtp_processor(clip_files):
    return VTPProcessor(
        VTPImageProcessor.from_image_size(32), CLIPTokenizer.from_pretrained(clip_files)
    )


@pytest.mark.parametrize("with_text", [True, False])
def test_a_vtp_with_its_processor(hub, vtp, vtp_processor, tmp_path, with_text):
    vtp_processor.image_processor.crop = "squash"
    vtp.save_pretrained(tmp_path / "vtp")
    (vtp_processor if with_text else vtp_processor.image_processor).save_pretrained(
        tmp_path / "vtp"
    )
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
    assert is_same(loaded.tokenizer, pipeline.tokenizer) and is_same(
        loaded.transformer, pipeline.transformer
    )
    assert (
        'TiTokPipeline.from_pretrained("user/pipeline")'
        in hub.files("user/pipeline")["README.md"].decode()
    )


def test_a_tokenizer_with_its_processor(hub, tokenizer_folder, titok):
    publish_folder(tokenizer_folder, "user/titok")
    assert is_same(AutoModel.from_pretrained("user/titok"), titok)
    assert AutoImageProcessor.from_pretrained("user/titok").to_dict()["crop_size"] == {
        "height": 32,
        "width": 32,
    }
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
    assert set(hub.files(f"user/{name}")) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert is_same(type(model).from_pretrained(f"user/{name}"), model)


def test_provenance_is_published(hub, titok, tmp_path):
    titok.provenance = {"license": "mit", "training_data": "Ten pictures."}
    titok.save_pretrained(tmp_path)
    publish_folder(tmp_path, "user/known")
    card = hub.files("user/known")["README.md"].decode()
    assert "license: mit" in card and "Ten pictures." in card
    assert TiTokModel.from_pretrained("user/known").provenance == titok.provenance


def test_a_private_branch(hub, tokenizer_folder, titok):
    publish_folder(tokenizer_folder, "user/secret", private=True, token="hf_user", revision="v2")
    assert hub.repositories["model", "user/secret"].private
    assert set(hub.files("user/secret")) == {".gitattributes"}
    assert is_same(TiTokModel.from_pretrained("user/secret", revision="v2"), titok)
    assert (
        TiTokImageProcessor.from_pretrained("user/secret", revision="v2").size["shortest_edge"]
        == 32
    )


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
    (tmp_path / "pipeline" / "transformer" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        publish_folder(tmp_path / "pipeline", "user/broken")

    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises((OSError, ValueError), match=folder.name):
            publish_folder(folder, "user/broken")
    assert not hub.repositories


class TestResults:
    """Results are published with the weights on which they were measured."""

    PAIRS = ("metrics.reconstruction=[psnr, mean_squared_error]",)
    SETS = ("metrics.generation=[accuracy, recall]",)

    @pytest.fixture
    def pipeline_folder(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path / "pipeline")
        return tmp_path / "pipeline"

    @pytest.fixture
    def reconstruct(self, tmp_path):
        """Measures a tokenizer, and gives the result's file: `reconstruct(folder,
        "rounding=truncate")`."""

        def reconstruct(folder, *changes, name="reconstruction.json", num_images=5):
            result = evaluate_reconstruction(
                folder, "digits", "demo", (*self.PAIRS, *changes), num_images=num_images
            )
            result.save(tmp_path / name)
            return tmp_path / name

        return reconstruct

    @pytest.fixture
    def generate(self, tmp_path):
        def generate(folder, *changes, name="generation.json", **arguments):
            arguments = {
                "num_samples": 10,
                "reference": "digits",
                "reference_split": "test",
            } | arguments
            evaluate_generation(folder, "demo", (*self.SETS, *changes), **arguments).save(
                tmp_path / name
            )
            return tmp_path / name

        return generate

    @staticmethod
    def card(hub, repo_id):
        """The results in the metadata of the published card, as the Hub reads them."""
        card = ModelCard(hub.files(repo_id)["README.md"].decode())
        return [
            (found.metric_type, found.metric_value, found.dataset_type)
            for found in card.data.eval_results
        ]

    @staticmethod
    def values(path):
        result = Evaluation.load(path)
        data = (result.data if result.task == "reconstruction" else result.reference)["id"]
        return [(name, estimate.value, data) for name, estimate in result.metrics.items()]

    def test_of_a_tokenizer(self, hub, tokenizer_folder, reconstruct):
        path = reconstruct(tokenizer_folder)
        publish_folder(tokenizer_folder, "user/titok", results=[path])
        assert [name for name, *_ in self.values(path)] == ["psnr", "mean_squared_error"]
        assert self.card(hub, "user/titok") == self.values(path)
        text = hub.files("user/titok")["README.md"].decode()
        protocol = ModelCard(text).data.eval_results[0].metric_args["protocol"]
        assert protocol == Evaluation.load(path).summary()
        assert protocol.startswith(
            "demo*: 5 images, 32x32, crop center (bicubic), rounded to uint8"
        )
        psnr = Evaluation.load(path).metrics["psnr"]
        assert (
            f"| PSNR | {psnr.value:.4g} ± {psnr.standard_error:.2g} | digits | test | {protocol} |"
            in text
        )

    def test_of_other_images_or_another_precision_beside_it(self, hub, tokenizer_folder, tmp_path):
        paths = []
        for name, arguments in (
            ("test", {}),
            ("train", {"split": "train"}),
            ("half", {"dtype": "bfloat16"}),
        ):
            result = evaluate_reconstruction(
                tokenizer_folder, "digits", "demo", self.PAIRS, num_images=5, **arguments
            )
            result.save(tmp_path / f"{name}.json")
            paths.append(tmp_path / f"{name}.json")
        publish_folder(tokenizer_folder, "user/titok", results=paths)
        assert sorted(self.card(hub, "user/titok")) == sorted(
            entry for path in paths for entry in self.values(path)
        )

    def test_they_come_back_with_the_weights_and_stay(
        self, hub, tokenizer_folder, reconstruct, tmp_path
    ):
        path = reconstruct(tokenizer_folder)
        publish_folder(tokenizer_folder, "user/titok", results=[path])
        loaded = TiTokModel.from_pretrained("user/titok")
        assert [
            (r["metric"], r["value"], r["dataset"]) for r in loaded.provenance["results"]
        ] == self.values(path)
        loaded.save_pretrained(tmp_path / "again")
        publish_folder(tmp_path / "again", "user/again")
        assert self.card(hub, "user/again") == self.values(path)

    def test_they_stay_in_the_folder(
        self, hub, tokenizer_folder, pipeline_folder, reconstruct, generate
    ):
        path = reconstruct(tokenizer_folder)
        publish_folder(tokenizer_folder, "user/titok", results=[path])
        publish_folder(tokenizer_folder, "user/again")
        assert self.card(hub, "user/again") == self.values(path)
        path = generate(pipeline_folder)
        publish_folder(pipeline_folder, "user/pipeline", results=[path])
        publish_folder(pipeline_folder, "user/pipeline-again")
        assert self.card(hub, "user/pipeline-again") == self.values(path)

    def test_a_card_written_by_hand_gets_them_as_metadata(self, hub, tokenizer_folder, reconstruct):
        path = reconstruct(tokenizer_folder)
        (tokenizer_folder / "README.md").write_text("---\nlicense: mit\n---\n# Written by hand\n")
        publish_folder(tokenizer_folder, "user/titok", results=[path])
        card = ModelCard(hub.files("user/titok")["README.md"].decode())
        assert card.text.strip() == "# Written by hand" and card.data.license == "mit"
        assert self.card(hub, "user/titok") == self.values(path)

    @pytest.mark.parametrize(
        ("stored", "measured"), [("float32", "bfloat16"), ("bfloat16", "float32")]
    )
    def test_of_another_precision(self, hub, titok, tmp_path, stored, measured):
        titok.to(getattr(torch, stored)).save_pretrained(tmp_path / "titok")
        result = evaluate_reconstruction(
            tmp_path / "titok", "digits", "demo", self.PAIRS, num_images=5, dtype=measured
        )
        result.save(tmp_path / "result.json")
        publish_folder(tmp_path / "titok", "user/titok", results=[tmp_path / "result.json"])
        assert self.card(hub, "user/titok") == self.values(tmp_path / "result.json")

    def test_of_an_autoencoder_of_diffusers(self, hub, reconstruct, tmp_path):
        pipeline = make_pipeline(make_transformer(sample_size=16), make_kl())
        pipeline.save_pretrained(tmp_path / "latent")
        path = reconstruct(tmp_path / "latent" / "tokenizer")
        with pytest.raises(ValueError, match="of diffusers, whose card takes no results"):
            publish_folder(tmp_path / "latent", "user/latent", results=[path])
        assert not hub.repositories

    def test_twice_is_once(self, hub, tokenizer_folder, reconstruct, titok):
        path = reconstruct(tokenizer_folder)
        for _ in range(2):
            publish_folder(tokenizer_folder, "user/titok", results=[path, path])
        assert self.card(hub, "user/titok") == self.values(path)
        TiTokModel.from_pretrained("user/titok").save_pretrained(tokenizer_folder)
        publish_folder(tokenizer_folder, "user/titok", results=[path])
        assert self.card(hub, "user/titok") == self.values(path)

    def test_of_several_protocols(self, hub, tokenizer_folder, reconstruct):
        paths = [
            reconstruct(tokenizer_folder),
            reconstruct(tokenizer_folder, "rounding=truncate", name="other.json"),
            reconstruct(tokenizer_folder, num_images=6, name="more.json"),
        ]
        publish_folder(tokenizer_folder, "user/titok", results=paths)
        assert self.card(hub, "user/titok") == [
            entry for path in paths for entry in self.values(path)
        ]

    def test_a_newer_one_takes_the_place_of_an_older_and_others_stay(
        self, hub, tokenizer_folder, reconstruct, titok
    ):
        path = reconstruct(tokenizer_folder)
        known = {"task": "t", "dataset": "d", "metric": "m", "value": 1.0, "protocol": "of others"}
        older = {**Evaluation.load(path).card_results()[0], "value": 0.0}
        titok.provenance = {"license": "mit", "results": [known, older]}
        titok.save_pretrained(tokenizer_folder)
        publish_folder(tokenizer_folder, "user/titok", results=[path])
        assert self.card(hub, "user/titok") == [("m", 1.0, "d"), *self.values(path)]
        assert TiTokModel.from_pretrained("user/titok").provenance["license"] == "mit"

    def test_of_a_pipeline_and_of_its_tokenizer(self, hub, pipeline_folder, reconstruct, generate):
        of_tokenizer, of_pipeline = (
            reconstruct(pipeline_folder / "tokenizer"),
            generate(pipeline_folder),
        )
        publish_folder(pipeline_folder, "user/pipeline", results=[of_tokenizer, of_pipeline])
        assert self.card(hub, "user/pipeline") == self.values(of_tokenizer) + self.values(
            of_pipeline
        )
        loaded = TiTokPipeline.from_pretrained("user/pipeline")
        assert [r["metric"] for r in loaded.transformer.provenance["results"]] == [
            "accuracy",
            "recall",
        ]
        assert [r["metric"] for r in loaded.tokenizer.provenance["results"]] == [
            "psnr",
            "mean_squared_error",
        ]

    def test_of_a_generator_alone(self, hub, pipeline_folder, generate):
        path = generate(pipeline_folder)
        publish_folder(pipeline_folder / "transformer", "user/generator", results=[path])
        assert self.card(hub, "user/generator") == self.values(path)

    @pytest.mark.parametrize("with_text", [True, False])
    def test_of_a_vtp_which_is_measured_without_its_texts(
        self, hub, make_vtp_config, reconstruct, tmp_path, with_text
    ):
        VTPModel(make_vtp_config(has_text=with_text)).save_pretrained(tmp_path / "vtp")
        path = reconstruct(tmp_path / "vtp")
        assert Evaluation.load(path).tokenizer["class"] == "VTPForImageReconstruction"
        publish_folder(tmp_path / "vtp", "user/vtp", results=[path])
        assert self.card(hub, "user/vtp") == self.values(path)

    def test_of_other_weights(self, hub, tokenizer_folder, titok, reconstruct):
        path = reconstruct(tokenizer_folder)
        with torch.no_grad():
            titok.quantizer.codebook.weight[0, 0] += 1e-6
        titok.save_pretrained(tokenizer_folder)
        with pytest.raises(
            ValueError,
            match=r"reconstruction\.json is a result of another tokenizer, .*titok \(TiTokM",
        ):
            publish_folder(tokenizer_folder, "user/titok", results=[path])
        assert not hub.repositories

    @pytest.mark.parametrize("part", ["tokenizer", "transformer"])
    def test_of_a_pipeline_with_another_part(self, hub, pipeline, pipeline_folder, generate, part):
        """The same generator makes other images with another tokenizer."""
        path = generate(pipeline_folder)
        weight = next(getattr(pipeline, part).parameters())
        with torch.no_grad():
            weight += 1
        pipeline.save_pretrained(pipeline_folder)
        with pytest.raises(ValueError, match=f"generation\\.json is a result of another {part}, "):
            publish_folder(pipeline_folder, "user/pipeline", results=[path])
        assert not hub.repositories

    def test_of_another_kind_of_thing(
        self, hub, tokenizer_folder, pipeline_folder, reconstruct, generate
    ):
        with pytest.raises(ValueError, match="a result of another transformer"):
            publish_folder(tokenizer_folder, "user/titok", results=[generate(pipeline_folder)])
        with pytest.raises(ValueError, match="a result of another tokenizer"):
            publish_folder(
                pipeline_folder / "transformer", "user/x", results=[reconstruct(tokenizer_folder)]
            )
        assert not hub.repositories

    def test_of_images_whose_maker_is_not_known(self, hub, pipeline_folder, generate, tmp_path):
        (tmp_path / "images").mkdir()
        for i, image in enumerate(load_digits_dataset()["test"][:10]["image"]):
            image.resize((32, 32)).save(tmp_path / "images" / f"{i}.png")
        path = generate(tmp_path / "images", "metrics.generation=[recall]", num_samples=None)
        with pytest.raises(ValueError, match="does not record which model made the images"):
            publish_folder(pipeline_folder, "user/pipeline", results=[path])
        assert not hub.repositories

    def test_what_is_no_result(self, hub, tokenizer_folder, tmp_path):
        (tmp_path / "other.json").write_text("{}")
        with pytest.raises(ValueError, match=r"other\.json is not a result of `titok evaluate`"):
            publish_folder(tokenizer_folder, "user/titok", results=[tmp_path / "other.json"])
        assert not hub.repositories

    def test_of_a_moved_and_repeated_measurement(
        self, hub, tokenizer_folder, reconstruct, tmp_path
    ):
        """The hash counts, not the place."""
        path = reconstruct(tokenizer_folder)
        result = Evaluation.load(path)
        dataclasses.replace(result, tokenizer={**result.tokenizer, "id": "elsewhere"}).save(path)
        publish_folder(tokenizer_folder, "user/titok", results=[path])
        assert self.card(hub, "user/titok") == self.values(path)


class TestLearnability:
    @pytest.fixture
    def continuous(self, make_titok_config, tmp_path):
        """Folder of a tokenizer with continuous latents."""
        torch.manual_seed(0)
        folder = tmp_path / "continuous"
        TiTokModel(make_titok_config("pixels", quantizer="kl")).save_pretrained(folder)
        TiTokImageProcessor.from_image_size(32).save_pretrained(folder)
        return folder

    def test_it_is_on_the_card(self, hub, continuous, tmp_path):
        measured = evaluate_learnability(str(continuous), "digits", num_images=40)
        (tmp_path / "learnability.json").write_text(json.dumps(measured))
        publish_folder(continuous, "user/titok", results=[tmp_path / "learnability.json"])
        card = hub.files("user/titok")["README.md"].decode()
        rank = measured["metrics"]["effective_rank"]["value"]
        assert f"| effective rank | {rank:.4g} | digits |" in card
        assert "| learnability of latents, 40 images |" in card

    def test_that_of_other_weights_is_refused(self, hub, continuous, tmp_path):
        measured = evaluate_learnability(str(continuous), "digits", num_images=40)
        measured["tokenizer"]["weights_sha256"] = "0" * 64
        (tmp_path / "learnability.json").write_text(json.dumps(measured))
        with pytest.raises(ValueError, match="is a result of another tokenizer"):
            publish_folder(continuous, "user/titok", results=[tmp_path / "learnability.json"])

    def test_that_of_several_tokenizers_is_refused(self, hub, continuous, tmp_path):
        (tmp_path / "learnability.json").write_text('[{"undefined": {}}, {"undefined": {}}]')
        with pytest.raises(ValueError, match=r"not a result of .* learnability` for one tokenizer"):
            publish_folder(continuous, "user/titok", results=[tmp_path / "learnability.json"])
