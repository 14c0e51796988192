"""The first two stages of the miniature recipe, for the test of a run in several processes: each
runs this file."""

import sys
from pathlib import Path

import torch
from datasets import DatasetDict

from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import Recipe, RecipeRun

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"

if __name__ == "__main__":
    torch.set_num_threads(1)
    content = Recipe.load(MINIATURE).to_dict()
    content["stages"] = {stage: content["stages"][stage] for stage in ("vqgan", "warmup")}
    for stage in content["stages"].values():
        # two processes: half of what one takes at once
        stage["training"] |= {"global_batch_size": 4, "per_device_train_batch_size": 2}
    train = load_digits_dataset()["train"].select(range(18))
    RecipeRun(Recipe.from_dict(content), DatasetDict(train=train), sys.argv[1]).train()
