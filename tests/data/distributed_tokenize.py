"""Tokenizing that several processes share: each runs this file."""

import os
import sys
from pathlib import Path

import torch

from titok_hf.data import tokenize_to_folder
from titok_hf.distributed import process_state

SOURCES = {"images-tokens": "images", "shards-tokens": "shards/*.tar", "rest-tokens": "images"}
MODES = (0o644, 0o640)  # of the files that each of two processes writes


def tokenize(folder: Path, tokenizer: Path) -> None:
    """Writes the data sets of `SOURCES`; the mode of a file says which process wrote it."""
    torch.set_num_threads(1)
    state = process_state()
    assert state.num_processes == len(MODES)
    os.umask(0o666 & ~MODES[state.process_index])
    for name, source in SOURCES.items():
        record = tokenize_to_folder(
            str(folder / source), tokenizer, folder / name, part_size=2, batch_size=4, num_workers=0
        )
        assert sum(split["rows"] for split in record["result"]["splits"].values()) in (9, 13)


if __name__ == "__main__":
    tokenize(Path(sys.argv[1]), Path(sys.argv[2]))
    process_state().destroy_process_group()
