"""Rules of the code that a linter does not know."""

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import titok_hf

ROOT = Path(titok_hf.__file__).parent
SCRIPTS = [
    path for folder in ("examples", "benchmarks") for path in ROOT.parent.glob(f"{folder}/**/*.py")
]
MOST_POSITIONAL = 4

Trees = Mapping[str, ast.Module]


def parse(sources: Mapping[str, str]) -> Trees:
    """Syntax trees of modules, by their names; those of packages end in `.__init__`."""
    return {name: ast.parse(source) for name, source in sources.items()}


def package() -> Trees:
    return parse(
        {
            ".".join(("titok_hf", *path.relative_to(ROOT).with_suffix("").parts)): path.read_text()
            for path in sorted(ROOT.rglob("*.py"))
        }
    )


def long_calls(trees: Trees) -> list[str]:
    """Calls with too many positional arguments of what these modules define.

    What others define, such as `torch.Tensor.permute`, may have no names for them. A name that is
    defined here and elsewhere counts as ours.
    """
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    ours = {node.name for _, node in nodes if isinstance(node, definitions)} | {"cls"}
    found = []
    for name, node in nodes:
        if isinstance(node, ast.Call) and len(node.args) > MOST_POSITIONAL:
            called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            if called in ours:
                found.append(f"{name.replace('.', '/')}.py:{node.lineno} {called}")
    return found


def imports(name: str, tree: ast.Module, known: Trees) -> Iterator[str]:
    """The known modules that a module imports, in functions, too, but not for type checkers."""
    package = name.split(".")[:-1]
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            targets = [".".join([*base, alias.name]) for alias in node.names]
            targets = [
                target if {target, f"{target}.__init__"} & known.keys() else ".".join(base)
                for target in targets
            ]
        else:
            continue
        for target in targets:
            yield from {target, f"{target}.__init__"} & known.keys()


def cycle(trees: Trees) -> list[str]:
    """The modules of one cycle of imports; empty if there is none."""
    graph = {name: set(imports(name, tree, trees)) for name, tree in trees.items()}
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name not in done:
            for imported in sorted(graph[name]):
                if found := visit(imported, [*above, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_no_call_has_many_positional_arguments():
    assert long_calls(package()) == []


def test_a_call_with_many_is_found():
    source = "def own(*arguments): ...\nown(1, 2, 3, 4)\nx.permute(0, 1, 2, 3, 4)\n"
    assert long_calls(parse({"a": source})) == []
    caller = "from . import a\n\na.own(1, 2, 3, 4, 5)\n"
    assert long_calls(parse({"a": source, "b": caller})) == ["b.py:3 own"]


def test_no_module_imports_itself_by_way_of_others():
    trees = package()
    assert len(trees) > 100
    # the known exception of test_layers.py: the networks ask conversion when a checkpoint is loaded
    loading = ast.unparse(trees["titok_hf.modeling.loading"]).replace("from ..conversion", "from x")
    assert cycle({**trees, "titok_hf.modeling.loading": ast.parse(loading)}) == []


def test_a_cycle_is_found():
    sources = {
        "p.__init__": "from .a import x",
        "p.a": "import os",
        "p.q.__init__": "",
        "p.q.b": "def later():\n    from ..a import x",
    }
    assert cycle(parse(sources)) == []
    for name, back in (("p.a", "from .q import b"), ("p.a", "def f():\n    import p.q.b")):
        assert cycle(parse(sources | {name: back})) == ["p.a", "p.q.b", "p.a"]
    for_types = "if TYPE_CHECKING:\n    from .q.b import x\nelse:\n    x = None"
    assert cycle(parse(sources | {"p.a": for_types})) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_names_that_exist(path):
    """Their own tests are slow, so that a name that moved would be missed without them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and node.module.startswith("titok_hf")
        ):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert missing == []
