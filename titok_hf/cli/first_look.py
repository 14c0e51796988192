"""Commands that look at a machine and at a run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from .options import Json, console


def plot(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    output: Annotated[Path, typer.Option(help="Picture of the curves.")] = Path("training.png"),
) -> None:
    """Draw the losses of a run, finished or not."""
    from ..evaluation import plot_run

    plot_run(run, output)
    console.print(f"Curves of {escape(str(run))}: [bold]{escape(str(output))}[/bold]")


def doctor(as_json: Json = False) -> dict[str, Any]:
    """Tell what this machine offers: versions, devices, memory, cache, Hub, optional parts."""
    from ..doctor import diagnose

    found = diagnose()
    table = Table(show_header=False)
    for name, number in found["versions"].items():
        table.add_row(name, number or "[red]missing[/red]")
    table.add_row("system", found["system"])
    for device in found["devices"] or [{"name": "none, so the CPU computes", "memory_gib": None}]:
        memory = device["memory_gib"]
        table.add_row("accelerator", device["name"] + (f", {memory:.0f} GiB" if memory else ""))
    table.add_row("CPU", f"{found['threads']} threads, {found['memory_gib']:.0f} GiB")
    speeds = ", ".join(f"{dtype} {number:,.0f}" for dtype, number in found["gflops"].items())
    table.add_row("GFLOP/s", f"matrix product in {speeds}")
    cache = found["cache"]
    table.add_row("cache", f"{escape(cache['path'])}, {cache['free_gib']:.0f} GiB free")
    table.add_row("Hub", found["hub"])
    for name, extra in found["extras"].items():
        missing = f"lacks {', '.join(extra['missing'])}: {extra['command']}"
        table.add_row(f"\\[{name}]", escape(missing) if extra["missing"] else "complete")
    console.print(table)
    return found
