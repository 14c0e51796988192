"""Fixtures of the commands' tests; `test_cli.py` has its own way to call one."""

import hashlib
import os
import sys

import pytest

from titok_hf.cli import evaluate, main
from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import Evaluation
from titok_hf.evaluation.image_sources import ImageSource

NUMBER = 70  # images; more than the 64 features of digits


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The command in this process and an empty folder: exit code, what it prints, and what it
    prints as errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.console, "_width", 240)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["titok", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def measure(call):
    """Runs `titok evaluate` and reads its result: `measure("reconstruction", "tokenizer", ...)`."""

    def measure(task, *arguments, output="result.json"):
        code, _, errors = call("evaluate", task, *arguments, "--output", output)
        assert code == 0, errors
        return Evaluation.load(output)

    return measure


@pytest.fixture
def refused(call, monkeypatch):
    """The one sentence of an error, before the work and where nothing is written."""
    begun, begin = [], ImageSource.progress

    def recorded(source, batch_size, description, shown=True):
        begun.append(description)
        return begin(source, batch_size, description, shown)

    monkeypatch.setattr(ImageSource, "progress", recorded)

    def refused(*arguments):
        before = {path for path, *_ in os.walk(".")}
        code, _, errors = call("evaluate", *arguments)
        lines = [line for line in errors.splitlines() if line.startswith("Error: ")]
        assert code == 1 and len(lines) == 1 and "Traceback" not in errors, errors
        assert begun == []
        assert not any(
            os.path.exists(f"{name}.json") for name in ("reconstruction", "generation", "probe")
        )
        assert {path for path, *_ in os.walk(".")} == before
        return lines[0]

    return refused


@pytest.fixture
def tokenizer(titok, tmp_path):
    titok.save_pretrained(tmp_path / "tokenizer")
    return "tokenizer"


@pytest.fixture
def saved_pipeline(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    return "pipeline"


@pytest.fixture
def folder_of_images(tmp_path):
    """The first digits of the test split, 32x32, in one flat folder."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(load_digits_dataset()["test"][:NUMBER]["image"]):
        image.convert("RGB").resize((32, 32)).save(tmp_path / "images" / f"{i:03d}.png")
    return "images"


def fingerprint(images):
    """The sum of the hashes of uint8 images `(n, 3, H, W)`."""
    hashes = (hashlib.sha256(image.numpy().tobytes()).digest() for image in images)
    return f"{sum(int.from_bytes(digest) for digest in hashes) % 2**256:064x}"
