"""Reports of a study: tables and a picture."""

import json
from collections.abc import Mapping, Sequence
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
    "accuracy": ("classed right ↑", "{:.1%}"),
    "frechet_distance": ("Fréchet distance ↓", "{:.3f}"),
    "precision": ("precision ↑", "{:.2f}"),
    "recall": ("recall ↑", "{:.2f}"),
    "reconstruction_frechet_distance": ("rFID ↓", "{:.3f}"),
    "interpolated_frechet_distance": ("iFID ↓", "{:.3f}"),
    "velocity_variance": ("VIV ↓", "{:.3f}"),
    "same_class_neighbors": ("LNC ↑", "{:.1%}"),
    "spatial_similarity": ("LDS ↑", "{:.3f}"),
    "region_similarity": ("SRSS ↑", "{:.3f}"),
    "high_frequencies_0.25": ("SEC at 0.25 ↓", "{:.3f}"),
    "high_frequencies_0.5": ("SEC at 0.5 ↓", "{:.3f}"),
    "effective_rank": ("effective rank ↑", "{:.2f}"),
    "linear_probe": ("linear probe of the mean latent ↑", "{:.1%}"),
    "knn_probe": ("neighbors of the mean latent ↑", "{:.1%}"),
}
LEAST_RUNS = 4  # for a correlation
FLOPS = "FLOPs"  # the x axis of the operations counted in training


def summarize(study: Study, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Computes mean and standard deviation over the seeds.

    Args:
        study: The study.
        runs: The runs in `results.json`.

    Returns:
        For each variant that has been run, in the study's order: its `values`, the value that was
        `tuned`, the number of `runs`, the mean `seconds`, the `flops` of the training of its
        tokenizer, if they are counted, and for each measured metric of the study the `mean` and the
        sample standard deviation `std` (`None` for a single run).
    """
    rows = []
    for variant in study.variants():
        own = [run for run in runs if run["variant"] == variant.values]
        if not own:
            continue
        row = {
            "values": variant.values,
            "tuned": own[0].get("tuned"),
            "runs": len(own),
            "flops": own[0].get("flops"),
            "seconds": float(np.mean([run["seconds"] for run in own])),
        }
        for metric in study.metrics:
            if metric in own[0]["values"]:
                values = [run["values"][metric] for run in own]
                std = float(np.std(values, ddof=1)) if len(values) > 1 else None
                row[metric] = {"mean": float(np.mean(values)), "std": std}
        rows.append(row)
    return rows


def tables(study: Study, rows: Sequence[dict[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `summarize` and, if the study has predictors, their correlations as Markdown
    tables."""
    text = markdown_table(study, rows)
    if study.predictors and len(runs) >= LEAST_RUNS:
        text += "\n" + correlation_table(study, runs)
    return text


def markdown_table(study: Study, rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows of `summarize` as a Markdown table: mean ± standard deviation."""
    metrics = [metric for metric in study.metrics if metric in rows[0]]
    tuned = [] if study.tuning is None else [study.tuning.key.rpartition(".")[2].replace("_", " ")]
    axes = varied(study)
    header = [*axes, *tuned, *(METRICS[metric][0] for metric in metrics), "runs", "seconds each"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        cells = [str(row["values"][axis]) for axis in axes] + [str(row["tuned"]) for _ in tuned]
        for metric in metrics:
            form = METRICS[metric][1]
            mean, std = row[metric]["mean"], row[metric]["std"]
            cells.append(
                form.format(mean) if std is None else f"{form.format(mean)} ± {form.format(std)}"
            )
        lines.append([*cells, str(row["runs"]), f"{row['seconds']:.0f}"])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def varied(study: Study) -> list[str]:
    """Returns the axes that have more than one value."""
    return [axis for axis, choices in study.axes.items() if len(choices) > 1]


def correlation_table(study: Study, runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the correlation of each predictor with the study's first metric as a Markdown table: over
    all runs, and over the means of the variants."""
    target = study.metrics[0]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run["variant"]), []).append(run)
    name = METRICS[target][0].rpartition(" ")[0]
    header = [
        f"correlation with {name}",
        f"Pearson, {len(runs)} runs",
        f"Spearman, {len(runs)} runs",
        f"Pearson, means of {len(groups)} variants",
    ]
    lines = [header, ["---"] * len(header)]
    for metric in study.predictors:
        if metric not in runs[0]["values"]:
            continue
        pairs = np.array([[run["values"][metric], run["values"][target]] for run in runs])
        means = np.array(
            [
                [np.mean([run["values"][each] for run in own]) for each in (metric, target)]
                for own in groups.values()
            ]
        )
        ranked = np.stack([ranks(column) for column in pairs.T], 1)
        lines.append([METRICS[metric][0], *map(correlation, (pairs, ranked, means))])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def correlation(pairs: np.ndarray) -> str:
    """Formats Pearson's correlation of the columns of `(n, 2)`; a constant has none."""
    if not np.ptp(pairs, axis=0).all():
        return "none"
    return f"{np.corrcoef(pairs.T)[0, 1]:+.2f}"


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks of values `(n,)`; equal values share their mean rank."""
    return np.array([(values < value).sum() + (values <= value).sum() for value in values]) / 2


def plot(study: Study, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the rows of `summarize`: one panel per metric, and one curve per combination of values
    of the axes other than the study's `x`.

    Error bars are the standard deviation over the seeds. Numeric values of `x` have a logarithmic
    axis. Requires matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    metrics = [metric for metric in study.panels if metric in rows[0]]
    along = "steps" if study.x == FLOPS else study.x
    ticks = list(study.axes[along])
    numbers = all(isinstance(tick, int | float) for tick in ticks)
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        curve = ", ".join(str(row["values"][axis]) for axis in varied(study) if axis != along)
        curves.setdefault(curve, []).append(row)
    figure = Figure(figsize=(3.4 * len(metrics), 3.6), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for curve, points in curves.items():
            values = [
                point["flops"] if study.x == FLOPS else point["values"][along] for point in points
            ]
            axis.errorbar(
                values if numbers else [ticks.index(value) for value in values],
                [point[metric]["mean"] for point in points],
                [point[metric]["std"] or 0 for point in points],
                fmt="o-" if numbers else "o",
                capsize=3,
                label=curve,
            )
        if study.x == FLOPS:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(EngFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
        elif numbers:
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
        else:
            long = len("".join(ticks)) > 30  # would overlap
            slanted = {"rotation": 25, "ha": "right"} if long else {}
            axis.set_xticks(range(len(ticks)), ticks, **slanted)
            axis.set_xlim(-0.5, len(ticks) - 0.5)
        axis.set_xlabel("FLOPs of the tokenizer's training" if study.x == FLOPS else study.x)
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
