"""The joint processor of VTP's images and texts."""

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from ...hub.location import split_location
from ...hub.publish import PublishMixin
from .configuration_vtp import VTPConfig
from .image_processing_vtp import VTPImageProcessor

# CLIP's tokenizer, for repositories without one, such as the official ones.
CLIP_REPOSITORY = "openai/clip-vit-base-patch32"


class VTPProcessorKwargs(ProcessingKwargs, total=False):
    # no mask: tokens after the end of a text have no influence
    _defaults = {"text_kwargs": {"padding": "max_length", "return_attention_mask": False}}


class VTPProcessor(PublishMixin, ProcessorMixin):
    """Images to `pixel_values`, texts to `input_ids` of CLIP's tokenizer, padded to the context of
    77.

    Args:
        image_processor: A `VTPImageProcessor`.
        tokenizer: A `CLIPTokenizer`.
    """

    valid_processor_kwargs = VTPProcessorKwargs

    def __init__(
        self,
        image_processor: VTPImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "VTPProcessor":
        """Same as in transformers; a VTP stored without a processor, as in the official
        repositories, gets one for its sizes, with CLIP's tokenizer.

        Raises:
            OSError: If there is neither, or CLIP's tokenizer cannot be reached.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError) as error:
            folder = Path(pretrained_model_name_or_path) / kwargs.get("subfolder", "")
            if any(
                (folder / name).exists()
                for name in ("processor_config.json", "tokenizer_config.json")
            ):
                raise
            location, _ = split_location(kwargs)
            try:
                config = VTPConfig.from_pretrained(pretrained_model_name_or_path, **location)
            except (OSError, ValueError):
                raise error from None
        image_processor = VTPImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name in ("revision", "subfolder"):
            location.pop(name, None)
        return cls(image_processor, clip_tokenizer(config, **location))


def clip_tokenizer(config: VTPConfig, **location: Any) -> CLIPTokenizer:
    """Loads CLIP's tokenizer with the context length of a VTP.

    Raises:
        OSError: If it cannot be reached.
    """
    try:
        tokenizer = CLIPTokenizer.from_pretrained(CLIP_REPOSITORY, **location)
    except OSError as error:
        raise OSError(
            f"The repository has no text tokenizer, and CLIP's, {CLIP_REPOSITORY}, is unreachable: "
            "load it once with a connection, or save a `VTPProcessor` beside the model."
        ) from error
    tokenizer.model_max_length = config.text_context_length
    return tokenizer


__all__ = ["VTPProcessor"]
