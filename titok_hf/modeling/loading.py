"""Strict loading: raises where transformers would warn and continue with random weights.

Official checkpoints load directly, see `CheckedConfigMixin.official_format`.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig

from ..hub.errors import explain_loading_errors
from ..hub.location import split_location
from ..hub.provenance import Provenance, read_provenance, write_provenance
from ..hub.publish import PublishMixin
from ..version import __version__

if TYPE_CHECKING:
    from ..conversion import OfficialFormat

# Parts of weight names that identify a family, in our checkpoints and in official ones.
FAMILY_MARKS = {
    "latent_token": "TiTokModel",
    "word_embeddings": "MaskGitModel",
    "in_blocks.": "MaskGitUViTModel",
    "conv_in": "MaskGitVQGANModel",
    "trunk.": "VTPModel",
    "vision_encoder.": "VTPModel",
}
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# Entries that a configuration may have besides its fields.
KNOWN_TO_TRANSFORMERS = {
    *PreTrainedConfig().to_dict(),
    "_attn_implementation",
    "attn_implementation",
    "auto_map",
    "num_labels",
    "quantization_config",
    "titok_hf_version",
    "torch_dtype",
}

Misshapen = tuple[str, Sequence[int], Sequence[int]]


class CheckedConfigMixin:
    """Refuses configurations of another model type, unknown fields, and sizes below 1."""

    @classmethod
    def official_format(cls) -> "OfficialFormat":
        """Returns the reference's checkpoint format of this family.

        This is the only import from a lower layer to a higher one: conversion imports the networks,
        yet `from_pretrained` of a network must load official checkpoints however its class was
        imported.
        """
        from ..conversion import FORMATS

        return next(FORMATS[known] for known in cls.__mro__ if known in FORMATS)

    def validate_architecture(self) -> None:
        super().validate_architecture()
        for config_class in type(self).__mro__:
            if issubclass(config_class, CheckedConfigMixin):
                for name, annotation in vars(config_class).get("__annotations__", {}).items():
                    if annotation is int and getattr(self, name) < 1:
                        raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Same as in transformers, but translates an official configuration to our fields.

        Raises:
            ValueError: If the configuration is of another model type.
        """
        location, others = split_location(kwargs)
        official = cls.official_format().find_config(pretrained_model_name_or_path, **location)
        if official is not None:
            return cls.official_format().config_fields(official), others
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{cls.__name__} expects a model of type {cls.model_type!r}, got one of "
                f"{model_type!r}."
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Same as in transformers, but refuses unknown fields.

        Raises:
            ValueError: If there are fields that this version does not know.
        """
        if "model_type" in config_dict and cls.official_format().is_official(config_dict):
            config_dict = cls.official_format().config_fields(
                config_dict
            )  # `AutoConfig` calls this method directly
        if unknown := sorted(
            config_dict.keys() - {field.name for field in fields(cls)} - KNOWN_TO_TRANSFORMERS
        ):
            writers = [
                config_dict.get(f"{name}_version", "unknown")
                for name in ("titok_hf", "transformers")
            ]
            problem = (
                f"This configuration of a {cls.model_type!r} has fields that are not known here: "
                f"{', '.join(unknown[:3])}."
            )
            if writers == [__version__, transformers.__version__]:
                raise ValueError(f"{problem} Correct or delete them.")
            raise ValueError(
                f"{problem} It was written by titok_hf {' and transformers '.join(writers)}, this is "
                f"titok_hf {__version__} and transformers {transformers.__version__}: install those or "
                "newer ones, or correct the fields."
            )
        return super().from_dict(
            {name: value for name, value in config_dict.items() if name != "titok_hf_version"},
            **kwargs,
        )

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the fields to save, and the version of titok_hf that saves them."""
        return {**super().to_diff_dict(), "titok_hf_version": __version__}


