"""A short warm-up on digits, for the test of training in several processes: each runs this file."""

import json
import sys
from pathlib import Path

import torch
from transformers import PrinterCallback

from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel, TiTokConfig, TiTokImageProcessor, TiTokModel
from titok_hf.data import ImageCollator
from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import TiTokTrainer, TiTokTrainingArguments, WarmupObjective

GLOBAL_BATCH_SIZE = 8
MAX_STEPS = 12


def train(output_dir: Path, num_processes: int) -> None:
    """Writes `log.json`, and `{rank}.pt` with the state of each process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vqgan_config = MaskGitVQGANConfig(
        image_size=32,
        hidden_channels=8,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=1,
        norm_num_groups=4,
        latent_channels=8,
        codebook_size=64,
    )
    config = TiTokConfig(
        image_size=32,
        encoder_patch_size=8,
        decoder_patch_size=8,
        encoder_hidden_size=32,
        encoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        num_latent_tokens=8,
        latent_dim=6,
        codebook_size=64,
        vqgan_config=vqgan_config.to_dict(),
        initializer_range=0.2,
    )
    objective = WarmupObjective(TiTokModel(config), MaskGitVQGANModel(vqgan_config), ema_decay=0.9)
    objective.codebook_revival.decay = 0.5  # so that unused codes are dead at the first revival, after step 10
    trainer = TiTokTrainer(
        objective,
        TiTokTrainingArguments(
            output_dir=str(output_dir / "trainer"),
            use_cpu=True,
            max_steps=MAX_STEPS,
            per_device_train_batch_size=GLOBAL_BATCH_SIZE // num_processes,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=load_digits_dataset()["train"].select(range(40)),
        data_collator=ImageCollator(TiTokImageProcessor.from_image_size(32)),
    )
    trainer.remove_callback(PrinterCallback)
    assert trainer.accelerator.num_processes == num_processes
    trainer.train()
    torch.save(objective.state_dict(), output_dir / f"{trainer.accelerator.process_index}.pt")
    if trainer.is_world_process_zero():
        (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
