"""Runs of the miniature recipe, the stages that they train, and the weights that they leave."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from titok_hf.training import Recipe, RecipeRun

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
FOLDERS = {
    "vqgan": "vqgan",
    "classifier": "work/classifier",
    "warmup": "work/warmup",
    "decoder_finetuning": "tokenizer",
    "generator": "pipeline",
}


class Stages(TrainerCallback):
    """The stages that are trained, and their first steps."""

    def __init__(self):
        self.started = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.started.append((Path(args.output_dir).name, state.global_step))


def run(dataset, folder, callbacks=(), overrides=(), **arguments):
    return RecipeRun(
        Recipe.load(MINIATURE, overrides), dataset, folder, callbacks=callbacks, **arguments
    )


def weights(folder):
    files = {
        str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")
    }
    return {
        (file, name): tensor for file, tensors in files.items() for name, tensor in tensors.items()
    }


def assert_same_weights(folder, expected_folder):
    found, expected = weights(folder), weights(expected_folder)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []
