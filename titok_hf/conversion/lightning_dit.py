"""The reference's format of LightningDiT: a training checkpoint without a configuration, and the YAML
file of its run."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from ..modeling.lightning_dit import LightningDiTConfig, LightningDiTModel
from ..modeling.lightning_dit.modeling_lightning_dit import positions, rotation
from ..modeling.loading import load_pickle
from ..settings import load_yaml
from .imagenet import imagenet_labels
from .official import OfficialFormat, Shapes, section

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
        fields = dict(official_config)
        if "num_labels" not in official_config:  # the YAML file of a run
            model, data = section(official_config, "model"), section(official_config, "data")
            for name in ("use_swiglu", "use_rope", "use_rmsnorm"):
                if not model[name]:
                    raise ValueError(f"A LightningDiT with `{name}: false` is not known here.")
            factor = section(official_config, "vae")["downsample_ratio"]
            size = str(model["model_type"]).removeprefix("LightningDiT-").lower()
            fields = LightningDiTConfig.size_fields(size) | {
                "in_channels": model["in_chans"],
                "sample_size": data["image_size"] // factor,
                "qk_norm": model["use_qknorm"],
                "adaln_shift": not model["wo_shift"],
                "num_labels": data["num_classes"],
            }
        if fields["num_labels"] == 1000:
            del fields["num_labels"]
            names = imagenet_labels()
            fields["id2label"] = dict(enumerate(names))
            fields["label2id"] = {name: index for index, name in enumerate(names)}
        return fields

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


def official_flow_sampling(official_config: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Returns how the reference samples with a generator, as arguments of `LatentDiTPipeline`.

    Args:
        official_config: Its configuration. Without a section `sample`, the published settings of
            the released generator of that name are used (`sampling.yaml`).
        source: File or repository of the generator.

    Raises:
        ValueError: If neither says how to sample.
    """
    released = load_yaml(Path(__file__).with_name("sampling.yaml"))["lightningdit"]
    if "sample" in official_config:
        sample = section(official_config, "sample")
    elif Path(source).stem in released:
        sample = released[Path(source).stem]
    else:
        raise ValueError(
            f"Sampling settings are known for {', '.join(released)}, not for {source}: give the YAML "
            "file of its run, which has a section `sample`, as the official configuration "
            "(`--config`)."
        )
    return {
        "num_inference_steps": sample["num_sampling_steps"] - 1,  # it counts points
        "guidance_scale": sample["cfg_scale"],
        "guidance_interval": (sample["cfg_interval_start"], 1.0),
        "guidance_channels": 3,  # models/lightningdit.py, forward_with_cfg
        "timestep_shift": sample["timestep_shift"],
    }


def read_statistics(file: Path) -> dict[str, list[float]]:
    """Reads the mean and standard deviation of each channel of latents, as `latent_mean` and
    `latent_std`.

    Args:
        file: `latent_statistics.json` of `titok tokenize`, or `latents_stats.pt` of the reference.

    Raises:
        ValueError: If it holds anything else.
    """
    stored = json.loads(file.read_text()) if file.suffix == ".json" else load_pickle(file)
    if not isinstance(stored, dict) or not {"mean", "std"} <= stored.keys():
        raise ValueError(
            f"{file} must hold `mean` and `std` of latents: `latent_statistics.json` of "
            "`titok tokenize`, or `latents_stats.pt` of the reference."
        )
    return {
        f"latent_{name}": torch.as_tensor(stored[name]).flatten().tolist()
        for name in ("mean", "std")
    }
