"""Reports of a study: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .study import Study

# Title of each metric, with an arrow towards better values, and format of its values.
METRICS = {
    "mean_squared_error": ("mean squared error ↓", "{:.4f}"),
    "psnr": ("PSNR in dB ↑", "{:.2f}"),
    "codebook_usage": ("codes in use ↑", "{:.1%}"),
    "codebook_perplexity": ("perplexity of the codes ↑", "{:.1f}"),
    "accuracy": ("classed as the right digit ↑", "{:.1%}"),
    "frechet_distance": ("Fréchet distance ↓", "{:.3f}"),
}


def summarize(study: Study, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes mean and standard deviation over the seeds.

    Args:
        study: The study.
        runs: The runs in `results.json`.

    Returns:
        For each variant that has been run, in the study's order: its `values`, the number of
        `runs`, the mean `seconds`, and for each measured metric of the study the `mean` and the
        sample standard deviation `std` (`None` for a single run).
    """
    rows = []
    for variant in study.variants():
        own = [run for run in runs if run["variant"] == variant.values]
        if not own:
            continue
        row = {
            "values": variant.values,
            "runs": len(own),
            "seconds": float(np.mean([run["seconds"] for run in own])),
        }
        for metric in study.metrics:
            if metric in own[0]["values"]:
                values = [run["values"][metric] for run in own]
                std = float(np.std(values, ddof=1)) if len(values) > 1 else None
                row[metric] = {"mean": float(np.mean(values)), "std": std}
        rows.append(row)
    return rows


def markdown_table(study: Study, rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows of `summarize` as a Markdown table: mean ± standard deviation."""
    metrics = [metric for metric in study.metrics if metric in rows[0]]
    header = [*study.axes, *(METRICS[metric][0] for metric in metrics), "runs", "seconds each"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        cells = [str(value) for value in row["values"].values()]
        for metric in metrics:
            form = METRICS[metric][1]
            mean, std = row[metric]["mean"], row[metric]["std"]
            cells.append(
                form.format(mean) if std is None else f"{form.format(mean)} ± {form.format(std)}"
            )
        lines.append([*cells, str(row["runs"]), f"{row['seconds']:.0f}"])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def plot(study: Study, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the rows of `summarize`: one panel per metric, and one curve per combination of values
    of the axes other than the study's `x`.

    Error bars are the standard deviation over the seeds. Numeric values of `x` have a logarithmic
    axis. Requires matplotlib.
    """
    from matplotlib.figure import Figure

    metrics = [metric for metric in study.panels if metric in rows[0]]
    ticks = list(study.axes[study.x])
    numbers = all(isinstance(tick, int | float) for tick in ticks)
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        curve = ", ".join(str(value) for axis, value in row["values"].items() if axis != study.x)
        curves.setdefault(curve, []).append(row)
    figure = Figure(figsize=(3.4 * len(metrics), 3.6), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for curve, points in curves.items():
            values = [point["values"][study.x] for point in points]
            axis.errorbar(
                values if numbers else [ticks.index(value) for value in values],
                [point[metric]["mean"] for point in points],
                [point[metric]["std"] or 0 for point in points],
                fmt="o-" if numbers else "o",
                capsize=3,
                label=curve,
            )
        if numbers:
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
        else:
            axis.set_xticks(range(len(ticks)), ticks)
            axis.set_xlim(-0.5, len(ticks) - 0.5)
        axis.set_xlabel(study.x)
        axis.set_title(METRICS[metric][0], fontsize=10)
        axis.grid(alpha=0.3)
    if len(curves) > 1:
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(curves),
            fontsize=9,
        )
    figure.suptitle(study.title, fontsize=11)
    figure.savefig(path, dpi=80)
