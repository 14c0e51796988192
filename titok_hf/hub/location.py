"""The arguments of `from_pretrained` that find files."""

from collections.abc import Mapping
from typing import Any

LOCATION_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
)


def split_location(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits arguments of `from_pretrained` into those that find files, and the others."""
    location = {name: arguments[name] for name in LOCATION_ARGUMENTS if name in arguments}
    others = {name: value for name, value in arguments.items() if name not in location}
    return location, others
