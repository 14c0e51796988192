import json
import sys

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from titok_hf import MaskGitVQGANModel, TiTokModel, TiTokPipeline
from titok_hf.cli import main
from titok_hf.demo import run_demo

PICTURES = ("reconstructions.png", "samples.png", "unmasking.png", "training.png")
STAGES = ("vqgan", "classifier", "warmup", "decoder_finetuning", "generator")

pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.slow]


def measures(metrics):
    """Metrics but for times, memory and checkpoints."""
    return {key: value for key, value in metrics.items() if key != "parts"}


def test_all_files_are_there(demo):
    folder, _ = demo
    expected = {"vqgan", "tokenizer", "pipeline", "work", "recipe.yaml", "metrics.json", *PICTURES}
    assert {path.name for path in folder.iterdir()} == expected


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_something(demo, name):
    with Image.open(demo[0] / name) as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 20


def test_models_load(demo):
    folder, _ = demo
    vqgan = MaskGitVQGANModel.from_pretrained(folder / "vqgan")
    tokenizer = TiTokModel.from_pretrained(folder / "tokenizer")
    pipeline = TiTokPipeline.from_pretrained(folder / "pipeline")
    assert tokenizer.config.vqgan_config.codebook_size == vqgan.config.codebook_size
    assert pipeline.transformer.config.codebook_size == tokenizer.config.codebook_size


def test_cards_carry_recipe_and_measures(demo):
    folder, metrics = demo
    for name in ("tokenizer", "pipeline"):
        card = ModelCard.load(folder / name / "README.md")
        assert f'from_pretrained("demo/{name}")' in card.text
        assert "max_steps: " in card.text
        assert card.data.license == "cc-by-4.0"
        for result in card.data.eval_results:
            assert result.dataset_name == "UCI Optical Recognition of Handwritten Digits"
            assert "real training digits" in result.metric_args["protocol"]
        results = {
            (result.task_type, result.metric_type): result.metric_value
            for result in card.data.eval_results
        }
        reconstruction = metrics["reconstructed"]["decoder_finetuning"]
        assert (
            results["image-reconstruction", "mean_squared_error"]
            == reconstruction["mean_squared_error"]
        )
        if name == "pipeline":
            generated = results["unconditional-image-generation", "frechet_distance"]
            assert generated == metrics["generated"]["frechet_distance"]


def test_metrics_are_what_is_returned(demo):
    folder, metrics = demo
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_every_measure_is_there_and_in_its_range(demo):
    metrics = demo[1]
    assert metrics.keys() == {"seed", "generated", "reconstructed", "real_held_out", "parts"}
    assert metrics["seed"] == 5
    quality = {"accuracy", "frechet_distance"}
    manifold = {"precision", "recall", "density", "coverage"}
    generated, real = metrics["generated"], metrics["real_held_out"]
    assert generated.keys() == quality | manifold | {
        "images",
        "nearest_neighbor_ratio",
        "share_nearer_than_held_out",
    }
    assert real.keys() == quality | manifold | {"images"}
    assert (generated["images"], real["images"]) == (70, 360)
    assert metrics["reconstructed"].keys() == {"vqgan", "warmup", "decoder_finetuning"}
    for measured in metrics["reconstructed"].values():
        codes = {"codebook_usage", "codebook_perplexity", "codebook_entropy"}
        assert measured.keys() == quality | codes | {"mean_squared_error", "psnr"}
        assert 0 < measured["mean_squared_error"] < 1
        assert 0 < measured["codebook_usage"] <= 1
        assert 1 <= measured["codebook_perplexity"] <= 32
    for measured in (generated, real, *metrics["reconstructed"].values()):
        assert 0 <= measured["accuracy"] <= 1
        assert measured["frechet_distance"] > 0
    assert 0 <= generated["share_nearer_than_held_out"] <= 1
    assert generated["nearest_neighbor_ratio"] > 0


def test_real_digits_are_measured_as_real(demo):
    real, generated = demo[1]["real_held_out"], demo[1]["generated"]
    assert real["accuracy"] > 0.97
    assert (
        real["frechet_distance"] < 0.2 < generated["frechet_distance"]
    )  # after six steps of training


def test_the_warm_tokenizer_uses_the_codes_of_the_tuned_one(demo):
    """Fine-tuning does not touch encoder and codebook."""
    warm, tuned = (demo[1]["reconstructed"][stage] for stage in ("warmup", "decoder_finetuning"))
    for key in ("codebook_usage", "codebook_perplexity"):
        assert warm[key] == tuned[key]
    assert warm["mean_squared_error"] != tuned["mean_squared_error"]


def test_time_and_memory_of_each_part_are_there(demo):
    parts = demo[1]["parts"]
    assert parts.keys() == {*STAGES, "evaluation"}
    for name, part in parts.items():
        assert part["seconds"] > 0 and part["peak_memory_gib"] > 0
        assert part.get("resumed_from") is None, name


def test_again_it_trains_nothing_and_changes_no_measure(demo, miniature, monkeypatch, capsys):
    """The command shows the metrics as a table."""
    folder, metrics = demo
    trained = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    overrides = [argument for override in miniature for argument in ("--set", override)]
    arguments = [
        "demo",
        "--output-dir",
        folder,
        "--seed",
        "5",
        "--images-per-class",
        "7",
        *overrides,
    ]
    monkeypatch.setattr(sys, "argv", ["titok", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == trained
    again = json.loads((folder / "metrics.json").read_text())
    assert measures(again) == measures(metrics)
    assert {name: again["parts"][name] for name in STAGES} == {
        name: metrics["parts"][name] for name in STAGES
    }

    printed = capsys.readouterr().out
    assert "seed 5" in printed
    for shown in (
        f"{metrics['generated']['accuracy']:.1%}",
        f"{metrics['real_held_out']['frechet_distance']:.3f}",
        f"{metrics['reconstructed']['vqgan']['mean_squared_error']:.4f}",
        f"{metrics['generated']['nearest_neighbor_ratio']:.2f}",
    ):
        assert shown in printed


def test_another_seed_in_its_folder_is_refused(demo, miniature):
    folder, metrics = demo
    with pytest.raises(ValueError, match="another recipe or seed"):
        run_demo(folder, seed=6, overrides=miniature, images_per_class=7)
    assert measures(json.loads((folder / "metrics.json").read_text())) == measures(metrics)


def test_a_recipe_without_perceptual_loss_needs_no_classifier(tmp_path, miniature):
    overrides = [*miniature, "stages.decoder_finetuning.objective.perceptual_weight=0"]
    metrics = run_demo(tmp_path / "demo", overrides=overrides, images_per_class=7)
    assert metrics["parts"].keys() == {*STAGES, "evaluation"} - {"classifier"}
    assert not (tmp_path / "demo" / "work" / "classifier").exists()
