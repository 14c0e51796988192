"""Names of the ImageNet classes."""

import json
from pathlib import Path


def imagenet_labels() -> list[str]:
    """Returns the 1,000 class names of ImageNet-1k (ILSVRC 2012) in the order of their ids.

    They are WordNet synsets, with comma-separated synonyms. Two classes are called "crane".
    """
    return json.loads((Path(__file__).parent / "imagenet_labels.json").read_text())
