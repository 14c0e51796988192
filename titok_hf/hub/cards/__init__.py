"""Model and data set cards: one Markdown template per class, in this folder.

A card describes an object, its use, origin, results and citation. Metadata shared by all objects of
a class is at the top of its template.
"""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..provenance import Provenance

GENERATED = "<!-- Written by titok_hf, which overwrites it on the next push. Delete this line to keep your edits. -->"

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals["generated"] = GENERATED
TEMPLATES.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False).rstrip()


def render_card(
    thing: Any, provenance: Provenance, repo_id: str, revision: str | None = None
) -> ModelCard:
    """Renders the card of a model, processor, scheduler or pipeline.

    The template is named after its class, or after the nearest base class that has one.

    Args:
        thing: The object; templates read its configuration.
        provenance: Its provenance, see `titok_hf.hub.provenance`.
        repo_id: Repository or folder that the snippet loads.
        revision: Branch that it loads; defaults to the main one.
    """
    template = TEMPLATES.select_template([f"{base.__name__}.md" for base in type(thing).__mro__])
    rendered = template.render(
        thing=thing,
        class_name=type(thing).__name__,
        place=f'"{repo_id}"' if revision is None else f'"{repo_id}", revision="{revision}"',
        provenance=provenance,
    )
    _, shared, text = rendered.split("---\n", 2)
    results = provenance.get("results") or []
    data = ModelCardData(
        **yaml.safe_load(shared),
        license=provenance.get("license"),
        base_model=provenance.get("base_model"),
        datasets=provenance.get("datasets"),
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=[
            EvalResult(
                task_type=result["task"],
                dataset_type=result["dataset"],
                dataset_name=result["dataset"],
                dataset_split=result.get("split"),
                metric_type=result["metric"],
                metric_name=result.get("name", result["metric"]),
                metric_value=result["value"],
                metric_args={
                    key: result[key] for key in ("protocol", "standard_error") if result.get(key)
                },
                source_name=result.get("source") and "source",
                source_url=result.get("source"),
            )
            for result in results
        ]
        or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")
