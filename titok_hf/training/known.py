"""What is known of pretrained networks and recipes without a download."""

from pathlib import Path
from typing import Any

from ..settings import load_yaml

# Configurations of pretrained networks that recipes load, and published costs of recipes.
KNOWN: dict[str, dict[str, Any]] = load_yaml(Path(__file__).with_name("costs.yaml"))
