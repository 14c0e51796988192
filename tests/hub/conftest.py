"""One of everything that can be published, with the names of the fixtures as its kinds."""

import pytest
import torch
from transformers import PreTrainedModel

from titok_hf import MaskGitScheduler, MaskGitUViTModel, TiTokImageProcessor

MODELS = ("titok", "vqgan", "generator", "uvit")
KINDS = (*MODELS, "processor", "scheduler", "pipeline")


@pytest.fixture
def uvit(uvit_config):
    return MaskGitUViTModel(uvit_config).eval()


@pytest.fixture
def processor():
    return TiTokImageProcessor.from_image_size(32)


@pytest.fixture
def scheduler(pipeline):
    return pipeline.scheduler


@pytest.fixture(params=MODELS)
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=KINDS)
def thing(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["titok", "pipeline"])
def heavy_thing(request):
    """A model and a pipeline: each has weights, and is loaded in its own way."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def assert_same():
    """Asserts that two things are equal to the bit: `assert_same(loaded, pushed)`."""

    def weights(thing):
        models = (
            [thing] if isinstance(thing, PreTrainedModel) else [thing.tokenizer, thing.transformer]
        )
        return [item for model in models for item in model.state_dict().items()]

    def compare(loaded, pushed):
        assert type(loaded) is type(pushed)
        if isinstance(pushed, TiTokImageProcessor):
            assert loaded.to_dict() == pushed.to_dict()
        elif isinstance(pushed, MaskGitScheduler):
            ours, theirs = (
                {key: value for key, value in thing.config.items() if not key.startswith("_")}
                for thing in (loaded, pushed)
            )
            assert ours == theirs
        else:
            pairs = list(zip(weights(loaded), weights(pushed), strict=True))
            assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)

    return compare


@pytest.fixture
def change():
    """Changes a model or pipeline: `change(model)`."""

    @torch.no_grad()
    def add_one(thing):
        next((thing if isinstance(thing, PreTrainedModel) else thing.tokenizer).parameters()).add_(
            1
        )

    return add_one
