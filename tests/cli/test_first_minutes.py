"""The commands of the first minutes: what the machine offers, and how a run goes."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from PIL import Image

from titok_hf import doctor
from titok_hf.version import __version__

pytestmark = pytest.mark.slow


class TestDoctor:
    def test_it_tells_versions_memory_and_extras(self, call):
        code, output, errors = call("doctor")
        assert code == 0, errors
        for word in ("titok_hf", __version__, "torch", "GiB free", "[emoji]", "complete", "Hub"):
            assert word in output, word
        assert re.search(r"matrix product in float32 [\d,]+, bfloat16 [\d,]+", output)

    def test_json_is_the_same_as_data(self, call, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        code, output, _ = call("doctor", "--json")
        found = json.loads(output)
        assert code == 0 and found.keys() == doctor.diagnose().keys()
        assert found["versions"]["titok_hf"] == __version__
        assert found["memory_gib"] > 1 and found["cache"]["free_gib"] > 0

    def test_a_missing_package_comes_with_its_command(self, monkeypatch):
        extra = next(text for text in requires("titok_hf") if "openmoji" in text)
        monkeypatch.setattr(
            doctor, "requires", lambda name: [extra, "numpy>=1", 'nothing-here; extra == "emoji"']
        )
        found = doctor.describe_extra("emoji")
        assert found["missing"] == ["nothing-here"]
        assert found["command"] == 'pip install "titok_hf[emoji]"'

    def test_the_hub_of_the_tests_is_reached_and_a_dead_one_is_not(self, hub, monkeypatch):
        assert doctor.reach_hub() == "reachable"
        monkeypatch.setattr(doctor.constants, "ENDPOINT", "http://127.0.0.1:9")
        assert doctor.reach_hub().startswith("not reachable: ")


class TestPlot:
    @pytest.fixture
    def run(self, tmp_path):
        folder = tmp_path / "run"
        (folder / "work/logs").mkdir(parents=True)
        (folder / "recipe.yaml").write_text("stages: {first: {}, second: {}, third: {}}\n")
        return folder

    def history(self, steps):
        return [{"step": step, "loss": 1 / step, "token_accuracy": 0.5} for step in range(1, steps)]

    def checkpoint(self, run, step):
        folder = run / f"work/checkpoints/second/checkpoint-{step}"
        folder.mkdir(parents=True)
        state = {"log_history": self.history(step)}
        (folder / "trainer_state.json").write_text(json.dumps(state))

    def test_a_run_that_is_under_way(self, call, run):
        (run / "work/logs/first.json").write_text(json.dumps({"history": self.history(9)}))
        code, _, errors = call("plot", run, "--output", "one.png")
        assert code == 0, errors
        for step in (5, 10):
            self.checkpoint(run, step)
        code, _, errors = call("plot", run, "--output", "two.png")
        assert code == 0, errors
        assert Image.open("two.png").width == 2 * Image.open("one.png").width

    def test_without_a_log(self, call, run, tmp_path):
        code, _, errors = call("plot", run)
        assert code == 1 and "has no log yet" in errors
        code, _, errors = call("plot", tmp_path / "nowhere")
        assert code == 1 and "is no folder of a run" in errors


class TestCompletion:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("titok eva", ["evaluate"]),
            ("titok train vtp-e", ["vtp-emoji"]),
            ("titok study s", ["scaling", "schedule"]),
            ("titok evaluate generation x --protocol adm", ["adm-256", "adm-512"]),
            ("titok generate --anim", ["--animation"]),
        ],
    )
    def test_the_shell_completes_commands_options_and_names(self, words, expected):
        """The command is called as bash calls it after `titok --install-completion`."""
        environment = {
            "_TITOK_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        command = Path(sys.executable).with_name("titok")
        done = subprocess.run(
            [command], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == expected