class CheckedLoadingMixin(PublishMixin):
    """Loads our checkpoints and official ones, refuses those that do not fit, and publishes.

    `provenance` records the origin and results of the weights, for the model card.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self.provenance: Provenance = {}

    def complete_folder(self, folder: Path) -> None:
        write_provenance(self.provenance, folder)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args: Any,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Same as in transformers; `push_to_hub=True` also publishes a card.

        `max_shard_size` and `variant` are in the signature because diffusers' pipelines look for
        them there.
        """
        super().save_pretrained(
            save_directory, *args, max_shard_size=max_shard_size, variant=variant, **kwargs
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args: Any,
        config: PreTrainedConfig | str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Same as in transformers, for folders and Hub repositories in our format or the official
        one.

        Raises:
            ValueError: If the checkpoint is of another model type, is corrupt or a pickle that
                would run code, has missing, unexpected or misshapen weights, or if a folder holds
                more than one.
            OSError: If the folder, the repository or a file in it does not exist.
        """
        path, official_format = pretrained_model_name_or_path, cls.config_class.official_format()
        location, others = split_location(kwargs)
        provenance: Provenance = {}
        with refuse_unreadable(path), explain_loading_errors(path):
            if (
                path is not None
                and "state_dict" not in kwargs
                and is_official(cls.config_class, path, config, location)
            ):
                if isinstance(config, PreTrainedConfig):
                    kwargs = others
                else:
                    config, kwargs = cls.config_class.from_pretrained(
                        config or path, return_unused_kwargs=True, **kwargs
                    )
                ignored = cls._keys_to_ignore_on_load_unexpected or ()
                kwargs["state_dict"] = official_format.load_state_dict(
                    path, config, dtype, ignored, **location
                )
                provenance = official_format.provenance(path)
                path = None
            elif path is not None:
                provenance = read_provenance(path, **location)
            if (
                path is not None
                and kwargs.get("use_safetensors") is None
                and kwargs.get("variant") is None
            ):
                folder = Path(path) / kwargs.get("subfolder", "")
                if len(found := [name for name in WEIGHT_FILES if (folder / name).exists()]) > 1:
                    raise ValueError(
                        f"{folder} holds more than one checkpoint: {' and '.join(found)}. Remove "
                        "all but one, or pass `use_safetensors=True` or `False`."
                    )
            # `ignore_mismatched_sizes` reports misshapen weights in `info`; they are refused below
            model, info = super().from_pretrained(
                path,
                *args,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                **{**kwargs, "ignore_mismatched_sizes": True},
            )
        refuse_misfit(
            cls.__name__,
            sorted(info["missing_keys"]),
            sorted(info["unexpected_keys"]),
            sorted(info["mismatched_keys"]),
        )
        model.provenance = provenance
        return (model, info) if output_loading_info else model


def is_official(
    config_class: type[CheckedConfigMixin], path: str | Path, config: Any, location: dict[str, Any]
) -> bool:
    """Whether a folder or repository is in the official format.

    If it has no configuration, it counts as ours as long as `config` is given.
    """
    try:
        return config_class.official_format().find_config(path, **location) is not None
    except OSError:
        if config is None:
            raise
        return False


@contextmanager
def refuse_unreadable(path: str | Path | None) -> Iterator[None]:
    """Turns errors of reading broken or unsafe files into a `ValueError` of one sentence."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"The safetensors file of {path} is truncated or corrupt ({error}). Copy it again, or "
            "download it again with `force_download=True`."
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The checkpoint {path} is a pickle that is corrupt or would run code, and was not "
            "loaded. If you trust it, save only its tensors with the code that made it: "
            "`safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`."
        ) from error
    except (EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        raise ValueError(
            f"The checkpoint {path} is truncated or corrupt. Copy or download it again."
        ) from error


def load_pickle(file: Path) -> Any:
    """Loads what `torch.save` wrote, on the CPU and without running code.

    Raises:
        ValueError: If the file would run code, or is truncated or corrupt.
    """
    with refuse_unreadable(file):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, pickle.UnpicklingError):
            raise
        except Exception as error:  # broken bytes fail in many ways
            raise ValueError(
                f"The checkpoint {file} cannot be read, and is truncated or corrupt "
                f"({error!r:.100}). Copy or download it again."
            ) from error


