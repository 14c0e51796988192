"""Tiny VTPs of random weights."""

import pytest
import torch

from titok_hf import (
    VTPConfig,
    VTPForImageReconstruction,
    VTPModel,
    VTPVisionModel,
)

from .variants import CLASSES, END, START, VARIANTS


@pytest.fixture
def make_config():
    """Builds tiny configurations: `make_config(vision_qk_norm=True)`."""

    def make(**fields):
        return VTPConfig(
            **{
                "image_size": 32,
                "patch_size": 8,
                "vision_hidden_size": 32,
                "vision_num_hidden_layers": 2,
                "vision_num_attention_heads": 2,
                "latent_dim": 8,
                "decoder_hidden_size": 32,
                "decoder_num_hidden_layers": 2,
                "decoder_num_attention_heads": 2,
                "text_hidden_size": 16,
                "text_num_hidden_layers": 2,
                "text_num_attention_heads": 2,
                "text_intermediate_size": 32,
                "text_vocab_size": 50,
                "text_context_length": 10,
                "initializer_range": 0.2,
                **fields,
            }
        )

    return make


@pytest.fixture
def make_model(make_config):
    """Builds tiny models: `make_model(VTPVisionModel, num_register_tokens=3)`."""
    return lambda model_class=VTPModel, **fields: model_class(make_config(**fields)).eval()


@pytest.fixture(params=CLASSES)
def any_vtp(request, make_model):
    return make_model(request.param)


@pytest.fixture
def vtp(make_model):
    return make_model()


@pytest.fixture
def vision(make_model):
    return make_model(VTPVisionModel)


@pytest.fixture
def reconstructor(make_model):
    return make_model(VTPForImageReconstruction)


@pytest.fixture(params=VARIANTS)
def any_variant(request, make_model):
    """Each variant of the whole model in turn."""
    return make_model(**VARIANTS[request.param])


@pytest.fixture
def pixel_values():
    """Normalized images."""
    return torch.randn(3, 3, 32, 32)


@pytest.fixture
def input_ids():
    ids = torch.randint(1, START, (3, 10))
    ids[:, 0] = START
    ids[torch.arange(3), torch.tensor([4, 9, 6])] = END
    return ids
