"""Metrics of which each of several processes sees a part of the images: each runs this file, and so
does the test."""

import json
import sys
from pathlib import Path

import torch

from titok_hf.distributed import process_state
from titok_hf.evaluation.metrics import (
    BlockedStatistics,
    CodebookUsage,
    GaussianStatistics,
    InceptionScore,
)

NUM_IMAGES = 230
BATCH_SIZE = 20


def measure() -> dict[str, list]:
    """Each metric of this process's batches, joined with the others'."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = (
        torch.randn(NUM_IMAGES, 5, generator=generator)
        + torch.linspace(1000, 1010, NUM_IMAGES)[:, None]
    )
    codes = torch.randint(0, 40, (NUM_IMAGES, 4), generator=generator) ** 2 // 40
    state = process_state()
    gaussian, blocked = GaussianStatistics(5), BlockedStatistics(5)
    inception_score, usage = InceptionScore(NUM_IMAGES, 5, 3), CodebookUsage(64)
    for number, indices in enumerate(torch.arange(NUM_IMAGES).split(BATCH_SIZE)):
        if number % state.num_processes == state.process_index:
            gaussian.update(features[indices])
            blocked.update(features[indices], indices)
            inception_score.update(features[indices] % 3, indices)
            usage.update(codes[indices])
    of_one_process = InceptionScore(BATCH_SIZE, 5, 2)
    if state.is_main_process:
        of_one_process.update(features[:BATCH_SIZE] % 3, torch.arange(BATCH_SIZE))
    for metric in (gaussian, blocked, inception_score, usage, of_one_process):
        metric.reduce()
    return {
        "count": [gaussian.count, blocked.total().count, *blocked.counts],
        "mean": gaussian.mean.tolist(),
        "covariance": gaussian.covariance.flatten().tolist(),
        "blocks": [
            value
            for block in range(10)
            for value in blocked.merged([block]).covariance.flatten().tolist()
        ],
        "inception_score": [*inception_score.scores().tolist(), *of_one_process.scores().tolist()],
        "codebook": list(usage.compute().values()),
    }


if __name__ == "__main__":
    state = process_state()
    measured = measure()
    assert state.num_processes == int(sys.argv[2])
    (Path(sys.argv[1]) / f"{state.process_index}.json").write_text(json.dumps(measured))
    state.destroy_process_group()
