"""VTP beside MiniMax-AI/VTP, which needs `pip install omegaconf`.

The reference's README runs it under autocast, here to bfloat16 on every device.
"""

import sys
from importlib import import_module

import torch

from .setup import Parts, Setup, stand_in

SIDES = ("eager", "reference-bfloat16", "eager-bfloat16", "fast-bfloat16")
GFLOP = {  # of an image or a text of 77 tokens, counted by torch
    "vtp-b": {"encode": 46.4, "decode": 46.2, "features": 46.4, "embed": 46.4, "text": 13.3}
}


def reference_side(setup: Setup) -> Parts:
    """Builds the reference's model, saves its weights, and returns what is timed."""
    import_module("transformers")  # before torchvision has a stand-in
    sys.path.insert(0, setup.checkout)
    # a helper that inference does not call imports a class of torchvision
    stand_in("torchvision.ops.misc", FrozenBatchNorm2d=torch.nn.Module)
    from vtp.models.vtp_hf import VTPConfig, VTPModel

    model = VTPModel(VTPConfig()).eval()
    if setup.side == "reference":
        model.save_pretrained(setup.path / "vtp")
    model.to(setup.device)
    images, latents, texts = inputs(setup)
    parts = {
        "encode": lambda: model.get_reconstruction_latents(images),
        "decode": lambda: model.get_latents_decoded_images(latents),
        "features": lambda: model.get_last_layer_feature(images)["patch_tokens"],
        "embed": lambda: model.get_clip_image_feature(images),
        "text": lambda: model.get_clip_text_feature(texts),
    }
    return setup.inference(parts)


def our_side(setup: Setup) -> Parts:
    """Loads these weights, and returns the same of our package."""
    from titok_hf import VTPModel

    dtype = setup.dtype if setup.kind == "fast" else "float32"
    model = VTPModel.from_pretrained(setup.path / "vtp", dtype=dtype).to(setup.device)
    images, latents, texts = inputs(setup)
    parts = {
        "encode": lambda: model.encode(images).latents,
        "decode": lambda: model.decode(latents).reconstruction,
        "features": lambda: model.get_vision_features(images).patch_tokens,
        "embed": lambda: model.get_image_features(images),
        "text": lambda: model.get_text_features(texts),
    }
    return setup.inference(parts)


def inputs(setup: Setup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns images `(B, 3, 256, 256)`, latents `(B, 64, 16, 16)`, and texts `(B, 77)`."""
    return setup.uniform(3, 256, 256), setup.uniform(64, 16, 16), setup.ids(49408, 77)
