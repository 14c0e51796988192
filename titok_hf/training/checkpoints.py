"""Complete checkpoints: a run killed at any time resumes from the newest complete one."""

import json
import logging
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..distributed import process_state
from ..hub.folders import whole_file
from ..hub.lock import locked_folder

logger = logging.getLogger(__name__)

# The file that is written last; it holds the size of each file of the checkpoint in bytes.
MANIFEST = "whole.json"
# If `torch.save` cannot write a file, it raises a RuntimeError with one of these and no reason.
TORCH_WRITER = ("inline_container", "iostream error")


class WholeCheckpoints:
    """Mixin of `OpenTrainer` that writes a manifest once all other files of a checkpoint are on the
    disk.

    Old checkpoints are deleted only then, so that from the first complete checkpoint on there is
    always one.
    """

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Same as in `Trainer`; `True` resumes from the newest complete checkpoint.

        Raises:
            BlockingIOError: If another process trains in the same folder.
            ValueError: If `True` is given and there is no complete checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no whole checkpoint in {self.args.output_dir} to resume from; start "
                    "without `resume_from_checkpoint`."
                )
        self.find_place(resume_from_checkpoint or None)
        with locked_folder(self.args.output_dir) if self.args.process_index == 0 else nullcontext():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def find_place(self, checkpoint: str | None) -> None:
        """Prepares to go on from a checkpoint, or to start anew; by default, nothing is needed."""

    def complete_checkpoint(self, folder: Path) -> None:
        """Adds files to a checkpoint; by default none. The main process calls it."""

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the checkpoint of this step, then deletes old ones beyond `save_total_limit`.

        A process that cannot write raises an error, and the launcher ends those that wait for it.

        Raises:
            OSError: If the checkpoint cannot be written, for example because the disk is full; the
                files written so far are deleted.
        """
        run_dir = Path(self.checkpoints_dir(trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # Trainer itself would delete the old ones before this one is complete
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                delete_checkpoint(folder)
            self.accelerator.wait_for_everyone()
            super().save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.complete_checkpoint(folder)
                write_manifest(folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error)
            if isinstance(error, RuntimeError):
                if not any(words in reason for words in TORCH_WRITER):
                    raise
                reason = (
                    f"a file could not be written, as on a full disk ({reason.splitlines()[0]})"
                )
            free = shutil.disk_usage(run_dir).free
            if self.args.should_save:
                delete_checkpoint(folder)
            raise unwritten(self.state.global_step, folder, reason, free) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save and limit is not None and limit > 0:
            keep = {folder, Path(self.state.best_model_checkpoint or folder)}
            delete_old_checkpoints(run_dir, limit, self.state.global_step, keep)


def unwritten(step: int, folder: Path, reason: str, free: int) -> OSError:
    """Returns the error of a checkpoint that could not be written with `free` bytes left."""
    last = newest_whole_checkpoint(folder.parent)
    good = (
        f"resumes from the last good checkpoint, {last}"
        if last
        else "starts anew, as there is no earlier one"
    )
    return OSError(
        f"The checkpoint of step {step} could not be written to {folder}, with {free / 2**30:.2f} "
        f"GiB free there: {reason}. Make room and start again with the same command: training "
        f"{good}."
    )


def checkpoints(folder: str | Path) -> dict[int, Path]:
    """Returns all checkpoints in a trainer's folder by step, in order, complete or not."""
    found = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def write_manifest(folder: Path) -> None:
    """Flushes all files of a checkpoint to the disk, then marks it as complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in [*files, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        flush(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    with whole_file(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(sizes, indent=1))
        flush(partial)
    flush(folder)
    flush(folder.parent)


def flush(path: Path) -> None:
    """Waits until a file, or the directory entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint; `None` if it is complete."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return "it was not written to its end"
    except ValueError:
        return f"{MANIFEST} is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
    return None


def newest_whole_checkpoint(folder: str | Path) -> str | None:
    """Returns the newest complete checkpoint that this process sees in a trainer's folder; warns of
    newer incomplete ones."""
    for path in reversed(checkpoints(folder).values()):
        if (wrong := damage(path)) is None:
            return str(path)
        logger.warning("The checkpoint %s is skipped: %s.", path, wrong)
    return None


def last_checkpoint(folder: str | Path) -> str | None:
    """Returns the newest complete checkpoint in a trainer's folder, the same in all processes; all
    of them must call it."""
    found = [newest_whole_checkpoint(folder) if process_state().is_main_process else None]
    return broadcast_object_list(found)[0]


def delete_checkpoint(folder: Path) -> None:
    """Deletes a checkpoint, manifest first, so that it is incomplete if the process is killed."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def delete_old_checkpoints(folder: Path, limit: int, step: int, keep: set[Path]) -> None:
    """Deletes incomplete checkpoints, and then the oldest ones until `limit` are left.

    Checkpoints of later steps belong to an earlier run in the same folder; they count as older than
    all of this run.

    Args:
        folder: The trainer's folder.
        limit: Number of checkpoints to keep, including those in `keep`.
        step: Current step of training.
        keep: Checkpoints that are never deleted.
    """
    whole = {}
    for number, path in checkpoints(folder).items():
        if path in keep or damage(path) is None:
            whole[number] = path
        else:
            delete_checkpoint(path)
    excess = len(whole) - limit
    for number in sorted(whole, key=lambda number: (number <= step, number)):
        if excess > 0 and whole[number] not in keep:
            delete_checkpoint(whole[number])
            excess -= 1
