"""Commands of `titok evaluate`.

Their parameters have the same names as those of the evaluation functions and are passed through.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from ..hub.folders import output_file
from ..settings import override
from .options import Commands, Device, Json, Sampler, console, protocols
from .tables import show, show_measured

app = Commands(
    help="Evaluate tokenizers and generators; results record the protocol.",
    no_args_is_help=True,
    add_completion=False,
)

ProtocolName = Annotated[
    str,
    typer.Option(
        help="titok-rfid, vtp-rfid, adm-256, adm-512, fdr6, demo, emoji, or a YAML file with a protocol's "
        "fields.",
        autocompletion=protocols,
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change of the protocol, such as image_size=512."
    ),
]


def writable(path: Path) -> Path:
    """Rejects a file that could not be written after a long computation."""
    try:
        return output_file(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Output = Annotated[
    Path, typer.Option(dir_okay=False, callback=writable, help="JSON file for the result.")
]
Reference = Annotated[
    str | None,
    typer.Option(
        help="Images to compare with: an ADM batch (.npz), a folder of images, or a data set."
    ),
]
ReferenceSplit = Annotated[str | None, typer.Option(help="Split of the reference.")]
ReferenceRevision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a reference on the Hub.")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")
]
DataRevision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the data on the Hub.")
]
Weights = Annotated[
    str | None,
    typer.Option(help="Weights of Inception: a local file, or one on the Hub as owner/repo/file."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of images processed at once.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Data type of the model.")
]
ImageColumn = Annotated[str, typer.Option(help="Column of the images.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels.")]
Data = Annotated[
    str, typer.Option(help="digits, emoji, a folder of images, or a data set on the Hub.")
]


@app.command()
def reconstruction(
    tokenizer: Annotated[
        str, typer.Argument(help="Folder or Hub repository of a tokenizer of any family.")
    ],
    data: Data,
    protocol: ProtocolName = "titok-rfid",
    overrides: Overrides = (),
    split: Annotated[
        str | None, typer.Option(help="Split of the data; test or validation by default.")
    ] = None,
    revision: Revision = None,
    subfolder: Annotated[
        str,
        typer.Option(help="Subfolder of the tokenizer, such as tokenizer or vae in a pipeline."),
    ] = "",
    data_revision: DataRevision = None,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    num_images: Annotated[
        int | None, typer.Option(min=2, help="Number of images, from the start; all by default.")
    ] = None,
    reference: Reference = None,
    reference_split: ReferenceSplit = None,
    reference_revision: ReferenceRevision = None,
    extractor_weights: Weights = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Dtype = "float32",
    output: Output = Path("reconstruction.json"),
    as_json: Json = False,
) -> Any:
    """Evaluate a tokenizer's reconstructions: FID, PSNR, codebook usage, and more."""
    arguments = dict(locals())
    del arguments["output"], arguments["as_json"]
    from ..evaluation import evaluate_reconstruction

    return show([evaluate_reconstruction(**arguments)], [tokenizer], output)


@app.command()
def generation(
    source: Annotated[
        str,
        typer.Argument(
            help="Pipeline (folder or Hub repository), or images: a folder or an ADM batch (.npz)."
        ),
    ],
    protocol: ProtocolName = "adm-256",
    overrides: Overrides = (),
    reference: Reference = None,
    reference_split: ReferenceSplit = None,
    reference_revision: ReferenceRevision = None,
    image_column: ImageColumn = "image",
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Number of images; the protocol's by default.")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Seed of the samples; repeat it to average over several sets."),
    ] = None,
    sampler: Sampler = (),
    samples: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="ADM batch (.npz) to write; makes the run resumable."),
    ] = None,
    revision: Revision = None,
    extractor_weights: Weights = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"],
        typer.Option(
            help="Data type of the pipeline; int8 is that of its linear layers, on a CPU."
        ),
    ] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the pipeline first, in its data type.")
    ] = False,
    output: Output = Path("generation.json"),
    as_json: Json = False,
) -> Any:
    """Evaluate generated images: FID, sFID, Inception Score, precision, recall, and more."""
    arguments = dict(locals())
    del arguments["output"], arguments["as_json"]
    from ..evaluation import evaluate_generation

    arguments["sampler"] = {}
    override(arguments["sampler"], sampler)
    return show([evaluate_generation(**arguments)], [source], output)


