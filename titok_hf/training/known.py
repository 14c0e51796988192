"""Facts about pretrained networks and recipes that need no download."""

from pathlib import Path
from typing import Any

from ..settings import load_yaml

# Configurations of pretrained networks that recipes load, and published costs of recipes.
KNOWN: dict[str, dict[str, Any]] = load_yaml(Path(__file__).with_name("costs.yaml"))
