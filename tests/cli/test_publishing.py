"""Commands that publish, convert and tokenize, in this process."""

import json
import re

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image

from titok_hf import MaskGitModel
from titok_hf.conversion.convert import write_official

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_push_publishes_a_folder(call, saved, hub):
    code, out, _ = call("push", saved, "user/cli-digits", "--private", "--revision", "v2")

    assert code == 0 and "Published: user/cli-digits" in out
    assert "model_index.json" in hub.files("user/cli-digits", revision="v2")
    assert (
        'from_pretrained("user/cli-digits", revision="v2")'
        in hub.files("user/cli-digits", revision="v2")["README.md"].decode()
    )


def test_push_says_what_is_not_allowed(call, saved, hub, monkeypatch):
    hub.add("lab/digits", {"README.md": b"theirs"})
    code, _, err = call("push", saved, "lab/digits")

    assert code == 1
    assert "no permission for this on lab/digits" in err and "Traceback" not in err


@pytest.fixture
def official(tmp_path, generator_config):
    """A generator in the official format."""
    generator_config.num_attention_heads = 16
    sampling = {
        "num_steps": 8,
        "randomize_temperature": 1.0,
        "guidance_scale": 0.0,
        "guidance_decay": "constant",
    }
    write_official(MaskGitModel(generator_config), tmp_path / "official", sampling)
    return tmp_path / "official"


def test_convert_there_and_back(call, official, tmp_path, hub):
    code, out, _ = call(
        "convert", official, "--output-dir", tmp_path / "ours", "--push", "user/cli-generator"
    )
    assert code == 0 and "Published: user/cli-generator" in out
    assert MaskGitModel.from_pretrained("user/cli-generator").config.num_tokens == 8

    code, out, _ = call(
        "convert", tmp_path / "ours", "--to-official", "--output-dir", tmp_path / "back"
    )
    assert code == 0 and "Converted:" in out
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        official / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "neither a file or folder here, nor a Hub repository"),
        (("OFFICIAL", "--dtype", "int8"), "must be one of float32, bfloat16, float16, got 'int8'"),
        (
            ("OFFICIAL", "--to-official", "--dtype", "float16"),
            "`--to-official` .* cannot be combined",
        ),
        (
            ("OFFICIAL", "--generator", "OFFICIAL"),
            "masked generator are expected, got a MaskGitModel and a MaskGit",
        ),
    ],
)
def test_convert_says_what_is_wrong(call, official, tmp_path, arguments, sentence):
    words = [official if word == "OFFICIAL" else word for word in arguments]
    code, _, err = call("convert", *words, "--output-dir", tmp_path / "out")

    assert code == 1
    assert re.search(sentence, err), err
    assert not (tmp_path / "out").exists()


def test_tokenize_writes_codes(call, titok, tmp_path):
    titok.save_pretrained(tmp_path / "titok")
    code, out, _ = call(
        "tokenize", "digits", "--tokenizer", tmp_path / "titok", "--output-dir", tmp_path / "tokens"
    )

    assert code == 0 and "1437 train, 360 test images as codes" in " ".join(out.split())
    assert len(load_dataset(str(tmp_path / "tokens"))["test"]) == 360


def test_options_of_tokenize_arrive(call, titok, hub, tmp_path):
    titok.save_pretrained(tmp_path / "titok")
    for number in range(5):
        image = Image.new("RGB", (40, 32), (50 * number, 0, 0))
        image.save(tmp_path / f"{number}.png")
    images = Dataset.from_dict(
        {"picture": [str(tmp_path / f"{number}.png") for number in range(5)]}
    )
    DatasetDict({"train": images, "other": images.select([4, 2, 0])}).save_to_disk(
        tmp_path / "images"
    )
    (tmp_path / "0.png").write_text("no image")
    arguments = [
        "tokenize",
        tmp_path / "images",
        "--tokenizer",
        tmp_path / "titok",
        "--output-dir",
        tmp_path / "tokens",
    ]
    arguments += [
        "--split",
        "other",
        "--image-column",
        "picture",
        "--no-labels",
        "--part-size",
        "2",
    ]
    arguments += [
        "--augmentation",
        "ten-crop",
        "--enlarge",
        "1.25",
        "--dtype",
        "bfloat16",
        "--num-workers",
        "0",
    ]
    arguments += ["--device", "cpu", "--batch-size", "10", "--push", "user/tokens", "--private"]
    code, _, err = call(*arguments)
    assert code == 1 and "1 of the 3 images of the split 'other' cannot be read" in " ".join(
        err.split()
    )
    assert "Traceback" not in err

    code, out, _ = call(*arguments, "--max-unreadable", "0.5")
    printed = " ".join(out.split())
    assert code == 0 and "2 other images as codes" in printed and "1 could not be read" in printed
    assert (
        "Published: user/tokens" in printed and hub.repositories["dataset", "user/tokens"].private
    )
    record = json.loads((tmp_path / "tokens" / "tokenize.json").read_text())
    command = record["command"]
    assert command["parts"] == {"other": [2, 1]} and command["dtype"] == "bfloat16"
    assert (command["augmentation"]["crop"], command["augmentation"]["enlarge"]) == ("ten", 1.25)
    assert command["label_column"] is None and record["result"]["shape"] == [10, 8]
    assert len(load_dataset("user/tokens")["other"]) == 2

    code, _, err = call(*arguments, "--augmentation", "flip", "--enlarge", "1.0")
    assert code == 1 and "with other augmentation" in " ".join(err.split())


def test_zero_shot_needs_a_vtp(call, titok, tmp_path):
    titok.save_pretrained(tmp_path / "titok")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    options = (
        "--model",
        tmp_path / "titok",
        "--image",
        tmp_path / "image.png",
        "--labels",
        "cat,dog",
    )
    code, _, err = call("zero-shot", *options)

    assert code == 1 and "expects a model of type 'vtp', got one of 'titok'" in err
