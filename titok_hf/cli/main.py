"""Commands of `titok`."""

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import first_look, frechet_ratio
from .app import app as show_app
from .options import (
    Commands,
    Device,
    Json,
    Private,
    RecipeOverrides,
    Sampler,
    Seed,
    check_demo,
    console,
    print_version,
    recipes,
)
from .study import study
from .tables import demo_table

app = Commands(
    help="Images as short 1D token sequences, or as latents: train, reconstruct and generate with TiTok, "
    "MaskGIT, VTP and LightningDiT.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(frechet_ratio.app, name="evaluate")


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Takes the options of `titok` itself."""


@app.command()
def demo(
    output_dir: Annotated[
        Path, typer.Option(help="Folder for models, pictures and metrics.")
    ] = Path("demo"),
    seed: Seed = 0,
    overrides: RecipeOverrides = None,
    images_per_class: Annotated[
        int, typer.Option(min=7, help="Number of images of each digit to generate and evaluate.")
    ] = 100,
) -> None:
    """Train and evaluate a tokenizer and a generator on handwritten digits.

    The same command resumes a stopped run.
    """
    from ..demo import run_demo
    from .progress import TrainingProgress

    with TrainingProgress() as progress:
        metrics = run_demo(
            output_dir, seed, overrides or (), images_per_class, callbacks=[progress]
        )
    console.print(demo_table(metrics))
    console.print(
        f"Pictures, models and metrics.json are in [bold]{escape(str(output_dir))}[/bold]."
    )


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped recipe, such as digits.",
            autocompletion=recipes,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="digits, emoji, a folder of images, tar shards, a data set on the Hub, or tokens."
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder for the models.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes of the recipe, such as stages.warmup.training.max_steps=100; --set does the same.",
        ),
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column of the images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of data on the Hub.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option(help="Stream data that could also be downloaded as a whole.")
    ] = False,
    seed: Seed = 0,
    overrides: RecipeOverrides = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Train all stages of a recipe: a tokenizer, a generator, or both.

    The same command resumes a stopped run. Use torchrun or accelerate launch for several processes.
    """
    from ..distributed import process_state
    from ..train import train_recipe
    from ..training.recipe import Recipe
    from .progress import TrainingProgress

    overrides = [*(overrides or ()), *(changes or ())]
    with TrainingProgress() as progress:
        train_recipe(
            recipe,
            data,
            output_dir,
            overrides,
            image_column=image_column,
            label_column=label_column,
            text_column=text_column,
            revision=revision,
            streaming=streaming,
            seed=seed,
            callbacks=[progress],
        )
    if process_state().is_main_process:
        console.print(f"The trained models are in [bold]{escape(str(output_dir))}[/bold].")
    stages = Recipe.load(recipe, overrides).trained_stages()
    return {
        "folder": str(output_dir),
        "stages": {stage.name: str(output_dir / stage.folder) for stage in stages},
    }


@app.command()
def reconstruct(
    images: Annotated[
        list[Path], typer.Argument(exists=True, help="Image files, or folders of them.")
    ],
    tokenizer: Annotated[
        str, typer.Option(callback=check_demo, help="Folder or Hub repository of a tokenizer.")
    ] = "demo/tokenizer",
    output: Annotated[
        Path, typer.Option(help="Picture of the images above their reconstructions.")
    ] = Path("reconstructions.png"),
    separate: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the reconstructions as single files."),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Encode images into tokens and decode them again."""
    from ..evaluation import reconstruct_files

    reconstructed = reconstruct_files(tokenizer, images, output, separate, device=device)
    console.print(f"Images above their reconstructions: [bold]{escape(str(output))}[/bold]")
    return {"tokenizer": tokenizer, "picture": str(output), "images": reconstructed}


@app.command()
def generate(
    label: Annotated[list[str], typer.Option(help="Class name or id; may be repeated.")],
    pipeline: Annotated[
        str, typer.Option(callback=check_demo, help="Folder or Hub repository of a pipeline.")
    ] = "demo/pipeline",
    num_images: Annotated[int, typer.Option(min=1, help="Number of images of each label.")] = 12,
    steps: Annotated[
        int | None, typer.Option(help="Number of sampling steps; the pipeline's by default.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 for no guidance.")
    ] = None,
    guidance_schedule: Annotated[
        str | None, typer.Option(help="constant, linear or power-cosine; TiTok pipelines only.")
    ] = None,
    sampler: Sampler = (),
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option(help="Picture with a row of images for each label.")
    ] = Path("samples.png"),
    separate: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the images as single files.")
    ] = None,
    animation: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Animation of the steps: a .gif or .webp file."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the networks first, for many images.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Compute in bfloat16 if it is faster here.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Compute linear layers in int8, the rest as --fast; on a CPU."),
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Generate images of classes."""
    from ..evaluation import generate_to_file
    from ..settings import override

    choices = {"compiled": compiled, "fast": fast, "int8": int8}
    faster = [name for name, given in choices.items() if given]
    if len(faster) > 1:
        raise ValueError(
            "Give only one of `--compile`, `--fast` and `--int8`: `--compile` and `--int8` also compute in "
            "bfloat16 where that is faster."
        )

    arguments = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_schedule": guidance_schedule,
    }
    override(arguments, sampler)
    if options := arguments.keys() & inspect.signature(generate_to_file).parameters.keys():
        raise ValueError(
            f"`--sampler` takes arguments of the sampling, got {', '.join(sorted(options))}: use the option "
            "for it, see `titok generate --help`."
        )
    generated = generate_to_file(
        pipeline,
        label,
        output,
        seed=seed,
        num_images_per_label=num_images,
        separate=separate,
        animation=animation,
        faster=faster[0] if faster else None,
        device=device,
        **arguments,
    )
    console.print(f"{num_images} images of each label: [bold]{escape(str(output))}[/bold]")
    return {"pipeline": pipeline, "seed": seed, "picture": str(output), "images": generated}


app.command("app")(show_app)
app.command()(first_look.plot)
app.command()(first_look.doctor)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Official checkpoint: a file, a folder, a Hub repository, or a file of one."
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder to write.")],
    generator: Annotated[
        str | None,
        typer.Option(help="Official generator for the tokenizer; the result is then a pipeline."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, help="Official configuration, if not next to the weights."),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            help="Mean and deviation of the latents of a LightningDiT: latents_stats.pt of the "
            "reference, or latent_statistics.json of `titok tokenize`."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the stored one by default.")
    ] = None,
    to_official: Annotated[
        bool, typer.Option(help="Convert a folder of this package to the official format instead.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="USER/REPO", help="Publish the folder on the Hub.")
    ] = None,
    private: Private = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Convert official checkpoints: TiTok, MaskGIT and its VQGAN, VTP, VA-VAE, LightningDiT."""
    from .. import conversion
    from ..devices import parse_dtype
    from ..publish import publish_folder

    if to_official:
        if generator or config or statistics or dtype or push:
            raise ValueError(
                "`--to-official` converts a folder as it is and cannot be combined with "
                "`--generator`, `--config`, `--statistics`, `--dtype` or `--push`."
            )
        conversion.convert_to_official(source, output_dir)
    else:
        conversion.convert(
            source,
            output_dir,
            generator,
            config,
            dtype=dtype and parse_dtype(dtype),
            statistics=statistics,
        )
    console.print(f"Converted: [bold]{escape(str(output_dir))}[/bold]")
    url = None
    if push:
        url = publish_folder(output_dir, push, private)
        console.print(f"Published: [bold]{escape(push)}[/bold]")
    return {"folder": str(output_dir), "url": url}


