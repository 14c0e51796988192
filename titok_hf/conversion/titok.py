"""The reference's format of TiTok's tokenizers: nested configuration, names and shapes."""

import math
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from ..modeling.maskgit_vqgan import MaskGitVQGANConfig
from ..modeling.titok import TiTokConfig, TiTokModel
from .maskgit_vqgan import vqgan_name
from .official import OfficialFormat, Shapes, refuse_unknown, section

# Width, layers and heads of the reference's ViT sizes (modeling/modules/blocks.py).
VIT_SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
KNOWN_FIELDS = {
    "quantize_mode",
    "codebook_size",
    "token_size",
    "use_l2_norm",
    "commitment_cost",
    "vit_enc_model_size",
    "vit_dec_model_size",
    "vit_enc_patch_size",
    "vit_dec_patch_size",
    "num_latent_tokens",
    "finetune_decoder",
    "is_legacy",
    "pretrained_tokenizer_weight",
}
# Patterns of our names and their official replacements, applied in this order.
NAMES = (
    (r"^encoder\.latent_tokens$", "latent_tokens"),
    (r"\.latent_position_embedding$", ".latent_token_positional_embedding"),
    (r"\.position_embedding$", ".positional_embedding"),
    (r"\.cls_token$", ".class_embedding"),
    (r"\.patch_embedding\.", ".patch_embed."),
    (r"\.norm_in\.", ".ln_pre."),
    (r"\.norm_out\.", ".ln_post."),
    (r"\.blocks\.", ".transformer."),
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.mlp_norm\.", ".ln_2."),
    (r"\.attention\.qkv\.", ".attn.in_proj_"),
    (r"\.attention\.proj\.", ".attn.out_proj."),
    (r"\.mlp_in\.", ".mlp.c_fc."),
    (r"\.mlp_out\.", ".mlp.c_proj."),
    (r"^encoder\.proj\.", "encoder.conv_out."),
    (r"^decoder\.latent_embedding\.", "decoder.decoder_embed."),
    (r"^head\.proj_in\.", "decoder.ffn.0."),
    (r"^head\.proj_out\.", "decoder.ffn.2."),
    (r"^head\.proj\.", "decoder.ffn.0."),
    (r"^head\.conv\.", "decoder.conv_out."),
    (r"^quantizer\.codebook\.", "quantize.embedding."),
    (r"^pixel_codebook\.", "pixel_quantize.embedding."),
)
# Our linear layers that are official 1x1 convolutions, and our embeddings whose leading axis the
# official ones lack.
CONVOLUTIONS = re.compile(r"(encoder\.proj|head\.proj|head\.proj_in|head\.proj_out)\.weight")
WITHOUT_LEADING_AXIS = re.compile(
    r"encoder\.latent_tokens|.*\.(cls_token|position_embedding|latent_position_embedding)"
)


