"""The training of a masked generator as a bare loop, without a trainer.

    python examples/bare_loop.py demo/tokenizer generator

encodes the digits with the tokenizer of `titok demo`, trains a small generator on their codes, and saves it
and a pipeline. What the loop leaves out is what `TiTokTrainer` is for: several processes, accumulated
batches, mixed precision, checkpoints, logs, checks of losses and weights, and data that is streamed.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_cosine_schedule_with_warmup

from titok_hf import (
    MaskGitScheduler,
    MaskGitUViTConfig,
    MaskGitUViTModel,
    TiTokImageProcessor,
    TiTokModel,
    TiTokPipeline,
)
from titok_hf.data import open_images

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
NOT_DECAYED = ("embedding", "token", "norm")  # nor is what has one dimension


def train(
    generator: MaskGitUViTModel,
    scheduler: MaskGitScheduler,
    batches: Iterable[Batch],
    num_steps: int,
    learning_rate: float = 1e-3,
    warmup_steps: int = 50,
    weight_decay: float = 0.03,
    ema_decay: float = 0.995,
) -> MaskGitUViTModel:
    """Trains a generator, and returns the moving average of its weights.

    Args:
        generator: The generator.
        scheduler: Masks codes as it will when it samples.
        batches: `num_steps` batches of codes `(B, N)`, class labels `(B,)` and draws `(B, 2 + N)` from
            [0, 1): of the share of masked tokens, of label dropout, and of which tokens are masked.
        num_steps, learning_rate, warmup_steps, weight_decay, ema_decay: Settings of the optimization.
    """
    config = generator.config
    groups = {True: [], False: []}
    for name, parameter in generator.named_parameters():
        spared = parameter.ndim < 2 or any(word in name for word in NOT_DECAYED)
        groups[not spared].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.96),
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps, num_steps)
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    generator.train()
    for codes, labels, draws in batches:
        masked = scheduler.add_noise(codes, draws[:, 0], noise=draws[:, 2:])  # (B, N)
        dropped = draws[:, 1] < config.label_dropout  # (B,)
        loss = generator(masked, labels, codes, dropped).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.update_parameters(generator)
    return average.module.eval()


def digit_batches(tokenizer: TiTokModel, num_steps: int, batch_size: int) -> Iterator[Batch]:
    """Yields batches of the codes of the training digits, in random order."""
    digits = open_images("digits").dataset("train")
    processor = TiTokImageProcessor.from_image_size(tokenizer.config.image_size)
    pixel_values = processor(digits["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        codes = torch.cat([tokenizer.encode(part).codes for part in pixel_values.split(256)])
    labels = torch.tensor(digits["label"][:])
    for _ in range(num_steps):
        rows = torch.randint(len(codes), (batch_size,))
        yield codes[rows], labels[rows], torch.rand(batch_size, 2 + codes.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", help="folder of a tokenizer of digits")
    parser.add_argument("output", type=Path, help="folder for the pipeline")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = TiTokModel.from_pretrained(arguments.tokenizer).eval()
    config = MaskGitUViTConfig(
        codebook_size=tokenizer.config.codebook_size,
        num_tokens=tokenizer.config.num_tokens,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        initializer_range=0.05,
        id2label=dict(enumerate(NAMES)),
        label2id={name: label for label, name in enumerate(NAMES)},
    )
    scheduler = MaskGitScheduler(mask_token_id=config.mask_token_id, choice_temperature=20.0)
    batches = digit_batches(tokenizer, arguments.steps, arguments.batch_size)
    generator = train(MaskGitUViTModel(config), scheduler, batches, arguments.steps)
    pipeline = TiTokPipeline(
        tokenizer, generator, scheduler, num_inference_steps=16, guidance_scale=1.2
    )
    pipeline.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
