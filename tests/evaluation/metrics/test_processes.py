import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import titok_hf

from .distributed_metrics import NUM_IMAGES, measure


@pytest.mark.xdist_group("distributed")
def test_two_processes_measure_as_one(tmp_path):
    script = Path(__file__).with_name("distributed_metrics.py")
    root = str(Path(titok_hf.__file__).parents[1])
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    subprocess.run(
        [*torchrun, script, tmp_path, "2"],
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    expected = measure()
    assert expected["count"][0] == NUM_IMAGES
    for rank in (0, 1):
        measured = json.loads((tmp_path / f"{rank}.json").read_text())
        assert measured.keys() == expected.keys()
        for name, values in measured.items():
            assert values == pytest.approx(expected[name], rel=1e-9), name
