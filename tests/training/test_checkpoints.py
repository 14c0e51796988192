import json
import logging
import os
import resource
from pathlib import Path

import pytest
import torch
from forked import run
from transformers import TrainerCallback

from titok_hf.training.checkpoints import (
    MANIFEST,
    damage,
    delete_old_checkpoints,
    last_checkpoint,
    write_manifest,
)

pytestmark = pytest.mark.slow

FILES = [
    "model.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "place.json",
    f"{MANIFEST}.partial",
]


def make_checkpoint(folder, step, whole=True):
    """A folder with two files, and the manifest if it is whole."""
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"0123456789")
    (checkpoint / "shards" / "0.distcp").write_bytes(b"01234")
    if whole:
        write_manifest(checkpoint)
    return checkpoint


def names(folder):
    return {path.name for path in folder.iterdir()}


def run_script(name, *arguments, **options):
    """Runs a script of this folder."""
    return run(Path(__file__).with_name(name), *arguments, **options)


class TestLastCheckpoint:
    def test_it_is_the_one_of_the_highest_step(self, tmp_path):
        for step in (9, 100, 20):
            make_checkpoint(tmp_path, step)
        make_checkpoint(tmp_path, 200).rename(tmp_path / "checkpoint-200-copy")
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")

    @pytest.mark.parametrize("folder", ["empty", "missing"])
    def test_there_may_be_none(self, tmp_path, folder):
        (tmp_path / "empty").mkdir()
        assert last_checkpoint(tmp_path / folder) is None

    @pytest.mark.parametrize(
        ("harm", "said"),
        [
            (lambda folder: (folder / MANIFEST).unlink(), "it was not written to its end"),
            (lambda folder: os.truncate(folder / MANIFEST, 5), "whole.json is damaged"),
            (
                lambda folder: os.truncate(folder / "model.safetensors", 9),
                "model.safetensors has 9 of 10 bytes",
            ),
            (
                lambda folder: (folder / "shards" / "0.distcp").unlink(),
                "shards/0.distcp is missing",
            ),
        ],
    )
    def test_one_that_is_not_whole_is_passed_over_with_a_warning(
        self, tmp_path, caplog, harm, said
    ):
        make_checkpoint(tmp_path, 10)
        broken = make_checkpoint(tmp_path, 20)
        assert damage(broken) is None
        harm(broken)
        with caplog.at_level(logging.WARNING):
            assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
        assert [record.getMessage() for record in caplog.records] == [
            f"The checkpoint {broken} is skipped: {said}."
        ]

    def test_files_that_came_later_do_no_harm(self, tmp_path):
        checkpoint = make_checkpoint(tmp_path, 10)
        (checkpoint / "notes.txt").write_text("good")
        assert last_checkpoint(tmp_path) == str(checkpoint)


class TestDeleting:
    def test_the_oldest_go_and_those_that_are_not_whole(self, tmp_path):
        for step in (10, 20, 30, 40):
            make_checkpoint(tmp_path, step, whole=step != 30)
        delete_old_checkpoints(tmp_path, 2, 40, {tmp_path / "checkpoint-40"})
        assert names(tmp_path) == {"checkpoint-20", "checkpoint-40"}

    def test_those_to_keep_stay_and_count(self, tmp_path):
        for step in (10, 20, 30, 40):
            make_checkpoint(tmp_path, step)
        keep = {tmp_path / "checkpoint-40", tmp_path / "checkpoint-10"}
        delete_old_checkpoints(tmp_path, 2, 40, keep)
        assert names(tmp_path) == {"checkpoint-10", "checkpoint-40"}
        delete_old_checkpoints(tmp_path, 1, 40, keep)
        assert names(tmp_path) == {"checkpoint-10", "checkpoint-40"}

    def test_those_of_an_earlier_run_that_went_further_go_first(self, tmp_path):
        for step in (10, 20, 500):
            make_checkpoint(tmp_path, step)
        delete_old_checkpoints(tmp_path, 2, 20, {tmp_path / "checkpoint-20"})
        assert names(tmp_path) == {"checkpoint-10", "checkpoint-20"}


