import datasets
import pytest
from huggingface_hub import HfFileSystem


@pytest.fixture
def caches(monkeypatch, tmp_path_factory):
    """A cache of `datasets` of its own for each test, and nothing known of what others saw on the
    Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    HfFileSystem.clear_instance_cache()
