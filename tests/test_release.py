"""All parts of a release state the same version."""

from pathlib import Path

import yaml

import titok_hf

ROOT = Path(__file__).parent.parent


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == titok_hf.__version__
    assert citation["title"] == "titok_hf"


def test_the_changelog_has_a_section_of_what_comes_next_or_of_this_version():
    headings = [
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")
    ]
    assert headings[0] == "## Unreleased" or headings[0].startswith(f"## {titok_hf.__version__} ")
