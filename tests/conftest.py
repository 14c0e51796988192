"""Tiny real models that all tests share: 32x32 images, 8 tokens of 64 codes, 10 classes."""

import atexit
import ctypes
import gc
import json
import os
import shutil
import tempfile
from pathlib import Path

from loopback_hub import LoopbackHub

# Each test process has its own Hub, on loopback, and its own cache; the client reads these when it
# is imported.
HUB = LoopbackHub()
HUB.start()
HF_HOME = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": HF_HOME,
    "HF_TOKEN": "hf_user",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
}
os.environ.pop("HF_HUB_OFFLINE", None)

# glibc returns large blocks to the system as soon as they are free, and every page of the next ones is a fault: a
# quarter of the time of a MaskGIT-VQGAN of full size on a virtual machine
LIBC = ctypes.CDLL(None)
if hasattr(LIBC, "mallopt"):
    LIBC.mallopt(-4, 0)  # M_MMAP_MAX
    LIBC.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD

import pytest
import torch
import yaml
from huggingface_hub.utils import http_backoff
from hypothesis import HealthCheck, settings
from locks import holder  # noqa: F401
from transformers.convert_slow_tokenizer import bytes_to_unicode

from titok_hf import (
    MaskGitConfig,
    MaskGitModel,
    MaskGitScheduler,
    MaskGitUViTConfig,
    MaskGitUViTModel,
    MaskGitVQGANConfig,
    MaskGitVQGANModel,
    TiTokConfig,
    TiTokModel,
    TiTokPipeline,
    VTPConfig,
)
from titok_hf.demo import run_demo

torch.set_num_threads(1)

settings.register_profile(
    "repeatable",
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")

HEADS = ("proxy_codes", "vqgan_decoder", "pixels")
QUANTIZERS = ("vq", "kl")
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(autouse=True, scope="module")
def tidy_memory():
    """Frees what earlier modules have left.

    What stays, such as imported libraries, is exempt from garbage collection, with which each training starts. Free
    blocks go back to the system: a fork copies the table of all pages, which takes 0.3 seconds at 8 GB.
    """
    gc.collect()
    gc.freeze()
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def hub(monkeypatch):
    """An empty Hub that the client talks to as `user`; a test that sends it something unheard of
    fails."""
    # the client waits 1, 2, 4, 8 and 8 seconds before it gives a request up
    monkeypatch.setitem(http_backoff.__kwdefaults__, "base_wait_time", 0.01)
    HUB.reset()
    yield HUB
    assert HUB.unknown == []


@pytest.fixture
def vqgan_config():
    return MaskGitVQGANConfig(
        image_size=32,
        hidden_channels=8,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=1,
        norm_num_groups=4,
        latent_channels=8,
        codebook_size=64,
    )


@pytest.fixture
def make_titok_config(vqgan_config):
    """Builds tiny configurations: `make_titok_config(head="pixels", quantizer="kl", latent_dim=4)`."""

    def make(head="proxy_codes", **overrides):
        fields = {
            "image_size": 32,
            "encoder_patch_size": 8,
            "decoder_patch_size": 8,
            "encoder_hidden_size": 32,
            "encoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 2,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "mlp_ratio": 2,
            "num_latent_tokens": 8,
            "latent_dim": 6,
            "codebook_size": 64,
            "head": head,
            "vqgan_config": None if head == "pixels" else vqgan_config.to_dict(),
            "initializer_range": 0.2,
        }
        return TiTokConfig(**{**fields, **overrides})

    return make


@pytest.fixture
def titok_config(make_titok_config):
    return make_titok_config("proxy_codes")


@pytest.fixture(
    params=[(head, quantizer) for head in HEADS for quantizer in QUANTIZERS], ids="-".join
)
def any_titok_config(request, make_titok_config):
    """Each head with each quantizer in turn."""
    head, quantizer = request.param
    return make_titok_config(head, quantizer=quantizer)


def _generator_fields():
    return {
        "codebook_size": 64,
        "num_tokens": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "id2label": dict(enumerate(CLASS_NAMES)),
        "label2id": {name: index for index, name in enumerate(CLASS_NAMES)},
        "initializer_range": 0.2,
    }


@pytest.fixture
def generator_config():
    return MaskGitConfig(**_generator_fields())


@pytest.fixture
def uvit_config():
    return MaskGitUViTConfig(**_generator_fields())


@pytest.fixture(params=[MaskGitModel, MaskGitUViTModel], ids=["vit", "uvit"])
def any_generator(request):
    """Each masked generator in turn."""
    return request.param(request.param.config_class(**_generator_fields())).eval()


@pytest.fixture
def make_vtp_config():
    """Builds tiny configurations of VTP: `make_vtp_config(vision_qk_norm=True)`."""

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


@pytest.fixture(scope="session")
def clip_files(tmp_path_factory):
    """Folder of a CLIP tokenizer that spells: each byte is a token, one more where it ends a word."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [*bytes_to_unicode().values()]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "config.json").write_text('{"model_type": "clip"}')
    return folder


@pytest.fixture
def vqgan(vqgan_config):
    return MaskGitVQGANModel(vqgan_config).eval()


@pytest.fixture
def titok(make_titok_config):
    return TiTokModel(make_titok_config("vqgan_decoder")).eval()


@pytest.fixture
def generator(generator_config):
    return MaskGitModel(generator_config).eval()


@pytest.fixture
def pipeline(titok, generator):
    pipeline = TiTokPipeline(
        titok, generator, MaskGitScheduler(mask_token_id=generator.config.mask_token_id)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pixel_values():
    return torch.rand(3, 3, 32, 32)


def overrides_to(name):
    """Overrides that turn a recipe with the same stages into a miniature."""
    recipe = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())
    return [
        f"stages.{stage}.{part}={json.dumps(arguments)}"
        for stage, parts in recipe["stages"].items()
        for part, arguments in parts.items()
    ] + [
        f"{part}={json.dumps(recipe[part])}" for part in ("scheduler", "sampling") if part in recipe
    ]


@pytest.fixture(scope="session")
def miniature():
    """Overrides that turn the demo's recipe into the miniature."""
    return overrides_to("miniature")


@pytest.fixture(scope="session")
def miniature_vtp():
    """Overrides that turn `vtp-emoji` into the miniature of VTP."""
    return overrides_to("miniature-vtp")


@pytest.fixture(scope="session")
def demo(tmp_path_factory, miniature):
    """Folder and metrics of a miniature demo. Tests that use it are in the xdist group "demo"."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, run_demo(folder, seed=5, overrides=miniature, images_per_class=7)
