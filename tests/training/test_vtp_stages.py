"""The stages of VTP in a run: what they save, resume, show, measure and refuse."""

import io
import json
import os
import signal
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict, Features, Value
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel
from typer.testing import CliRunner

from titok_hf import (
    VTPForImageReconstruction,
    VTPModel,
    VTPProcessor,
    VTPVisionModel,
    train_recipe,
)
from titok_hf.cli import app
from titok_hf.evaluation import measure_representations
from titok_hf.publish import publish_folder
from titok_hf.train import measure_of
from titok_hf.training import Recipe, RecipeRun
from titok_hf.training.checkpoints import MANIFEST
from titok_hf.training.discriminator import FeatureDiscriminator
from titok_hf.training.flops import recipe_flops
from titok_hf.training.vtp_decoder import VTPDecoderObjective

from .tiny_pretraining import captioned_digits, make_model

MINIATURE = Path(__file__).parents[1] / "miniature-vtp.yaml"
PRETRAINING, DECODER = "stages.vtp_pretraining", "stages.vtp_decoder_finetuning"

pytestmark = [pytest.mark.xdist_group("vtp_run"), pytest.mark.slow]


@pytest.fixture(scope="module")
def dataset():
    digits = captioned_digits(36)
    return DatasetDict(train=digits.select(range(18)), test=digits.select(range(18, 36)))


def make_run(dataset, folder, *overrides, **arguments):
    recipe = Recipe.load(MINIATURE, overrides)
    return RecipeRun(recipe, dataset, folder, text_column="text", **arguments)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """Folder of a finished run of all stages."""
    folder = tmp_path_factory.mktemp("vtp") / "run"
    steps = "training.preview_steps=3"
    make_run(
        dataset, folder, f"{PRETRAINING}.{steps}", f"{DECODER}.{steps}", data_name="digits"
    ).train()
    return folder


class TestResult:
    def test_it_is_a_plain_vtp(self, folder, dataset):
        model = VTPModel.from_pretrained(folder / "vtp")
        names = load_file(folder / "vtp" / "model.safetensors").keys()
        assert not [name for name in names if "teacher" in name or "head" in name]
        assert model.config.has_decoder and model.config.has_text
        processor = VTPProcessor.from_pretrained(folder / "vtp")
        texts = [text for texts in dataset["test"]["text"][:2] for text in texts]
        batch = processor(images=dataset["test"]["image"][:2], text=texts, return_tensors="pt")
        assert batch["input_ids"].shape == (4, 8)
        assert model(**batch).logits_per_image.shape == (2, 4)

    @pytest.mark.parametrize("part", ["vtp", "tokenizer"])
    def test_every_class_loads_its_part(self, folder, part):
        images = torch.rand(1, 3, 32, 32)
        tokenizer = VTPForImageReconstruction.from_pretrained(folder / part).eval()
        vision = VTPVisionModel.from_pretrained(folder / part).eval()
        assert tokenizer(images).reconstruction.shape == images.shape
        torch.testing.assert_close(tokenizer.encode(images).latents, vision.encode(images).latents)

    def test_decoder_finetuning_changes_the_decoder_alone(self, folder):
        before, after = (
            load_file(folder / part / "model.safetensors") for part in ("vtp", "tokenizer")
        )
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all(name.startswith("pixel_decoder") for name in changed)
        texts = [VTPProcessor.from_pretrained(folder / part) for part in ("vtp", "tokenizer")]
        ids = [processor(text="the digit two")["input_ids"] for processor in texts]
        assert ids[0] == ids[1]

    def test_the_card_tells_the_recipe(self, folder):
        card = (folder / "vtp" / "provenance.json").read_text()
        assert "ssl_drop_rate" in card and "digits" in card

    def test_previews_show_reconstructions(self, folder):
        for stage in ("vtp_pretraining", "vtp_decoder_finetuning"):
            names = sorted(path.name for path in (folder / "work/previews" / stage).iterdir())
            assert names == ["step-0000003.png", "step-0000006.png"]

    def test_it_is_published_and_loaded_back(self, folder, hub):
        publish_folder(folder / "vtp", "user/vtp")
        assert "ssl_drop_rate" in hub.files("user/vtp")["README.md"].decode()
        before = VTPModel.from_pretrained(folder / "vtp")
        loaded = VTPModel.from_pretrained("user/vtp")
        for name, weight in before.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight)
        assert VTPProcessor.from_pretrained("user/vtp")(text="two")["input_ids"][0]
        VTPVisionModel.from_pretrained("user/vtp")
        VTPForImageReconstruction.from_pretrained("user/vtp")