@app.command()
def tokenize(
    data: Annotated[
        str,
        typer.Argument(
            help="digits, emoji, a folder of images, tar shards, or a data set on the Hub."
        ),
    ],
    tokenizer: Annotated[str, typer.Option(help="Folder or Hub repository of a tokenizer.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the data set.")],
    split: Annotated[str | None, typer.Option(help="Split to encode; all by default.")] = None,
    image_column: Annotated[str, typer.Option(help="Column of the images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Whether the data has labels.")
    ] = True,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of data on the Hub.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option(help="Stream data that could also be downloaded as a whole.")
    ] = False,
    augmentation: Annotated[
        Literal["none", "flip", "ten-crop"],
        typer.Option(help="Copies of each image to encode."),
    ] = "none",
    enlarge: Annotated[
        float,
        typer.Option(
            min=1.0, help="Shorter side of the image before ten-crop, in multiples of the crop's."
        ),
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images encoded at once.")] = 64,
    part_size: Annotated[
        int, typer.Option(min=1, help="Images per file; a stopped run loses at most one file.")
    ] = 10_000,
    num_workers: Annotated[
        int | None, typer.Option(min=0, help="Number of processes that decode images.")
    ] = None,
    max_unreadable: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the images that may be unreadable.")
    ] = 0.01,
    dtype: Annotated[
        str, typer.Option(help="Data type of the tokenizer: float32, bfloat16 or float16.")
    ] = "float32",
    device: Device = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the encoder first, for many images.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="USER/REPO", help="Publish the folder on the Hub.")
    ] = None,
    private: Private = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Encode images into a data set of codes, or of latents with their statistics.

    The same command resumes a stopped run. Use torchrun for several processes.
    """
    from ..data import Augmentation, push_tokens_to_hub, tokenize_to_folder
    from ..distributed import process_state

    crop = "ten" if augmentation == "ten-crop" else "center"
    record = tokenize_to_folder(
        data,
        tokenizer,
        output_dir,
        split=split,
        image_column=image_column,
        label_column=label_column if labels else None,
        revision=revision,
        streaming=streaming,
        augmentation=Augmentation(crop, enlarge, horizontal_flip=augmentation == "flip"),
        batch_size=batch_size,
        part_size=part_size,
        num_workers=num_workers,
        max_unreadable=max_unreadable,
        dtype=dtype,
        compiled=compiled,
        device=device,
    )
    made = {"folder": str(output_dir), "url": None, **record}
    if not process_state().is_main_process:
        return made
    splits = record["result"]["splits"]
    counts = ", ".join(f"{content['rows']} {name}" for name, content in splits.items())
    column = "latents" if record["result"]["codebook_size"] is None else "codes"
    console.print(f"{counts} images as {column}: [bold]{escape(str(output_dir))}[/bold]")
    if unreadable := sum(content["unreadable"] for content in splits.values()):
        console.print(
            f"{unreadable} could not be read: unreadable.jsonl in that folder lists them."
        )
    if push:
        made["url"] = push_tokens_to_hub(output_dir, push, private=private).repo_url
        console.print(f"Published: [bold]{escape(push)}[/bold]")
    return made


@app.command()
def zero_shot(
    labels: Annotated[str, typer.Option(help="Class names, separated by commas.")],
    image: Annotated[
        list[Path],
        typer.Option(exists=True, dir_okay=False, help="Image file; may be repeated."),
    ],
    model: Annotated[
        str, typer.Option(help="Folder or Hub repository of a VTP model.")
    ] = "MiniMaxAI/VTP-Large-f16d64",
    device: Device = None,
    as_json: Json = False,
) -> list[dict[str, Any]]:
    """Classify images among class names that you give, with a VTP."""
    from ..evaluation import zero_shot_files

    names = [name.strip() for name in labels.split(",")]
    table = Table("image", "best", "probability")
    scores = zero_shot_files(model, names, image, device=device)
    for path, probabilities in zip(image, scores, strict=True):
        best = sorted(probabilities.items(), key=lambda item: -item[1])[:5]
        for row, (name, probability) in enumerate(best):
            table.add_row("" if row else escape(path.name), escape(name), f"{probability:.1%}")
    console.print(table)
    return [
        {"image": str(path), "probabilities": probabilities}
        for path, probabilities in zip(image, scores, strict=True)
    ]


app.command()(study)


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a model or pipeline.")
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="USER/REPO", help="Hub repository; created if missing.")
    ],
    private: Private = None,
    revision: Annotated[str | None, typer.Option(help="Branch; created if missing.")] = None,
    result: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Result of titok evaluate, for the card; may be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> dict[str, Any]:
    """Publish a trained or converted folder on the Hub, with a model card."""
    from ..publish import publish_folder

    url = publish_folder(folder, repo_id, private, revision=revision, results=result or ())
    console.print(f"Published: [bold]{escape(repo_id)}[/bold]")
    return {"folder": str(folder), "url": url}


def main() -> None:
    """Entry point; prints errors that users can fix as one sentence, without a traceback."""
    # read by tqdm when it is imported: downloads of small files show no bars
    os.environ.setdefault("TQDM_DELAY", "1")
    try:
        app()
    except Exception as error:
        from huggingface_hub.errors import StrictDataclassError

        fixable = (FloatingPointError, ImportError, OSError, TypeError, ValueError)
        if not isinstance(error, (*fixable, StrictDataclassError)):
            raise
        Console(stderr=True).print(
            f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(1)