class OfficialTiTok(OfficialFormat):
    """The 1D tokenizers.

    Two-stage ones are "legacy": their encoders read their output transposed, and their VQGAN
    decoders compute residual shortcuts from the blocks' own output. The released weights rely on
    both.
    """

    model_class = TiTokModel

    def recognizes(self, shapes: Shapes) -> bool:
        return "latent_tokens" in shapes and "encoder.latent_token_positional_embedding" in shapes

    def config_fields(self, official_config: dict[str, Any]) -> dict[str, Any]:
        official = section(official_config, "model.vq_model")
        refuse_unknown(official, KNOWN_FIELDS, "model.vq_model")
        image_size = section(official_config, "dataset.preprocessing")["crop_size"]
        fields = {
            "image_size": image_size,
            "encoder_patch_size": official["vit_enc_patch_size"],
            "decoder_patch_size": official["vit_dec_patch_size"],
            "num_latent_tokens": official["num_latent_tokens"],
            "latent_dim": official["token_size"],
        }
        for side, key in (("encoder", "vit_enc_model_size"), ("decoder", "vit_dec_model_size")):
            if official[key] not in VIT_SIZES:
                raise ValueError(
                    f"`{key}` must be one of {', '.join(VIT_SIZES)}, got {official[key]!r}."
                )
            width, layers, heads = VIT_SIZES[official[key]]
            fields[f"{side}_hidden_size"] = width
            fields[f"{side}_num_hidden_layers"] = layers
            fields[f"{side}_num_attention_heads"] = heads
        if official.get("quantize_mode", "vq") == "vae":
            fields["quantizer"] = "kl"
        else:
            fields["codebook_size"] = official["codebook_size"]
            fields["normalize_codes"] = official["use_l2_norm"]
            fields["commitment_cost"] = official["commitment_cost"]
        if official.get("is_legacy", True):
            fields["interleaved_latents"] = True
            fields["head"] = (
                "vqgan_decoder" if official.get("finetune_decoder", True) else "proxy_codes"
            )
            vqgan_config = MaskGitVQGANConfig(image_size=image_size, shortcut_of_output=True)
            fields["vqgan_config"] = vqgan_config.to_dict()
        else:
            fields["head"] = "pixels"
        return fields

    def config_from_shapes(self, shapes: Shapes) -> dict[str, Any]:
        sizes = {width: name for name, (width, _, _) in VIT_SIZES.items()}
        legacy = "decoder.ffn.2.weight" in shapes
        width, _, patch_size, _ = shapes["encoder.patch_embed.weight"]
        sides = {
            side: math.isqrt(shapes[f"{side}.positional_embedding"][0] - 1)
            for side in ("encoder", "decoder")
        }
        image_size = sides["encoder"] * patch_size
        token_size = shapes["decoder.decoder_embed.weight"][1]
        official = {
            "vit_enc_model_size": sizes.get(width, f"of width {width}"),
            "vit_dec_model_size": sizes.get(
                shapes["decoder.decoder_embed.weight"][0], "of another width"
            ),
            "vit_enc_patch_size": patch_size,
            "vit_dec_patch_size": image_size // sides["decoder"],
            "num_latent_tokens": shapes["latent_tokens"][0],
            "token_size": token_size,
            "finetune_decoder": "pixel_quantize.embedding.weight" in shapes,
            "is_legacy": legacy,
        }
        if "quantize.embedding.weight" in shapes:
            official |= {
                "quantize_mode": "vq",
                "codebook_size": shapes["quantize.embedding.weight"][0],
                "use_l2_norm": legacy,  # as in all released tokenizers
                "commitment_cost": 0.25,
            }
        else:
            official["quantize_mode"] = "vae"
        return {
            "model": {"vq_model": official},
            "dataset": {"preprocessing": {"crop_size": image_size}},
        }

    def official_config(self, config: TiTokConfig) -> dict[str, Any]:
        if config.representation != "latent_tokens":
            raise ValueError(
                "The official format knows latent tokens only; this model has "
                f"{config.representation}."
            )
        official: dict[str, Any] = {"quantize_mode": "vae" if config.quantizer == "kl" else "vq"}
        if config.quantizer == "vq":
            official |= {
                "codebook_size": config.codebook_size,
                "use_l2_norm": config.normalize_codes,
                "commitment_cost": config.commitment_cost,
            }
        sizes = {size: name for name, size in VIT_SIZES.items()}
        for side, key in (("encoder", "vit_enc_model_size"), ("decoder", "vit_dec_model_size")):
            parts = ("hidden_size", "num_hidden_layers", "num_attention_heads")
            size = tuple(getattr(config, f"{side}_{part}") for part in parts)
            if size not in sizes or config.mlp_ratio != 4:
                raise ValueError(
                    "The official format knows ViTs of width, layers and heads "
                    f"{', '.join(map(str, sizes))} with MLPs of 4 times the width; the {side} has "
                    f"{size} and {config.mlp_ratio}."
                )
            official[key] = sizes[size]
        legacy = config.head != "pixels"
        if legacy != config.interleaved_latents:
            raise ValueError(
                "In the official format, two-stage encoders read their output transposed and "
                f"single-stage ones do not; this model has `head={config.head!r}` and "
                f"`interleaved_latents={config.interleaved_latents}`."
            )
        if legacy:
            expected = MaskGitVQGANConfig(image_size=config.image_size, shortcut_of_output=True)
            sizes = (
                "hidden_channels",
                "num_res_blocks",
                "latent_channels",
                "codebook_size",
                "shortcut_of_output",
            )
            got = {name: getattr(config.vqgan_config, name) for name in sizes}
            wanted = {name: getattr(expected, name) for name in sizes}
            got["channel_multipliers"] = tuple(config.vqgan_config.channel_multipliers)
            wanted["channel_multipliers"] = tuple(expected.channel_multipliers)
            if got != wanted:
                raise ValueError(
                    "In the official format, a two-stage tokenizer has the released VQGAN, with "
                    f"{wanted}; this one has {got}."
                )
        return {
            "model": {
                "vq_model": official
                | {
                    "token_size": config.latent_dim,
                    "vit_enc_patch_size": config.encoder_patch_size,
                    "vit_dec_patch_size": config.decoder_patch_size,
                    "num_latent_tokens": config.num_latent_tokens,
                    "finetune_decoder": config.head == "vqgan_decoder",
                    "is_legacy": legacy,
                }
            },
            "dataset": {"preprocessing": {"crop_size": config.image_size}},
        }

    def official_name(self, name: str, config: PreTrainedConfig) -> str:
        if name.startswith("pixel_decoder."):
            return vqgan_name(name, config.vqgan_config)
        for ours, official in NAMES:
            name = re.sub(ours, official, name)
        return name

    def official_axes(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        if CONVOLUTIONS.fullmatch(name):
            return (*shape, 1, 1)
        if WITHOUT_LEADING_AXIS.fullmatch(name):
            return tuple(shape[1:])
        return tuple(shape)
