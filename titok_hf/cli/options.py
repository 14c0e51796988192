"""What the commands have in common."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command that hides the bars of loading files; training and sampling have their own.

    transformers and diffusers are imported as late as this, so that `--help` does without them.
    """

    def invoke(self, ctx: typer.Context) -> Any:
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        diffusers_logging.disable_progress_bar()
        return super().invoke(ctx)


class Commands(typer.Typer):
    """A Typer app of such commands."""

    def command(self, *args: Any, **kwargs: Any) -> Any:
        return super().command(*args, cls=Command, **kwargs)


def check_device(device: str | None) -> str | None:
    """Refuses a device that torch does not know, or that is not there."""
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


Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]
Device = Annotated[
    str | None,
    typer.Option(
        callback=check_device,
        help="Where to compute, such as cuda or cpu; if not given, the fastest.",
    ),
]
