"""Changes of the demo's protocol, and the images that a pipeline makes for it."""

import torch

from titok_hf.evaluation import Protocol
from titok_hf.evaluation.generation import load_pipeline
from titok_hf.evaluation.image_sources import GeneratedImages


def changes(*metrics, **fields):
    return [
        f"metrics.generation=[{','.join(metrics)}]",
        *(f"{name}={value}" for name, value in fields.items()),
    ]


def generated(folder, number, seed=0, batch_size=64, **arguments):
    """The images of a pipeline for the demo's protocol."""
    source = GeneratedImages(
        load_pipeline(folder), number, Protocol.load("demo"), seed, **arguments
    )
    return torch.cat([batch.images for batch in source.batches(batch_size)])
