"""Progress bars on a real terminal."""

import os
import re
import select
import termios
import time
from contextlib import contextmanager, redirect_stderr

import pytest
import torch
from huggingface_hub.utils import disable_progress_bars
from transformers import TrainerControl, TrainerState, TrainingArguments

from titok_hf.cli.progress import TrainingProgress
from titok_hf.evaluation.image_sources import TensorImages
from titok_hf.progress import counted, index_batches, working


@contextmanager
def terminal():
    """Makes stderr a terminal; yields a function that returns what has been shown since its last call."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 100))

    def shown():
        text = b""
        while select.select([reader], [], [], 0.1)[0]:
            text += os.read(reader, 2**16)
        return text.decode()

    with os.fdopen(writer, "w") as stream, redirect_stderr(stream):
        yield shown
    os.close(reader)


def test_images_are_counted_with_rate_and_remaining_time():
    with terminal() as shown:
        for indices in index_batches(40, 16, "samples"):
            assert len(indices) in (16, 8)
            time.sleep(0.12)  # a bar is drawn at most every 0.1 seconds
        assert re.search(
            r"samples:  40%\|█+.*\| 16/40 \[00:00<00:00, +[\d.]+ images/s\]", text := shown()
        )
        assert "40/40" in text


def test_a_source_of_images_counts_them_and_may_be_hidden():
    with terminal() as shown:
        source = TensorImages(torch.zeros(40, 3, 8, 8, dtype=torch.uint8))
        assert [len(batch.images) for batch in source.progress(16, "samples")] == [16, 16, 8]
        assert "0/40" in shown()
        list(source.progress(16, "samples", shown=False))
        assert shown() == ""


def test_without_a_total_the_rate_is_left():
    with terminal() as shown:
        for _ in counted(iter("abc"), "folder", "files"):
            time.sleep(0.12)
        assert re.search(r"folder: 2 \[00:00, +[\d.]+ files/s\]", shown())


def test_an_instant_leaves_no_line_and_a_second_does():
    with terminal() as shown:
        list(counted("abc", "brief"))
        assert "\n" not in shown()
        with working("loading"):
            time.sleep(1.1)
        text = shown()
        assert "loading [00:01]" in text and text.endswith("\n")


def test_bars_can_be_hidden():
    with terminal() as shown:
        with disable_progress_bars("titok_hf"):
            list(counted("abc", "hidden"))
            with working("hidden"):
                time.sleep(0.6)
        assert shown() == ""


@pytest.fixture
def train(tmp_path):
    """Calls what a trainer calls in four steps, resumed after the first one."""

    def train(logged=True):
        args = TrainingArguments(tmp_path / "decoder_finetuning", report_to="none")
        state, control = TrainerState(max_steps=4, global_step=1), TrainerControl()
        with TrainingProgress() as progress:
            progress.on_train_begin(args, state, control)
            for _ in range(3):
                state.global_step += 1
                time.sleep(0.12)
                progress.on_step_end(args, state, control)
            if logged:
                progress.on_log(args, state, control, logs={"loss": 0.5, "images_per_second": 32.1})
            progress.on_train_end(args, state, control)

    return train


def test_training_shows_loss_and_speed(train):
    with terminal() as shown:
        train()
        expected = r"decoder finetuning: 100%\|█+\| 4/4 \[00:00<00:00, +[\d.]+ steps/s, loss 0.5000, 32 images/s\]"
        assert re.search(expected, shown())


def test_training_without_a_terminal_ends_with_a_line(train, capsys):
    train()
    assert capsys.readouterr().err == "decoder finetuning: 4 steps, loss 0.5000, 32 images/s\n"


def test_training_that_logged_nothing_ends_with_its_steps(train, capsys):
    train(logged=False)
    assert capsys.readouterr().err == "decoder finetuning: 4 steps\n"


def test_nothing_is_drawn_without_a_terminal(capsys):
    list(index_batches(40, 16, "samples"))
    with working("loading"):
        time.sleep(0.6)
    assert capsys.readouterr().err == ""
