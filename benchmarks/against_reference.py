"""Sampling, decoding and encoding of TiTok beside the reference implementation, in turn.

    python benchmarks/against_reference.py CHECKOUT --model titok-l-32

CHECKOUT is a checkout of github.com/bytedance/1d-tokenizer, which needs `pip install einops omegaconf`.
Each side runs in a process of its own, since the reference's top-level `modeling` shadows other packages,
with the same random weights. The reference runs as its README says, in float32. The rounds alternate; printed
are ratios of minima and of medians, and the share of the device's measured matrix product that each side
reaches, with the FLOPs of `GFLOP` as denominator.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from titok_hf.devices import matmul_flops

# GFLOP of an image: a guided sampling run with decoding (a linear guidance schedule has one step without
# guidance, so that 8 steps are 15 forwards), decoding, and encoding. The latter two are counted by torch.
GFLOP = {
    "titok-l-32": {"sample": 535, "decode": 372, "encode": 183},
    "titok-b-64": {"sample": 580, "decode": 247, "encode": 59},
    "titok-s-128": {"sample": 9763, "decode": 210, "encode": 22},
}
SAMPLING = {  # of the reference's configs/infer
    "titok-l-32": {"randomize_temperature": 9.5, "guidance_scale": 4.5, "guidance_decay": "linear"},
    "titok-b-64": {
        "randomize_temperature": 11.0,
        "guidance_scale": 3.0,
        "guidance_decay": "linear",
    },
    "titok-s-128": {
        "randomize_temperature": 2.8,
        "guidance_scale": 6.9,
        "guidance_decay": "power-cosine",
        "softmax_temperature_annealing": True,
        "num_sample_steps": 64,
    },
}
YAML = {"titok-l-32": "titok_l32", "titok-b-64": "titok_b64", "titok-s-128": "titok_s128"}


def reference_side(setup: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """Builds the reference's models, saves their weights, and returns what is timed."""
    import_module("transformers.models.bert.modeling_bert")  # before torchvision has a stand-in
    sys.path.insert(0, setup["checkout"])
    # its perceptual loss, which sampling does not use, imports torchvision
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    sys.modules["torchvision"].models = types.ModuleType("torchvision.models")
    from modeling.maskgit import ImageBert, UViTBert
    from modeling.titok import TiTok
    from omegaconf import OmegaConf

    config = OmegaConf.load(
        Path(setup["checkout"]) / f"configs/infer/TiTok/{YAML[setup['model']]}.yaml"
    )
    tokenizer, device = TiTok(config).eval().requires_grad_(False), setup["device"]
    is_vit = config.model.generator.model_type == "ViT"
    generator = (ImageBert if is_vit else UViTBert)(config).eval().requires_grad_(False)
    for name, model in (("tokenizer", tokenizer), ("generator", generator)):
        folder = Path(setup["folder"]) / name
        model.save_pretrained_weight(folder)
        (folder / "config.json").write_text(
            json.dumps(OmegaConf.to_container(config, resolve=True))
        )
        model.to(device)
    images, labels = inputs(setup)
    codes = tokenizer.encode(images)[1]["min_encoding_indices"]

    def sample() -> None:
        with torch.no_grad():
            tokens = generator.generate(condition=labels, **SAMPLING[setup["model"]])
            decoded = tokenizer.decode_tokens(tokens.view(len(labels), -1)).clamp(0, 1)
        (decoded * 255).permute(0, 2, 3, 1).to("cpu", dtype=torch.uint8).numpy()

    return {
        "sample": sample,
        "decode": lambda: tokenizer.decode_tokens(codes).cpu(),
        "encode": lambda: tokenizer.encode(images)[1]["min_encoding_indices"].cpu(),
    }


