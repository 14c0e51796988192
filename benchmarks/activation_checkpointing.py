"""Time and peak memory of a step of TiTok's warm-up with and without activation checkpointing.

    python benchmarks/activation_checkpointing.py titok-b-64 --batch-size 8

Each run is a process of its own, and the two kinds take turns. A step computes the proxy codes of random
images by a frozen MaskGIT-VQGAN, loss and gradients, and updates the weights by AdamW, in float32, or under
autocast to bfloat16 with `--bf16`. Printed are the shortest step and the peak memory: on a CPU the resident
memory of the process, on CUDA what torch has allocated.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

import torch
from against.titok_training import training_step

from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel, TiTokConfig, TiTokModel
from titok_hf.devices import default_device
from titok_hf.training import TiTokTrainer, TiTokTrainingArguments, WarmupObjective
from titok_hf.training.memory import PeakMemory

STEPS = 2  # of each process, after one that warms up


def measure(
    size: str, batch_size: int, bf16: bool, checkpointing: bool, quick: bool = False
) -> tuple[float, float]:
    """Trains some steps; with `quick`, of tiny networks.

    Returns:
        The seconds of the shortest step, and the peak memory in GiB.
    """
    device = default_device()
    tiny = {"image_size": 32, "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    vqgan_config = MaskGitVQGANConfig(image_size=32 if quick else 256)
    config = TiTokConfig.from_size(
        size, head="proxy_codes", vqgan_config=vqgan_config.to_dict(), **tiny if quick else {}
    )
    objective = WarmupObjective(
        TiTokModel(config), MaskGitVQGANModel(vqgan_config), ema_decay=0.999
    )
    if checkpointing:
        objective.activation_checkpointing_enable()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TiTokTrainingArguments(folder, report_to="none")
        trainer = TiTokTrainer(objective.to(device), arguments, data_collator=dict)
    optimizer = trainer.create_optimizer()
    objective.train()
    images = torch.rand(batch_size, 3, config.image_size, config.image_size, device=device)
    seconds = []
    with PeakMemory() as memory:
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
            training_step(trainer, optimizer, images, autocast).item()  # waits for the device
            seconds.append(time.perf_counter() - start)
    cuda = device.type == "cuda"
    gib = torch.cuda.max_memory_allocated() / 2**30 if cuda else memory.gib
    return min(seconds[1:]), gib


def main(
    size: str, batch_size: int, bf16: bool = False, rounds: int = 3, quick: bool = False
) -> None:
    best: dict[bool, tuple[float, float]] = {}
    for _ in range(rounds):
        for checkpointing in (False, True):
            work = {"size": size, "batch_size": batch_size, "bf16": bf16, "quick": quick}
            run = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--serve",
                    json.dumps(work | {"checkpointing": checkpointing}),
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            seconds, gib = json.loads(run.stdout)
            others = best.get(checkpointing, (seconds, gib))
            best[checkpointing] = min(seconds, others[0]), min(gib, others[1])
    for checkpointing, name in ((False, "without"), (True, "with")):
        seconds, gib = best[checkpointing]
        print(f"{name} activation checkpointing: {seconds:.2f} s a step, {gib:.2f} GiB")
    time_ratio, memory_ratio = (
        with_it / without for without, with_it in zip(best[False], best[True], strict=True)
    )
    print(f"{time_ratio:.2f} times the time, {memory_ratio:.2f} times the memory")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="?", default="titok-b-64", help="size of the tokenizer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    if work := arguments.pop("serve"):
        print(json.dumps(measure(**work)))
    else:
        main(**arguments)