class Watch(TrainerCallback):
    """Keeps which checkpoints are there after each one is saved, and whether they are whole."""

    def __init__(self):
        self.seen = []

    def on_save(self, args, state, control, **kwargs):
        folders = sorted(Path(args.output_dir).glob("checkpoint-*"))
        self.seen.append({int(folder.name[11:]): damage(folder) is None for folder in folders})


class TestSaving:
    OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}

    def test_as_many_whole_ones_are_kept_as_the_limit_says(self, make_objective, make_trainer):
        watch = Watch()
        make_trainer(
            make_objective("vqgan"), callbacks=[watch], save_total_limit=2, **self.OPTIONS
        ).train()
        assert watch.seen == [{2: True}, {2: True, 4: True}, {4: True, 6: True}]

    def test_without_a_limit_all_are_kept(self, make_objective, make_trainer):
        watch = Watch()
        make_trainer(make_objective("vqgan"), callbacks=[watch], **self.OPTIONS).train()
        assert watch.seen[-1] == {2: True, 4: True, 6: True}

    def test_the_manifest_holds_the_sizes_of_all_files(
        self, make_objective, make_trainer, tmp_path
    ):
        make_trainer(make_objective("vqgan"), **self.OPTIONS).train()
        folder = tmp_path / "trainer" / "checkpoint-2"
        sizes = {
            path.name: path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST
        }
        assert json.loads((folder / MANIFEST).read_text()) == sizes
        assert sizes.keys() == set(FILES[:-1])

    def test_what_is_left_of_a_killed_one_is_removed_before_it_is_written_again(
        self, make_objective, make_trainer, tmp_path
    ):
        (tmp_path / "trainer" / "checkpoint-2" / "old").mkdir(parents=True)
        make_trainer(make_objective("vqgan"), **self.OPTIONS).train()
        assert names(tmp_path / "trainer" / "checkpoint-2") == {*FILES[:-1], MANIFEST}

    def test_true_goes_on_from_the_newest_whole_one(self, make_objective, make_trainer, tmp_path):
        alone = make_trainer(make_objective("vqgan"), **self.OPTIONS)
        alone.train()
        newest = tmp_path / "trainer" / "checkpoint-6"
        os.truncate(newest / "optimizer.pt", 100)
        again = make_trainer(make_objective("vqgan", seed=1), **self.OPTIONS)
        again.train(resume_from_checkpoint=True)
        assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]
        assert damage(newest) is None
        for name, tensor in again.model.state_dict().items():
            assert torch.equal(tensor, alone.model.state_dict()[name]), name

    def test_true_without_a_whole_one_is_an_error(self, make_objective, make_trainer, tmp_path):
        make_checkpoint(tmp_path / "trainer", 2, whole=False)
        with pytest.raises(
            ValueError, match=r"There is no whole checkpoint in .*trainer to resume from"
        ):
            make_trainer(make_objective("vqgan"), **self.OPTIONS).train(resume_from_checkpoint=True)


