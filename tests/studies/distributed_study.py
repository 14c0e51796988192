"""A quick study in several processes: each runs this file."""

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from titok_hf.studies import run_study

VALUES = {"objective": ["reconstruction"], "steps": [2]}

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, data, extractor = sys.argv[1:]
    # two processes: half of what one takes at once
    sizes = {"classifier": 2, "vtp_pretraining": 16, "latent_generator": 2}
    run_study(
        "scaling",
        folder,
        data,
        overrides=[
            f"stages.{stage}.training.per_device_train_batch_size={size}"
            for stage, size in sizes.items()
        ],
        quick=True,
        values=VALUES,
        extractor=extractor,
        callbacks=[TrainerCallback()],
    )
    for name in ("table.md", "plot.png"):  # of all processes, once the study is done
        assert (Path(folder) / name).stat().st_size
