"""A tiny pipeline of latents."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from training.tiny_pretraining import make_model

from titok_hf import LatentDiTPipeline, LightningDiTConfig, LightningDiTModel

MEAN, STD = [0.1, -0.2, 0.3, 0.0], [1.0, 0.5, 2.0, 1.5]


def make_transformer(seed=0, **fields):
    torch.manual_seed(seed)
    config = LightningDiTConfig(
        **{
            "in_channels": 4,
            "sample_size": 4,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "id2label": {0: "cat", 1: "dog, hound", 2: "7"},
            "latent_mean": MEAN,
            "latent_std": STD,
            **fields,
        }
    )
    model = LightningDiTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make_pipeline(transformer=None, tokenizer=None, **arguments):
    if tokenizer is None:
        torch.manual_seed(0)
        tokenizer = make_model(has_text=False).eval()
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = LatentDiTPipeline(
        tokenizer, transformer or make_transformer(), scheduler, **arguments
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)
