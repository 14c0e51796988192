"""The commands of FDr6."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..settings import override
from .evaluate import (
    BatchSize,
    Dtype,
    ImageColumn,
    Output,
    Overrides,
    Revision,
    Weights,
    app,
)
from .options import Device, Json, Sampler, Seed, console
from .tables import show

Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="Encoder: inception, convnextv2, dinov2, mae, siglip2 or clip; may be repeated; all six by "
        "default.",
    ),
]


@app.command()
def fdr6(
    source: Annotated[
        str,
        typer.Argument(
            help="Pipeline (folder or Hub repository), or images: a folder or an ADM batch (.npz)."
        ),
    ],
    reference: Annotated[
        Path, typer.Option(help="Folder that `titok evaluate fdr6-reference` wrote.")
    ],
    samples: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="ADM batch (.npz) to write the images of a pipeline to."),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="fdr6, or a YAML file with a protocol's fields.")
    ] = "fdr6",
    overrides: Overrides = (),
    encoders: Encoders = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Number of images; the protocol's by default.")
    ] = None,
    seed: Seed = 0,
    sampler: Sampler = (),
    revision: Revision = None,
    extractor_weights: Weights = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Dtype = "float32",
    output: Output = Path("fdr6.json"),
    as_json: Json = False,
) -> dict[str, Any]:
    """Evaluate generated images by six encoders: mean ratio of their Fréchet distances to those of
    real images."""
    arguments = dict(locals())
    del arguments["output"], arguments["as_json"]
    from ..evaluation import evaluate_frechet_ratio

    arguments["sampler"] = {}
    override(arguments["sampler"], sampler)
    return show([evaluate_frechet_ratio(**arguments)], [source], output)


@app.command()
def fdr6_reference(
    data: Annotated[
        str, typer.Argument(help="A folder of images, or a data set on the Hub; ImageNet for FDr6.")
    ],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder to write.")],
    protocol: Annotated[
        str, typer.Option(help="fdr6, or a YAML file with a protocol's fields.")
    ] = "fdr6",
    overrides: Overrides = (),
    train_split: Annotated[str, typer.Option(help="Split of the statistics.")] = "train",
    validation_split: Annotated[
        str, typer.Option(help="Split whose distances are the unit.")
    ] = "validation",
    encoders: Encoders = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the data.")] = None,
    image_column: ImageColumn = "image",
    extractor_weights: Weights = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    as_json: Json = False,
) -> dict[str, float]:
    """Write the statistics of real images by each encoder of FDr6.

    The same command resumes a stopped run.
    """
    arguments = dict(locals())
    del arguments["as_json"]
    from ..distributed import process_state
    from ..evaluation import write_ratio_reference

    distances = write_ratio_reference(**arguments)
    if process_state().is_main_process:
        for name, distance in distances.items():
            console.print(f"{name}: Fréchet distance of validation images {distance:.4g}")
        console.print(f"Reference of FDr6: [bold]{escape(str(output))}[/bold]")
    return distances
