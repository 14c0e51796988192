"""Effect of `pipe.compile()` in bfloat16 on decoded pixels, on the decisions of the steps and on the Fréchet
distance.

    python benchmarks/fast_sampling.py demo/pipeline

Pixels are decoded from equal codes. Each step starts from the codes of the float32 run, with the same noise, so
that a decision does not change those after it. The Fréchet distance is that of the protocol `demo`.
"""

import argparse
from pathlib import Path

import torch

from titok_hf import TiTokPipeline
from titok_hf.evaluation.generation import measure_generation
from titok_hf.evaluation.image_sources import GeneratedImages, open_dataset
from titok_hf.evaluation.metric_networks import MetricNetworks
from titok_hf.evaluation.protocol import Protocol


def main(path: str | Path, num_images: int = 1000) -> None:
    exact, fast = (TiTokPipeline.from_pretrained(path) for _ in range(2))
    for pipeline in (exact, fast):
        pipeline.set_progress_bar_config(disable=True)
    fast.compile(batch_size=100, dtype="bfloat16", backend=None)

    # pixels and decisions
    labels = list(range(10)) * 10
    states = []
    exact(
        labels,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda pipe, step, timestep, tensors: states.append(tensors),
    )
    codes = states[-1]["codes"]
    with torch.no_grad():
        latents = exact.tokenizer.code_latents(codes)
        decoded = [pipeline.network("tokenizer")(latents).float() for pipeline in (exact, fast)]
        error = (decoded[0].clamp(0, 1) - decoded[1].clamp(0, 1)).square().mean()
        print(f"pixels of equal codes: PSNR {-10 * torch.log10(error):.1f} dB")
        same = []
        given = torch.tensor(labels)
        for state in states[:-1]:
            logits = [
                p.network("transformer")(state["codes"], given).float() for p in (exact, fast)
            ]
            masked = state["codes"] == exact.transformer.config.mask_token_id
            same.append((logits[0].argmax(-1) == logits[1].argmax(-1))[masked])
    print(f"most likely codes of masked tokens: {torch.cat(same).float().mean():.2%} the same")

    # Fréchet distance
    protocol = Protocol.load("demo", ["image_size=32"])
    metrics = ("accuracy", "frechet_distance")
    judges, train = (
        MetricNetworks.load(protocol, metrics),
        open_dataset("digits", protocol, "train"),
    )
    for name, pipeline in (("float32", exact), ("bfloat16", fast)):
        images = [GeneratedImages(pipeline, num_images, protocol)]
        values = measure_generation(
            images, train, protocol, judges, batch_size=100, progress_bar=False
        ).values
        print(
            f"{name}: Fréchet distance {values['frechet_distance']:.4f}, accuracy "
            f"{values['accuracy']:.1%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", help="a pipeline of digits")
    main(parser.parse_args().pipeline)
