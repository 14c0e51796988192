"""Tables of results."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from .options import console


def show(results: list[Any], names: list[str], output: Path | None = None) -> dict[str, Any]:
    """Prints a table of results on the main process, saves the first result as JSON, and returns its
    fields."""
    from ..distributed import process_state

    fields = dataclasses.asdict(results[0])
    if not process_state().is_main_process:
        return fields
    if output is not None:
        results[0].save(output)
    caption = escape(results[0].summary()) if len(results) == 1 else None
    table = Table("metric", *map(escape, names), caption=caption)
    columns = []
    for result in results:
        column = {}
        for metric, estimate in result.metrics.items():
            error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.2g}"
            column[result.title(metric)] = f"{estimate.value:.5g}{error}"
        columns.append(column)
    for title in dict.fromkeys(title for column in columns for title in column):
        table.add_row(escape(title), *(column.get(title, "") for column in columns))
    console.print(table)
    if output is not None:
        console.print(f"Result with its protocol: [bold]{escape(str(output))}[/bold]")
    return fields


def show_measured(
    results: Sequence[dict[str, Any]],
    names: Sequence[str],
    output: Path,
    hidden: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any] | list[dict[str, Any]]:
    """Writes results as JSON on the main process, one alone or several as a list, prints a column of
    metrics for each, and returns what it wrote.

    Args:
        results: Results with `metrics`, each a `value` and a `standard_error`, and `num_images`.
        names: Titles of the columns.
        output: The file.
        hidden: Metrics that are not printed.
        notes: Remarks below the table.
    """
    from ..distributed import process_state

    stored = results[0] if len(results) == 1 else list(results)
    if not process_state().is_main_process:
        return stored
    output.write_text(json.dumps(stored, indent=2) + "\n")
    table = Table(
        "metric", *names, caption="; ".join([f"{results[0]['num_images']} images", *notes])
    )
    for metric in dict.fromkeys(name for result in results for name in result["metrics"]):
        if metric in hidden:
            continue
        cells = []
        for result in results:
            estimate = result["metrics"].get(metric)
            error = estimate and estimate["standard_error"]
            value = "not defined" if estimate is None else f"{estimate['value']:.4g}"
            cells.append(value + ("" if error is None else f" ± {error:.2g}"))
        table.add_row(metric.replace("_", " "), *cells)
    console.print(table)
    console.print(f"Result with all settings: [bold]{escape(str(output))}[/bold]")
    return stored


def demo_table(metrics: dict[str, Any]) -> Table:
    """Returns a table of the metrics of a demo."""
    rows = {
        "real, held out": metrics["real_held_out"],
        "generated": metrics["generated"],
        "reconstructed from 1D tokens": metrics["reconstructed"]["decoder_finetuning"],
        "  before decoder fine-tuning": metrics["reconstructed"]["warmup"],
        "  by the VQGAN alone": metrics["reconstructed"]["vqgan"],
    }
    columns = {
        "accuracy": ("accuracy", "{:.1%}"),
        "Fréchet": ("frechet_distance", "{:.3f}"),
        "MSE": ("mean_squared_error", "{:.4f}"),
        "codes used": ("codebook_usage", "{:.0%}"),
        "distance": ("nearest_neighbor_ratio", "{:.2f}"),
    }
    table = Table(
        "digits",
        *columns,
        title=f"Demo, seed {metrics['seed']}",
        caption="accuracy: of a classifier trained on the real training digits; Fréchet: distance to them; "
        "distance: to the nearest of them, relative to that of real held-out digits",
    )
    for name, measures in rows.items():
        cells = (
            form.format(measures[key]) if key in measures else "" for key, form in columns.values()
        )
        table.add_row(name, *cells)
    return table
