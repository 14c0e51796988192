"""The studies of tokenizers for generators of latents, quickly, on a few captioned images."""

import json
import math
import shutil
from pathlib import Path

import forked as processes
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from titok_hf import VTPModel
from titok_hf.studies import Study, run_study

from .test_run import Started

DISTRIBUTED = Path(__file__).with_name("distributed_study.py")

pytestmark = [pytest.mark.xdist_group("scaling"), pytest.mark.slow]

VALUES = {"objective": ["reconstruction", "all"], "steps": [1, 2]}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Folder of 24 training and 16 held-out images of two classes, with captions."""
    folder = tmp_path_factory.mktemp("captioned") / "images"
    features = Features(
        image=Image(), label=ClassLabel(names=["left", "right"]), text=Value("string")
    )
    rng = np.random.default_rng(0)

    def split(count):
        pixels = rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        rows = {
            "image": list(pixels),
            "label": [i % 2 for i in range(count)],
            "text": [f"picture {i}" for i in range(count)],
        }
        return Dataset.from_dict(rows, features=features)

    DatasetDict(train=split(24), test=split(16)).save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    """Folder of a ViT with two features."""
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16, "patch_size": 8}
    ViTModel(ViTConfig(hidden_size=2, intermediate_size=4, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(captioned, extractor, tmp_path_factory):
    """Folder, results and trained stages of a quick study."""
    folder, started = tmp_path_factory.mktemp("scaling") / "study", Started()

    def run(where=folder, callback=None, **changes):
        arguments = {"data": captioned, "extractor": extractor, "values": VALUES} | changes
        arguments = {"name": "scaling", "callbacks": [callback or Started()]} | arguments
        return run_study(output_dir=where, quick=True, **arguments)

    results = run(callback=started)
    return folder, results, started.stages, run


def test_each_objective_trains_one_tokenizer_for_all_steps(finished):
    _, results, stages, _ = finished
    assert stages.count("vtp_pretraining") == 2 and stages.count("classifier") == 1
    # two objectives at two numbers of steps, and a second time shift each
    assert stages.count("latent_generator") == 6
    assert [run["variant"] for run in results["runs"]] == [
        {"objective": objective, "width": 96, "data": 1, "steps": steps}
        for objective in VALUES["objective"]
        for steps in VALUES["steps"]
    ]


def test_a_variant_has_the_tokenizer_of_its_steps(finished):
    folder, results, _, _ = finished
    models = {}
    for run in results["runs"]:
        name = "-".join(map(str, run["variant"].values())) + f"-{run['tuned']}"
        own = (folder / "seed-0" / name / "vtp").resolve()
        assert own.name == str(run["variant"]["steps"]) and own.parent.name == "vtp_pretraining"
        models[name] = VTPModel.from_pretrained(own).state_dict()
    first, second = list(models.values())[:2]
    assert any(not first[key].equal(second[key]) for key in first)


def test_the_time_shift_is_the_best_of_each_objective(finished):
    _, results, _, _ = finished
    for objective in VALUES["objective"]:
        tried = {
            run["tuned"]: run["values"]["frechet_distance"]
            for run in results["tuning"]
            if run["variant"]["objective"] == objective
        }
        assert set(tried) == {1.0, 2.0}
        best = min(tried, key=tried.get)
        chosen = {r["tuned"] for r in results["runs"] if r["variant"]["objective"] == objective}
        assert chosen == {best}
        assert {r["variant"]["steps"] for r in results["tuning"]} == {2}


def test_everything_is_measured(finished):
    folder, results, _, _ = finished
    study = Study.load("scaling")
    # there is no judge of classes, and there are no masks
    expected = {*study.metrics, *study.predictors} - {"accuracy", "region_similarity"}
    for run in results["runs"]:
        assert run["values"].keys() == expected
        assert all(math.isfinite(value) for value in run["values"].values())
    flops = [run["flops"] for run in results["runs"]]
    assert flops[1] == 2 * flops[0] and flops[3] == 2 * flops[2] and flops[2] > flops[0] > 0
    table, correlations = (folder / "table.md").read_text().split("\n\n")
    assert len(table.splitlines()) == 6 and "Pearson, 4 runs" in correlations
    assert (folder / "plot.png").exists()


def test_it_resumes_after_every_variant(finished, tmp_path):
    _, results, _, run = finished
    started = Started(stop=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "study", started)
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    assert 0 < len(found["tuning"]) < len(results["tuning"])
    again = Started()
    resumed = run(tmp_path / "study", again)
    assert len(started.stages) + len(again.stages) == 9
    for one, other in zip(resumed["runs"], results["runs"], strict=True):
        assert one["values"] == other["values"]


def test_a_share_of_the_data_is_for_the_tokenizer_alone(finished, tmp_path):
    folder, _, _, run = finished
    values = {"objective": ["reconstruction"], "steps": [2], "data": [0.5, 1]}
    shutil.copytree(folder, tmp_path / "study", symlinks=True)
    with pytest.raises(ValueError, match="another configuration"):
        run(tmp_path / "study", values=values)
    half, whole = run(tmp_path / "halves", values=values)["runs"]
    assert (half["variant"]["data"], whole["variant"]["data"]) == (0.5, 1)
    assert half["values"]["psnr"] != whole["values"]["psnr"]
    recipes = [
        path.read_text() for path in (tmp_path / "halves" / "seed-0").glob("shared/*/recipe.yaml")
    ]
    identities = {
        line for recipe in recipes for line in recipe.splitlines() if line.startswith("data_sha256")
    }
    assert len(identities) == 2


def test_ways_of_training_latents_are_compared(finished, tmp_path):
    _, _, _, run = finished
    started = Started()
    results = run(tmp_path / "study", started, name="latents", values=None)
    assert [run["variant"] for run in results["runs"]] == [
        {"latents": "reconstruction"},
        {"latents": "aligned"},
    ]
    assert started.stages.count("vtp_pretraining") == 2
    assert {run["flops"] for run in results["runs"]} == {None}
    assert (tmp_path / "study" / "plot.png").exists()


def test_two_processes_measure_what_one_does(finished, captioned, extractor, tmp_path):
    _, results, _, _ = finished
    processes.run(DISTRIBUTED, tmp_path / "study", captioned, extractor, num_processes=2)
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    tuned = {run["tuned"]: run["values"] for run in found["tuning"]}
    expected = {
        run["tuned"]: run["values"]
        for run in results["tuning"]
        if run["variant"]["objective"] == "reconstruction"
    }
    assert len(found["runs"]) == 1 and tuned.keys() == expected.keys()
    for value, values in expected.items():
        for name in ("frechet_distance", "psnr", "velocity_variance"):
            assert tuned[value][name] == pytest.approx(values[name], rel=1e-2), name
