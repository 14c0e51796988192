"""The official format of VTP: a flat configuration, and the names of DINOv3 and OpenCLIP."""

import re
from typing import Any

import torch

from ..modeling.vtp import VTPConfig, VTPModel
from ..modeling.vtp.rotary import rotary_periods
from .official import OfficialFormat, Section, Shapes, refuse_unknown

# Our fields and the official ones; the rest are in `FIXED` and `SPECIAL`.
FIELDS = {
    "image_size": "image_size",
    "has_text": "train_clip",
    "has_decoder": "train_reconstruction",
    "patch_size": "vision_patch_size",
    "latent_dim": "vision_feature_bottleneck",
    "text_context_length": "text_context_length",
    "text_vocab_size": "text_vocab_size",
    "text_hidden_size": "text_embed_dim",
    "text_num_hidden_layers": "text_depth",
    "text_num_attention_heads": "text_num_heads",
    "text_projection_bias": "text_proj_bias",
}
PARTS = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "mlp": "ffn_layer",
    "norm": "norm_layer",
    "layer_scale": "init_values",
    "qk_norm": "use_qk_norm",
}
FIELDS |= {
    f"{part}_{ours}": f"{part}_{theirs}"
    for part in ("vision", "decoder")
    for ours, theirs in PARTS.items()
}
# Fields with only one supported value, that of all released models.
FIXED = {
    "text_ls_init_value": None,
    "text_embed_cls": False,
    "text_no_causal_mask": False,
    "text_pool_type": "argmax",
    "text_proj_type": "linear",
    "text_output_tokens": False,
    "nonscalar_logit_scale": False,
}
SPECIAL = {
    "vision_mlp_ratio",
    "vision_bottleneck_ae_only",
    "vision_clip_feat",
    "text_mlp_ratio",
    "text_quick_gelu",
    "text_pad_id",  # unused: texts are not masked, tokens after the end do not matter
    "init_logit_scale",
    "init_logit_bias",
}
OF_TRANSFORMERS = {
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "torch_dtype",
    "transformers_version",
}
POOLING = {"cls": "cls", "mean": "pooled"}
# Patterns of our names and their official replacements, applied in this order.
NAMES = (
    (r"^vision_encoder\.patch_embedding\.", "trunk.patch_embed.proj."),
    (r"^vision_encoder\.register_tokens$", "trunk.storage_tokens"),
    (r"^vision_encoder\.bottleneck\.", "trunk.feature_bottleneck."),
    (r"^vision_encoder\.", "trunk."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.attention\.query_norm\.", ".attn.q_norm."),
    (r"\.attention\.key_norm\.", ".attn.k_norm."),
    (r"\.attention\.", ".attn."),
    (r"\.attention_scale$", ".ls1.gamma"),
    (r"\.mlp_scale$", ".ls2.gamma"),
    (r"\.mlp\.gate\.", ".mlp.w1."),
    (r"\.mlp\.up\.", ".mlp.w2."),
    (r"\.mlp\.out\.", ".mlp.w3."),
    (r"\.mlp\.mlp_in\.", ".mlp.fc1."),
    (r"\.mlp\.mlp_out\.", ".mlp.fc2."),
    (r"^image_projection\.", "visual_proj."),
    (r"^text_encoder\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_encoder\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_encoder\.final_layer_norm\.", "ln_final."),
    (r"^text_encoder\.encoder\.layers\.", "text_transformer.resblocks."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"^(text_transformer\..*\.mlp)\.fc1\.", r"\1.c_fc."),
    (r"^(text_transformer\..*\.mlp)\.fc2\.", r"\1.c_proj."),
)
CONVOLUTIONS = re.compile(r"pixel_decoder\.proj_(in|out)\.weight")
SCALARS = re.compile(r"logit_(scale|bias)")
QKV = ("q_proj", "k_proj", "v_proj")


class OfficialVTP(OfficialFormat):
    """The released models S, B and L, and all variants that their code supports."""

    model_class = VTPModel

    def recognizes(self, shapes: Shapes) -> bool:
        return "trunk.patch_embed.proj.weight" in shapes

    def is_official(self, config: dict[str, Any]) -> bool:
        """Checks a field, since both formats have the model type `vtp`."""
        return "vision_embed_dim" in config

    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        fields_of_theirs = {
            key: value for key, value in official_config.items() if key not in OF_TRANSFORMERS
        }
        official = Section("vtp", fields_of_theirs)
        refuse_unknown(official, {*FIELDS.values(), *FIXED, *SPECIAL}, "vtp")
        for name, known in FIXED.items():
            if official.get(name, known) != known:
                raise ValueError(f"`{name}` of a VTP must be {known!r}, got {official[name]!r}.")
        fields = {ours: official[theirs] for ours, theirs in FIELDS.items() if theirs in official}
        if "vision_mlp_ratio" in official:
            fields["vision_mlp_ratio"] = official["vision_mlp_ratio"]
        if "text_embed_dim" in official:
            fields["text_intermediate_size"] = int(
                official["text_embed_dim"] * official.get("text_mlp_ratio", 4.0)
            )
        pooling = {theirs: ours for ours, theirs in POOLING.items()}
        features = official.get("vision_clip_feat", "cls")
        if features not in pooling:
            raise ValueError(
                f"`vision_clip_feat` of a VTP must be one of {', '.join(pooling)}, got "
                f"{features!r}."
            )
        return fields | {
            "text_hidden_act": "quick_gelu" if official.get("text_quick_gelu") else "gelu",
            "image_pooling": pooling[features],
            "bottleneck_everywhere": not official.get("vision_bottleneck_ae_only", True),
            "logit_bias": official.get("init_logit_bias") is not None,
        }

    def config_from_shapes(self, shapes: Shapes) -> dict[str, Any]:
        raise ValueError(
            "A VTP checkpoint comes with a `config.json`: put it beside the weights, or name it."
        )

    def official_config(self, config: VTPConfig) -> dict[str, Any]:
        if config.num_register_tokens or config.decoder_mlp_ratio != 4:
            raise ValueError(
                "The official VTP has no register tokens, and a decoder with MLPs of 4 times the "
                "width."
            )
        return {
            "model_type": "vtp",
            **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
            **FIXED,
            "vision_mlp_ratio": config.vision_mlp_ratio,
            "text_mlp_ratio": config.text_intermediate_size / config.text_hidden_size,
            "text_quick_gelu": config.text_hidden_act == "quick_gelu",
            "vision_clip_feat": POOLING[config.image_pooling],
            "vision_bottleneck_ae_only": not config.bottleneck_everywhere,
            "text_pad_id": 0,
            "init_logit_scale": None,
            "init_logit_bias": -10.0 if config.logit_bias else None,
        }

    def official_name(self, name: str, config: VTPConfig) -> str:
        if name == "text_projection.weight" and not config.text_projection_bias:
            return "text_projection"
        for ours, official in NAMES:
            name = re.sub(ours, official, name)
        return name

    def layout(self, ours: Any, config: VTPConfig) -> dict[str, list[str]]:
        def position(name: str) -> int:
            return next((i for i, part in enumerate(QKV) if f".{part}." in name), 0)

        return {
            official: sorted(names, key=position)
            for official, names in super().layout(ours, config).items()
        }

    def official_axes(self, name: str, shape: Any) -> tuple[int, ...]:
        if SCALARS.fullmatch(name):
            return ()
        return (*shape, 1, 1) if CONVOLUTIONS.fullmatch(name) else tuple(shape)

    def our_tensor(self, name: str, tensor: torch.Tensor, config: VTPConfig) -> torch.Tensor:
        """Transposes a text projection without bias, officially a matrix multiplied from the
        right."""
        bare = name == "text_projection.weight" and not config.text_projection_bias
        return tensor.T.contiguous() if bare else tensor

    def constants(self, config: VTPConfig) -> dict[str, torch.Tensor]:
        """Returns the periods of the rotary positions."""
        parts = (
            {"trunk": "vision", "pixel_decoder": "decoder"}
            if config.has_decoder
            else {"trunk": "vision"}
        )
        constants = {}
        for official, part in parts.items():
            head_dim = getattr(config, f"{part}_hidden_size") // getattr(
                config, f"{part}_num_attention_heads"
            )
            constants[f"{official}.rope_embed.periods"] = rotary_periods(
                head_dim, torch.device("cpu")
            )
        return constants
