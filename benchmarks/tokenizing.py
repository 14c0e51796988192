"""Images/s of `titok tokenize` from JPEG files to Parquet, relative to the bare encoder.

    python benchmarks/tokenizing.py --compiled
    python benchmarks/tokenizing.py --quick

The benchmark makes 320 JPEG files of 500x375 pixels and a TiTok-S-128 of random weights (256x256
pixels), and runs three rounds in which both take turns. The bare encoder gets batches of 32 in memory.
Tokenizing is the whole function: it finds and loads tokenizer and files, decodes, resizes, encodes
and writes. Each side encodes 64 images and then all: images/s are those of the difference, so that
loading and compiling, which are printed as seconds at the start, do not count. On a busy machine,
processor time is more reliable. With `--compiled` both encoders are compiled. `--quick` uses a tiny
encoder and one round.
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
from titok_hf.devices import default_device
from titok_hf.modeling.outputs import TokenizerEncoderOutput

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
    encode: Callable[[torch.Tensor], TokenizerEncoderOutput],
    pixel_values: torch.Tensor,
    num_images: int,
) -> None:
    codes = [encode(pixel_values).codes for _ in range(num_images // BATCH_SIZE)]
    codes[-1].cpu()  # waits for the device


def cpu_seconds() -> float:
    """Returns the processor time of this process and of its finished workers."""
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def main(quick: bool = False, compiled: bool = False) -> None:
    datasets.disable_progress_bars()
    few, many = (BATCH_SIZE, 2 * BATCH_SIZE) if quick else (64, 320)
    num_rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "few", few)
        write_images(folder / "many", many)
        model = write_tokenizer(folder / "tokenizer", quick).to(default_device())
        pixel_values = torch.rand(BATCH_SIZE, 3, 256, 256, device=model.device)
        encode = torch.compile(model.encode) if compiled else model.encode
        encode_batches(encode, pixel_values, BATCH_SIZE)  # the first batch is slower

        def tokenize(images: str, number: int) -> None:
            tokenize_to_folder(
                str(folder / images),
                folder / "tokenizer",
                folder / f"tokens-of-{images}-{number}",
                batch_size=BATCH_SIZE,
                compiled=compiled,
            )

        routes = {
            "bare encoder": lambda images, number: encode_batches(
                encode, pixel_values, {"few": few, "many": many}[images]
            ),
            "titok tokenize": tokenize,
        }
        rates: dict[str, list[float]] = {name: [] for name in routes}
        costs: dict[str, list[float]] = {name: [] for name in routes}
        starts: dict[str, list[float]] = {name: [] for name in routes}
        for number in range(num_rounds):
            for name, route in routes.items():
                start, before = time.perf_counter(), cpu_seconds()
                route("few", number)
                middle, between = time.perf_counter(), cpu_seconds()
                route("many", number)
                end, after = time.perf_counter(), cpu_seconds()
                seconds = (end - middle) - (middle - start)
                rates[name].append((many - few) / seconds)
                costs[name].append((after - 2 * between + before) / (many - few))
                starts[name].append(middle - start - few * seconds / (many - few))
    for name in routes:
        print(
            f"{name}: {median(rates[name]):.2f} images/s "
            f"({', '.join(f'{rate:.2f}' for rate in rates[name])}), "
            f"{1000 * median(costs[name]):.1f} ms of processor time an image, "
            f"{median(starts[name]):.1f} s at the start"
        )
    ratio = median(ours / bare for bare, ours in zip(*rates.values(), strict=True))
    print(
        f"titok tokenize reaches {ratio:.1%} of the bare encoder's images/s, the median of "
        f"{num_rounds} rounds"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tiny encoder and one round")
    parser.add_argument("--compiled", action="store_true", help="compile both encoders")
    main(**vars(parser.parse_args()))
