"""TiTok pipelines without progress bars, and the codes that they sample."""

import torch

from titok_hf import MaskGitScheduler, TiTokPipeline

MASK = 64
LABELS = [3, 1, 4, 1]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_quiet(tokenizer, generator, scheduler=None, **kwargs):
    pipeline = TiTokPipeline(tokenizer, generator, scheduler or MaskGitScheduler(MASK), **kwargs)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def codes_of(pipeline, *args, **kwargs):
    return pipeline(*args, output_type="codes", **kwargs).codes


def changed_config(config, **fields):
    return type(config)(**{**config.to_dict(), **fields})
