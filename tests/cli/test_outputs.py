"""Outputs that cannot be written are refused before the work."""

import pytest
from PIL import Image

pytestmark = pytest.mark.xdist_group("cli")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("reconstruct image.png --tokenizer none --output grid", "must be an image"),
        ("reconstruct image.png --tokenizer none --output grid.doc", "such as .png"),
        (
            "reconstruct image.png --tokenizer none --output image.png/grid.png",
            "must be a folder to write into",
        ),
        ("generate --pipeline none --label 1 --output samples", "must be an image"),
        ("evaluate reference digits --protocol demo --output reference", "must end in .npz"),
    ],
)
def test_a_place_that_cannot_be_written_costs_no_work(call, tmp_path, command, sentence):
    """Neither tokenizer nor pipeline exists: nothing is loaded before the check."""
    Image.new("RGB", (32, 32)).save("image.png")
    code, _, errors = call(*command.split())
    assert code == 1 and sentence in errors and "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png"]


def test_folders_of_outputs_are_made(call, tokenizer, saved_pipeline, tmp_path):
    Image.new("RGB", (32, 32)).save("image.png")
    commands = (
        ["reconstruct", "image.png", "--tokenizer", tokenizer, "--output", "a/b/grid.png"],
        ["generate", "--pipeline", saved_pipeline, "--label", "1", "--output", "c/d/samples.webp"],
    )
    for command in commands:
        code, _, errors = call(*command)
        assert code == 0, errors
        assert (tmp_path / command[-1]).stat().st_size
