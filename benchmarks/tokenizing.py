"""Images/s of `titok tokenize` from JPEG files to Parquet, relative to the bare encoder.

    python benchmarks/tokenizing.py --compiled
    python benchmarks/tokenizing.py --quick

The benchmark makes 384 JPEG files of 500x375 pixels and a TiTok-S-128 of random weights (256x256
pixels), and runs three rounds in which both take turns. The bare encoder gets batches of 32 in memory.
Tokenizing finds and loads tokenizer and files, decodes, resizes, encodes and writes parts of 64
images. Its images/s are those between the first part that is written and the last but one; loading and
compiling are printed as seconds at the start. With `--compiled` both encoders are compiled. `--quick` uses
a tiny encoder and one round.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from titok_hf import TiTokConfig, TiTokImageProcessor, TiTokModel
from titok_hf.data import tokenize_to_folder
from titok_hf.devices import default_device
from titok_hf.modeling.outputs import TokenizerEncoderOutput

BATCH_SIZE, PART_SIZE = 32, 64


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


def written_rate(folder: Path) -> float:
    """Returns the images/s of a token data set from its first part to its last but one, by the times of its
    files. Each of these is written when the first batch of the next is encoded, unlike the last one."""
    parts = sorted((folder / "data").iterdir(), key=lambda path: path.stat().st_mtime)
    first, last = parts[0].stat().st_mtime, parts[-2].stat().st_mtime
    num_images = sum(pq.read_metadata(path).num_rows for path in parts[1:-1])
    return num_images / (last - first)


def main(quick: bool = False, compiled: bool = False) -> None:
    datasets.disable_progress_bars()
    num_images, num_rounds = (3 * PART_SIZE, 1) if quick else (6 * PART_SIZE, 3)
    bare, ours, starts = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "images", num_images)
        model = write_tokenizer(folder / "tokenizer", quick).to(default_device())
        pixel_values = torch.rand(BATCH_SIZE, 3, 256, 256, device=model.device)
        encode = torch.compile(model.encode) if compiled else model.encode
        encode_batches(encode, pixel_values, BATCH_SIZE)  # the first batch is slower
        for i in range(num_rounds):
            start = time.perf_counter()
            encode_batches(encode, pixel_values, num_images)
            middle = time.perf_counter()
            tokenize_to_folder(
                str(folder / "images"),
                folder / "tokenizer",
                folder / f"tokens-{i}",
                batch_size=BATCH_SIZE,
                part_size=PART_SIZE,
                compiled=compiled,
            )
            end = time.perf_counter()
            bare.append(num_images / (middle - start))
            ours.append(written_rate(folder / f"tokens-{i}"))
            starts.append(end - middle - num_images / ours[-1])
    for name, rates in (("bare encoder", bare), ("titok tokenize", ours)):
        listed = ", ".join(f"{rate:.2f}" for rate in rates)
        print(f"{name}: {median(rates):.2f} images/s ({listed})")
    print(f"titok tokenize: {median(starts):.1f} s at the start")
    ratio = median(of_ours / of_bare for of_bare, of_ours in zip(bare, ours, strict=True))
    print(
        f"titok tokenize reaches {ratio:.1%} of the bare encoder's images/s, the median of "
        f"{num_rounds} rounds"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tiny encoder and one round")
    parser.add_argument("--compiled", action="store_true", help="compile both encoders")
    main(**vars(parser.parse_args()))
