"""Two machines, each with a `torchrun` and a disk of its own, and a folder that they share."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import two_machines
from forked import run
from PIL import Image
from training.miniature_runs import assert_same_weights

import titok_hf
from titok_hf import TiTokModel

SCRIPT = Path(two_machines.__file__)
ROOT = Path(titok_hf.__file__).parents[1]
TIMEOUT = 240  # seconds
PRINTED = "printed.txt"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]


def write_images(folder, number):
    """Images of noise in two classes, the same for the same number."""
    noise = np.random.default_rng(0)
    for i in range(number):
        path = folder / ("cat", "dog")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def torchrun(disks, *arguments):
    """Runs the script on two machines, by an agent on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []
    for rank, disk in enumerate(disks):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            "--nproc-per-node=1",
        ]
        command += [f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        environment = {
            **os.environ,
            "HF_HOME": str(disk / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        with (disk / PRINTED).open("w") as printed:
            agents.append(
                subprocess.Popen(
                    [*command, SCRIPT, *map(str, arguments)],
                    cwd=disk,
                    env=environment,
                    stdout=printed,
                    stderr=printed,
                )
            )
    try:
        codes = [agent.wait(TIMEOUT) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # ends its process, too
    assert codes == [0, 0], "\n".join((disk / PRINTED).read_text() for disk in disks)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_they_work_as_one_with_two_processes(pipeline, vqgan, tmp_path):
    """Only the output is on the disk that they share. What both cannot do together is refused by
    both, before it leaves anything behind."""
    models, shared, one = (tmp_path / name for name in ("models", "shared", "one"))
    disks = [tmp_path / "first", tmp_path / "second"]
    pipeline.save_pretrained(models / "pipeline")
    pipeline.tokenizer.save_pretrained(models / "tokenizer")
    for number, disk in enumerate(disks):
        write_images(disk / "images", 24)
        write_images(disk / "others", 24 - 2 * number)
        torch.manual_seed(number)
        TiTokModel(pipeline.tokenizer.config).save_pretrained(disk / "own-tokenizer")
    vqgan.save_pretrained(disks[0] / "own-vqgan")
    torchrun(disks, models, shared, "refuse")
    first, second = (
        json.loads((disk / f"found-{rank}.json").read_text()) for rank, disk in enumerate(disks)
    )
    assert first == second
    refused, machine = first["refused"], socket.gethostname()
    for name in ("run", "tokens", "study", "samples"):
        sentence = rf"must share the folder \S*, but process 1 on the machine {machine} "
        assert re.search(sentence, refused.pop(f"own {name}"))
        assert not [path for disk in disks for path in (disk / name).rglob("*")]
    for name, what in (
        ("data", "data"),
        ("seed", "seed"),
        ("images", "data"),
        ("number", "images"),
        ("tokenizer", "tokenizer"),
    ):
        assert f"must have the same {what}, but process 1 on " in refused.pop(f"other {name}")
    missing = f"vqgan (on the machine {machine}): There is no folder own-vqgan here"
    assert missing in refused.pop("other cache")
    assert refused == {}
    shutil.rmtree(shared / "pretrained")
    run(SCRIPT, models, one, num_processes=2, folder=disks[0])
    assert first["measured"] == json.loads((disks[0] / "found-0.json").read_text())["measured"]
    assert_same_weights(shared / "run", one / "run")
    assert contents(shared / "tokens") == contents(one / "tokens")
    assert contents(one).keys() == contents(shared).keys()
