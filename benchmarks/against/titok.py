"""TiTok and its generator beside bytedance/1d-tokenizer, which needs `pip install einops omegaconf`.

The reference's README runs it in float32.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .setup import Parts, Setup, stand_in

SIDES = ("reference-bfloat16", "eager", "fast", "compiled")
# GFLOP of an image: a guided sampling run with decoding (a linear guidance schedule has one step without
# guidance, so that 8 steps are 15 forwards), decoding, and encoding. The latter two are counted by torch.
GFLOP = {
    "titok-l-32": {"sample": 535, "decode": 372, "encode": 183},
    "titok-b-64": {"sample": 580, "decode": 247, "encode": 59},
    "titok-s-128": {"sample": 9763, "decode": 210, "encode": 22},
}
SAMPLING = {  # of the reference's configs/infer
    "titok-l-32": {"randomize_temperature": 9.5, "guidance_scale": 4.5, "guidance_decay": "linear"},
    "titok-b-64": {
        "randomize_temperature": 11.0,
        "guidance_scale": 3.0,
        "guidance_decay": "linear",
    },
    "titok-s-128": {
        "randomize_temperature": 2.8,
        "guidance_scale": 6.9,
        "guidance_decay": "power-cosine",
        "softmax_temperature_annealing": True,
        "num_sample_steps": 64,
    },
}
YAML = {"titok-l-32": "titok_l32", "titok-b-64": "titok_b64", "titok-s-128": "titok_s128"}


def open_checkout(checkout: str) -> None:
    """Makes the reference's top-level modules importable."""
    import_module("transformers.models.bert.modeling_bert")  # before torchvision has a stand-in
    sys.path.insert(0, checkout)
    # its perceptual loss, which neither sampling nor the warm-up uses, imports torchvision
    stand_in("torchvision.models")


def save(model: Any, config: Any, folder: Path) -> None:
    """Saves a model of the reference as its releases are."""
    from omegaconf import OmegaConf

    model.save_pretrained_weight(folder)
    (folder / "config.json").write_text(json.dumps(OmegaConf.to_container(config, resolve=True)))


def reference_side(setup: Setup) -> Parts:
    """Builds the reference's models, saves their weights, and returns what is timed."""
    open_checkout(setup.checkout)
    from modeling.maskgit import ImageBert, UViTBert
    from modeling.titok import TiTok
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(setup.checkout) / f"configs/infer/TiTok/{YAML[setup.model]}.yaml")
    is_vit = config.model.generator.model_type == "ViT"
    tokenizer, generator = (
        model(config).eval().requires_grad_(False)
        for model in (TiTok, ImageBert if is_vit else UViTBert)
    )
    if setup.side == "reference":
        save(tokenizer, config, setup.path / "tokenizer")
        save(generator, config, setup.path / "generator")
    tokenizer.to(setup.device)
    generator.to(setup.device)
    images, labels = setup.uniform(3, 256, 256), setup.ids(1000)
    codes = setup.ids(config.model.vq_model.codebook_size, 1, tokenizer.num_latent_tokens)

    def sample() -> None:
        tokens = generator.generate(condition=labels, **SAMPLING[setup.model])
        decoded = tokenizer.decode_tokens(tokens.view(len(labels), -1)).clamp(0, 1)
        (decoded * 255).permute(0, 2, 3, 1).to("cpu", dtype=torch.uint8).numpy()

    parts = {
        "sample": sample,
        "decode": lambda: tokenizer.decode_tokens(codes),
        "encode": lambda: tokenizer.encode(images)[1]["min_encoding_indices"].flatten(1),
    }
    return setup.inference(parts)


def our_side(setup: Setup) -> Parts:
    """Converts these weights, and returns the same of our package."""
    from titok_hf.conversion import convert
    from titok_hf.pipelines import TiTokPipeline

    if not (setup.path / "ours").exists():
        convert(setup.path / "tokenizer", setup.path / "ours", setup.path / "generator")
    pipeline = TiTokPipeline.from_pretrained(setup.path / "ours").to(setup.device)
    pipeline.set_progress_bar_config(disable=True)
    if setup.kind != "eager":
        backend = "inductor" if setup.kind == "compiled" else None
        pipeline.compile(setup.batch_size, setup.dtype, backend)
    tokenizer = pipeline.tokenizer
    images, labels = setup.uniform(3, 256, 256), setup.ids(1000)
    codes = setup.ids(tokenizer.config.codebook_size, tokenizer.config.num_latent_tokens)
    latents = tokenizer.code_latents(codes)
    steps = SAMPLING[setup.model].get("num_sample_steps", 8)

    def sample() -> None:
        pipeline(labels.tolist(), num_inference_steps=steps, output_type="np")

    parts = {
        "sample": sample,
        "decode": lambda: pipeline.network("tokenizer")(latents).float(),
        "encode": lambda: tokenizer.encode(images).codes,
    }
    return setup.inference(parts)
