"""Reads and writes files of official checkpoints: only tensors, nothing that runs code."""

import json
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from ..modeling.loading import load_pickle, refuse_unreadable

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def find_weights(path: str | Path) -> list[Path]:
    """Returns the file of a checkpoint, or its shards.

    Args:
        path: A file, or a folder that holds one checkpoint.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the folder holds more than one.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    candidates = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    for index in sorted(path.glob("*.index.json")):
        shards = sorted(
            {path / name for name in json.loads(index.read_text())["weight_map"].values()}
        )
        if missing := [shard.name for shard in shards if not shard.exists()]:
            raise FileNotFoundError(f"{index} names files that do not exist: {', '.join(missing)}.")
        if set(candidates) == set(shards):
            return shards
    if not candidates:
        raise FileNotFoundError(
            f"{path} holds no weights: expected one file of {', '.join(SUFFIXES)}."
        )
    if len(candidates) > 1:
        names = ", ".join(file.name for file in candidates)
        raise ValueError(
            f"{path} holds more than one checkpoint: {names}. Name the file, or remove all but one."
        )
    return candidates


def read_tensors(
    files: Sequence[Path], unwanted: Set[str] = frozenset()
) -> dict[str, torch.Tensor]:
    """Reads the tensors of a checkpoint's files, except the unwanted ones.

    Files are read, not memory-mapped, so that loaded weights survive when the file is overwritten.

    Raises:
        ValueError: If a file is truncated, corrupt, a pickle that would run code, or holds anything
            but tensors.
    """
    tensors: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with (
                refuse_unreadable(file),
                safe_open(file, framework="pt", backend="pread") as opened,
            ):
                names = sorted(name for name in opened.keys() if own_name(name) not in unwanted)  # noqa: SIM118
                tensors |= {own_name(name): opened.get_tensor(name) for name in names}
            continue
        loaded = load_pickle(file)
        # of a training checkpoint, the averaged weights, or those that Lightning stores
        for part in ("ema", "state_dict"):
            if isinstance(loaded, dict) and isinstance(loaded.get(part), dict):
                loaded = loaded[part]
        if not isinstance(loaded, dict) or not all(
            isinstance(tensor, torch.Tensor) for tensor in loaded.values()
        ):
            held = list(loaded)[:5] if isinstance(loaded, dict) else type(loaded).__name__
            raise ValueError(f"{file} must hold a dict of tensors by name, got {held}.")
        tensors |= {
            own_name(name): tensor
            for name, tensor in loaded.items()
            if own_name(name) not in unwanted
        }
    return tensors


def own_name(name: str) -> str:
    """Removes the prefix that DistributedDataParallel adds to a weight's name."""
    return name.removeprefix("module.")


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Writes a checkpoint in the format of the file's suffix."""
    if file.suffix == ".safetensors":
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        torch.save(tensors, file)


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads an official configuration, JSON or YAML, and resolves its references.

    Raises:
        ValueError: If it is not a mapping.
    """
    try:
        config = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a configuration in JSON or YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(config).__name__}.")
    return resolve_references(config)


def resolve_references(config: dict[str, Any]) -> dict[str, Any]:
    """Replaces references such as `${model.vq_model.num_latent_tokens}` by their values.

    The reference implementation also leaves them in the `config.json` that it saves. Unresolvable
    ones stay. Numbers such as `1e-4`, which YAML 1.1 reads as text, become floats.
    """

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolve(nested) for key, nested in value.items()}
        if not isinstance(value, str):
            return value
        if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            return float(value)
        if reference := re.fullmatch(r"\$\{([\w.]+)\}", value):
            found: Any = config
            for key in reference[1].split("."):
                if not isinstance(found, dict) or key not in found:
                    return value
                found = found[key]
            return resolve(found)
        return value

    return resolve(config)
