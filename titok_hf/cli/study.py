"""The command that runs a study."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..settings import parse_yaml
from .options import Json, RecipeOverrides, console, studies


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="Study of a claim: tokens, one-against-two-d, two-stage, schedule, codebook, scaling or latents.",
            autocompletion=studies,
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder for the runs; studies/NAME by default.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, emoji, a folder of images, or a data set on the Hub; the study's by default."
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Random seed; may be repeated; the study's by default.")
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            metavar="AXIS=VALUES",
            help="Values of an axis instead of the study's, such as width=64,128; may be repeated.",
        ),
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column of the images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    overrides: RecipeOverrides = None,
    quick: Annotated[
        bool, typer.Option(help="Run a few steps with one seed, to check that everything works.")
    ] = False,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="Network of the Fréchet distance for other data: inception, or a vision model."
        ),
    ] = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Test a claim of a paper in miniature: variants of a recipe, several seeds, a table, a plot.

    The same command resumes a stopped run.
    """
    from ..distributed import process_state
    from ..studies import run_study
    from .progress import TrainingProgress

    output_dir = output_dir or Path("studies") / name
    with TrainingProgress() as progress:
        results = run_study(
            name,
            output_dir,
            data=data,
            seeds=seed,
            overrides=overrides or (),
            quick=quick,
            values=axis_values(axes or ()),
            extractor=extractor,
            image_column=image_column,
            label_column=label_column,
            text_column=text_column,
            callbacks=[progress],
        )
    if process_state().is_main_process:
        console.print((output_dir / "table.md").read_text(), markup=False)
        console.print(
            f"results.json, table.md and plot.png are in [bold]{escape(str(output_dir))}[/bold]."
        )
    return results


def axis_values(axes: list[str]) -> dict[str, list[Any]]:
    """Reads values like `width=64,128` as a list by axis."""
    read = {}
    for given in axes:
        axis, separator, values = given.partition("=")
        if not separator:
            raise typer.BadParameter(f"`--axis` must be AXIS=VALUES, got {given!r}.")
        read[axis] = [parse_yaml(value, given) for value in values.split(",")]
    return read
