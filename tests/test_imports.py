"""Tests of what an import loads and registers, each in a process of its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import titok_hf
from titok_hf import MaskGitModel
from titok_hf.conversion.convert import write_official

HEAVY = ("torch", "transformers", "diffusers", "datasets")
LIST_HEAVY = f"\nprint([name for name in {HEAVY} if name in sys.modules])"
HELP_OF_ALL_COMMANDS = """
import sys
from typer.main import get_command
from titok_hf.cli import app, main

def show_help(command, *words):
    sys.argv = ["titok", *words, "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, words
    for name, nested in getattr(command, "commands", {}).items():
        show_help(nested, *words, name)

show_help(get_command(app))
"""


def run(code, *arguments):
    """Returns what Python prints for some code."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_importing_the_package_is_light():
    assert run("import sys, titok_hf; print(titok_hf.__version__)" + LIST_HEAVY).split("\n")[
        :2
    ] == [
        titok_hf.__version__,
        "[]",
    ]


def test_the_help_of_each_command_is_light():
    *help_texts, heavy = run(HELP_OF_ALL_COMMANDS + LIST_HEAVY).splitlines()
    usage = [line.split() for line in help_texts if "Usage:" in line]
    assert {words[2] for words in usage} >= {"train", "generate", "evaluate", "push"}
    assert ["Usage:", "titok", "evaluate", "probe"] in [words[:4] for words in usage]
    assert heavy == "[]"


def test_type_checkers_and_the_import_at_first_use_know_the_same_names():
    tree = ast.parse(Path(titok_hf.__file__).read_text())
    [block] = [
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    told = {alias.name: line.module for line in block for alias in line.names}
    assert told == titok_hf._MODULES
    assert sorted([*told, "__version__"]) == titok_hf.__all__


def test_every_public_name_loads_and_is_listed():
    for name in titok_hf.__all__:
        assert getattr(titok_hf, name) is not None
        assert name in dir(titok_hf)
    with pytest.raises(AttributeError, match=r"titok_hf.*TiTokTransformer"):
        titok_hf.TiTokTransformer  # noqa: B018


@pytest.mark.parametrize(
    "imports",
    [
        "from transformers import AutoModel; import titok_hf",
        "import titok_hf; from transformers import AutoModel; titok_hf.MaskGitScheduler",
    ],
)
def test_the_auto_classes_know_our_models(make_vtp_config, tmp_path, imports):
    make_vtp_config().save_pretrained(tmp_path)
    load = "import sys; print(type(AutoModel.from_config(AutoConfig.from_pretrained(sys.argv[1]))))"
    printed = run(f"{imports}; from transformers import AutoConfig; {load}", tmp_path)
    assert printed.strip().endswith("modeling_vtp.VTPModel'>")


def test_official_checkpoints_load_where_only_the_network_was_imported(generator, tmp_path):
    write_official(generator, tmp_path / "official", {})
    load = "from titok_hf.modeling.maskgit import MaskGitModel as M; M.from_pretrained(sys.argv[1])"
    run(
        f"import sys; {load}.save_pretrained(sys.argv[2])", tmp_path / "official", tmp_path / "ours"
    )
    loaded = MaskGitModel.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in generator.state_dict().items())


def test_a_configuration_of_a_users_own_keeps_the_official_format(titok_config):
    class WiderConfig(type(titok_config)):
        model_type = "wider_titok"

    assert WiderConfig.official_format() is titok_config.official_format()
