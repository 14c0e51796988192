"""The reference's format of LightningDiT: a training checkpoint without a configuration."""

import re
from typing import Any

import torch

from ..modeling.lightning_dit import LightningDiTConfig, LightningDiTModel
from ..modeling.lightning_dit.modeling_lightning_dit import positions, rotation
from .official import OfficialFormat, Shapes

# Patterns of our names and their official replacements, applied in this order.
NAMES = (
    (r"^proj_in\.", "x_embedder.proj."),
    (r"^time_in\.", "t_embedder.mlp.0."),
    (r"^time_out\.", "t_embedder.mlp.2."),
    (r"^label_embedding\.weight$", "y_embedder.embedding_table.weight"),
    (r"^norm\.", "final_layer.norm_final."),
    (r"^modulation\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.attention\.query_norm\.", ".attn.q_norm."),
    (r"\.attention\.key_norm\.", ".attn.k_norm."),
    (r"\.attention\.", ".attn."),
    (r"\.mlp_in\.", ".mlp.w12."),
    (r"\.mlp_out\.", ".mlp.w3."),
    (r"\.modulation\.", ".adaLN_modulation.1."),
)


class OfficialLightningDiT(OfficialFormat):
    """The models with RMSNorm, SwiGLU and rotary positions, as all released ones; 2D latents only."""

    model_class = LightningDiTModel
    file_name = "lightningdit.pt"

    def recognizes(self, shapes: Shapes) -> bool:
        return "x_embedder.proj.weight" in shapes and "feat_rope.freqs_cos" in shapes

    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        return dict(official_config)

    def config_from_shapes(self, shapes: Shapes) -> dict[str, Any]:
        width, channels, patch_size, _ = shapes["x_embedder.proj.weight"]
        num_tokens, head_dim = shapes["feat_rope.freqs_cos"]
        modulation = shapes["blocks.0.adaLN_modulation.1.weight"][0]
        return {
            "in_channels": channels,
            "sample_size": round(num_tokens**0.5) * patch_size,
            "patch_size": patch_size,
            "hidden_size": width,
            "num_hidden_layers": sum(
                bool(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", name)) for name in shapes
            ),
            "num_attention_heads": width // head_dim,
            "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
            "adaln_shift": modulation == 6 * width,
            "num_labels": shapes["y_embedder.embedding_table.weight"][0] - 1,
        }

    def official_config(self, config: LightningDiTConfig) -> dict[str, Any]:
        if config.dimensions != 2:
            raise ValueError("The official LightningDiT has 2D latents; this one has 1D latents.")
        if config.mlp_ratio != 4:
            raise ValueError(
                f"The official LightningDiT has `mlp_ratio=4`, this one {config.mlp_ratio}."
            )
        return {}

    def official_name(self, name: str, config: LightningDiTConfig) -> str:
        for ours, official in NAMES:
            name = re.sub(ours, official, name)
        return name

    def constants(self, config: LightningDiTConfig) -> dict[str, torch.Tensor]:
        """Returns the fixed embeddings and rotations of the positions."""
        cos, sin = rotation(config, torch.device("cpu"))
        return {
            "pos_embed": positions(config, torch.device("cpu"))[None],
            "feat_rope.freqs_cos": cos,
            "feat_rope.freqs_sin": sin,
        }
