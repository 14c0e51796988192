"""`titok evaluate probe`, as a user calls it."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from titok_hf import TiTokImageProcessor, VTPModel
from titok_hf.data.digits import load_digits_dataset
from titok_hf.hub.hashes import state_sha256

from .conftest import fingerprint

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]


def write_digits(folder, train, test):
    """The first digits of both splits, one subfolder a class."""
    digits = load_digits_dataset()
    for split, count in (("train", train), ("test", test)):
        for i, row in enumerate(digits[split].select(range(count))):
            path = folder / split / str(row["label"]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(path)


class TestProbe:
    @pytest.fixture
    def probe(self, call):
        """Runs `titok evaluate probe` and gives what it wrote and printed."""

        def probe(*arguments, output="probe.json"):
            code, printed, errors = call("evaluate", "probe", *arguments, "--output", output)
            assert code == 0, errors
            return json.loads(Path(output).read_text()), printed

        return probe

    def test_a_table_and_a_file(self, probe, tokenizer, titok, tmp_path):
        write_digits(tmp_path / "data", 60, 60)
        options = (
            "--data",
            "data",
            "--feature",
            "tokens",
            "--feature",
            "encoder",
            "--dtype",
            "bfloat16",
            "--k",
            7,
        )
        probed, printed = probe(tokenizer, *options, "--seed", 3, output="new/probe.json")
        assert {name: found["dimension"] for name, found in probed["features"].items()} == {
            "tokens": 48,
            "encoder": 32,
        }
        assert (
            "60 images; the most frequent class: " in printed and "7 nearest neighbors" in printed
        )
        assert f"{probed['features']['encoder']['linear_accuracy']:.1%} ± " in printed
        assert "Result with all settings: new/probe.json" in printed

        assert probed["tokenizer"] == {
            "id": "tokenizer",
            "revision": None,
            "subfolder": "",
            "class": "TiTokModel",
            "weights_sha256": state_sha256(titok),  # before they became bfloat16
        }
        digits, processor = load_digits_dataset(), TiTokImageProcessor.from_image_size(32)
        data = probed["data"]
        assert (data["id"], data["revision"], data["image_column"], data["label_column"]) == (
            *("data", None, "image", "label"),
        )
        for split in ("train", "test"):
            images = processor(digits[split][:60]["image"], do_rescale=False, return_tensors="pt")[
                "pixel_values"
            ]
            assert data[split]["num_images"] == 60
            assert data[split]["fingerprint"] == fingerprint(images)
        assert probed["num_classes"] == 10 and probed["image_size"] == 32
        assert probed["processor"]["size"] == {"shortest_edge": 32}
        assert (
            probed["nearest_neighbors"] == {"k": 7, "temperature": 0.07}
            and probed["linear"]["seed"] == 3
        )
        assert (probed["device"], probed["dtype"]) == ("cpu", "bfloat16")
        assert probed["versions"]["torch"] == torch.__version__

    def test_the_command_repeats_it(self, probe, saved_pipeline, tmp_path):
        write_digits(tmp_path / "data", 40, 20)
        data = load_dataset("imagefolder", data_dir=str(tmp_path / "data"))
        data.rename_columns({"image": "picture", "label": "kind"}).save_to_disk(
            tmp_path / "renamed"
        )
        options = (
            "--subfolder",
            "tokenizer",
            "--data",
            "renamed",
            "--image-column",
            "picture",
            "--label-column",
            "kind",
        )
        more = ("--k", 3, "--seed", 1, "--batch-size", 16, "--dtype", "bfloat16", "--device", "cpu")
        first, _ = probe(saved_pipeline, *options, "--feature", "mean_token", *more)
        assert first["tokenizer"]["subfolder"] == "tokenizer"
        program, command, task, *arguments = shlex.split(first["command"])
        assert (program, command, task) == ("titok", "evaluate", "probe")
        assert probe(*arguments, output="second.json")[0] == first

    def test_a_tokenizer_on_the_hub_has_its_commit(self, probe, hub, titok, tmp_path):
        write_digits(tmp_path / "data", 20, 5)
        titok.push_to_hub("user/probed")
        commit = hub.repositories["model", "user/probed"].find("main").sha
        with torch.no_grad():
            titok.encoder.latent_tokens.mul_(3)
        titok.push_to_hub("user/probed")
        newer, _ = probe("user/probed", "--data", "data", "--feature", "tokens")
        older, _ = probe(
            "user/probed", "--data", "data", "--feature", "tokens", "--revision", commit
        )
        assert (
            newer["tokenizer"]["revision"]
            == hub.repositories["model", "user/probed"].find("main").sha
        )
        assert older["tokenizer"]["revision"] == commit != newer["tokenizer"]["revision"]
        assert older["tokenizer"]["weights_sha256"] != newer["tokenizer"]["weights_sha256"]
        assert f"--revision {commit}" in older["command"]

    def test_one_test_image_has_no_standard_error(self, probe, tokenizer, tmp_path):
        write_digits(tmp_path / "data", 20, 1)
        probed, printed = probe(tokenizer, "--data", "data", "--feature", "tokens")
        measured = probed["features"]["tokens"]
        assert (measured["linear_standard_error"], measured["knn_standard_error"]) == (None, None)
        assert f" {measured['linear_accuracy']:.1%} " in printed and "±" not in printed

    def test_what_is_wrong(self, refused, tokenizer, make_vtp_config, tmp_path):
        assert "tokens, mean_token, unquantized, encoder; got pixels" in refused(
            "probe", tokenizer, "--data", "digits", "--feature", "pixels"
        )
        assert "no column 'class' but image, label" in refused(
            "probe", tokenizer, "--data", "digits", "--label-column", "class"
        )
        assert "`k` must be from 1 to the 1437 training images, got 2000" in refused(
            "probe", tokenizer, "--data", "digits", "--k", 2000
        )
        VTPModel(make_vtp_config()).save_pretrained(tmp_path / "vtp")
        assert "is that of a TiTokModel" in refused(
            "probe", "vtp", "--data", "digits", "--feature", "encoder"
        )
        single = Dataset.from_dict(
            {"image": [Image.new("L", (8, 8))] * 25, "label": [0] * 25}
        ).cast_column("image", ImageFeature())
        single.train_test_split(5).save_to_disk(tmp_path / "single")
        assert "at least two classes, got 1" in refused("probe", tokenizer, "--data", "single")
        single.remove_columns("label").train_test_split(5).save_to_disk(tmp_path / "unlabelled")
        assert "no column 'label' but image" in refused("probe", tokenizer, "--data", "unlabelled")