@app.command()
def reference(
    data: Annotated[
        str, typer.Argument(help="digits, emoji, a folder of images, or a data set on the Hub.")
    ],
    output: Annotated[Path, typer.Option(dir_okay=False, help="File to write (.npz).")],
    protocol: ProtocolName = "adm-256",
    overrides: Overrides = (),
    split: Annotated[
        str | None, typer.Option(help="Split of the data; test or validation by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the data.")] = None,
    image_column: ImageColumn = "image",
    num_kept: Annotated[
        int, typer.Option(min=1, help="Number of images to keep for precision and recall.")
    ] = 10000,
    extractor_weights: Weights = None,
    batch_size: BatchSize = 64,
    device: Device = None,
) -> None:
    """Write the statistics of a data set and some of its images in the format of ADM's reference
    batches."""
    arguments = dict(locals())
    from ..distributed import process_state
    from ..evaluation import write_reference

    write_reference(**arguments)
    if process_state().is_main_process:
        console.print(f"Reference batch: [bold]{escape(str(output))}[/bold]")


@app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="JSON files of results.")
    ],
    different_protocols: Annotated[
        bool,
        typer.Option(
            "--different-protocols",
            help="Allow different protocols, and list the differences.",
        ),
    ] = False,
) -> None:
    """Compare results in a table; they must have the same protocol."""
    from ..evaluation import compare_results

    loaded, different = compare_results(results, different_protocols)
    show(loaded, [str(path) for path in results])
    for name, values in different.items():
        console.print(
            f"[bold red]different {escape(name)}[/bold red]: {escape(' | '.join(map(str, values)))}"
        )


@app.command()
def probe(
    tokenizer: Annotated[
        str, typer.Argument(help="Folder or Hub repository of a tokenizer of any family.")
    ],
    data: Data,
    features: Annotated[
        list[str],
        typer.Option(
            "--feature",
            help="Features to probe: tokens, mean_token, unquantized or encoder; may be repeated.",
        ),
    ] = ("tokens", "mean_token"),
    revision: Revision = None,
    subfolder: Annotated[
        str,
        typer.Option(help="Subfolder of the tokenizer, such as tokenizer or vae in a pipeline."),
    ] = "",
    data_revision: DataRevision = None,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    k: Annotated[int, typer.Option(min=1, help="Number of nearest neighbors that vote.")] = 20,
    seed: Annotated[
        int, typer.Option(help="Seed for the training images that select the weight decay.")
    ] = 0,
    batch_size: BatchSize = 64,
    device: Device = None,
    dtype: Dtype = "float32",
    output: Output = Path("probe.json"),
    as_json: Json = False,
) -> Any:
    """Evaluate features of a tokenizer: accuracy of a linear and a nearest-neighbor classifier."""
    arguments = dict(locals())
    del arguments["output"], arguments["as_json"]
    from ..distributed import process_state
    from ..evaluation import probe_files

    probed = probe_files(**arguments)
    if not process_state().is_main_process:
        return probed
    output.write_text(json.dumps(probed, indent=2) + "\n")
    num_images = probed["data"]["test"]["num_images"]
    caption = f"{num_images} images; the most frequent class: {probed['majority_accuracy']:.1%}"
    table = Table("features", "dimension", "linear", f"{k} nearest neighbors", caption=caption)
    for name, measured in probed["features"].items():
        cells = []
        for kind in ("linear", "knn"):
            error = measured[f"{kind}_standard_error"]
            cells.append(
                f"{measured[f'{kind}_accuracy']:.1%}" + ("" if error is None else f" ± {error:.1%}")
            )
        table.add_row(name, str(measured["dimension"]), *cells)
    console.print(table)
    console.print(f"Result with all settings: [bold]{escape(str(output))}[/bold]")
    return probed


