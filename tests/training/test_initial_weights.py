"""Pre-training that starts from the weights of VTP, DINOv2, DINOv3 and CLIP."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from titok_hf.training.initial_weights import initialize, our_state_dict

from .tiny_pretraining import make_model

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
NORMS = {"vision_norm": "layernorm", "vision_mlp": "mlp"}


def set_randomly(model):
    """Weights other than those at the start, so that a missing one is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_gives_the_features_that_it_has_itself(gated, tmp_path):
    """Its positions are VTP's, but for bfloat16, so that all of it maps."""
    config = DINOv3ViTConfig(
        **SIZES,
        intermediate_size=32,
        use_gated_mlp=gated,
        num_register_tokens=2,
        layerscale_value=0.5,
        layer_norm_eps=1e-6,
    )
    source = set_randomly(DINOv3ViTModel(config))
    source.save_pretrained(tmp_path)
    fields = NORMS | {"vision_layer_scale": 1.0, "num_register_tokens": 2, "vision_mlp_ratio": 2.0}
    if gated:
        fields |= {"vision_mlp": "swiglu", "vision_mlp_ratio": 3.0}
    model = make_model(**fields).eval()
    encoder = len(list(model.vision_encoder.parameters())) - 1  # the bottleneck is new
    assert initialize(model, tmp_path) == encoder
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source(images).last_hidden_state
        found = model.get_vision_features(images)
    tokens = torch.cat([found.cls_token[:, None], found.patch_tokens], 1)
    cosines = F.cosine_similarity(tokens, expected[:, [0, *range(3, 19)]], dim=-1)
    assert cosines.min() > 0.99  # their rotation is in float32


@pytest.mark.parametrize("kind", ["plain", "swiglu", "registers"])
def test_dinov2_gives_all_but_its_positions(kind, tmp_path, caplog):
    fields = {"vision_layer_scale": 1.0, **NORMS, "vision_mlp_ratio": 2.0}
    if kind == "registers":
        config = Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=2)
        source = Dinov2WithRegistersModel(config)
        fields |= {"num_register_tokens": 2}
    else:
        swiglu = kind == "swiglu"
        source = Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, use_swiglu_ffn=swiglu))
        fields |= {"vision_mlp": "swiglu"} if swiglu else {}
    set_randomly(source).save_pretrained(tmp_path)
    model = make_model(**fields)
    assert initialize(model, tmp_path) == len(list(model.vision_encoder.parameters())) - 1
    assert "unused are vision_encoder.position_embeddings" in caplog.text
    block, theirs = model.vision_encoder.blocks[1], source.encoder.layer[1]
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(block.mlp(x), theirs.mlp(x))
    query = block.attention.qkv(x)[..., :16]
    torch.testing.assert_close(query, theirs.attention.q_proj(x))


def test_clip_gives_its_blocks_and_its_text_encoder(tmp_path):
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 300,
        "max_position_embeddings": 8,
        "eos_token_id": 2,
    }
    config = CLIPConfig(
        vision_config=SIZES | {"intermediate_size": 32}, text_config=text, projection_dim=16
    )
    source = set_randomly(CLIPModel(config))
    source.save_pretrained(tmp_path)
    fields = {**NORMS, "vision_mlp_ratio": 2.0, "text_hidden_act": "quick_gelu"}
    model = make_model(**fields).eval()
    initialize(model, tmp_path)
    ids = torch.randint(0, 300, (3, 8))
    with torch.no_grad():
        expected = source.get_text_features(ids).pooler_output
        torch.testing.assert_close(
            model.get_text_features(ids), expected / expected.norm(dim=-1, keepdim=True)
        )
    assert torch.equal(model.logit_scale[0], source.logit_scale)
    assert torch.equal(model.image_projection.weight, source.visual_projection.weight)
    block, theirs = model.vision_encoder.blocks[1], source.vision_model.encoder.layers[1]
    assert torch.equal(block.attention.proj.weight, theirs.self_attn.out_proj.weight)
    assert torch.equal(
        model.vision_encoder.cls_token.flatten(), source.vision_model.embeddings.class_embedding
    )


def test_a_vtp_gives_what_it_has_in_common(tmp_path, caplog):
    source = set_randomly(make_model(has_text=False))
    source.save_pretrained(tmp_path)
    model = make_model(latent_dim=8)
    initialize(model, tmp_path)
    for name, parameter in source.named_parameters():
        if "bottleneck" not in name and "pixel_decoder.proj_in.weight" not in name:
            assert torch.equal(model.get_parameter(name), parameter), name
    assert "unused are pixel_decoder.proj_in.weight, vision_encoder.bottleneck" in caplog.text


def test_joined_biases_of_keys_are_zero():
    names = ("weight", "bias")
    state = {
        f"model.layer.0.attention.{part}_proj.{name}": torch.ones(2, 2)
        if name == "weight"
        else torch.ones(2)
        for part in "qkv"
        for name in names
        if (part, name) != ("k", "bias")
    }
    found = our_state_dict(state, ((r"^model\.layer\.", "vision_encoder.blocks."),))
    bias = found["vision_encoder.blocks.0.attention.qkv.bias"]
    assert bias.tolist() == [1, 1, 0, 0, 1, 1]


class TestBadInput:
    def test_another_model(self, tmp_path):
        ViTModel(ViTConfig(**SIZES, intermediate_size=32)).save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"may start from a VTP, DINOv2, DINOv3 or CLIP.*'vit'"
        ):
            initialize(make_model(), tmp_path)

    def test_another_width(self, tmp_path):
        sizes = SIZES | {"hidden_size": 32}
        Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"takes weights of \(48, 16\), .* has \(96, 32\)"):
            initialize(make_model(), tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(OSError):
            initialize(make_model(), tmp_path / "nothing")
