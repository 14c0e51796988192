"""Generates images into a file, for the test that kills it: a process that runs this file."""

import sys

import torch

from titok_hf.evaluation import evaluate_generation

NUM_SAMPLES = 30
BATCH_SIZE = 3
CHANGES = ["metrics.generation=[inception_score]", "inception_score_splits=2"]


def generate(pipeline: str, samples: str, seed: int = 0) -> None:
    torch.set_num_threads(1)
    evaluate_generation(
        pipeline,
        "demo",
        CHANGES,
        num_samples=NUM_SAMPLES,
        seeds=[seed],
        sampler={"num_inference_steps": 20},
        samples=samples,
        batch_size=BATCH_SIZE,
        device="cpu",
    )


if __name__ == "__main__":
    generate(*sys.argv[1:])
