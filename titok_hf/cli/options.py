"""Options and base classes shared by all commands."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..settings import load_yaml

PACKAGE = Path(__file__).parents[1]


class StderrHandler(logging.Handler):
    """Writes each message to stderr once, also if a command opens the same data again."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        if message not in self.written:
            self.written.add(message)
            typer.echo(message, err=True)


class Command(TyperCommand):
    """A command that hides the progress bars of loading files, and says on stderr which data it
    found and in what a pipeline computes.

    transformers and diffusers are imported in `invoke`, so that `--help` does not import them.
    """

    def invoke(self, ctx: typer.Context) -> Any:
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        diffusers_logging.disable_progress_bar()
        for room in ("data", "pipelines"):
            logger = logging.getLogger(f"titok_hf.{room}")
            logger.setLevel(logging.INFO)
            logger.handlers = [StderrHandler()]
        return super().invoke(ctx)


def recipes(incomplete: str) -> list[str]:
    """Returns the shipped recipes whose names begin so, for completion in the shell."""
    return sorted(file.stem for file in (PACKAGE / "recipes").glob(f"{incomplete}*.yaml"))


def studies(incomplete: str) -> list[str]:
    """Returns the studies whose names begin so, for completion in the shell."""
    files = (PACKAGE / "recipes" / "studies").glob(f"{incomplete}*.yaml")
    return sorted(file.stem for file in files if file.stem != "base")


def protocols(incomplete: str) -> list[str]:
    """Returns the protocols of evaluation whose names begin so, for completion in the shell."""
    named = load_yaml(PACKAGE / "evaluation" / "protocols.yaml")
    return [name for name in named if name.startswith(incomplete)]


class Commands(typer.Typer):
    """A Typer app whose commands are instances of `Command`."""

    def command(self, *args: Any, **kwargs: Any) -> Any:
        return super().command(*args, cls=Command, **kwargs)


def check_device(device: str | None) -> str | None:
    """Rejects a device that torch does not know or that does not exist."""
    if device is not None:
        import torch

        try:
            torch.empty(0, device=device)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise typer.BadParameter(
                f"torch cannot compute on {device!r} here: {reason}"
            ) from error
    return device


Sampler = Annotated[
    list[str],
    typer.Option(
        metavar="KEY=VALUE",
        help="Argument of the pipeline's call, such as num_inference_steps=8.",
    ),
]
RecipeOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change of the recipe, such as stages.warmup.training.max_steps=100.",
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Device = Annotated[
    str | None,
    typer.Option(
        callback=check_device,
        help="Device, such as cuda or cpu; the accelerator, if there is one, by default.",
    ),
]
