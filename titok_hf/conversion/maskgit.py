"""The reference's format of the masked generators, and its sampling settings."""

import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

from ..modeling.maskgit import MaskGitConfig, MaskGitModel, MaskGitUViTModel
from ..settings import load_yaml
from .imagenet import imagenet_labels
from .official import OfficialFormat, Shapes, refuse_unknown, section

KNOWN_FIELDS = {
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "dropout",
    "attn_drop",
    "num_steps",
    "class_label_dropout",
    "image_seq_len",
    "condition_num_classes",
    "randomize_temperature",
    "guidance_scale",
    "guidance_decay",
    "mask_schedule_strategy",
}
SAMPLING_FIELDS = ("num_steps", "randomize_temperature", "guidance_scale", "guidance_decay")


class OfficialMaskGit(OfficialFormat):
    """Base class of both generators: the section `model.generator`."""

    official_type: Literal["ViT", "UViT"]
    embedding: str
    head: str

    def recognizes(self, shapes: Shapes) -> bool:
        return self.embedding in shapes

    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        official = section(official_config, "model.generator")
        refuse_unknown(official, KNOWN_FIELDS, "model.generator")
        if official["model_type"] != self.official_type:
            raise ValueError(
                f"{self.model_class.__name__} is the reference's generator of type "
                f"{self.official_type!r}; this one is of type {official['model_type']!r}."
            )
        num_labels = official["condition_num_classes"]
        names = (
            imagenet_labels()
            if num_labels == 1000
            else [f"LABEL_{index}" for index in range(num_labels)]
        )
        fields = {
            "codebook_size": section(official_config, "model.vq_model")["codebook_size"],
            "num_tokens": official["image_seq_len"],
            "hidden_size": official["hidden_size"],
            "num_hidden_layers": official["num_hidden_layers"],
            "num_attention_heads": official["num_attention_heads"],
            "intermediate_size": official["intermediate_size"],
            "label_dropout": official["class_label_dropout"],
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }
        losses = official_config.get("losses") or {}
        for ours, theirs in (
            ("label_smoothing", "label_smoothing"),
            ("unmasked_weight", "loss_weight_unmasked_token"),
        ):
            if theirs in losses:
                fields[ours] = losses[theirs]
        return fields

    def config_from_shapes(self, shapes: Shapes) -> dict[str, Any]:
        codebook_size, hidden_size = shapes[self.head]
        generator = {
            "model_type": self.official_type,
            "hidden_size": hidden_size,
            "num_attention_heads": 16,  # as in all released generators
            "class_label_dropout": 0.1,
            "condition_num_classes": shapes[self.embedding][0] - codebook_size - 2,
            **self.sizes_from_shapes(shapes),
        }
        return {"model": {"vq_model": {"codebook_size": codebook_size}, "generator": generator}}

    @abstractmethod
    def sizes_from_shapes(self, shapes: Shapes) -> dict[str, int]:
        """Returns the official fields for the numbers of layers and tokens and the MLP width."""

    def official_config(self, config: MaskGitConfig) -> dict[str, Any]:
        generator = {
            "model_type": self.official_type,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "intermediate_size": config.intermediate_size,
            "dropout": config.hidden_dropout,
            "attn_drop": config.attention_dropout,
            "class_label_dropout": config.label_dropout,
            "image_seq_len": config.num_tokens,
            "condition_num_classes": config.num_labels,
        }
        losses = {
            "label_smoothing": config.label_smoothing,
            "loss_weight_unmasked_token": config.unmasked_weight,
        }
        return {
            "model": {"vq_model": {"codebook_size": config.codebook_size}, "generator": generator},
            "losses": losses,
        }


class OfficialMaskGitViT(OfficialMaskGit):
    """The BERT, the reference's `ImageBert`."""

    model_class = MaskGitModel
    official_type = "ViT"
    embedding = "model.embeddings.word_embeddings.weight"
    head = "model.lm_head.weight"

    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        fields = super().config_fields(official_config)
        official = section(official_config, "model.generator")
        dropouts = (("hidden_dropout", "dropout"), ("attention_dropout", "attn_drop"))
        return fields | {ours: official[theirs] for ours, theirs in dropouts if theirs in official}

    def sizes_from_shapes(self, shapes: Shapes) -> dict[str, int]:
        layers = [
            name
            for name in shapes
            if re.fullmatch(r"model\.encoder\.layer\.\d+\.output\.dense\.weight", name)
        ]
        return {
            "num_hidden_layers": len(layers),
            "intermediate_size": shapes["model.encoder.layer.0.intermediate.dense.weight"][0],
            "image_seq_len": shapes["model.embeddings.position_embeddings.weight"][0] - 1,
        }

    def official_name(self, name: str, config: PreTrainedConfig) -> str:
        return name.replace("bert.", "model.", 1) if name.startswith("bert.") else f"model.{name}"


