"""Previews in a training of two processes; part of `distributed_parts.py`."""

import json

import torch
from accelerate.utils import gather_object
from tiny_training import tiny_arguments, tiny_data, tiny_vqgan

from titok_hf import TiTokImageProcessor
from titok_hf.training import ReconstructionObjective, TiTokTrainer
from titok_hf.training.previews import Previews, reconstruction_preview


def main(folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective = ReconstructionObjective(tiny_vqgan(), ema_decay=0.9)
    trainer = TiTokTrainer(
        objective,
        tiny_arguments(folder / "trainer", max_steps=3, save_strategy="no"),
        **tiny_data(),
    )
    drawn = []

    def draw(objective):
        drawn.append(trainer.state.global_step)
        return reconstruction_preview(objective, torch.rand(4, 3, 32, 32), TiTokImageProcessor())

    trainer.add_callback(Previews(trainer, 1, folder / "previews", draw))
    trainer.train()
    torch.save(objective.state_dict(), folder / f"{trainer.args.process_index}.pt")
    counts = gather_object([len(drawn)])
    if trainer.is_world_process_zero():
        (folder / "drawn.json").write_text(json.dumps(counts))
