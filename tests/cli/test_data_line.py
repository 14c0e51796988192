"""The line with which every command says what data it found."""

import pytest

from titok_hf.data.digits import load_digits_dataset

pytestmark = pytest.mark.xdist_group("cli")

FOUND = "images: 11 images (train 11), 2 classes; left out: other files 1 (notes.txt)."


@pytest.fixture
def images(tmp_path):
    """Eleven images of two classes, one of which is called as a split, and a text file."""
    for i, row in enumerate(load_digits_dataset()["test"].select(range(11))):
        path = tmp_path / "images" / ("cat" if i % 2 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return "images"


@pytest.mark.parametrize(
    "command",
    [
        ["tokenize", "images", "--tokenizer", "tokenizer", "--output-dir", "tokens"],
        ["evaluate", "reconstruction", "tokenizer", "--data", "images", "--protocol", "demo"],
        ["evaluate", "probe", "tokenizer", "--data", "images"],
        ["evaluate", "reference", "images", "--protocol", "demo", "--output", "reference.npz"],
        ["train", "digits", "--data", "images", "--output-dir", "run", "--image-column", "picture"],
    ],
    ids=lambda command: command[1] if command[0] == "evaluate" else command[0],
)
def test_every_command_starts_with_what_it_found(call, tokenizer, images, command):
    """Some of the commands then refuse so few images, or the wrong column."""
    _, _, errors = call(*command)
    assert [line for line in errors.splitlines() if ": 11 images" in line] == [FOUND]
    [warning] = [line for line in errors.splitlines() if "is a class, not a split" in line]
    assert "images/test" in warning


def test_no_data_is_an_error(call, tokenizer):
    for command in (
        ["tokenize", "", "--tokenizer", "tokenizer", "--output-dir", "tokens"],
        ["train", "digits", "--data", "", "--output-dir", "run"],
        ["evaluate", "probe", "tokenizer", "--data", ""],
    ):
        code, _, errors = call(*command)
        assert code == 1 and "got an empty name" in errors and "Traceback" not in errors
