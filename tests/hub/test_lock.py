"""One process at a time uses a folder."""

import logging
import os
import socket
import subprocess
import sys

import pytest
from locks import HOLD

from titok_hf.hub.lock import NAME, locked_folder


def test_a_second_process_is_refused_while_the_first_lives(holder, tmp_path):
    first = holder(tmp_path / "run")
    sentence = rf"run is in use by a run that has not ended \(process {first.pid} on "
    with pytest.raises(BlockingIOError, match=sentence), locked_folder(tmp_path / "run"):
        pass
    first.communicate()  # ends its input, and so the process
    with locked_folder(tmp_path / "run"):
        assert (tmp_path / "run" / NAME).exists()
    assert not (tmp_path / "run" / NAME).exists()


@pytest.mark.parametrize("arguments", [(), ("fork",)], ids=["alone", "with a worker"])
def test_a_killed_process_does_not_block(holder, tmp_path, caplog, arguments):
    first = holder(tmp_path / "run", *arguments)
    first.kill()
    first.wait()
    assert (tmp_path / "run" / NAME).read_text() == f"{socket.gethostname()} {first.pid}"
    with caplog.at_level(logging.WARNING), locked_folder(tmp_path / "run"):
        assert (tmp_path / "run" / NAME).read_text() == f"{socket.gethostname()} {os.getpid()}"
    assert caplog.messages == []


def test_what_another_machine_left_behind_is_said(tmp_path, caplog):
    (tmp_path / NAME).write_text("elsewhere 17")
    with caplog.at_level(logging.WARNING), locked_folder(tmp_path):
        pass
    [warning] = caplog.messages
    assert "the machine elsewhere" in warning and str(tmp_path) in warning


def test_a_process_may_take_its_lock_again(holder, tmp_path):
    with locked_folder(tmp_path / "run"):
        with locked_folder(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / NAME).exists()
        second = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path / "run")],
            input="",
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert second.returncode and "is in use by a run" in second.stderr