def our_side(setup: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """Converts these weights, and returns the same of our package."""
    from titok_hf.conversion import convert
    from titok_hf.pipelines import TiTokPipeline

    folder = Path(setup["folder"])
    if not (folder / "ours").exists():
        convert(folder / "tokenizer", folder / "ours", folder / "generator")
    pipeline = TiTokPipeline.from_pretrained(folder / "ours").to(setup["device"])
    pipeline.set_progress_bar_config(disable=True)
    if setup["side"] != "eager":
        backend = "inductor" if setup["side"] == "compiled" else None
        pipeline.compile(setup["batch_size"], setup["dtype"], backend)
    images, labels = inputs(setup)
    tokenizer = pipeline.tokenizer
    with torch.no_grad():
        latents = tokenizer.encode(images).latents
    arguments = {"num_inference_steps": SAMPLING[setup["model"]].get("num_sample_steps", 8)}

    def encode() -> None:
        with torch.no_grad():
            tokenizer.encode(images).codes.cpu()

    def decode() -> None:
        with torch.no_grad():
            pipeline.network("tokenizer")(latents).float().cpu()

    return {
        "sample": lambda: pipeline(labels.tolist(), output_type="np", **arguments),
        "decode": decode,
        "encode": encode,
    }


def inputs(setup: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random images and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(setup["batch_size"], 3, 256, 256, generator=generator)
    labels = torch.randint(1000, (setup["batch_size"],), generator=generator)
    return images.to(setup["device"]), labels.to(setup["device"])


def serve(setup: dict[str, Any]) -> None:
    """Times what the lines of standard input name, and answers with seconds."""
    torch.manual_seed(0)
    answers = sys.stdout
    sys.stdout = sys.stderr  # the models may print
    timed = (reference_side if setup["side"] == "reference" else our_side)(setup)
    device = torch.device(setup["device"])
    peaks = {name: matmul_flops(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    print(json.dumps(peaks), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        timed[line.strip()]()
        print(time.perf_counter() - start, file=answers, flush=True)


class Side:
    """A process of one side."""

    def __init__(self, setup: dict[str, Any]):
        command = [sys.executable, __file__, "--serve", json.dumps(setup)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peaks = json.loads(self.process.stdout.readline())

    def seconds(self, part: str) -> float:
        print(part, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", help="checkout of bytedance/1d-tokenizer")
    parser.add_argument("--model", choices=list(GFLOP), default="titok-l-32")
    parser.add_argument("--sides", nargs="+", default=["eager", "fast", "compiled"])
    parser.add_argument("--parts", nargs="+", default=["sample", "decode", "encode"])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", help="data type of our fast and compiled sides; chosen by default"
    )
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        setup = {
            "checkout": arguments.checkout,
            "model": arguments.model,
            "device": arguments.device,
            "batch_size": arguments.batch_size,
            "dtype": arguments.dtype,
            "folder": folder,
        }
        sides = {name: Side(setup | {"side": name}) for name in ("reference", *arguments.sides)}
        peaks = {
            dtype: max(side.peaks[dtype] for side in sides.values())
            for dtype in ("float32", "bfloat16")
        }
        print(
            f"{arguments.model}, batch {arguments.batch_size}, {arguments.device}; matrix product: "
            + ", ".join(f"{dtype} {peak / 1e9:.0f} GFLOP/s" for dtype, peak in peaks.items())
        )
        for part in arguments.parts:
            for side in sides.values():
                side.seconds(part)  # warms up
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(arguments.rounds):
                for name, side in sides.items():
                    seconds[name].append(side.seconds(part))
            best = min(seconds["reference"])
            for name, measured in seconds.items():
                line = f"{part}, {name}: {arguments.batch_size / min(measured):.3f} images/s"
                if name != "reference":
                    median = statistics.median(seconds["reference"]) / statistics.median(measured)
                    line += (
                        f", {best / min(measured):.2f} times the reference (medians {median:.2f})"
                    )
                rate = GFLOP[arguments.model][part] * 1e9 * arguments.batch_size / min(measured)
                shares = [f"{rate / peak:.0%} of {dtype}" for dtype, peak in peaks.items()]
                print(f"{line}; {rate / 1e9:.0f} GFLOP/s, {', '.join(shares)}", flush=True)
        for side in sides.values():
            side.process.terminate()


if __name__ == "__main__":
    main()
