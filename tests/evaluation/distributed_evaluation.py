"""An evaluation of which each of several processes does a part: each runs this file, and so does
the test."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from titok_hf.evaluation import evaluate_generation, evaluate_reconstruction, write_reference

ON_FEATURES = (
    "frechet_distance,precision,recall,density,coverage,kernel_distance,accuracy,inception_score"
)
CHANGES = ["kernel_subsets=3", "kernel_subset_size=30", "inception_score_splits=3"]
ON_PAIRS = "mean_squared_error,psnr,ssim,codebook_usage,codebook_perplexity,codebook_entropy"
NUM_IMAGES = 75
BATCH_SIZES = {"many": 16, "one": 200}  # with one batch, all processes but the first have none


def evaluate(models: Path, output: Path) -> None:
    """Writes a JSON of each evaluation, a reference batch, and a file of samples."""
    torch.set_num_threads(1)
    reconstruction = [f"metrics.reconstruction=[{ON_FEATURES},{ON_PAIRS}]", *CHANGES]
    generation = [f"metrics.generation=[{ON_FEATURES}]", *CHANGES]
    arguments = {"overrides": reconstruction, "num_images": NUM_IMAGES, "device": "cpu"}
    for name, batch_size in BATCH_SIZES.items():
        results = {
            "reconstruction": evaluate_reconstruction(
                models / "tokenizer", "digits", "demo", batch_size=batch_size, **arguments
            ),
            "generation": evaluate_generation(
                models / "pipeline",
                "demo",
                generation,
                reference="digits",
                reference_split="test",
                num_samples=NUM_IMAGES,
                seeds=[0, 1] if name == "many" else [0],
                samples=output / "samples.npz" if name == "one" else None,
                batch_size=batch_size,
                device="cpu",
            ),
        }
        rank = PartialState().process_index
        for task, result in results.items():
            result.save(output / f"{task}-{name}-{rank}.json")
        write_reference(
            "digits", output / f"reference-{name}.npz", "demo", num_kept=40, batch_size=batch_size
        )


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]))
    PartialState().destroy_process_group()
