"""The docs site: built without a warning, complete, and readable without a network."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parents[1]
PUBLIC = (
    "titok_hf",
    "app",
    "data",
    "training",
    "evaluation",
    "conversion",
    "pipelines",
    "studies",
)

pytestmark = [pytest.mark.xdist_group("site"), pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    done = subprocess.run(
        [
            *command,
            "--fresh-env",
            "--doctree-dir",
            folder / "doctrees",
            ROOT / "docs",
            folder / "html",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_public_name_is_documented(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    documented = {name.rpartition(".")[2] for kind in inventory.data.values() for name in kind}
    for module in PUBLIC:
        loaded = importlib.import_module(module if module == "titok_hf" else f"titok_hf.{module}")
        for name in loaded.__all__:
            thing = getattr(loaded, name)
            if callable(thing):
                assert name in documented, f"{module}.{name}"
                assert thing.__doc__, f"{module}.{name}"


def test_every_command_and_protocol_is_there(site):
    commands = (site / "reference" / "commands.html").read_text()
    for command in (
        "train",
        "generate",
        "app",
        "study",
        "evaluate fdr6",
        "evaluate generation",
        "push",
    ):
        assert f"<h2>titok {command}<" in commands, command
    assert "--guidance-scale" in commands
    protocols = (site / "reference" / "protocols.html").read_text()
    assert "<h2>titok-rfid<" in protocols and "truncate" in protocols


def test_it_can_be_searched_and_needs_no_network(site):
    assert "unmask" in (site / "searchindex.js").read_text()
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)', page.read_text()
        )
        assert loaded == [], page.name


def test_the_first_page_is_the_readme_with_its_pictures(site):
    first = (site / "index.html").read_text()
    assert "1D" in first and "make demo" in re.sub("<[^>]+>", "", first)
    pictures = re.findall(r'<img[^>]+src="([^"]+)"', first)
    assert pictures and all((site / picture).exists() for picture in pictures)
