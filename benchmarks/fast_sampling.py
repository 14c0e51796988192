"""Effect of `pipe.compile()` in bfloat16 and int8 on decoded pixels, on the decisions of the steps and on the
Fréchet distance.

    python benchmarks/fast_sampling.py demo/pipeline

Pixels are decoded from equal codes. Each step starts from the codes of the float32 run, with the same noise, so
that a decision does not change those after it. The Fréchet distance is that of the protocol `demo`.
"""

import argparse
from pathlib import Path

import torch

from titok_hf import TiTokPipeline
from titok_hf.devices import int8_is_exact
from titok_hf.evaluation.generation import measure_generation
from titok_hf.evaluation.image_sources import GeneratedImages, open_dataset
from titok_hf.evaluation.metric_networks import MetricNetworks
from titok_hf.evaluation.protocol import Protocol

DTYPES = ("float32", "bfloat16", *(("int8",) if int8_is_exact() else ()))


def main(path: str | Path, num_images: int = 1000) -> None:
    pipelines = {dtype: TiTokPipeline.from_pretrained(path) for dtype in DTYPES}
    for dtype, pipeline in pipelines.items():
        pipeline.set_progress_bar_config(disable=True)
        if dtype != "float32":
            pipeline.compile(batch_size=100, dtype=dtype, backend=None)
    exact = pipelines["float32"]

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
        decoded = {
            dtype: pipeline.network("tokenizer")(latents).float().clamp(0, 1)
            for dtype, pipeline in pipelines.items()
        }
        same = {dtype: [] for dtype in pipelines}
        given = torch.tensor(labels)
        for state in states[:-1]:
            likely = {
                dtype: pipeline.network("transformer")(state["codes"], given).argmax(-1)
                for dtype, pipeline in pipelines.items()
            }
            masked = state["codes"] == exact.transformer.config.mask_token_id
            for dtype, codes in likely.items():
                same[dtype].append((codes == likely["float32"])[masked])
    for dtype in DTYPES[1:]:
        error = (decoded[dtype] - decoded["float32"]).square().mean()
        print(f"{dtype}: pixels of equal codes, PSNR {-10 * torch.log10(error):.1f} dB")
        share = torch.cat(same[dtype]).float().mean()
        print(f"{dtype}: most likely codes of masked tokens, {share:.2%} the same")

    # Fréchet distance
    protocol = Protocol.load("demo", ["image_size=32"])
    metrics = ("accuracy", "frechet_distance")
    judges, train = (
        MetricNetworks.load(protocol, metrics),
        open_dataset("digits", protocol, "train"),
    )
    for dtype, pipeline in pipelines.items():
        images = [GeneratedImages(pipeline, num_images, protocol)]
        values = measure_generation(
            images, train, protocol, judges, batch_size=100, progress_bar=False
        ).values
        print(
            f"{dtype}: Fréchet distance {values['frechet_distance']:.4f}, accuracy "
            f"{values['accuracy']:.1%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", help="a pipeline of digits")
    main(parser.parse_args().pipeline)
