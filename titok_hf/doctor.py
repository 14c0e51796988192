"""Tells what a machine offers: versions, devices and their speed, memory, the cache, the Hub, and optional parts."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, is_offline_mode
from packaging.requirements import Requirement

from .devices import default_device, int8_is_exact, matmul_flops
from .version import __version__

PACKAGES = ("torch", "transformers", "diffusers", "datasets", "accelerate", "huggingface_hub")
HUB_SECONDS = 5.0


def diagnose() -> dict[str, Any]:
    """Returns what the machine offers, as plain data.

    Returns:
        `versions`, of Python and packages, `None` if one is missing; `system`; `devices`, each with
        `name` and `memory_gib`; `gflops`, the speed of a large matrix product in each data type on the
        default device; `threads` of torch; `memory_gib`; `cache`, with `path` and
        `free_gib`; `hub`, `"reachable"`, `"offline"` or what went wrong; and `extras`, each with what
        is `missing` and the `command` that adds it.
    """
    cache = Path(constants.HF_HOME)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    devices = [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_gib": torch.cuda.get_device_properties(index).total_memory / 2**30,
        }
        for index in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append({"name": "MPS", "memory_gib": None})
    device = default_device()
    flops = {
        "float32": matmul_flops(device, torch.float32),
        "bfloat16": matmul_flops(device, torch.bfloat16),
    }
    if device.type == "cpu" and int8_is_exact():
        flops["int8"] = matmul_flops(device, torch.int8, multiply=torch._int_mm)
    return {
        "versions": {
            "python": platform.python_version(),
            "titok_hf": __version__,
            **{package: installed(package) for package in PACKAGES},
        },
        "system": platform.platform(),
        "devices": devices,
        "gflops": {dtype: number / 1e9 for dtype, number in flops.items()},
        "threads": torch.get_num_threads(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "cache": {"path": str(cache), "free_gib": shutil.disk_usage(existing).free / 2**30},
        "hub": reach_hub(),
        "extras": {
            extra: describe_extra(extra)
            for extra in metadata("titok_hf").get_all("Provides-Extra")
            if extra != "dev"
        },
    }


def installed(package: str) -> str | None:
    """Returns the version of a package; `None` if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_extra(extra: str) -> dict[str, Any]:
    """Returns which packages of an extra are missing or too old, and the command that adds them."""
    missing = []
    for text in requires("titok_hf") or []:
        requirement = Requirement(text)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}):
            continue  # needed anyway
        found = installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return {"missing": missing, "command": f'pip install "titok_hf[{extra}]"'}


def reach_hub() -> str:
    """Returns `"reachable"`, `"offline"` if `HF_HUB_OFFLINE` says so, or what went wrong."""
    if is_offline_mode():
        return "offline"
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # each library below has its own errors
        return f"not reachable: {type(error).__name__}"
    return "reachable"


__all__ = ["diagnose"]
