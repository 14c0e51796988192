"""A training run that is killed again and again; run as a script, since a process that has trained
must not fork."""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from tiny_training import tiny_arguments, tiny_data, tiny_vqgan
from transformers import PrinterCallback

from titok_hf.devices import matmul_flops
from titok_hf.training import PatchDiscriminator, ReconstructionObjective, TiTokTrainer
from titok_hf.training.checkpoints import MANIFEST, checkpoints, damage, last_checkpoint

MAX_STEPS = 100
SAVE_STEPS = 2
KILLS = 20


def train(folder, data, **arguments):
    """Trains from the newest whole checkpoint to the last step; all random parts of a stage are in
    it."""
    torch.manual_seed(0)
    objective = ReconstructionObjective(
        tiny_vqgan(),
        discriminator=PatchDiscriminator(hidden_channels=4, num_stages=1),
        adversarial_weight=0.1,
        lecam_weight=0.01,
        ema_decay=0.9,
    )
    trainer = TiTokTrainer(
        objective,
        tiny_arguments(
            folder, max_steps=MAX_STEPS, save_steps=SAVE_STEPS, save_total_limit=1, **arguments
        ),
        **data,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    torch.save(objective.state_dict(), folder / "result.pt")


def start(folder, data, **arguments):
    """The process that trains."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forking a process with threads: they are idle
        process = os.fork()
    if process == 0:
        try:
            train(folder, data, **arguments)
            os._exit(0)
        finally:
            os._exit(1)
    return process


def ended(process):
    return os.waitpid(process, os.WNOHANG)[0] != 0


def wait_at_random(process, folder, generator):
    """Until some checkpoints more are whole, and a moment longer."""
    target = newest(folder) + SAVE_STEPS * generator.randrange(3)
    while newest(folder) < target and not ended(process):
        time.sleep(0.001)
    time.sleep(generator.uniform(0.0, 0.03))


def newest(folder):
    """The step of the newest checkpoint that has been finished."""
    return max(
        (step for step, path in checkpoints(folder).items() if (path / MANIFEST).exists()),
        default=0,
    )


def wait_for_writing(process, folder, generator):
    """Until some files of a new checkpoint are there, but not all, or an old one is being deleted."""
    remains = {
        path: path.stat().st_mtime_ns for path in checkpoints(folder).values() if damage(path)
    }
    num_files = generator.randrange(7)
    while not ended(process):
        time.sleep(0.0005)
        for path in checkpoints(folder).values():
            try:
                names, changed = os.listdir(path), path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if MANIFEST not in names and len(names) >= num_files and remains.get(path) != changed:
                return


def main(folder):
    torch.set_num_threads(1)
    matmul_flops(torch.device("cpu"), torch.float32)  # each process would measure it
    generator = random.Random(0)
    data = tiny_data()
    alone, killed = folder / "alone", folder / "killed"
    alone.mkdir()
    killed.mkdir()
    assert os.waitpid(start(alone, data, save_strategy="no"), 0)[1] == 0
    moments = []
    for kill in range(KILLS):
        process = start(killed, data)
        if kill % 2:
            wait_at_random(process, killed, generator)
        else:
            wait_for_writing(process, killed, generator)
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        whole = {step: damage(path) is None for step, path in checkpoints(killed).items()}
        moments.append({"status": status, "whole": whole})
    assert os.waitpid(start(killed, data), 0)[1] == 0
    (folder / "moments.json").write_text(json.dumps(moments))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
