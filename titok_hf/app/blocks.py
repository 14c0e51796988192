"""The demo as a whole: its tabs, and the server."""

from typing import Any

import gradio as gr

from .answers import KEPT_SECONDS, MAX_FILE_SIZE, MAX_SESSIONS
from .edit import edit_tab
from .generate import generate_tab
from .models import AppModels
from .reconstruct import reconstruct_tab
from .understand import understand_tab


def build_app(models: AppModels) -> gr.Blocks:
    """Builds the demo of some models: a tab for each thing that they can do.

    Args:
        models: The models, see `open_models`.
    """
    with gr.Blocks(
        title="titok_hf", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
    ) as app:
        gr.Markdown("# Images as tokens\n" + " ".join(models.problems))
        if models.pipelines:
            with gr.Tab("Generate"):
                generate_tab(models)
        with gr.Tab("Reconstruct"):
            reconstruct_tab(models)
        if models.editable:
            with gr.Tab("Edit"):
                edit_tab(models)
        if models.readers:
            with gr.Tab("Understand"):
                understand_tab(models)
        gr.Markdown(" ".join(models.credits))
    return app


def launch_app(
    app: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, **arguments: Any
) -> tuple[Any, str, str]:
    """Serves a demo; requests that use a model wait for each other.

    Uploads and pictures are kept in a temporary folder for an hour, and no longer than the demo runs.

    Args:
        app: The demo.
        host: Address to listen on; `"0.0.0.0"` for all.
        port: Port; the first free one from 7860 if not given.
        arguments: Further arguments of Gradio's `launch`, such as `prevent_thread_lock`.
    """
    return app.queue(max_size=64).launch(
        server_name=host,
        server_port=port,
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_SESSIONS,
        footer_links=["gradio"],
        ssr_mode=False,
        quiet=True,
        **arguments,
    )
