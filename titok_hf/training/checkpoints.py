"""Checkpoints that are whole or ignored: killed at any moment, a run goes on from the newest whole
one."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..distributed import process_state
from ..hub.folders import whole_file

logger = logging.getLogger(__name__)

# The file that is written last: the size of each file of the checkpoint, in bytes.
MANIFEST = "whole.json"
# What `torch.save` says of a file that it cannot write, in a RuntimeError without a reason.
TORCH_WRITER = ("inline_container", "iostream error")


class WholeCheckpoints:
    """Mixin of `OpenTrainer` whose checkpoints end with a manifest, which is written when all else is
    on the disk.

    Old checkpoints are deleted only after that, so that once there is a whole checkpoint, there is
    always one.
    """

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """As in `Trainer`; `True` goes on from the newest whole checkpoint.

        Raises:
            ValueError: If there is no whole one.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no whole checkpoint in {self.args.output_dir} to go on from; start "
                    "without "
                    "`resume_from_checkpoint`."
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the checkpoint of this step, and then deletes those that are more than
        `save_total_limit`.

        The process that cannot write says so and ends; the launcher ends those that wait for it.

        Raises:
            OSError: If it cannot be written, as on a full disk; what was written of it is deleted.
        """
        run_dir = Path(self.checkpoints_dir(trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # Trainer itself would delete the old ones before this one is whole
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                delete_checkpoint(folder)
            self.accelerator.wait_for_everyone()
            super().save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
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
    """The error of a checkpoint that could not be written, where `free` bytes were left."""
    last = newest_whole_checkpoint(folder.parent)
    good = (
        f"goes on from the last good checkpoint, {last}"
        if last
        else "starts anew, as there is no earlier one"
    )
    return OSError(
        f"The checkpoint of step {step} could not be written to {folder}, with {free / 2**30:.2f} "
        f"GiB free there: {reason}. Make room and start again with the same command: training "
        f"{good}."
    )


def checkpoints(folder: str | Path) -> dict[int, Path]:
    """The checkpoints in a trainer's folder by their steps, from the first to the last, whole or
    not."""
    found = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def write_manifest(folder: Path) -> None:
    """Sees to it that all files of a checkpoint are on the disk, and then declares it whole."""
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
    """Waits until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; `None` if it is whole."""
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
    """The newest whole checkpoint in a trainer's folder, as this process sees it; warns of newer
    ones that are not."""
    for path in reversed(checkpoints(folder).values()):
        if (wrong := damage(path)) is None:
            return str(path)
        logger.warning("The checkpoint %s is passed over: %s.", path, wrong)
    return None


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint in a trainer's folder, the same one in all processes, each of
    which must ask."""
    found = [newest_whole_checkpoint(folder) if process_state().is_main_process else None]
    return broadcast_object_list(found)[0]


def delete_checkpoint(folder: Path) -> None:
    """Deletes a checkpoint, its manifest first: what is left after a kill does not count as whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def delete_old_checkpoints(folder: Path, limit: int, step: int, keep: set[Path]) -> None:
    """Deletes checkpoints that are not whole, and then the oldest, until `limit` are left.

    Those of later steps are of an earlier run in the same folder, and count as older than all of
    this one.

    Args:
        folder: The trainer's.
        limit: Checkpoints to keep, those in `keep` among them.
        step: At which training is.
        keep: Checkpoints that stay in any case.
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
