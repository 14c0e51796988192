"""Sampling of the flow on digits beside the demo's masked generator, and of generators of emoji.

    python benchmarks/latent_sampling.py time demo/pipeline latent-digits/pipeline
    python benchmarks/latent_sampling.py emoji latent-emoji/pipeline
    python benchmarks/latent_sampling.py emoji titok-emoji/pipeline

`time` runs both pipelines in turn and prints ratios of minima. `emoji` compares as many samples of each
category with training pictures that are drawn evenly from the categories, by the features of the
judge of emoji: most pictures are people, so that the distance to all of them measures the mix.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from titok_hf.evaluation import frechet_distance
from titok_hf.evaluation.image_sources import GeneratedImages
from titok_hf.evaluation.neighbors import features_of, nearest_neighbors
from titok_hf.evaluation.protocol import Protocol
from titok_hf.pipelines import ClassConditionalPipeline


def sampling_time(masked: str, flow: str, rounds: int = 6, each: int = 2) -> None:
    """Prints the time of the flow, with the steps of its recipe and with 20, in that of the masked
    generator."""
    pipelines = [ClassConditionalPipeline.from_pretrained(path) for path in (masked, flow)]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, pipeline, arguments in (
            ("masked", pipelines[0], {}),
            ("flow", pipelines[1], {}),
            ("flow with 20 steps", pipelines[1], {"num_inference_steps": 20}),
        ):
            started = time.perf_counter()
            pipeline(list(range(10)) * each, **arguments)
            best[name] = min(best.get(name, np.inf), time.perf_counter() - started)
    for name in list(best)[1:]:
        print(f"{name}: {best[name] / best['masked']:.2f} of the masked generator's time")


def emoji_samples(
    path: str, scales: Sequence[float] = (1.5, 3.0), each: int = 60, reference: int = 300
) -> None:
    """Prints the Fréchet distance, the judge's accuracy and the ratio of distances of samples."""
    from titok_hf.data.emoji import CATEGORIES, load_emoji_dataset
    from titok_hf.evaluation.emoji import EmojiExtractor

    extractor, splits = EmojiExtractor(), load_emoji_dataset(32, 0)
    images, even = {}, {}
    for seed, (split, number) in enumerate((("train", reference), ("test", each))):
        pixels = np.stack([np.asarray(image) for image in splits[split]["image"]])
        images[split] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        labels = torch.tensor(splits[split]["label"])
        generator = torch.Generator().manual_seed(seed)
        rows = [(labels == label).nonzero()[:, 0] for label in range(len(CATEGORIES))]
        drawn = [
            places[torch.randint(len(places), (number,), generator=generator)] for places in rows
        ]
        even[split] = features_of(extractor, images[split][torch.cat(drawn)])
    print(f"held-out pictures: {frechet_distance(even['test'], even['train']):.2f}")
    pipeline = ClassConditionalPipeline.from_pretrained(path)
    count = each * len(CATEGORIES)
    protocol = Protocol.load("emoji", [f"image_size={pipeline.tokenizer.config.image_size}"])
    for scale in scales:
        samples = GeneratedImages(pipeline, count, protocol, 0, guidance_scale=scale).whole(90)
        judged = extractor(samples.images)
        accuracy = (judged.logits.argmax(1).cpu() == samples.labels).double().mean()
        ratio = nearest_neighbors(extractor, samples.images, images["train"], images["test"])
        print(
            f"guidance {scale:g}: {frechet_distance(judged.features, even['train']):.2f}, "
            f"accuracy {accuracy:.1%}, ratio {ratio['nearest_neighbor_ratio']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    timed = commands.add_parser("time")
    timed.add_argument("masked")
    timed.add_argument("flow")
    commands.add_parser("emoji").add_argument("pipeline")
    given = parser.parse_args()
    if given.what == "time":
        sampling_time(given.masked, given.flow)
    else:
        emoji_samples(given.pipeline)
