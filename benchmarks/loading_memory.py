"""Peak memory of loading and converting official checkpoints of TiTok-L-32, relative to their size.

    python benchmarks/loading_memory.py

The benchmark writes a checkpoint of random weights (641M parameters, 2.6 GB) to a temporary folder,
as safetensors and as a .bin, and runs each task in its own process. It prints the peak resident
memory, also as a multiple of the checkpoint's size, and this multiple without the imports.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from titok_hf import TiTokConfig
from titok_hf.conversion.checkpoint import write_tensors

TASKS = {
    "imports alone": "",
    "from_pretrained": "TiTokModel.from_pretrained('{folder}/official')",
    "from_pretrained, bfloat16": "TiTokModel.from_pretrained('{folder}/official', dtype=torch.bfloat16)",
    "convert .safetensors": "convert('{folder}/official', '{folder}/from_safetensors')",
    "convert .bin": "convert('{folder}/tokenizer_titok_l32.bin', '{folder}/from_bin')",
    "from_pretrained of the result": "TiTokModel.from_pretrained('{folder}/from_bin')",
}
# VmHWM is the peak of this process alone; `resource` would include the parent's.
PROGRAM = """
import re
import torch
from titok_hf import TiTokModel
from titok_hf.conversion import convert
{task}
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


def write_checkpoint(folder: Path, size: str = "titok-l-32") -> int:
    """Writes an official checkpoint of random weights as a folder and as a `.bin`; returns its size
    in bytes."""
    vqgan_config = {"image_size": 256, "shortcut_of_output": True}
    config = TiTokConfig.from_size(
        size, head="vqgan_decoder", interleaved_latents=True, vqgan_config=vqgan_config
    )
    official = config.official_format()
    ours = official.meta_state_dict(config)
    shapes = {
        name: official.official_shape(names, ours)
        for name, names in official.layout(ours, config).items()
    }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    (folder / "official").mkdir()
    (folder / "official" / "config.json").write_text(json.dumps(official.official_config(config)))
    write_tensors(tensors, folder / "official" / "model.safetensors")
    write_tensors(tensors, folder / "tokenizer_titok_l32.bin")
    return sum(tensor.nbytes for tensor in tensors.values())


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = write_checkpoint(folder)
        print(f"checkpoint: {size / 1e9:.2f} GB")
        baseline = None
        for name, task in TASKS.items():
            program = PROGRAM.format(task=task.format(folder=folder))
            run = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            )
            peak = int(run.stdout.splitlines()[-1])
            baseline = baseline or peak
            print(
                f"{name:<30} peak {peak / 1e9:5.2f} GB, {peak / size:4.2f} of the checkpoint; "
                f"without the imports {(peak - baseline) / size:4.2f}"
            )


if __name__ == "__main__":
    main()