class OfficialMaskGitUViT(OfficialMaskGit):
    """The U-ViT, the reference's `UViTBert`, whose dropout fields are ignored since no layer uses
    them."""

    model_class = MaskGitUViTModel
    official_type = "UViT"
    embedding = "embeddings.weight"
    head = "lm_head.weight"

    def recognizes(self, shapes: Shapes) -> bool:
        return super().recognizes(shapes) and "pos_embed" in shapes

    def sizes_from_shapes(self, shapes: Shapes) -> dict[str, int]:
        blocks = [
            name for name in shapes if re.fullmatch(r"(in|out)_blocks\.\d+\.norm1\.weight", name)
        ]
        return {
            "num_hidden_layers": len(blocks),
            "intermediate_size": shapes["mid_block.mlp.fc1.weight"][0],
            "image_seq_len": shapes["pos_embed"][1] - 1,
        }

    def official_name(self, name: str, config: PreTrainedConfig) -> str:
        for ours, official in (
            ("position_embedding", "pos_embed"),
            (".attention_norm.", ".norm1."),
            (".mlp_norm.", ".norm2."),
            (".attention.", ".attn."),
            (".mlp_in.", ".mlp.fc1."),
            (".mlp_out.", ".mlp.fc2."),
            (".skip_proj.", ".skip_linear."),
        ):
            name = name.replace(ours, official)
        return name


def official_sampling(official_config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns how the reference samples with a generator.

    Args:
        official_config: Its configuration. Without sampling fields, those of the released generator
            with the same type and number of tokens are used (`sampling.yaml`).

    Returns:
        Arguments of `MaskGitScheduler`, and of `TiTokPipeline`. The reference computes `c + s * (c
        - u)` for constant and linear guidance, so its scale is one less than ours there; for
        power-cosine it is the same.

    Raises:
        ValueError: If neither says how to sample.
    """
    generator = section(official_config, "model.generator")
    if "num_steps" not in generator:
        released = load_yaml(Path(__file__).with_name("sampling.yaml"))["maskgit"]
        name = f"{generator['model_type']}-{generator['image_seq_len']}"
        if name not in released:
            raise ValueError(
                "Sampling settings are known for the released generators "
                f"{', '.join(released)}, not for a {name}: give its official configuration, with "
                f"{', '.join(SAMPLING_FIELDS)} in `model.generator`."
            )
        generator = released[name]
    if missing := [field for field in SAMPLING_FIELDS if field not in generator]:
        raise ValueError(
            f"`model.generator` of the official configuration lacks {', '.join(missing)}."
        )
    temperature, schedule = generator["randomize_temperature"], generator["guidance_decay"]
    scheduler = {
        "mask_schedule": generator.get("mask_schedule_strategy", "arccos"),
        "token_temperature": temperature,
        "choice_temperature": temperature,
        "anneal_token_temperature": True,
        "confidence": "logit",
        "softmax_temperature_annealing": True,  # sample_imagenet_titok.py
    }
    sampling = {
        "num_inference_steps": generator["num_steps"],
        "guidance_scale": generator["guidance_scale"] + (schedule != "power-cosine"),
        "guidance_schedule": schedule,
    }
    return scheduler, sampling


def sampling_to_official(scheduler: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    """Inverts `official_sampling`: returns fields of `model.generator`.

    Args:
        scheduler: Configuration of a `MaskGitScheduler`.
        sampling: Configuration of a `TiTokPipeline`.

    Raises:
        ValueError: If the reference cannot sample like that.
    """
    temperature, schedule = scheduler["token_temperature"], sampling["guidance_schedule"]
    generator = {
        "num_steps": sampling["num_inference_steps"],
        "randomize_temperature": temperature,
        "guidance_scale": sampling["guidance_scale"] - (schedule != "power-cosine"),
        "guidance_decay": schedule,
    }
    if scheduler["mask_schedule"] != "arccos":
        generator["mask_schedule_strategy"] = scheduler["mask_schedule"]
    expected, _ = official_sampling({"model": {"generator": generator}})
    if differing := [
        f"`{key}={scheduler[key]!r}`" for key in expected if scheduler[key] != expected[key]
    ]:
        raise ValueError(
            f"The reference cannot sample like a scheduler with {', '.join(differing)}: it needs "
            f"{expected}."
        )
    return generator
