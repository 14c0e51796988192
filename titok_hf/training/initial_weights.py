"""Weights of pretrained vision models as the start of a VTP's pre-training."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from ..hub.errors import explain_loading_errors
from ..hub.provenance import inherit_provenance
from ..modeling.vtp import VTPModel

logger = logging.getLogger(__name__)

# Patterns of transformers' names and our replacements, applied in this order.
DINO_NAMES = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "vision_encoder.patch_embedding."),
    (r"^embeddings\.", "vision_encoder."),
    (r"^(encoder|model)\.layer\.", "vision_encoder.blocks."),
    (r"^(layernorm|norm)\.", "vision_encoder.norm."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.o_proj\.", ".proj."),
    (r"\.layer_scale1\.lambda1$", ".attention_scale"),
    (r"\.layer_scale2\.lambda1$", ".mlp_scale"),
)
CLIP_NAMES = (
    (r"^text_model\.", "text_encoder."),
    (r"^visual_projection\.", "image_projection."),
    (r"^vision_model\.embeddings\.class_embedding$", "vision_encoder.cls_token"),
    (r"^vision_model\.embeddings\.", "vision_encoder."),
    (r"^vision_model\.encoder\.layers\.", "vision_encoder.blocks."),
    (r"^vision_model\.post_layernorm\.", "vision_encoder.norm."),
    (r"^(vision_encoder\..*)\.self_attn\.out_proj\.", r"\1.attention.proj."),
    (r"^(vision_encoder\..*)\.self_attn\.", r"\1.attention."),
    (r"^(vision_encoder\..*)\.layer_norm1\.", r"\1.attention_norm."),
    (r"^(vision_encoder\..*)\.layer_norm2\.", r"\1.mlp_norm."),
)
NAMES = {
    "clip": CLIP_NAMES,
    "dinov2": DINO_NAMES,
    "dinov2_with_registers": DINO_NAMES,
    "dinov3_vit": DINO_NAMES,
}
QKV = re.compile(r"(vision_encoder\.blocks\.\d+\.attention)\.([qkv])_proj\.(weight|bias)")
# Two layers and a GELU, and SwiGLU, whose first layers have the same name in DINOv3.
MLPS = {
    "mlp": {"fc1": "mlp_in", "fc2": "mlp_out", "up_proj": "mlp_in", "down_proj": "mlp_out"},
    "gated": {"gate_proj": "gate", "up_proj": "up", "down_proj": "out"},
}


@torch.no_grad()
def initialize(model: VTPModel, source: str | Path, **location: Any) -> int:
    """Copies the weights of a pretrained model where names and shapes map, and logs what did not.

    VTP has neither learned positions nor CLIP's norm before the blocks; its norms, MLPs, LayerScale
    and registers are chosen in its configuration.

    Args:
        model: The VTP, which is changed.
        source: Folder or Hub repository of a VTP, or of transformers' DINOv2, DINOv3 or CLIP.
        location: Arguments of `from_pretrained`, such as `revision`.

    Returns:
        The number of weights of the model that were copied.

    Raises:
        OSError: If there is no such folder or repository.
        ValueError: If it is another model, or no block of the vision encoder has its shapes.
    """
    with explain_loading_errors(source):
        config = AutoConfig.from_pretrained(source, **location)
        if config.model_type == "vtp":
            initial = VTPModel.from_pretrained(source, **location)
            found = initial.state_dict()
            inherit_provenance(model, initial)
        elif config.model_type not in NAMES:
            raise ValueError(
                f"A VTP may start from a VTP, DINOv2, DINOv3 or CLIP; {source} is a "
                f"{config.model_type!r}."
            )
        else:
            state = AutoModel.from_pretrained(source, **location).state_dict()
            found = our_state_dict(state, NAMES[config.model_type])
    copied = []
    for name, parameter in model.named_parameters():
        # tokens have other numbers of axes of length 1
        if name in found and found[name].squeeze().shape == parameter.squeeze().shape:
            parameter.copy_(found[name].view_as(parameter))
            copied.append(name)
    if not any(name.startswith("vision_encoder.blocks.") for name in copied):
        shape = tuple(model.vision_encoder.blocks[0].attention.qkv.weight.shape)
        theirs = found.get("vision_encoder.blocks.0.attention.qkv.weight")
        raise ValueError(
            f"No block of {source} has the shapes of the recipe's vision encoder: its attention takes "
            f"weights of {shape}, {source} has {theirs if theirs is None else tuple(theirs.shape)}. "
            "Choose `vision_hidden_size`, `vision_num_attention_heads` and `vision_mlp` of the source."
        )
    new = [name for name, _ in model.named_parameters() if name not in copied]
    unused = sorted(found.keys() - copied)
    logger.warning(
        "%d of %d weights come from %s. New are %s%s.",
        len(copied),
        len(copied) + len(new),
        source,
        summary(new),
        f"; unused are {summary(unused)}" if unused else "",
    )
    return len(copied)


def our_state_dict(
    state: dict[str, torch.Tensor], names: tuple[tuple[str, str], ...]
) -> dict[str, torch.Tensor]:
    """Returns weights of transformers under our names, with queries, keys and values joined."""
    mlp = MLPS["gated" if any("gate_proj" in name for name in state) else "mlp"]
    found: dict[str, torch.Tensor] = {}
    joined: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        for theirs, ours in names:
            name = re.sub(theirs, ours, name)
        if name.startswith("vision_encoder"):
            name = re.sub(r"\.mlp\.(\w+)\.", lambda m: f".mlp.{mlp.get(m[1], m[1])}.", name)
        if match := QKV.fullmatch(name):
            joined.setdefault(f"{match[1]}.qkv.{match[3]}", {})[match[2]] = tensor
        else:
            found[name] = tensor
    for name, parts in joined.items():
        # DINOv3's keys have no bias
        present = next(iter(parts.values()))
        found[name] = torch.cat([parts.get(part, torch.zeros_like(present)) for part in "qkv"])
    return found


def summary(names: list[str]) -> str:
    """Returns a few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more


__all__ = ["initialize"]
