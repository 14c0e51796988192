"""The commands on random trees of files: what each of them counts.

12 trees from seed 1, see `tests/data/random_tree.py`; without broken images, which `titok tokenize`
and training skip and evaluation refuses.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from data.random_tree import Tree
from datasets import load_dataset

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]


def counted(call, root, *command):
    """The number of images that a command says to have found, and its errors."""
    code, _, errors = call(*command)
    assert "Traceback" not in errors, errors
    # with few images, a fifth cannot be held out as the split `test`
    assert code == 0 or "A fifth of" in errors, errors
    [line] = [line for line in errors.splitlines() if line.startswith(f"{root}: ")]
    return int(line.removeprefix(f"{root}: ").split()[0])


def test_every_command_counts_the_images_that_were_made(call, tokenizer, tmp_path):
    rng = np.random.default_rng(1)
    for number in range(12):
        tree = Tree(tmp_path / f"{number}" / "root", rng, broken=0)
        total = len(tree.images)
        labelled = sum(name is not None for _, name, _ in tree.images)

        arguments = ("tokenize", tree.root, "--tokenizer", tokenizer, "--output-dir")
        assert counted(call, tree.root, *arguments, f"{number}/tokens", "--no-labels") == total
        tokens = load_dataset("parquet", data_dir=str(tmp_path / f"{number}" / "tokens"))
        assert sum(split.num_rows for split in tokens.values()) == total
        assert counted(call, tree.root, *arguments, f"{number}/labelled") == labelled

        probe = ("evaluate", "probe", tokenizer, "--data", tree.root, "--image-column", "picture")
        code, _, errors = call(*probe)  # the wrong column ends it after the line
        assert code == 1 and f"{tree.root}: {labelled} image" in errors

        for split in {split for split, _, _ in tree.images}:
            images = sum(image[0] == split for image in tree.images)
            if images < 2:
                continue
            options = ["--set", "metrics.reconstruction=[psnr]", "--set", "reference=originals"]
            options += ["--set", "crop=center", "--set", "interpolation=bicubic", "--split", split]
            options += ["--protocol", "demo", "--output", f"{number}/{split}.json"]
            command = ("evaluate", "reconstruction", tokenizer, "--data", tree.root, *options)
            assert counted(call, tree.root, *command) == total
            result = json.loads(Path(f"{number}/{split}.json").read_text())
            assert result["num_images"] == images
