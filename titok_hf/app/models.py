"""The models that the demo shows, under titles that tell no path of the machine."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from torch import nn

from ..data.credits import credited
from ..data.decoding import decode_image
from ..data.opening import open_images
from ..devices import default_device
from ..hub.provenance import provenance_of
from ..modeling.auto import is_pipeline, load_tokenizer
from ..modeling.checks import check_ends_in_pixels
from ..modeling.diffusers_tokenizer import AUTOENCODERS, DiffusersTokenizer
from ..modeling.outputs import TokenizerEncoderOutput
from ..modeling.titok import TiTokImageProcessor
from ..modeling.vtp import VTPConfig, VTPImageProcessor, VTPModel, VTPProcessor
from ..pipelines import ClassConditionalPipeline, TiTokPipeline
from ..progress import counted

logger = logging.getLogger(__name__)

NEAREST_OF = 2000  # images of the data among which the nearest are searched
LARGEST_SIDE = 512  # pixels in which these are kept


@dataclass
class AppModels:
    """The models of the demo, by title.

    Args:
        pipelines: Pipelines that generate images of classes.
        tokenizers: Tokenizers with their image processors, those of the pipelines included.
        readers: VTPs with a text encoder, with their processors.
        images: Images among which the nearest are searched.
        places: The path by which Python loads each model: its title, or a stand-in for a path that is
            not told.
        credits: A sentence for each model whose training data are known, and for the images, with the
            credit that their license asks for.
        problems: A sentence for each model that was not loaded, and for images that none can search.
    """

    pipelines: dict[str, ClassConditionalPipeline] = field(default_factory=dict)
    tokenizers: dict[str, tuple[nn.Module, TiTokImageProcessor]] = field(default_factory=dict)
    readers: dict[str, tuple[VTPModel, VTPProcessor]] = field(default_factory=dict)
    images: list[Image.Image] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    credits: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def editable(self) -> dict[str, TiTokPipeline]:
        """The pipelines whose images are codes that can be edited."""
        return {
            title: pipeline
            for title, pipeline in self.pipelines.items()
            if isinstance(pipeline, TiTokPipeline) and hasattr(pipeline.tokenizer, "encode")
        }


def open_models(
    paths: Sequence[str | Path],
    data: str | None = None,
    device: str | torch.device | None = None,
) -> AppModels:
    """Loads pipelines and tokenizers. One that does not load becomes a sentence in `problems`.

    Args:
        paths: Folders and Hub repositories, of pipelines and of tokenizers of any family.
        data: Images among which a VTP searches the nearest, see `open_images`: the first 2,000 of
            its split `train`.
        device: Device to compute on; by default the accelerator if there is one.

    Raises:
        ValueError: If nothing could be loaded, or the data cannot be opened, see `open_images`.
    """
    models = AppModels()
    for path in counted(paths, "loading models", "models", total=len(paths)):
        title = title_of(path)
        if title in models.pipelines or title in models.tokenizers:
            title = f"{title} ({len(models.tokenizers) + 1})"
        models.places[title] = title if title == str(path) else f"path/to/{title}"
        try:
            open_model(models, path, title, torch.device(device or default_device()))
        except (ImportError, OSError, TypeError, ValueError) as error:
            logger.warning("%s was not loaded: %s", path, error)
            message = str(error)
            for form in (os.path.abspath(path), str(path)):
                message = message.replace(form, title)
            models.problems.append(f"{title} was not loaded: {without_paths(message)}")
    if not models.tokenizers:
        raise ValueError(" ".join(models.problems) or "Name at least one pipeline or tokenizer.")
    if data is not None and not models.readers:
        models.problems.append(
            "The images of `data` are not searched for the nearest: that takes a VTP with a text encoder."
        )
    elif data is not None:
        train = open_images(data, label_column=None).dataset("train")
        for row in range(min(NEAREST_OF, len(train))):
            image = decode_image(train[row]["image"])
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            models.images.append(image)
        models.credits.append(f"The nearest images are of {credited(data)}.")
    return models


def open_model(models: AppModels, path: str | Path, title: str, device: torch.device) -> None:
    """Loads a pipeline or tokenizer, and adds what it offers."""
    if not Path(path).is_dir():
        check_repo_id(path)
    if is_pipeline(path):
        pipeline = ClassConditionalPipeline.from_pretrained(path).to(device)
        pipeline.set_progress_bar_config(disable=True)
        tokenizer = pipeline.tokenizer
        if type(tokenizer).__name__ in AUTOENCODERS:
            tokenizer = DiffusersTokenizer(tokenizer)
        is_vtp = isinstance(getattr(tokenizer, "config", None), VTPConfig)
        processor_class = VTPImageProcessor if is_vtp else TiTokImageProcessor
        processor = processor_class.from_image_size(tokenizer.config.image_size)
        credit(models, title, pipeline)
        models.pipelines[title] = pipeline
        models.tokenizers[title] = (tokenizer.eval(), processor)
        return
    tokenizer, processor = load_tokenizer(path)
    check_ends_in_pixels(tokenizer)
    if isinstance(tokenizer.config, VTPConfig) and VTPConfig.from_pretrained(path).has_text:
        tokenizer = VTPModel.from_pretrained(path).eval()  # reconstructs, too
        models.readers[title] = (tokenizer, VTPProcessor.from_pretrained(path))
    models.tokenizers[title] = (tokenizer.to(device), processor)
    credit(models, title, tokenizer)


def credit(models: AppModels, title: str, model: Any) -> None:
    """Notes on what a model was trained, if it is known."""
    if data := provenance_of(model).get("training_data"):
        models.credits.append(f"{title} was trained on {data}.")


def check_repo_id(path: str | Path) -> None:
    """Raises `FileNotFoundError` if this is not the name of a Hub repository."""
    try:
        validate_repo_id(str(path))
    except HFValidationError as error:
        raise FileNotFoundError(f"There is no folder {path}.") from error


def title_of(path: str | Path) -> str:
    """Returns the name of a Hub repository or of a folder inside the working directory, and of any
    other folder the last part alone."""
    path = Path(path)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def without_paths(message: str) -> str:
    """Returns a message with the absolute paths in it shortened to their last part."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:'\",]+/)+", "…/", message)


def describe_tokens(tokenizer: nn.Module, encoded: TokenizerEncoderOutput) -> tuple[str, float]:
    """Returns what a tokenizer keeps of an image, in words, and its size in bytes.

    Codes take the logarithm of the size of their codebook in bits each, latents 16 bits each number.
    """
    if encoded.codes is not None:
        size, count = tokenizer.config.codebook_size, encoded.codes.shape[1]
        return f"{count} tokens of {size} codes", count * (size - 1).bit_length() / 8
    shape = " x ".join(map(str, encoded.latents.shape[1:]))
    return f"latents of {shape}", encoded.latents[0].numel() * 2
