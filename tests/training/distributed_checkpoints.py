"""Checkpoints of two processes, each of which runs this file."""

import sys
from pathlib import Path

import torch
from tiny_training import tiny_arguments, tiny_data, tiny_vqgan

from titok_hf.distributed import process_state
from titok_hf.training import ReconstructionObjective, TiTokTrainer
from titok_hf.training.checkpoints import last_checkpoint, write_manifest


class Trainer(TiTokTrainer):
    """Finds the disk full, if it is to be, when the optimizer of step 4 is saved."""

    def save_model(self, output_dir, **kwargs):
        if (
            self.state.global_step == 4
            and sys.argv[2:] == ["full"]
            and self.is_world_process_zero()
        ):
            Path(output_dir).mkdir()
            (Path(output_dir) / "optimizer.pt").symlink_to("/dev/full")
        super().save_model(output_dir, **kwargs)


def main(folder):
    torch.set_num_threads(1)
    rank = process_state().process_index
    found = folder / str(rank) / f"checkpoint-{10 * (rank + 1)}"  # another one in each process
    found.mkdir(parents=True)
    write_manifest(found)
    (folder / f"{rank}.txt").write_text(str(last_checkpoint(folder / str(rank))))
    torch.manual_seed(0)
    Trainer(
        ReconstructionObjective(tiny_vqgan()),
        tiny_arguments(folder / "trainer", max_steps=4, save_steps=2, save_total_limit=1),
        **tiny_data(),
    ).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
