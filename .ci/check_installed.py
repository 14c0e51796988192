"""Loads what the installed package reads at run time; the argument is the checkout it was built from."""

import sys
from pathlib import Path

import yaml

import titok_hf
from titok_hf.evaluation import Protocol
from titok_hf.hub.cards import TEMPLATES
from titok_hf.studies import Study, study_names
from titok_hf.training.recipe import Recipe, recipe_names

package, source = Path(titok_hf.__file__).parent, Path(sys.argv[1]) / "titok_hf"
assert package.is_relative_to(sys.prefix), f"{package} is not the installed package."


def files(folder: Path) -> set[Path]:
    """The paths of a package's files, but those that Python makes."""
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


assert not (missing := files(source) - files(package)), f"The wheel lacks {missing}."
templates = [TEMPLATES.get_template(name) for name in TEMPLATES.list_templates(extensions=["md"])]
recipes = [Recipe.load(name) for name in recipe_names()]
studies = [Study.load(name) for name in study_names()]
names = yaml.safe_load((package / "evaluation" / "protocols.yaml").read_text())
protocols = [Protocol.load(name) for name in names]
print(
    f"titok_hf {titok_hf.__version__} as a wheel: {len(templates)} card templates, "
    f"{len(recipes)} recipes, {len(studies)} studies, {len(protocols)} protocols."
)
