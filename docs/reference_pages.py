"""Writes the reference pages of the docs site from the package: commands, recipes, protocols, and every
public name."""

import importlib
import re
from pathlib import Path
from typing import Any

import typer

from titok_hf.cli.main import app
from titok_hf.settings import load_yaml

PACKAGE = Path(__file__).parents[1] / "titok_hf"
MODULES = {
    "titok_hf": "Models, processors and pipelines",
    "titok_hf.pipelines": "Pipelines and schedulers",
    "titok_hf.data": "Data",
    "titok_hf.training": "Training",
    "titok_hf.evaluation": "Evaluation",
    "titok_hf.conversion": "Conversion of official weights",
    "titok_hf.perceptual": "Perceptual networks",
    "titok_hf.studies": "Studies",
    "titok_hf.app": "Web demo",
}


def write(folder: Path) -> None:
    """Writes all pages to a folder."""
    folder.mkdir(exist_ok=True)
    pages = {"commands": commands(), "recipe-files": recipe_files(), "protocols": protocols()}
    documented: set[int] = set()
    for module, title in MODULES.items():
        pages[module.replace(".", "-")] = public_names(module, title, documented)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:  # otherwise Sphinx would read it again
            path.write_text(text)


def public_names(module: str, title: str, documented: set[int]) -> str:
    """Returns the page of a module's `__all__`; `documented` holds the ids of what stands on an earlier
    page, and is added to."""
    loaded = importlib.import_module(module)
    lines = [f"# {title}", "", f"`{module}`", ""]
    for name in loaded.__all__:
        thing = getattr(loaded, name)
        if not callable(thing):
            lines += [f"`{name}`: `{thing!r}`", ""] if isinstance(thing, str) else []
            continue
        if id(thing) in documented:
            continue
        documented.add(id(thing))
        kind = "autoclass" if isinstance(thing, type) else "autofunction"
        lines += ["```{eval-rst}", f".. {kind}:: {module}.{name}", "```", ""]
    return "\n".join(lines)


def commands() -> str:
    """Returns the page of all commands, with their arguments and options."""
    lines = ["# Commands", ""]
    group = typer.main.get_command(app)
    lines += described(group, "titok")
    return "\n".join(lines)


def described(command: Any, name: str) -> list[str]:
    """Returns the lines of a command, or of those of a group of commands."""
    if hasattr(command, "commands"):
        return [
            line
            for part, below in sorted(command.commands.items())
            for line in described(below, f"{name} {part}")
        ]
    lines = [f"## {name}", "", text_of(command.help), ""]
    lines += ["| argument or option | meaning | default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = f"`{parameter.name.upper()}`"
        default = parameter.default
        shown = f"`{default}`" if isinstance(default, str | int | float | Path) else ""
        lines.append(f"| {names} | {text_of(getattr(parameter, 'help', ''))} | {shown} |")
    return [*lines, ""]


def text_of(help_text: str | None) -> str:
    """Returns a help text in one line, as Markdown in a table takes it."""
    return " ".join((help_text or "").replace("|", "\\|").split())


def recipe_files() -> str:
    """Returns the page of the shipped recipes: their files with comments."""
    lines = ["# Recipe files", "", "See [recipes](../recipes.md) for what they cost.", ""]
    for path in sorted((PACKAGE / "recipes").glob("*.yaml")):
        lines += [f"## {path.stem}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def protocols() -> str:
    """Returns the page of the named protocols of evaluation."""
    lines = ["# Protocols", "", "See [evaluation](../evaluation.md) for what the fields mean.", ""]
    for name, fields in load_yaml(PACKAGE / "evaluation" / "protocols.yaml").items():
        lines += [f"## {name}", "", fields["source"], "", "| field | value |", "|---|---|"]
        for field, value in fields.items():
            shown = re.sub(r"[{}\[\]']", "", str(value))
            if field != "source":
                lines.append(f"| `{field}` | {shown} |")
        lines.append("")
    return "\n".join(lines)
