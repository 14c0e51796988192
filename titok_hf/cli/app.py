"""The command of the web demo."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .options import Device, console


def app(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders and Hub repositories of pipelines and tokenizers; demo/pipeline by default."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images among which the nearest are shown: digits, emoji, a folder, or a data set on "
            "the Hub."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port; the first free one from 7860 by default.")
    ] = None,
    device: Device = None,
    push_space: Annotated[
        str | None,
        typer.Option(metavar="USER/SPACE", help="Publish the demo as a Space instead."),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(help="Make a new Space private, or public; the account's setting by default."),
    ] = None,
) -> None:
    """Show models in the browser: generate, reconstruct and edit images by their tokens."""
    if models is None:
        models = ["demo/pipeline"]
        if not Path(models[0]).is_dir():
            raise ValueError(
                "There is no demo/pipeline here: name a pipeline or tokenizer, a folder or a Hub "
                "repository, or train the demo first with `titok demo`."
            )
    try:
        from .. import app as web
    except ImportError as error:
        raise ImportError(
            f'The web demo needs more packages ({error}): pip install "titok_hf[app]"'
        ) from error

    if push_space:
        address = web.push_space(models, push_space, data, private)
        console.print(f"Published: [bold]{escape(address)}[/bold]")
        return
    shown = web.open_models(models, data, device=device)
    for problem in shown.problems:
        console.print(f"[yellow]{escape(problem)}[/yellow]")
    built = web.build_app(shown)
    _, address, _ = web.launch_app(built, host=host, port=port, prevent_thread_lock=True)
    console.print(f"The demo is at [bold]{escape(address)}[/bold]; Ctrl+C ends it.")
    # the server's files are deleted when it is interrupted, and so when it is asked to end
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    built.block_thread()
