"""Tiny VTPs of random weights."""

import pytest
import torch

from titok_hf import (
    VTPForImageReconstruction,
    VTPModel,
    VTPVisionModel,
)

from .variants import CLASSES, END, START, VARIANTS


@pytest.fixture
def make_config(make_vtp_config):
    return make_vtp_config


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
