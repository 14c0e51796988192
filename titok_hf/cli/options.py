"""Options that several commands have."""

from typing import Annotated

import typer


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
