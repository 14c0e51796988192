"""A demo of tiny models on loopback, and a browser to use it."""

import os
import shutil

import pytest
from evaluation.tiny_models import make_kl
from training.tiny_pretraining import make_model, tokenizer

from titok_hf import VTPImageProcessor, VTPProcessor
from titok_hf.app import build_app, launch_app, open_models

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="session")
def folders(demo, tmp_path_factory):
    """Folders of a pipeline, of a VTP with a text encoder, and of an autoencoder of diffusers."""
    folder = tmp_path_factory.mktemp("models")
    vtp, autoencoder = folder / "vtp", folder / "autoencoder"
    make_model().save_pretrained(vtp)
    VTPProcessor(VTPImageProcessor.from_image_size(32), tokenizer()).save_pretrained(vtp)
    make_kl().save_pretrained(autoencoder)
    return [demo[0] / "pipeline", vtp, autoencoder]


@pytest.fixture(scope="session")
def models(folders):
    opened = open_models([*folders, "/nothing/here"], data="digits")
    del opened.images[20:]
    return opened


@pytest.fixture(scope="session")
def address(models):
    """Address of the served demo."""
    app = build_app(models)
    _, address, _ = launch_app(app, prevent_thread_lock=True)
    yield address
    app.close()


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, or any other that is installed."""
    if CHROMIUM is None:
        message = "There is no Chromium: `apt-get install chromium`."
        (pytest.fail if os.environ.get("TITOK_NEEDS_BROWSER") else pytest.skip)(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # the sandbox wants a user that is not root
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
