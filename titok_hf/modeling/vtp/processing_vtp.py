"""The joint processor of VTP's images and texts."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import CLIPTokenizer, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from ...hub.location import split_location
from ...hub.publish import PublishMixin
from .configuration_vtp import VTPConfig
from .image_processing_vtp import VTPImageProcessor

# CLIP's tokenizer, for repositories without one, such as the official ones.
CLIP_REPOSITORY = "openai/clip-vit-base-patch32"
TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]


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
            ValueError: If the tokenizer does not fit the model; see `check_tokenizer`.
        """
        location, _ = split_location(kwargs)
        try:
            config = VTPConfig.from_pretrained(pretrained_model_name_or_path, **location)
        except (OSError, ValueError):  # a processor may be stored without a model
            config = None
        try:
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError):
            folder = Path(pretrained_model_name_or_path) / kwargs.get("subfolder", "")
            stored = ("processor_config.json", "tokenizer_config.json")
            if config is None or any((folder / name).exists() for name in stored):
                raise
        else:
            check_tokenizer(processor.tokenizer, config, str(pretrained_model_name_or_path))
            return processor
        image_processor = VTPImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name in ("revision", "subfolder"):
            location.pop(name, None)
        return cls(image_processor, clip_tokenizer(config, **location))


def clip_tokenizer(config: VTPConfig, **location: Any) -> CLIPTokenizer:
    """Loads CLIP's tokenizer with the context length of a VTP.

    Raises:
        OSError: If it cannot be reached.
        ValueError: If it does not fit the model; see `check_tokenizer`.
    """
    try:
        # transformers makes a tokenizer without a vocabulary of files that it cannot find
        folder = snapshot_download(CLIP_REPOSITORY, allow_patterns=TOKENIZER_FILES, **location)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        check_tokenizer(tokenizer, config, CLIP_REPOSITORY)
    except OSError as error:
        raise OSError(
            f"The repository has no text tokenizer, and CLIP's, {CLIP_REPOSITORY}, is unreachable: "
            "load it once with a connection, or save a `VTPProcessor` beside the model."
        ) from error
    tokenizer.model_max_length = config.text_context_length
    return tokenizer


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: VTPConfig | None, source: str
) -> None:
    """Checks that a text tokenizer was loaded whole, and fits a model if its configuration is known.

    Raises:
        OSError: If the tokenizer has no entries but special tokens, since its files are missing.
        ValueError: If it has more entries than the model, or its end token has not the largest id,
            from which the model takes the features of a text.
    """
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OSError(
            f"The text tokenizer of {source} has no entries but {len(tokenizer)} special tokens: its "
            "vocabulary is missing. Save the whole `VTPProcessor` there, or load it with a connection."
        )
    if config is None or not config.has_text:
        return
    if len(tokenizer) > config.text_vocab_size:
        raise ValueError(
            f"The text tokenizer of {source} has {len(tokenizer)} entries, the model only "
            f"{config.text_vocab_size} (`text_vocab_size`): choose the tokenizer of the model."
        )
    if tokenizer.eos_token_id != len(tokenizer) - 1:
        raise ValueError(
            f"The end token of the text tokenizer of {source} must have the largest id, "
            f"{len(tokenizer) - 1}, where VTP reads the features of a text, got "
            f"{tokenizer.eos_token_id}."
        )


__all__ = ["VTPProcessor"]
