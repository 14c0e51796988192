import datasets
import pytest


@pytest.fixture
def caches(monkeypatch, tmp_path_factory):
    """A cache of `datasets` of its own for each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
