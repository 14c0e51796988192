"""Every snippet of README and docs runs, beside the folder of a miniature demo."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from titok_hf.data.digits import load_digits_dataset

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def snippets(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Ten digits of each of two classes, one subfolder a class."""
    folder = tmp_path_factory.mktemp("images")
    for i, row in enumerate(load_digits_dataset()["train"].select(range(200))):
        if row["label"] < 2:
            path = folder / str(row["label"]) / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            row["image"].save(path)
    return folder


@pytest.mark.xdist_group("demo")
@every_page
def test_python_snippets_run(page, demo, monkeypatch):
    monkeypatch.chdir(demo[0].parent)
    namespace = {}
    for snippet in snippets(page, "python"):
        exec(compile(snippet, str(page), "exec"), namespace)


@pytest.mark.xdist_group("demo")
@every_page
def test_titok_commands_run(page, demo, miniature, image_folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in "".join(snippets(page, "bash")).splitlines():
        words = shlex.split(line.replace("path/to/images", str(image_folder)), comments=True)
        if words[:1] != ["titok"]:
            continue
        if words[1] == "train":
            words[3:3] = [argument for override in miniature for argument in ("--set", override)]
        environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
        subprocess.run(words, cwd=demo[0].parent, env=environment, check=True)


@every_page
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make (\w+)", " ".join(snippets(ROOT / "README.md", "bash")))
    assert {"demo", "test"} <= set(targets)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)] == []
