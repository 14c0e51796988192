"""Parts that the tabs share: uploads within bounds, and errors that are one sentence."""

import io
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
import torch
from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData
from PIL import Image

from ..data.decoding import decode_image
from .models import without_paths

logger = logging.getLogger(__name__)

# All events that use a model share a queue, so that they run one after the other.
QUEUE = {"concurrency_id": "models", "concurrency_limit": 1}
MAX_PIXELS = 40_000_000
MAX_FILE_SIZE = "20mb"
KEPT_SECONDS = 3600  # of an upload, a picture and a state of a user
MAX_SESSIONS = 500  # Gradio keeps about 0.2 MiB of each; the oldest is forgotten
# Pictures that the demo makes can be enlarged and downloaded.
MADE = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}


def image_upload(label: str, elem_id: str) -> gr.Image:
    """Returns a place for an image that is uploaded or pasted, of any mode and format that training
    takes."""
    upload = gr.Image(label=label, elem_id=elem_id, sources=["upload", "clipboard"], type="pil")
    # a subclass would count as a custom component, for which Gradio wants a frontend of its own
    upload.preprocess = decode_upload
    return upload


def decode_upload(payload: FileData | None) -> Image.Image | None:
    """Decodes an upload, see `decode_bounded`."""
    return None if payload is None or payload.path is None else decode_bounded(payload.path)


def sketchpad(label: str, elem_id: str) -> gr.Sketchpad:
    """Returns a place to draw; its value is the drawing on white."""
    pad = gr.Sketchpad(
        label=label, elem_id=elem_id, canvas_size=(256, 256), brush=gr.Brush(default_size=16)
    )

    def decode_drawing(payload: EditorData | None) -> Image.Image | None:
        if payload is None:
            return None
        if payload.id is None:
            return decode_upload(payload.composite)
        parts = pad.blob_storage.get(payload.id)  # a drawing that came in parts
        return None if parts is None or parts.composite is None else decode_bounded(parts.composite)

    pad.preprocess = decode_drawing
    return pad


def decode_bounded(source: str | bytes) -> Image.Image:
    """Decodes a file or its content to RGB.

    Raises:
        gr.Error: If it is no image, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            pixels = opened.width * opened.height
        if pixels > MAX_PIXELS:
            raise ValueError(
                f"The image has {pixels / 1e6:.0f} million pixels; at most "
                f"{MAX_PIXELS / 1e6:.0f} million are taken. Make it smaller."
            )
        return decode_image(source)
    except Image.UnidentifiedImageError as error:
        message = "The file is no image, or its header is damaged."
        raise gr.Error(message, print_exception=False) from error
    except (Image.DecompressionBombError, OSError, ValueError) as error:
        raise gr.Error(without_paths(str(error)), print_exception=False) from error


def picture(label: str, elem_id: str, **arguments: Any) -> gr.Image:
    """Returns a place for a picture that the demo makes."""
    return gr.Image(label=label, elem_id=elem_id, **MADE, **arguments)


def gallery(label: str, elem_id: str, **arguments: Any) -> gr.Gallery:
    """Returns a place for a row of pictures that the demo makes."""
    return gr.Gallery(label=label, elem_id=elem_id, object_fit="contain", **MADE, **arguments)


def answer(function: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """Returns what a button calls: the function with its first arguments bound, without gradients, and
    with errors that are one sentence."""

    def answered(*arguments: Any) -> Any:
        try:
            with torch.inference_mode():
                return function(*bound, *arguments)
        except gr.Error:
            raise
        except torch.OutOfMemoryError as error:
            message = "The device has too little memory for this: take fewer images."
            raise gr.Error(message, print_exception=False) from error
        except (OSError, TypeError, ValueError) as error:
            raise gr.Error(without_paths(str(error)), print_exception=False) from error
        except Exception as error:
            logger.exception("A request failed.")
            message = "This did not work; the log of the demo says why."
            raise gr.Error(message, print_exception=False) from error

    answered.__name__ = function.__name__  # under which programs ask for it
    return answered


def given(value: Any, wanted: str) -> Any:
    """Returns a value, or says what is missing."""
    if value is None or value == []:
        raise gr.Error(f"Give {wanted} first.", print_exception=False)
    return value


def chosen_from(models: dict[str, Any], title: str) -> Any:
    """Returns the model of a title."""
    if title not in models:
        raise gr.Error(f"Choose one of {', '.join(models)}.", print_exception=False)
    return models[title]
