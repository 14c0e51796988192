"""Previews in a training of two processes; part of `distributed_parts.py`."""

import json

import torch
from accelerate.utils import gather_object

from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel, TiTokImageProcessor
from titok_hf.data import ImageCollator
from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import ReconstructionObjective, TiTokTrainer, TiTokTrainingArguments
from titok_hf.training.previews import Previews, reconstruction_preview


def main(folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MaskGitVQGANConfig(
        image_size=32,
        hidden_channels=4,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        norm_num_groups=2,
        latent_channels=4,
        codebook_size=16,
    )
    objective = ReconstructionObjective(MaskGitVQGANModel(config), ema_decay=0.9)
    trainer = TiTokTrainer(
        objective,
        TiTokTrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=3,
            save_strategy="no",
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=load_digits_dataset()["train"].select(range(18)),
        data_collator=ImageCollator(TiTokImageProcessor.from_image_size(32)),
    )
    drawn = []

    def draw(objective):
        drawn.append(trainer.state.global_step)
        return reconstruction_preview(objective, torch.rand(4, 3, 32, 32))

    trainer.add_callback(Previews(trainer, 1, folder / "previews", draw))
    trainer.train()
    torch.save(objective.state_dict(), folder / f"{trainer.args.process_index}.pt")
    counts = gather_object([len(drawn)])
    if trainer.is_world_process_zero():
        (folder / "drawn.json").write_text(json.dumps(counts))
