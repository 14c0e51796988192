"""Options and base classes shared by all commands."""

import json
import logging
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from ..settings import load_yaml
from ..version import __version__

PACKAGE = Path(__file__).parents[1]
console = Console()


class StderrHandler(logging.Handler):
    """Writes each message to stderr once, above a progress bar, also if a command opens the same data
    again."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        from ..progress import ProgressBar

        message = self.format(record)
        if message not in self.written:
            self.written.add(message)
            ProgressBar.write(message, file=sys.stderr)


class Command(TyperCommand):
    """A command that hides the bars and warnings of libraries, and says on stderr which data it found
    and in what a pipeline computes. With `--json` it prints what its function returns, see `Json`.

    Libraries are imported in `invoke`, so that `--help` does not import them.
    """

    def invoke(self, ctx: typer.Context) -> Any:
        quiet_libraries()
        logging.getLogger("titok_hf").handlers = [StderrHandler()]
        for room in ("data", "pipelines"):
            logging.getLogger(f"titok_hf.{room}").setLevel(logging.INFO)
        console.quiet = ctx.params.get("as_json", False)
        if not console.quiet:
            return super().invoke(ctx)
        from ..distributed import process_state

        with redirect_stdout(sys.stderr):
            result = super().invoke(ctx)
        if process_state().is_main_process:
            print(json.dumps(result, indent=2))
        return result


def quiet_libraries() -> None:
    """Hides the progress bars and warnings of the libraries, but not the bars of downloads that last.

    `python -W default -m titok_hf.cli` shows Python's warnings.
    """
    import datasets
    import huggingface_hub
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..progress import GROUP

    if not sys.warnoptions:
        warnings.filterwarnings("ignore", append=True)
    for library in (transformers_logging, diffusers_logging):
        library.disable_progress_bar()
    datasets.disable_progress_bars()
    for group in (GROUP, "huggingface_hub.http_get", "huggingface_hub.xet_get"):
        huggingface_hub.utils.enable_progress_bars(group)
    for library in (
        transformers_logging,
        diffusers_logging,
        datasets.logging,
        huggingface_hub.logging,
    ):
        library.set_verbosity_error()


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


def print_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        print(__version__)
        raise typer.Exit


def check_demo(folder: str) -> str:
    """Rejects the folder of the demo that a command takes by default, if there is none."""
    if folder in ("demo/pipeline", "demo/tokenizer") and not Path(folder).is_dir():
        raise typer.BadParameter(
            f"There is no folder {folder} here: train the demo with `titok demo`, or name another folder or "
            "a Hub repository."
        )
    return folder


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
        help="Change of the recipe, such as stages.warmup.training.max_steps=100; may be repeated.",
    ),
]
# A command with this option returns its result, which `Command` prints.
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")
]
Private = Annotated[
    bool | None,
    typer.Option(
        help="Make a new repository private, or public; the account's setting by default."
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
