"""Fixtures of the evaluation's tests."""

import datasets
import numpy as np
import pytest
from PIL import Image

from titok_hf import TiTokImageProcessor
from titok_hf.modeling.vtp import VTPImageProcessor

from .tiny_models import FAMILIES


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def torch_cache(monkeypatch, tmp_path):
    """An empty cache of torch's, which cannot download: its proxy is nobody's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(params=[*FAMILIES, "vqgan"])
def family(request, make_titok_config, make_vtp_config):
    """Name, tokenizer and image processor of each family in turn."""
    if request.param == "vqgan":
        tokenizer = request.getfixturevalue("vqgan")
    else:
        tokenizer = FAMILIES[request.param](make_titok_config, make_vtp_config).eval()
    processor = VTPImageProcessor if request.param == "vtp" else TiTokImageProcessor
    return request.param, tokenizer, processor.from_image_size(32)


@pytest.fixture
def pictures(tmp_path, caches):
    """Folder of four images of 40x36 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 10, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def saved(pipeline, tmp_path):
    """Folder of the pipeline `pipeline`."""
    pipeline.save_pretrained(tmp_path / "titok")
    return tmp_path / "titok"
