"""This package beside the reference implementations, in turn.

    python benchmarks/against_reference.py CHECKOUT --model titok-l-32

CHECKOUT is a checkout of the model's reference: github.com/bytedance/1d-tokenizer, MiniMax-AI/VTP or
hustvl/LightningDiT. The modules in `against/` say what is timed and what a reference needs installed. Each
side runs in a process of its own, since top-level modules of the references, such as `modeling` and
`datasets`, shadow other packages, with the same random weights. `reference` is the reference in float32;
`eager` is this package as it is, `compiled` compiles it, and `fast` has weights in a faster data type; a data
type after a hyphen is that of the weights of `fast` and `compiled`, and else of autocast. The rounds
alternate; printed are ratios of minima and of medians, the largest difference from the reference's output,
and the share of the device's measured matrix product that each side reaches, with the FLOPs of `GFLOP` as
denominator. With one thread of a CPU (`OMP_NUM_THREADS=1`), the processor's time counts, so that other work
on the machine takes little part in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from against import lightning_dit, titok, titok_training, vtp
from against.setup import Setup

from titok_hf.devices import matmul_flops

FAMILIES = {
    model: family
    for family in (titok, titok_training, vtp, lightning_dit)
    for model in family.GFLOP
}

# By glibc's defaults, page faults depend on what a process has freed before: under autocast they made the
# same texts of VTP take 0.10 or 0.17 s.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}


def serve(setup: Setup) -> None:
    """Times what the lines of standard input name, and answers with seconds; saves the first outputs."""
    torch.manual_seed(0)
    answers = sys.stdout
    sys.stdout = sys.stderr  # the models may print
    family = FAMILIES[setup.model]
    parts = (family.reference_side if setup.kind == "reference" else family.our_side)(setup)
    device = torch.device(setup.device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    peaks = {
        name: matmul_flops(device, getattr(torch, name), clock=clock)
        for name in ("float32", "bfloat16")
    }
    print(json.dumps(peaks), file=answers, flush=True)
    for line in sys.stdin:
        part = line.strip()
        start = clock()
        output = parts[part]()
        if output is not None:
            output = output.cpu()  # waits for the device
        seconds = clock() - start
        file = output_file(setup, part)
        if not file.exists():
            torch.save(output, file)
        print(seconds, file=answers, flush=True)


def output_file(setup: Setup, part: str) -> Path:
    """Returns the file with a side's first output of a part."""
    return setup.path / f"{part}-of-{setup.side}.pt"


class Side:
    """A process of one side."""

    def __init__(self, setup: Setup):
        self.setup = setup
        command = [sys.executable, __file__, "--serve", json.dumps(asdict(setup))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | KEEP_MEMORY,
        )
        self.peaks = json.loads(self.process.stdout.readline())

    def seconds(self, part: str) -> float:
        """Returns how long a part takes this time."""
        print(part, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def output(self, part: str) -> torch.Tensor | None:
        """Returns the first output of a part, if it can be compared."""
        return torch.load(output_file(self.setup, part))


def difference(output: torch.Tensor, reference: torch.Tensor) -> str:
    """Says how far an output is from the reference's."""
    if not output.is_floating_point():
        return f"{(output != reference).float().mean():.1%} of codes differ"
    largest = (output.float() - reference.float()).abs().max() / reference.abs().max()
    return f"differs by {largest:.0e} of the largest value"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", help="checkout of the model's reference")
    parser.add_argument("--model", choices=list(FAMILIES), default="titok-l-32")
    parser.add_argument("--sides", nargs="+", help="beside `reference`; by default the family's")
    parser.add_argument("--parts", nargs="+", help="what is timed; by default all of the model")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--rounds", type=int, default=5, help="after one that warms up; with 0, that one counts"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(Setup(**arguments.serve))
        return
    family, batch_size = FAMILIES[arguments.model], arguments.batch_size
    gflop = family.GFLOP[arguments.model]
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            checkout=arguments.checkout,
            model=arguments.model,
            side="reference",
            device=arguments.device,
            batch_size=batch_size,
            folder=folder,
        )
        names = ("reference", *(arguments.sides or family.SIDES))
        sides = {name: Side(replace(setup, side=name)) for name in names}
        peaks = {
            dtype: max(side.peaks[dtype] for side in sides.values())
            for dtype in ("float32", "bfloat16")
        }
        print(
            f"{arguments.model}, batch {batch_size}, {arguments.device}; matrix product: "
            + ", ".join(f"{dtype} {peak / 1e9:.0f} GFLOP/s" for dtype, peak in peaks.items())
        )
        for part in arguments.parts or gflop:
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(1 + arguments.rounds):
                for name, side in sides.items():
                    seconds[name].append(side.seconds(part))
            if arguments.rounds:
                seconds = {name: all_rounds[1:] for name, all_rounds in seconds.items()}
            best, expected = min(seconds["reference"]), sides["reference"].output(part)
            for name, measured in seconds.items():
                line = f"{part}, {name}: {batch_size / min(measured):.3g} images/s"
                if name != "reference":
                    median = statistics.median(seconds["reference"]) / statistics.median(measured)
                    line += (
                        f", {best / min(measured):.2f} times the reference (medians {median:.2f})"
                    )
                    if expected is not None:
                        line += f", {difference(sides[name].output(part), expected)}"
                rate = gflop[part] * 1e9 * batch_size / min(measured)
                shares = [f"{rate / peak:.0%} of {dtype}" for dtype, peak in peaks.items()]
                print(f"{line}; {rate / 1e9:.0f} GFLOP/s, {', '.join(shares)}", flush=True)
        for side in sides.values():
            side.process.terminate()


if __name__ == "__main__":
    main()
