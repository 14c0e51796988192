"""Images/s of `titok tokenize` from JPEG files to Parquet, relative to the bare encoder, and the compiled one.

    python benchmarks/tokenizing.py --compiled
    python benchmarks/tokenizing.py --quick

The benchmark makes 256 JPEG files of 500x375 pixels and a TiTok-S-128 of random weights (256x256
pixels), and runs three rounds of all in turn. The bare encoder gets batches of 32 in memory; with
`--compiled`, so does one compiled by `torch.compile` before the rounds. Tokenizing is the whole
function: it finds and loads tokenizer and files, decodes, resizes, encodes and writes. On a busy
machine, processor time is more reliable than images/s. `--quick` uses a tiny encoder and one round.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import torch
from PIL import Image

from titok_hf import TiTokConfig, TiTokImageProcessor, TiTokModel
from titok_hf.data import tokenize_to_folder

BATCH_SIZE = 32


def write_images(folder: Path, num_images: int) -> None:
    """Writes JPEG files of about 60 kB in two classes: smooth shapes with grain, as in photos."""
    rng = np.random.default_rng(0)
    for i in range(num_images):
        path = folder / "ab"[i % 2] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375))
        pixels = np.asarray(shapes) + rng.normal(0, 8, (375, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def write_tokenizer(folder: Path, quick: bool) -> TiTokModel:
    """Writes a tokenizer of random weights whose decoder is tiny, so that little but the encoder is
    loaded."""
    tiny = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sides = ("decoder", "encoder") if quick else ("decoder",)
    fields = {f"{side}_{name}": value for side in sides for name, value in tiny.items()}
    model = TiTokModel(TiTokConfig.from_size("titok-s-128", head="pixels", **fields)).eval()
    model.save_pretrained(folder)
    TiTokImageProcessor.from_image_size(model.config.image_size).save_pretrained(folder)
    return model


@torch.inference_mode()
def encode_batches(
    encode: Callable[[torch.Tensor], object], pixel_values: torch.Tensor, num_images: int
) -> None:
    for _ in range(num_images // BATCH_SIZE):
        encode(pixel_values)


def cpu_seconds() -> float:
    """Returns the processor time of this process and of its finished workers."""
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def main(quick: bool = False, compiled: bool = False) -> None:
    datasets.disable_progress_bars()
    num_images, num_rounds = (2 * BATCH_SIZE, 1) if quick else (256, 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "images", num_images)
        model = write_tokenizer(folder / "tokenizer", quick)
        pixel_values = torch.rand(BATCH_SIZE, 3, 256, 256)
        encoders = {"bare encoder": model.encode}
        if compiled:
            encoders["compiled encoder"] = torch.compile(model.encode)
        for encode in encoders.values():
            encode_batches(encode, pixel_values, BATCH_SIZE)  # the first batch is slower
        routes = {
            name: lambda i, encode=encode: encode_batches(encode, pixel_values, num_images)
            for name, encode in encoders.items()
        }
        routes |= {
            "titok tokenize": lambda i: tokenize_to_folder(
                str(folder / "images"),
                folder / "tokenizer",
                folder / f"tokens-{i}",
                batch_size=BATCH_SIZE,
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in routes}
        costs: dict[str, list[float]] = {name: [] for name in routes}
        for i in range(num_rounds):
            for name, route in routes.items():
                start, before = time.perf_counter(), cpu_seconds()
                route(i)
                rates[name].append(num_images / (time.perf_counter() - start))
                costs[name].append((cpu_seconds() - before) / num_images)
    for name in routes:
        print(
            f"{name}: {median(rates[name]):.2f} images/s "
            f"({', '.join(f'{rate:.2f}' for rate in rates[name])}), "
            f"{1000 * median(costs[name]):.1f} ms of processor time an image"
        )
    for name in encoders:
        ratio = median(
            ours / bare for bare, ours in zip(rates[name], rates["titok tokenize"], strict=True)
        )
        print(
            f"titok tokenize reaches {ratio:.1%} of the {name}'s images/s, the median of "
            f"{num_rounds} rounds"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tiny encoder and one round")
    parser.add_argument("--compiled", action="store_true", help="a compiled encoder, too")
    main(**vars(parser.parse_args()))
