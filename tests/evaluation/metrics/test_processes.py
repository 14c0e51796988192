import json
from pathlib import Path

import pytest
from forked import run

from .distributed_metrics import NUM_IMAGES, measure

pytestmark = pytest.mark.slow


@pytest.mark.xdist_group("distributed")
def test_two_processes_measure_as_one(tmp_path):
    run(Path(__file__).with_name("distributed_metrics.py"), tmp_path, 2, num_processes=2)
    expected = measure()
    assert expected["count"][0] == NUM_IMAGES
    for rank in (0, 1):
        measured = json.loads((tmp_path / f"{rank}.json").read_text())
        assert measured.keys() == expected.keys()
        for name, values in measured.items():
            assert values == pytest.approx(expected[name], rel=1e-9), name
