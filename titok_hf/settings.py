"""Settings of recipes, protocols and commands: YAML, and changes like `key=value`."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml


# libyaml's parser is six times as fast; a PyYAML that was built without it lacks the class
class SettingsLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML loader that reads `1e-4` as a number, as in YAML 1.2, not as a string, as in 1.1."""


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    [*"-+0123456789"],
)


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML as plain data.

    Args:
        text: The YAML.
        where: Name of the text in errors.

    Raises:
        ValueError: If the YAML is not valid.
    """
    try:
        return yaml.load(text, SettingsLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def load_yaml(path: str | Path) -> Any:
    """Reads a YAML file as plain data; see `parse_yaml`."""
    return parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))


def override(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Changes settings in the form of plain data.

    Args:
        content: The settings, changed in place.
        overrides: Changes like `"stages.warmup.training.max_steps=100"`; values are YAML.

    Raises:
        ValueError: If an override is not `key=value`, or its parent is not a mapping.
    """
    for change in overrides:
        key, separator, value = change.partition("=")
        if not separator:
            raise ValueError(f"An override must be `key=value`, got {change!r}.")
        *parents, leaf = key.split(".")
        target = content
        for parent in parents:
            target = target.setdefault(parent, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ValueError(f"The override {change!r} sets a key of something that has no keys.")
        target[leaf] = parse_yaml(value, change)


def check_keys(where: str, given: Any, known: Iterable[str]) -> None:
    """Checks that settings are a mapping with known keys.

    Raises:
        ValueError: If they are not; the error names the nearest known key.
    """
    if not isinstance(given, dict):
        raise ValueError(f"`{where}` must be a mapping, got {given!r}.")
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"Unknown key {key!r} in `{where}`: {suggestion(key, known)}")


def suggestion(name: Any, known: Sequence[str]) -> str:
    """Returns a hint for an error: the known name nearest to an unknown one, or all known names."""
    nearest = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}."