class TestTraining:
    def test_killed_and_resumed_it_ends_with_the_same_weights(self, folder, dataset, tmp_path):
        def start():
            process = os.fork()
            if process == 0:
                torch.set_num_threads(1)
                try:
                    make_run(dataset, tmp_path / "run").result("vtp_pretraining")
                    os._exit(0)
                finally:
                    os._exit(1)
            return process

        killed = 0
        for step in (2, 4):
            process = start()
            checkpoint = tmp_path / f"run/work/checkpoints/vtp_pretraining/checkpoint-{step}"
            deadline = time.monotonic() + 120
            while not (checkpoint / MANIFEST).exists() and time.monotonic() < deadline:
                if os.waitpid(process, os.WNOHANG)[0]:
                    break
                time.sleep(0.001)
            else:
                os.kill(process, signal.SIGKILL)
                killed += os.waitpid(process, 0)[1] == signal.SIGKILL
        assert killed
        assert os.waitpid(start(), 0)[1] == 0
        found, expected = (
            load_file(run / "vtp" / "model.safetensors") for run in (tmp_path / "run", folder)
        )
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []

    @pytest.mark.parametrize("kind", ["column", "tar"])
    def test_the_command_reads_captions_of_any_kind(self, dataset, tmp_path, kind):
        """A column, and shards as img2dataset writes them; an image without a caption is listed."""
        data = tmp_path / "data"
        if kind == "column":
            dataset.rename_column("text", "caption").save_to_disk(data)
        else:
            data.mkdir()
            with tarfile.open(data / "00000.tar", "w") as shard:
                for number, row in enumerate(dataset["train"]):
                    image = io.BytesIO()
                    row["image"].save(image, "png")
                    caption = {"caption": row["text"][0] if number != 3 else None}
                    members = {
                        "png": image.getvalue(),
                        "json": json.dumps(caption).encode(),
                        "cls": str(row["label"]).encode(),
                    }
                    for ending, content in members.items():
                        member = tarfile.TarInfo(f"{number:05}.{ending}")
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
        arguments = ["train", str(MINIATURE), "--data", str(data), "--text-column", "caption"]
        arguments += ["--output-dir", str(tmp_path / "run")]
        arguments += [f"{PRETRAINING}.training.max_unreadable=0.1"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert VTPProcessor.from_pretrained(tmp_path / "run/vtp").tokenizer("two")["input_ids"]
        listed = tmp_path / "run/work/checkpoints/vtp_pretraining/unreadable.jsonl"
        if kind == "tar":
            assert "no caption" in listed.read_text()

    def test_it_measures_while_it_trains(self, dataset, tmp_path):
        evaluation = 'evaluation={"metrics": ["psnr"], "representations": true}'
        intervals = [f"{PRETRAINING}.training.eval_strategy=steps"]
        intervals += [f"{PRETRAINING}.training.eval_steps=3"]
        dataset.save_to_disk(tmp_path / "data")
        train_recipe(
            MINIATURE,
            str(tmp_path / "data"),
            tmp_path / "run",
            [evaluation, *intervals],
        )
        log = json.loads((tmp_path / "run/work/logs/vtp_pretraining.json").read_text())["history"]
        measured = [entry for entry in log if "eval_text_recall_at_5" in entry]
        assert [entry["step"] for entry in measured] == [3, 6]
        assert {"eval_knn_accuracy_bottleneck", "eval_psnr", "eval_spatial_similarity"} <= (
            measured[0].keys()
        )
        assert [entry["step"] for entry in log if "eval_loss" in entry] == [3, 6]
        # what is measured at the end is what the saved network gives
        model = VTPModel.from_pretrained(tmp_path / "run/vtp").eval()
        processor = VTPProcessor.from_pretrained(tmp_path / "run/vtp")
        again = measure_representations(model, processor, dataset["train"], dataset["test"])
        for name, estimate in again["metrics"].items():
            assert measured[-1][f"eval_{name}"] == pytest.approx(estimate["value"], abs=1e-4), name

    def test_labels_may_be_names_of_classes(self, folder, dataset):
        model, processor = (
            kind.from_pretrained(folder / "vtp") for kind in (VTPModel, VTPProcessor)
        )
        recipe = Recipe.load(MINIATURE, ['evaluation={"representations": true}'])
        measure = measure_of(recipe, "image", "label", "text")
        labels = dataset["train"].features["label"]
        named = dataset.map(
            lambda row: {"label": labels.int2str(row["label"])},
            features=Features({**dataset["train"].features, "label": Value("string")}),
        )
        expected = measure(model.eval(), processor, dataset["train"], dataset["test"])
        found = measure(model, processor, named["train"], named["test"])
        assert found == pytest.approx(expected, abs=1e-4) and "zero_shot_accuracy" in found

    @pytest.mark.parametrize(
        "weights",
        [
            {"ssl_weight": 0, "clip_weight": 0},
            {"reconstruction_weight": 0, "clip_weight": 0},
            {"reconstruction_weight": 0, "ssl_weight": 0},
        ],
    )
    def test_each_objective_trains_alone(self, dataset, tmp_path, weights):
        content = yaml.safe_load(MINIATURE.read_text())
        stage = content["stages"]["vtp_pretraining"]
        del content["stages"]["vtp_decoder_finetuning"], stage["subsets"]
        stage["objective"] = dict(weights)
        if "reconstruction_weight" not in weights:
            stage["objective"]["perceptual_weight"] = 0.1
        else:
            del content["stages"]["classifier"]
        if "ssl_weight" in weights:
            del stage["head"], stage["multi_crop"], stage["masking"]
        plain = dataset
        if "clip_weight" in weights:
            plain = dataset.remove_columns("text")
        run = RecipeRun(
            Recipe.from_dict(content),
            plain,
            tmp_path / "run",
            text_column=None if "clip_weight" in weights else "text",
        )
        model = run.train()
        assert model.config.has_text == ("clip_weight" not in weights)
        assert model.config.has_decoder == ("reconstruction_weight" not in weights)

    def test_the_operations_of_all_objectives_are_counted(self):
        recipe = Recipe.load(MINIATURE)
        counted = recipe_flops(recipe)
        for name in ("ssl_weight", "clip_weight"):
            content = yaml.safe_load(MINIATURE.read_text())
            stage = content["stages"]["vtp_pretraining"]
            stage["objective"][name] = 0
            if name == "ssl_weight":
                del stage["head"], stage["multi_crop"], stage["masking"]
                stage["subsets"].pop("self_supervision")
                stage["objective"].pop("ssl_drop_rate")
            fewer = recipe_flops(Recipe.from_dict(content))
            assert 0 < fewer["vtp_pretraining"] < counted["vtp_pretraining"]


class TestDecoder:
    def test_noise_is_relative_to_the_latents_and_of_the_sample(self):
        objective = VTPDecoderObjective(make_model(), latent_noise=0.5).eval()
        images = torch.randn(4, 3, 32, 32)
        draws = torch.rand(4, objective.num_draws)
        assert objective.num_draws == 1 + 4 * 16
        clean = objective.model.encode(images).latents
        noisy = objective.encode(images, draws).latents
        relative = (noisy - clean).flatten(1).std(1) / clean.flatten(1).std(1)
        torch.testing.assert_close(relative, 0.5 * draws[:, 0], atol=0.1, rtol=0.2)
        alone = objective.encode(images[1:2], draws[1:2]).latents
        torch.testing.assert_close(alone, noisy[1:2])
        assert torch.equal(objective.encode(images, None).latents, clean)

    @pytest.mark.parametrize("kind", ["vit", "dinov2"])
    def test_a_discriminator_on_features_trains_its_heads_alone(self, kind, tmp_path, dataset):
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        }
        network = (
            ViTModel(ViTConfig(intermediate_size=32, **sizes), add_pooling_layer=False)
            if kind == "vit"
            else Dinov2Model(Dinov2Config(mlp_ratio=2, **sizes))
        )
        network.save_pretrained(tmp_path / "network")
        content = yaml.safe_load(MINIATURE.read_text())
        stage = content["stages"]["vtp_decoder_finetuning"]
        del stage["discriminator"]
        stage["feature_discriminator"] = {
            "pretrained": str(tmp_path / "network"),
            "image_size": 32,
            "num_heads": 2,
        }
        stage["objective"]["discriminator_start"] = 0
        make_model(text_vocab_size=300).save_pretrained(tmp_path / "vtp")
        content["stages"]["vtp_pretraining"] = {"pretrained": str(tmp_path / "vtp")}
        run = RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run")
        results = {name: run.result(name) for name in ("vtp_pretraining", "classifier")}
        objective = run.recipe.stage("vtp_decoder_finetuning").objective(results, ())
        assert isinstance(objective.discriminator, FeatureDiscriminator)
        images = torch.randn(2, 3, 32, 32)
        assert objective.discriminator(images).shape == (2, 2, 4, 4)
        objective.train()(images, torch.rand(2, objective.num_draws)).loss.backward()
        reached = {
            name for name, p in objective.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert any(name.startswith("discriminator.heads") for name in reached)
        assert any(name.startswith("model.pixel_decoder") for name in reached)
        assert not [
            name for name in reached if "discriminator.network" in name or "vision_encoder" in name
        ]


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (f"{PRETRAINING}.multi_crop.local_size=12", "`local_size` must be a multiple of .* 8"),
            (
                f"{PRETRAINING}.objective.ssl_weight=0",
                r"has `head`, .*`objective.ssl_drop_rate` but no use .*`ssl_weight` is 0",
            ),
            (
                f"{PRETRAINING}.objective.reconstruction_weight=0",
                r"has `objective.perceptual_weight` but no use",
            ),
            (
                f'{PRETRAINING}.objective={{"clip_weight": 0, "contrast": "sigmoid"}}',
                r"has `objective.contrast` but no use for it, because `clip_weight` is 0",
            ),
            (f"{PRETRAINING}.model.text_vocab_size=100", "`text_vocab_size` must be at least 257"),
            (f"{PRETRAINING}.subsets.momentum=3", "momentum.*stages.vtp_pretraining.subsets"),
            (f"{DECODER}.objective.adversarial_weight=0", "`discriminator` but no `adversarial_"),
        ],
    )
    def test_the_recipe_says_what_is_wrong(self, change, message):
        with pytest.raises(ValueError, match=message):
            Recipe.load(MINIATURE, [change])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                f"{PRETRAINING}.subsets.self_supervision=8",
                "self_supervision` must be from 1 to the 4",
            ),
            (f"{PRETRAINING}.subsets.self_supervision=1", "KoLeo compares at least two images"),
            (
                f"{PRETRAINING}.training.gradient_accumulation_steps=4",
                "multiple of 4, so that the 4",
            ),
        ],
    )
    def test_nothing_is_trained_with_subsets_that_do_not_fit(
        self, dataset, tmp_path, change, message
    ):
        with pytest.raises(ValueError, match=message):
            make_run(dataset, tmp_path / "run", change).train()
        assert not (tmp_path / "run/work/classifier").exists()

    def test_data_without_captions(self, dataset, tmp_path):
        run = RecipeRun(Recipe.load(MINIATURE), dataset, tmp_path / "run")
        with pytest.raises(ValueError, match=r"trains on captions, but .*`text_column`"):
            run.train()
        with pytest.raises(ValueError, match=r"has no column 'caption' but .*`text_column`"):
            RecipeRun(Recipe.load(MINIATURE), dataset, tmp_path / "run", text_column="caption")

    def test_a_text_tokenizer_that_is_too_large(self, dataset, folder, tmp_path):
        changes = [f"{PRETRAINING}.text.tokenizer={folder / 'vtp'}"]
        changes += [f"{PRETRAINING}.model.text_vocab_size=257"]
        with pytest.raises(ValueError, match=r"entries, the model only 257"):
            make_run(dataset, tmp_path / "run", *changes).train()

    def test_a_vtp_without_a_decoder(self, dataset, tmp_path):
        make_model(has_decoder=False, has_text=False).save_pretrained(tmp_path / "vtp")
        content = yaml.safe_load(MINIATURE.read_text())
        content["stages"]["vtp_pretraining"] = {"pretrained": str(tmp_path / "vtp")}
        with pytest.raises(ValueError, match="trains the decoder of a VTP, but this VTP has none"):
            RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()

    def test_a_pretrained_vtp_without_its_text_tokenizer(self, dataset, tmp_path, monkeypatch):
        """It is missed before training, not when the decoder is saved."""
        # other tests may have left the tokenizer of CLIP in the cache
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        make_model().save_pretrained(tmp_path / "vtp")
        content = yaml.safe_load(MINIATURE.read_text())
        content["stages"]["vtp_pretraining"] = {"pretrained": str(tmp_path / "vtp")}
        with pytest.raises(
            OSError, match=r"processor of vtp_decoder_finetuning.*no text tokenizer"
        ):
            RecipeRun(Recipe.from_dict(content), dataset, tmp_path / "run").train()
        assert not (tmp_path / "run/work/classifier").exists()