class TestFullDisk:
    """`/dev/full` in the place of a file refuses every byte; safetensors replaces it, and meets a
    limit instead."""

    OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}

    @pytest.fixture
    def fill(self):
        """Lets one file of the trainer's checkpoint of step 4 meet a full disk."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill(trainer, name):
            save_model = trainer.save_model

            def save(output_dir, **kwargs):
                if trainer.state.global_step == 4 and name == "model.safetensors":
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
                elif trainer.state.global_step == 4:
                    Path(output_dir).mkdir()
                    (Path(output_dir) / name).symlink_to("/dev/full")
                save_model(output_dir, **kwargs)

            trainer.save_model = save

        yield fill
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @pytest.mark.parametrize("name", FILES)
    def test_training_stops_with_a_sentence_and_the_last_good_checkpoint_stays(
        self, make_objective, make_trainer, tmp_path, fill, name
    ):
        trainer = make_trainer(make_objective("vqgan"), **self.OPTIONS)
        fill(trainer, name)
        folder = tmp_path / "trainer"
        said = (
            f"The checkpoint of step 4 could not be written to {folder}/checkpoint-4, with .* GiB "
            "free there: "
            ".*(No space left on device|File too large|as on a full disk).* Make room and start "
            "again with the same "
            f"command: training resumes from the last good checkpoint, {folder}/checkpoint-2."
        )
        with pytest.raises(OSError, match=said):
            trainer.train()
        assert names(folder) == {"checkpoint-2"}
        assert last_checkpoint(folder) == str(folder / "checkpoint-2")

    def test_with_room_again_it_ends_as_if_nothing_had_been(
        self, make_objective, make_trainer, tmp_path, fill
    ):
        trainer = make_trainer(make_objective("vqgan"), **self.OPTIONS)
        fill(trainer, "optimizer.pt")
        with pytest.raises(OSError, match="step 4"):
            trainer.train()
        again = make_trainer(make_objective("vqgan", seed=1), **self.OPTIONS)
        again.train(resume_from_checkpoint=True)
        alone = make_trainer(make_objective("vqgan"), max_steps=6)
        alone.train()
        for name, tensor in again.model.state_dict().items():
            assert torch.equal(tensor, alone.model.state_dict()[name]), name

    def test_without_an_earlier_checkpoint_it_says_so(
        self, make_objective, make_trainer, tmp_path, fill
    ):
        trainer = make_trainer(make_objective("vqgan"), **{**self.OPTIONS, "save_steps": 4})
        fill(trainer, "trainer_state.json")
        with pytest.raises(OSError, match="training starts anew, as there is no earlier one"):
            trainer.train()
        assert names(tmp_path / "trainer") == set()

    def test_another_error_while_saving_stays_as_it_is(self, make_objective, make_trainer):
        trainer = make_trainer(make_objective("vqgan"), **self.OPTIONS)

        def save(output_dir, **kwargs):
            raise RuntimeError("of the device")

        trainer.save_model = save
        with pytest.raises(RuntimeError, match=r"^of the device$"):
            trainer.train()


@pytest.mark.xdist_group("distributed")
def test_killed_at_twenty_moments_a_run_ends_with_the_same_weights(tmp_path):
    run_script("killed_training.py", tmp_path)
    moments = json.loads((tmp_path / "moments.json").read_text())
    assert len(moments) == 20
    assert all(moment["status"] == 9 for moment in moments)  # killed, not ended
    whole = [any(moment["whole"].values()) for moment in moments]
    assert all(whole[whole.index(True) :])  # from the first on there always was one
    assert (
        sum(not all(moment["whole"].values()) for moment in moments) >= 8
    )  # killed while it wrote or deleted
    alone, killed = (torch.load(tmp_path / name / "result.pt") for name in ("alone", "killed"))
    assert [name for name in alone if not torch.equal(alone[name], killed[name])] == []


@pytest.mark.xdist_group("distributed")
class TestTwoProcesses:
    def test_they_go_on_from_the_same_checkpoint(self, two_processes):
        """The main process finds another newest checkpoint than the other one."""
        folder = two_processes / "distributed_checkpoints"
        found = {(folder / f"{rank}.txt").read_text() for rank in range(2)}
        assert found == {str(folder / "0" / "checkpoint-10")}
        sizes = json.loads((folder / "trainer" / "checkpoint-4" / MANIFEST).read_text())
        assert {"rng_state_0.pth", "rng_state_1.pth"} < sizes.keys()
        assert names(folder / "trainer") == {"checkpoint-4"}

    def test_a_full_disk_ends_both(self, tmp_path):
        result = run_script(
            "distributed_checkpoints.py", tmp_path, "full", num_processes=2, check=False
        )
        assert result.returncode != 0
        assert result.stderr.count("OSError: The checkpoint of step 4 could not be written") == 1
        assert last_checkpoint(tmp_path / "trainer") == str(tmp_path / "trainer" / "checkpoint-2")
