"""The import rule of docs/developers.md: an import points down only, and sets nothing elsewhere."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import titok_hf

PACKAGE = Path(titok_hf.__file__).parent

# The rooms by floor, the highest first. A room imports from the floors below its own, never from
# its neighbors: so training imports nothing of evaluation.
FLOORS = (
    ("cli",),
    ("app",),
    ("studies", "demo", "publish", "doctor"),
    ("train",),
    ("training", "evaluation", "conversion"),
    ("pipelines", "data", "perceptual"),
    ("modeling",),
    ("hub", "distributed", "devices", "settings", "progress"),
    ("version",),
)
PUBLIC_NAMES = {**titok_hf._MODULES, "__version__": "version"}  # each with its module
FLOOR_OF_ROOM = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}

# Imports that break the rule, each with its reason: the importing file, and the imported room.
KNOWN_EXCEPTIONS = {
    (
        "modeling/loading.py",
        "conversion",
    ): "`from_pretrained` of a network loads official checkpoints; the import stands inside the "
    "one function that needs it, `CheckedConfigMixin.official_format`",
}


def room_of(path: Path) -> str:
    """The room of a file, given by its path in the package."""
    return path.parts[0].removesuffix(".py")


def imported_rooms(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and room of each import of ours in a file, those inside functions included."""
    package = ["titok_hf", *path.parts[:-1]]
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = [*base, *([node.module] if node.module else [])]
            modules = [".".join([*parts, alias.name]) for alias in node.names]
        for module in modules:
            root, *rest = module.split(".")
            if root == "titok_hf" and rest:
                yield node.lineno, PUBLIC_NAMES.get(rest[0], rest[0]).split(".")[0]


def injections(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and target of each attribute that an import of the file sets on an object."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute):
                yield node.lineno, ast.unparse(target)
        if isinstance(node, ast.Expr) and ast.unparse(node).startswith("setattr("):
            yield node.lineno, ast.unparse(node)
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        for handler in getattr(node, "handlers", ()):
            pending += handler.body


def broken_rules(path: Path, source: str) -> Iterator[str]:
    """A sentence for each rule that a file breaks."""
    tree, room = ast.parse(source), room_of(path)
    if room not in FLOOR_OF_ROOM:
        yield f"{path}: the room `{room}` stands on no floor of tests/test_layers.py."
        return
    for line, imported in imported_rooms(path, tree):
        if (path.as_posix(), imported) in KNOWN_EXCEPTIONS or imported == room:
            continue
        if imported not in FLOOR_OF_ROOM:
            yield f"{path}:{line}: `{imported}` stands on no floor of tests/test_layers.py."
        elif FLOOR_OF_ROOM[imported] >= FLOOR_OF_ROOM[room]:
            yield (
                f"{path}:{line}: `{room}` imports `{imported}`, but an import points down only "
                "(docs/developers.md)."
            )
    for line, target in injections(tree):
        yield (
            f"{path}:{line}: the import of this file sets `{target}`, but an import must change "
            "nothing elsewhere (docs/developers.md)."
        )


def package_files() -> list[Path]:
    return sorted(
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"  # it stands above the house and names all of it
    )


def test_the_package_keeps_the_import_rule():
    broken = [
        sentence
        for path in package_files()
        for sentence in broken_rules(path, (PACKAGE / path).read_text())
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("file", "imported"), KNOWN_EXCEPTIONS)
def test_a_known_exception_is_still_needed(file, imported):
    tree = ast.parse((PACKAGE / file).read_text())
    rooms = {room for _, room in imported_rooms(Path(file), tree)}
    assert imported in rooms, f"{file} no longer imports {imported}: remove the exception."


@pytest.mark.parametrize(
    ("file", "source", "subject"),
    [
        (
            "training/recipe_run.py",
            "from ..evaluation import Protocol",
            "training/recipe_run.py:1.*`evaluation`",
        ),
        ("training/stages/vq.py", "from ...evaluation.files import x", "`evaluation`"),
        ("data/rows.py", "def f():\n    from ..training import Recipe", "rows.py:2.*`training`"),
        ("data/rows.py", "from .. import pipelines", "`data` imports `pipelines`"),
        ("data/rows.py", "import titok_hf.conversion.convert", "`conversion`"),
        ("devices.py", "from titok_hf.hub import errors", "`devices` imports `hub`"),
        ("hub/cards.py", "from ..modeling.titok import TiTokModel", "`hub` imports `modeling`"),
        ("modeling/auto.py", "from .. import TiTokPipeline", "`modeling` imports `pipelines`"),
        ("modeling/auto.py", "from ..oven import heat", "auto.py:1: `oven` stands on no floor"),
        ("kitchen/oven.py", "import torch", "`kitchen`"),
        (
            "conversion/formats.py",
            "import torch\nfor f in F:\n    f.model.x = f",
            "formats.py:3.*f.m",
        ),
        (
            "conversion/formats.py",
            "try:\n    a.b: int = 1\nexcept E:\n    setattr(a, 'b', 2)",
            "a.b",
        ),
        ("conversion/formats.py", "try:\n    pass\nexcept E:\n    setattr(a, 'b', 2)", "setattr"),
        ("conversion/formats.py", "class A:\n    B.x = 1", "B.x"),
    ],
)
def test_what_breaks_the_rule_is_named(file, source, subject):
    sentences = list(broken_rules(Path(file), source))
    assert any(re.search(subject, sentence) for sentence in sentences), sentences


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "training/recipe_run.py",
            "from ..data import open_images\nfrom .trainer import TiTokTrainer",
        ),
        ("training/stages/vq.py", "from ..recipe import Recipe\nfrom ...modeling.titok import x"),
        ("cli/main.py", "def f():\n    from .. import conversion"),
        ("hub/cards.py", "from ..version import __version__\nfrom titok_hf import __version__"),
        (
            "training/recipe_run.py",
            "def f(model):\n    model.training = True\nx = 1\ntable['a'] = 2",
        ),
    ],
)
def test_what_keeps_the_rule_passes(file, source):
    assert list(broken_rules(Path(file), source)) == []
