import datasets
import pytest
from huggingface_hub import HfFileSystem

from .loading import make_indexed, make_sharded


@pytest.fixture
def caches(monkeypatch, tmp_path_factory):
    """A cache of `datasets` of its own for each test, and nothing known of what others saw on the
    Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    HfFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def indexed():
    return make_indexed()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return make_sharded(tmp_path_factory.mktemp("shards"))


@pytest.fixture(params=["indexed", "sharded"])
def rows(request):
    return request.getfixturevalue(request.param)
