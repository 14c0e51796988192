"""Loads a visual tokenizer of any family, chosen by its configuration."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from transformers import PreTrainedConfig, PreTrainedModel

from ..hub.errors import explain_loading_errors
from ..hub.location import split_location
from ..progress import working
from .diffusers_tokenizer import DiffusersTokenizer
from .maskgit_vqgan import MaskGitVQGANModel
from .titok import TiTokImageProcessor, TiTokModel
from .vtp import VTPForImageReconstruction, VTPImageProcessor

TOKENIZERS: dict[str, tuple[type[PreTrainedModel], type[TiTokImageProcessor]]] = {
    "titok": (TiTokModel, TiTokImageProcessor),
    "maskgit_vqgan": (MaskGitVQGANModel, TiTokImageProcessor),
    "vtp": (VTPForImageReconstruction, VTPImageProcessor),
}


def is_pipeline(path: str | Path, **location: Any) -> bool:
    """Whether a folder or Hub repository is a whole diffusers pipeline."""
    try:
        DiffusionPipeline.load_config(path, **location)
    except OSError:
        return False
    return True


@working("loading tokenizer")
def load_tokenizer(
    path: str | Path, **kwargs: Any
) -> tuple[PreTrainedModel | DiffusersTokenizer, TiTokImageProcessor]:
    """Loads a tokenizer of any family with its image processor.

    Args:
        path: Folder or Hub repository of a tokenizer in our format or the official one, or of an
            image autoencoder of diffusers. For a whole pipeline, pass its tokenizer's `subfolder`,
            such as `"vae"`.
        kwargs: Passed to `from_pretrained`; for an autoencoder of diffusers also `image_size`, see
            `DiffusersTokenizer`.

    Returns:
        The model in evaluation mode, with `encode`, `decode` and, if it is discrete,
        `decode_codes`; and its processor, made for the model's image size if none is stored.

    Raises:
        OSError: If the folder or repository does not exist, or is a whole pipeline.
        ValueError: If it is not a tokenizer, does not load (see `from_pretrained`), or its image
            processor does not fit it.
    """
    location, _ = split_location(kwargs)
    with explain_loading_errors(path):
        config, _ = PreTrainedConfig.get_config_dict(path, **location)
    if not config and not location.get("subfolder") and is_pipeline(path, **location):
        # where there is a `vae`, a `tokenizer` is one of texts
        part = "vae" if "vae" in DiffusionPipeline.load_config(path, **location) else "tokenizer"
        where = Path(path) / part if Path(path).is_dir() else f"`subfolder={part!r}`"
        raise FileNotFoundError(f"{path} is a whole pipeline: name its tokenizer, {where}.")
    if "_class_name" in config:  # a diffusers model
        tokenizer = DiffusersTokenizer.from_pretrained(path, **kwargs)
        return tokenizer, TiTokImageProcessor.from_image_size(tokenizer.config.image_size)
    model_type = config.get("model_type", "titok")  # official TiTok configurations lack it
    if model_type not in TOKENIZERS:
        raise ValueError(
            f"{path} must be a tokenizer, one of {', '.join(TOKENIZERS)} or an image autoencoder "
            f"of diffusers; it is a {model_type!r}."
        )
    model_class, processor_class = TOKENIZERS[model_type]
    model = model_class.from_pretrained(path, **kwargs).eval()
    try:
        processor = processor_class.from_pretrained(path, **location)
    except OSError:
        return model, processor_class.from_image_size(model.config.image_size)
    if bool(processor.do_normalize) != processor_class.do_normalize:
        raise ValueError(
            f"The image processor of {path} must have `do_normalize={processor_class.do_normalize}`"
            f" to fit the tokenizer, got {processor.do_normalize}."
        )
    return model, processor