@app.command()
def learnability(
    tokenizers: Annotated[
        list[str], typer.Argument(help="Folders or Hub repositories of continuous tokenizers.")
    ],
    data: Data,
    split: Annotated[str | None, typer.Option(help="Split; test by default.")] = None,
    data_revision: DataRevision = None,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Whether the data has labels.")
    ] = True,
    mask_column: Annotated[
        str | None, typer.Option(help="Column of masks, bright in the foreground, for SRSS.")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(min=2, help="The first so many images; all by default.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Number of nearest neighbors.")] = 20,
    extractor: Annotated[
        str | None,
        typer.Option(help="Network of iFID: inception, digits, emoji, or a vision model."),
    ] = None,
    extractor_weights: Weights = None,
    num_training_images: Annotated[
        int, typer.Option(min=2, help="Training images among which iFID looks for neighbors.")
    ] = 10_000,
    batch_size: BatchSize = 64,
    device: Device = None,
    output: Output = Path("learnability.json"),
    as_json: Json = False,
) -> Any:
    """Estimate how well a generator will learn on a tokenizer's latents, without training one."""
    from ..evaluation import evaluate_learnability
    from ..evaluation.learnability import comparable

    results = [
        evaluate_learnability(
            tokenizer,
            data,
            split=split,
            data_revision=data_revision,
            image_column=image_column,
            label_column=label_column if labels else None,
            mask_column=mask_column,
            num_images=num_images,
            k=k,
            extractor=extractor,
            extractor_weights=extractor_weights,
            num_training_images=num_training_images,
            batch_size=batch_size,
            device=device,
        )
        for tokenizer in tokenizers
    ]
    hidden = [name for name in results[0]["metrics"] if not comparable(results, name)]
    notes = [
        f"{name.replace('_', ' ')} does not rank latents of different sizes" for name in hidden
    ]
    for result in results:
        for name, reason in result["undefined"].items():
            notes.append(f"{result['tokenizer']['id']}: no {name.replace('_', ' ')}: {reason}")
    return show_measured(results, tokenizers, output, hidden=hidden, notes=notes)


@app.command()
def neighbors(
    source: Annotated[str, typer.Argument(help="Pipeline: a folder or Hub repository.")],
    data: Data,
    protocol: ProtocolName = "demo",
    overrides: Overrides = (),
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Number of images; the protocol's by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    sampler: Sampler = (),
    revision: Revision = None,
    data_revision: DataRevision = None,
    image_column: ImageColumn = "image",
    extractor_weights: Weights = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Picture to draw: images above their nearest training images."),
    ] = None,
    output: Output = Path("neighbors.json"),
    as_json: Json = False,
) -> Any:
    """Compare generated images with their nearest training images: does the generator copy?"""
    arguments = dict(locals())
    del arguments["output"], arguments["as_json"]
    from ..evaluation import evaluate_neighbors

    arguments["sampler"] = {}
    override(arguments["sampler"], sampler)
    return show_measured([evaluate_neighbors(**arguments)], ["value"], output)


@app.command()
def representations(
    model: Annotated[str, typer.Argument(help="Folder or Hub repository of a VTP.")],
    data: Data,
    revision: Revision = None,
    data_revision: DataRevision = None,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Whether the data has labels.")
    ] = True,
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Whether the data has captions.")
    ] = True,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="Prompt of zero-shot classification, with {} for the name; CLIP's 80 by default.",
        ),
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Number of nearest neighbors that vote.")] = 20,
    batch_size: BatchSize = 64,
    device: Device = None,
    output: Output = Path("representations.json"),
    as_json: Json = False,
) -> Any:
    """Evaluate what a VTP has learned: reconstruction, retrieval, zero-shot, probes of its features."""
    from ..evaluation import evaluate_representations

    measured = evaluate_representations(
        model,
        data,
        revision=revision,
        data_revision=data_revision,
        image_column=image_column,
        label_column=label_column if labels else None,
        text_column=text_column if texts else None,
        templates=templates,
        k=k,
        batch_size=batch_size,
        device=device,
    )
    return show_measured([measured], ["value"], output)
