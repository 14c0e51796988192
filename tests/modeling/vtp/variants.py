"""The classes of VTP and variants of its configuration, for its tests."""

from titok_hf import (
    VTPForImageReconstruction,
    VTPModel,
    VTPVisionModel,
)

CLASSES = (VTPVisionModel, VTPForImageReconstruction, VTPModel)
START, END = 48, 49
VARIANTS = {
    "plain": {},
    "registers": {"num_register_tokens": 3},
    "layer scale": {"vision_layer_scale": 0.5, "decoder_layer_scale": 0.3},
    "qk norm": {"vision_qk_norm": True, "decoder_qk_norm": True},
    "mlp": {"vision_mlp": "mlp", "decoder_mlp": "mlp"},
    "swiglu64": {"vision_mlp": "swiglu64", "decoder_mlp": "swiglu64"},
    "other norms": {"vision_norm": "layernorm", "decoder_norm": "rmsnorm"},
    "widths": {"vision_mlp_ratio": 2, "decoder_mlp_ratio": 3.5, "decoder_hidden_size": 48},
    "mean": {"image_pooling": "mean"},
    "bottleneck everywhere": {"bottleneck_everywhere": True},
    "logit bias": {
        "logit_bias": True,
        "text_projection_bias": True,
        "text_hidden_act": "quick_gelu",
    },
}


def call(model, pixel_values, input_ids, **kwargs):
    """`forward` of whichever class."""
    return (
        model(pixel_values, input_ids, **kwargs)
        if isinstance(model, VTPModel)
        else model(pixel_values, **kwargs)
    )