def refuse_misfit(
    model_class: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Sequence[Misshapen],
) -> None:
    """Raises `ValueError` if weights are missing, unexpected or misshapen, with the first names and
    a likely cause.

    Args:
        model_class: Name of the model's class.
        missing, unexpected: Names of weights.
        misshapen: Names, shapes in the checkpoint, and shapes that the configuration asks for.
    """
    problems = [
        f"{len(names)} weights are {problem}, {', '.join(names[:3])} among them"
        for problem, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if misshapen:
        name, got, expected = misshapen[0]
        problems.append(
            f"{len(misshapen)} weights are misshapen, {name} among them: {tuple(got)} instead of "
            f"{tuple(expected)}"
        )
    if problems:
        raise ValueError(
            f"The checkpoint does not fit {model_class} with its configuration: "
            f"{'; '.join(problems)}."
            + "".join(
                f" {guess}" for guess in guess_misfit(model_class, missing, unexpected, misshapen)
            )
        )


def guess_misfit(
    model_class: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Sequence[Misshapen],
) -> Iterator[str]:
    """Yields likely causes of a misfit, as sentences."""
    families = {
        family for mark, family in FAMILY_MARKS.items() if any(mark in name for name in unexpected)
    }
    families.discard("VTPModel" if model_class.startswith("VTP") else model_class)
    if missing and unexpected and families:
        yield f"These are the weights of a {sorted(families)[0]}."
    elif any("text_guidance" in name for name in unexpected):
        yield "This is a text-aware TA-TiTok, which is not supported."
    elif (
        model_class == "TiTokModel"
        and missing
        and all(name.startswith("pixel_") for name in missing)
    ):
        yield (
            "It is a tokenizer from before decoder fine-tuning, configured as fine-tuned: set "
            "`head='proxy_codes'`, or in the official format `finetune_decoder: false`."
        )
    elif (
        model_class == "TiTokModel"
        and unexpected
        and all(name.startswith("pixel_") for name in unexpected)
    ):
        yield (
            "It is a tokenizer after decoder fine-tuning, configured as one from before: set "
            "`head='vqgan_decoder'`, or in the official format `finetune_decoder: true`."
        )
    for name, got, expected in misshapen:
        if name.endswith(
            ("quantizer.codebook.weight", "quantize.embedding.weight", "lm_head.weight")
        ):
            yield f"It was made for a codebook of {got[0]} codes; the configuration has {expected[0]}."
        elif name.endswith(("encoder.latent_tokens", "latent_tokens")):
            yield f"It was made for {got[-2]} tokens; the configuration has {expected[-2]}."


def load_strictly(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Loads exactly the weights of a network, all of them and no others.

    BatchNorm's `num_batches_tracked` is optional, since no forward pass reads it.

    Raises:
        ValueError: If a tensor is missing, unexpected or misshapen.
    """
    expected = {
        name: tensor for name, tensor in network.state_dict().items() if not is_counter(name)
    }
    given = {name: tensor for name, tensor in tensors.items() if not is_counter(name)}
    problems = [
        f"{len(names)} tensors are {problem}, {', '.join(names[:3])} among them"
        for problem, names in (
            ("missing", [name for name in expected if name not in given]),
            ("unexpected", [name for name in given if name not in expected]),
        )
        if names
    ]
    common = [name for name in expected if name in given]
    if misshapen := [name for name in common if given[name].shape != expected[name].shape]:
        got, wanted = tuple(given[misshapen[0]].shape), tuple(expected[misshapen[0]].shape)
        problems.append(
            f"{len(misshapen)} tensors are misshapen, {misshapen[0]} among them: {got} instead of "
            f"{wanted}"
        )
    if problems:
        raise ValueError(
            f"These are not the weights of {type(network).__name__}: {'; '.join(problems)}."
        )
    network.load_state_dict(given, strict=False)


def is_counter(name: str) -> bool:
    """Whether a tensor is BatchNorm's count of training batches."""
    return name.endswith("num_batches_tracked")
