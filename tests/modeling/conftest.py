"""Tests of models share these models, inputs to take and to refuse, and saving to a folder."""

import pytest
import torch
from transformers import AutoModel

from titok_hf import TiTokModel


def _bad_images():
    return {
        "size": (
            torch.rand(2, 3, 32, 40),
            ValueError,
            r"must have shape \(batch, 3, 32, 32\), got \(2, 3, 32, 40\)",
        ),
        "channels": (
            torch.rand(2, 1, 32, 32),
            ValueError,
            r"must have shape .* got \(2, 1, 32, 32\)",
        ),
        "no batch": (
            torch.rand(3, 32, 32),
            ValueError,
            r"must have shape .* got \(3, 32, 32\); the image processor",
        ),
        "uint8": (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            TypeError,
            "must be float images, got torch.uint8; the image processor converts",
        ),
    }


@pytest.fixture(params=_bad_images().values(), ids=_bad_images().keys())
def bad_images(request):
    """Images, the error that they deserve, and its sentence."""
    return request.param


@pytest.fixture(params=["own class", "AutoModel"])
def save_and_load(request, tmp_path):
    """A model through a folder: `save_and_load(model, dtype=torch.bfloat16)`."""

    def through_folder(model, **kwargs):
        model.save_pretrained(tmp_path)
        loader = type(model) if request.param == "own class" else AutoModel
        return loader.from_pretrained(tmp_path, **kwargs)

    return through_folder


@pytest.fixture
def assert_same_tensors():
    """Bit-equality of all parameters and buffers, those that are not saved included."""

    def compare(left, right):
        for kind in ("named_parameters", "named_buffers"):
            ours, theirs = dict(getattr(left, kind)()), dict(getattr(right, kind)())
            assert ours.keys() == theirs.keys()
            for name, tensor in ours.items():
                assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), (
                    name
                )

    return compare


@pytest.fixture
def inputs_and_outputs():
    """First input and output of each module in its next call: `inputs_and_outputs(first, second)`."""

    def watch(*modules):
        seen = [[] for _ in modules]
        for module, tensors in zip(modules, seen, strict=True):
            module.register_forward_hook(
                lambda _, inputs, output, tensors=tensors: tensors.extend([inputs[0], output])
            )
        return seen

    return watch


@pytest.fixture
def parameter_gradients():
    """Gradients of all parameters by name: `parameter_gradients(model, loss)`."""

    def compute(model, loss):
        model.zero_grad()
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    return compute


@pytest.fixture
def warmup_titok(titok_config):
    """A TiTok that ends in proxy codes."""
    return TiTokModel(titok_config).eval()


@pytest.fixture
def proxy_codes():
    """Codes for `warmup_titok` to predict, of the images `pixel_values`."""
    return torch.randint(64, (3, 16))
