"""The origin and results of weights: `provenance.json` beside them.

A provenance may hold `license`, `base_model`, `datasets`, `training_data`, `recipe`, and `results`,
each with `task`, `dataset`, `split`, `metric`, `name`, `value`, `standard_error`, `protocol` and
`source`. Models store it in their attribute `provenance`; no network reads it.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

FILE_NAME = "provenance.json"

Provenance = dict[str, Any]


def read_provenance(path: str | Path, subfolder: str = "", **location: Any) -> Provenance:
    """Reads the provenance of weights in a folder or Hub repository; empty if there is none.

    Args:
        path: The folder or repository.
        subfolder: Subfolder of the weights.
        location: `revision`, `token`, `cache_dir`, … of a repository.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    file = Path(path) / subfolder / FILE_NAME
    if not Path(path).is_dir():
        try:
            downloaded = hf_hub_download(
                str(path), FILE_NAME, subfolder=subfolder or None, **location
            )
        except EntryNotFoundError:  # also raised offline, if it is not cached
            return {}
        file = Path(downloaded)
    elif not file.exists():
        return {}
    try:
        provenance = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(provenance, dict):
        raise ValueError(f"{file} must hold a JSON object, got a {type(provenance).__name__}.")
    return provenance


def write_provenance(provenance: Provenance, folder: str | Path) -> None:
    """Writes the provenance of the weights in a folder; an empty one removes the file."""
    file = Path(folder) / FILE_NAME
    if provenance:
        text = json.dumps(provenance, indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
    else:
        file.unlink(missing_ok=True)


def provenance_of(thing: Any) -> Provenance:
    """Returns the provenance of a model, or of a pipeline's models together; empty without weights.

    Base models, data sets and results of all models are joined; other entries are the last model's.
    """
    parts = [
        part for part in getattr(thing, "components", {"": thing}).values() if has_provenance(part)
    ]
    joined = {key: value for part in parts for key, value in part.provenance.items()}
    if len(parts) == 1:
        return joined
    for key in ("base_model", "datasets", "results"):
        joined[key] = []
        for part in parts:
            items = part.provenance.get(key) or []
            joined[key] += [
                item
                for item in ([items] if isinstance(items, str) else items)
                if item not in joined[key]
            ]
    return {key: value for key, value in joined.items() if value}


def has_provenance(thing: Any) -> bool:
    return hasattr(thing, "provenance")


def inherit_provenance(model: Any, source: Any) -> None:
    """Copies the provenance of `source` to a model made from its weights."""
    if has_provenance(source):
        model.provenance = copy.deepcopy(source.provenance)


def drop_results(model: Any) -> None:
    """Drops the results of a model that is about to be trained, since they no longer apply."""
    if has_provenance(model):
        model.provenance = {
            key: value for key, value in model.provenance.items() if key != "results"
        }


def with_results(provenance: Provenance, results: Sequence[Mapping[str, Any]]) -> Provenance:
    """Adds results to a provenance; they replace older ones of the same metric and protocol."""
    replaced = [identity(result) for result in results]
    kept = [old for old in provenance.get("results", []) if identity(old) not in replaced]
    return {**provenance, "results": [*kept, *results]}


def identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the fields that tell which measurement a result is of."""
    return tuple(result.get(key) for key in ("task", "dataset", "split", "metric", "protocol"))
