"""A command on a real terminal: its own bars alone, above what it prints."""

import os
import re
import select
import termios
import warnings
from pathlib import Path

import pytest
from forked import run, start

from titok_hf.data.digits import load_digits_dataset

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]
COMMAND = (
    *("tokenize", "images", "--tokenizer", "tokenizer", "--output-dir", "tokens"),
    *("--num-workers", 0),
)


@pytest.fixture(autouse=True)
def images(tmp_path):
    """All digits as a Parquet file, which `datasets` reads with a bar of its own."""
    (tmp_path / "images").mkdir()
    load_digits_dataset()["train"].to_parquet(tmp_path / "images" / "train.parquet")


def on_terminal(*arguments, folder):
    """Runs a command of `titok` on a terminal, and returns what it shows there and what it prints."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    outputs = [folder / "stdout.txt", Path(os.ttyname(writer))]
    process = start("titok_hf.cli", *arguments, outputs=outputs, folder=folder)
    shown = b""
    while process.is_alive() or select.select([reader], [], [], 0.1)[0]:
        if select.select([reader], [], [], 0.1)[0]:
            shown += os.read(reader, 2**16)
    process.join()
    os.close(reader)
    os.close(writer)
    assert process.exitcode == 0, shown.decode()
    return shown.decode(), outputs[0].read_text()


def test_one_look_and_no_bars_of_libraries(tokenizer, tmp_path):
    shown, printed = on_terminal(*COMMAND, folder=tmp_path)
    with_rate = r"tokens: +\d+%\|[^|]+\| \d+/1437 \[00:\d\d<00:\d\d, +[\d.]+ images/s\]"
    assert re.search(with_rate, shown), shown
    assert "images: 1,437 images (train 1,437), 10 classes." in shown
    for line in filter(str.strip, re.split(r"\r|\n|\x1b\[A", shown)):
        ours = r"(tokens|images|sizes of files): |(opening data|loading tokenizer) \[00:\d\d\]"
        assert re.match(ours, line), line
    assert "1149 train, 288 test images as codes: tokens" in printed


def test_no_bar_without_a_terminal(tokenizer, tmp_path):
    done = run("titok_hf.cli", *COMMAND, folder=tmp_path)
    assert done.stderr == "images: 1,437 images (train 1,437), 10 classes.\n"


def test_warnings_of_libraries_are_hidden(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        call("plot", "nowhere")
        warnings.warn("a library says so", stacklevel=1)
    assert caught == []
