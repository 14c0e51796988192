"""Tiny checkpoints in the official format."""

import json

import pytest

from titok_hf import (
    MaskGitConfig,
    MaskGitModel,
    MaskGitUViTConfig,
    MaskGitUViTModel,
    TiTokConfig,
    TiTokModel,
    VTPModel,
)
from titok_hf.conversion.checkpoint import write_tensors
from titok_hf.conversion.titok import VIT_SIZES

SAMPLING = {
    "num_steps": 3,
    "randomize_temperature": 2.0,
    "guidance_scale": 4.5,
    "guidance_decay": "linear",
}


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch):
    """One more size beside `small`, `base` and `large`."""
    monkeypatch.setitem(VIT_SIZES, "tiny", (32, 2, 2))


def titok_config(head="pixels", **fields):
    two_stage = head != "pixels"
    return TiTokConfig(
        **{
            "image_size": 32,
            "encoder_hidden_size": 32,
            "encoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 2,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "num_latent_tokens": 8,
            "latent_dim": 6,
            "codebook_size": 64,
            "normalize_codes": two_stage,
            "head": head,
            "interleaved_latents": two_stage,
            "vqgan_config": {"image_size": 32, "shortcut_of_output": True} if two_stage else None,
            "initializer_range": 0.2,
            **fields,
        }
    )


@pytest.fixture
def make_tokenizer():
    """An official-like tokenizer: `make_tokenizer(head="proxy_codes", quantizer="kl")`."""
    return lambda *args, **fields: TiTokModel(titok_config(*args, **fields)).eval()


@pytest.fixture
def make_generator():
    """An official-like generator, of 16 heads as all released ones:
    `make_generator(MaskGitUViTModel)`."""

    def make(model_class=MaskGitModel, **fields):
        config_class = {MaskGitModel: MaskGitConfig, MaskGitUViTModel: MaskGitUViTConfig}[
            model_class
        ]
        fields = {
            "codebook_size": 64,
            "num_tokens": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "intermediate_size": 64,
            "initializer_range": 0.2,
            **fields,
        }
        return model_class(config_class(**fields)).eval()

    return make


@pytest.fixture
def write_official(tmp_path):
    """A model as an official folder: `write_official(model, name, edit_tensors, edit_config,
    file)`."""

    def write(
        model,
        name="official",
        edit=lambda tensors, config: None,
        file="model.safetensors",
        config=True,
    ):
        official_format = model.config.official_format()
        tensors, official_config = (
            official_format.to_official(model),
            official_format.official_config(model.config),
        )
        if "generator" in official_config.get("model", {}):
            official_config["model"]["generator"] |= SAMPLING
        edit(tensors, official_config)
        folder = tmp_path / name
        folder.mkdir()
        write_tensors(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file
        )
        if config:
            (folder / "config.json").write_text(json.dumps(official_config))
        return folder

    return write


@pytest.fixture
def assert_same_weights():
    """Bit-equality of two models, which are of one class and of the same sizes."""

    def compare(left, right):
        assert type(left) is type(right)
        ours, theirs = left.state_dict(), right.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype and tensor.equal(theirs[name]), name

    return compare


OF_TRANSFORMERS = {
    "architectures": ["VTPModel"],
    "dtype": "float32",
    "model_type": "vtp",
    "transformers_version": "4.57.0",
}


@pytest.fixture
def make_vtp(make_vtp_config):
    """An official-like VTP, whose texts have MLPs of 4 times the width: `make_vtp(has_text=False)`."""

    def make(model_class=VTPModel, **fields):
        return model_class(make_vtp_config(**{"text_intermediate_size": 64, **fields})).eval()

    return make


@pytest.fixture
def write_vtp(write_official):
    """A VTP as an official folder, with transformers' own fields, too: `write_vtp(model, name,
    edit)`."""

    def write(model, name="official", edit=lambda tensors, config: None):
        def complete(tensors, config):
            config |= OF_TRANSFORMERS
            edit(tensors, config)

        return write_official(model, name, complete)

    return write


@pytest.fixture
def official(make_vtp, write_vtp):
    """A model, and its official folder."""
    model = make_vtp()
    return model, write_vtp(model)
