"""Every snippet of README and docs runs, page by page, beside the folder of a miniature demo."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from titok_hf import MaskGitConfig, MaskGitModel, TiTokConfig, TiTokModel, VTPConfig, VTPModel
from titok_hf.cli import main
from titok_hf.conversion.convert import write_official
from titok_hf.data.digits import load_digits_dataset

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SAMPLING = {
    "num_steps": 8,
    "randomize_temperature": 9.5,
    "guidance_scale": 4.5,
    "guidance_decay": "linear",
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def snippets(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE
    )


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


@pytest.fixture(scope="module")
def released(tmp_path_factory, clip_files):
    """Stand-ins for the released TiTok-L-32, of its format, tokens and codes but smaller."""
    vqgan_config = {"image_size": 256, "shortcut_of_output": True}
    tokenizer = TiTokConfig.from_size(
        "titok-s-128",
        num_latent_tokens=32,
        head="vqgan_decoder",
        interleaved_latents=True,
        vqgan_config=vqgan_config,
    )
    generator = MaskGitConfig(hidden_size=64, num_hidden_layers=2, intermediate_size=128)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    parts = {
        f"{part}_{name}": size
        for part in ("vision", "decoder", "text")
        for name, size in sizes.items()
    }
    vtp = tmp_path_factory.mktemp("vtp")
    write_official(VTPModel(VTPConfig(**parts, text_intermediate_size=64)), vtp, {})
    folders = {"MiniMaxAI/VTP-Large-f16d64": vtp, "openai/clip-vit-base-patch32": clip_files}
    for kind, model in (
        ("tokenizer", TiTokModel(tokenizer)),
        ("generator", MaskGitModel(generator)),
    ):
        folder = tmp_path_factory.mktemp(kind)
        write_official(model, folder, {} if kind == "tokenizer" else SAMPLING)
        folders[f"yucornetto/{kind}_titok_l32_imagenet"] = folder
    return folders


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
@every_page
def test_snippets_run_in_order(
    page, demo, miniature, miniature_vtp, image_folder, hub, released, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo[0], tmp_path / "demo")
    for repo_id, folder in released.items():
        hub.add(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()})
    namespace = {}
    for language, snippet in re.findall(
        r"^```(python|bash)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            exec(compile(snippet, str(page), "exec"), namespace)
            continue
        for line in snippet.splitlines():
            words = shlex.split(line.replace("path/to/images", str(image_folder)), comments=True)
            if words[:1] != ["titok"]:
                continue
            if words[1] == "train":
                # after the snippet's own, of which some ask for many steps
                words += miniature_vtp if words[2].startswith("vtp") else miniature
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0, line


@every_page
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make (\w+)", " ".join(snippets(ROOT / "README.md", "bash")))
    assert {"demo", "test"} <= set(targets)
    assert [
        target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    ] == []
