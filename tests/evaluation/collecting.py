"""All that a source of images gives, for the demo's protocol."""

import torch

from titok_hf.evaluation.protocol import Protocol


def protocol(**fields):
    return Protocol.load("demo", [f"{name}={value}" for name, value in fields.items()])


def collected(source, batch_size):
    batches = list(source.batches(batch_size))
    indices = torch.cat([batch.indices for batch in batches])
    labels = (
        torch.cat([batch.labels for batch in batches]) if batches[0].labels is not None else None
    )
    return (
        [len(batch.images) for batch in batches],
        indices,
        torch.cat([batch.images for batch in batches]),
        labels,
    )
