"""The single entry point for images and tokens: finds a source, its splits, and opens them.

A source is an embedded data set, a folder, tar shards, or a data set on the Hub. Its splits are
those in which it is stored. If labelled images are not streamed and have neither `test` nor
`validation`, a fifth of `train` becomes `test`. A request for `test` opens `validation` if that is
the only held-out split.
"""

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from glob import escape, glob
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from huggingface_hub import HfApi

from ..distributed import process_state
from ..progress import working
from ..settings import check_keys, override
from .classes import fifth_held_out, holds_fifth_out, with_classes
from .folders import FolderContents, load_folder, read_folder
from .samples import (
    KEY_COLUMNS,
    IndexedSamples,
    Samples,
    StreamedSamples,
    check_captions,
    check_column,
    names_of_classes,
    no_images,
    token_column,
)
from .shard_index import (
    find_labels,
    image_extensions,
    inspect_parquet,
    inspect_shards,
    inspect_tar,
    largest_label,
    numbered_classes,
    parquet_features,
    read_parquet,
    read_tar,
    tar_classes,
)
from .tokens import read_statistics

# The data sets of the package: names and functions that return a `DatasetDict`. The functions are
# imported on demand, because they need optional libraries.
EMBEDDED = {
    "digits": "titok_hf.data.digits:load_digits_dataset",
    "emoji": "titok_hf.data.emoji:load_emoji_dataset",
}


logger = logging.getLogger(__name__)


class ImageSplits:
    """The splits of a data set by name, each opened on access: `splits["train"]`.

    Args:
        source: Name of the data set, for errors.
        names: Names of the splits.
        open_split: Opens a split by its name.
        found: Line that tells its images, splits and classes, and the files that are left out.
    """

    def __init__(
        self,
        source: str,
        names: Iterable[str],
        open_split: Callable[[str], Samples],
        found: str = "",
    ):
        self.source = source
        self.found = found
        self.names = list(names)
        self.open_split = open_split

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, split: str) -> Samples:
        return self.open_split(self.resolve(split))

    def dataset(self, split: str) -> Dataset:
        """Returns a split as a `datasets.Dataset`, with decoded images and all columns.

        Raises:
            ValueError: If it is streamed or holds tokens; see also `open_images`.
        """
        samples = self[split]
        if isinstance(samples, StreamedSamples) or samples.token_column:
            held = "tokens" if samples.token_column else "shards that are read in sequence"
            raise ValueError(
                f"The split {split!r} of {self.source!r} holds {held}: images that can be read in "
                "any order are expected."
            )
        return samples.dataset

    def resolve(self, split: str | None = None) -> str:
        """Returns the name of the split that a request opens.

        Args:
            split: The requested split; if not given, the only split, else `test` or `validation`.
        """
        if split is None and len(self.names) == 1:
            return self.names[0]
        name = split or "test"
        if name == "test" and "test" not in self.names and "validation" in self.names:
            return "validation"
        if name not in self.names:
            wanted = "test or validation" if split is None else repr(split)
            raise ValueError(
                f"The data set {self.source!r} has no split {wanted} but {', '.join(self.names)}; "
                "name one of these."
            )
        return name


@working("opening data")
def open_images(
    source: str,
    image_column: str = "image",
    label_column: str | None = "label",
    revision: str | None = None,
    *,
    text_column: str | None = None,
    streaming: bool = False,
    hold_out: bool = True,
) -> ImageSplits:
    """Opens images, or tokens if there is a column `codes` or `latents`.

    A sample of a tar shard consists of consecutive members with the same name up to the first dot:
    one with an image extension and, for the label, the number of the class in the member `cls`, or
    as `label` in `json`. The lines of `classnames.txt` next to the shards, if present, name the
    classes; else their names are the numbers from 0 to the largest label. Labels are classes,
    integers or strings; in all splits they denote the classes of `train`.

    Args:
        source: `"digits"` or `"emoji"` for an embedded data set, optionally with arguments, as in
            `"emoji:image_size=32,seed=1"`; a folder of images, tar shards or Parquet files, see
            `titok_hf.data.folders`, or one written by `save_to_disk`; tar shards as a pattern such
            as `"data/train-{0000..0015}.tar"` or `"data/*.tar"`, which become `train`; or the name
            of a data set on the Hub.
        image_column: Name of the column of images; in tar shards an extension, or `"image"` for
            any image extension.
        label_column: Name of the column of labels; in tar shards `"label"` or an integer in the
            member `json`. `None` if labels are not wanted.
        revision: Branch, tag or commit of a data set on the Hub.
        text_column: Name of the column of captions, one or a list of them for each image; in tar
            shards, captions are the member `txt`, or else have this name in the member `json`, as
            img2dataset writes them. `None` if captions are not wanted. Training skips and lists
            images without a caption, as it does those that cannot be read.
        streaming: Whether to stream Parquet files instead of loading them; tar shards always are.
        hold_out: Whether a fixed, stratified fifth of `train` becomes `test` if labelled images are
            not streamed and have neither `test` nor `validation`. With `label_column=None`, a
            column `label` is used if there is one and no class is too small, so that all stages of
            a training hold out the same fifth. Set it to `False` to evaluate on all images.

    Returns:
        The splits. A streamed split opens as `StreamedSamples`: its shards are indexed once, which
        reads whole tar files from the Hub, and the index is cached with those of `datasets`. Other
        splits open as `IndexedSamples`; `splits.dataset("train")` is the `datasets.Dataset` behind
        them.

    Raises:
        FileNotFoundError: If there is no such folder or data set.
        ValueError: If there is no image, or nothing to stream. When a split is opened: if there is
            no such split or column, a label is missing, or no fifth can be held out.
    """
    source = os.path.expanduser(source)
    stored = locate(source, revision)
    if stored.kind == ".tar" or (streaming and stored.kind == ".parquet"):
        arguments = {
            "image_column": image_column,
            "label_column": label_column,
            "text_column": text_column,
        }
        numbers = {name: len(paths) for name, paths in stored.files.items()}
        found = describe(source, numbers, stored)
        open_stream = partial(open_shards, source, stored, revision=revision, **arguments)
        return ImageSplits(source, stored.files, open_stream, found)
    if streaming and stored.kind == "hub":
        raise ValueError(
            f"The data set {source!r} has no tar or Parquet files to stream; load it without "
            "`streaming`."
        )
    dataset = load(source, stored, revision, labelled=label_column is not None)
    found = describe(source, dataset, stored, label_column or "label")
    held_out = hold_out and holds_fifth_out(dataset, source, label_column)

    def open_split(split: str) -> IndexedSamples:
        if held_out and split in ("train", "test"):
            column = label_column or "label"
            opened = fifth_held_out(
                dataset["train"], source, column, labelled=label_column is not None
            )[split]
        elif label_column is None:
            opened = dataset[split]
        else:
            first = dataset["train" if "train" in dataset else split]
            opened = with_classes(dataset[split], first, source, label_column)
        statistics = None
        if token_column(opened.column_names) == "latents":
            statistics = read_statistics(source, revision)
        return IndexedSamples(
            opened,
            image_column,
            label_column,
            source,
            text_column=text_column,
            latent_statistics=statistics,
        )

    return ImageSplits(source, [*dataset, "test"] if held_out else dataset, open_split, found)


def dataset_commit(source: str, revision: str | None = None) -> str | None:
    """Returns the commit of a data set on the Hub; `None` if it is embedded or local."""
    if is_embedded(source) or Path(source).expanduser().exists() or is_shard_pattern(source):
        return None
    return HfApi().dataset_info(source, revision=revision).sha


@dataclass(frozen=True)
class Stored:
    """Storage format of a data set.

    Args:
        kind: `"embedded"`; `"saved"` by `save_to_disk`; `"images"`, a folder of image files;
            `".tar"` or `".parquet"`, shards; `"hub"`, anything else on the Hub.
        files: Tar or Parquet files by split.
        features: The features that a data set on the Hub declares, if any.
        contents: The contents of a folder, unless it was written by `save_to_disk`.
    """

    kind: str
    files: dict[str, list[str]] = field(default_factory=dict)
    features: Features | None = None
    contents: FolderContents | None = None


def locate(source: str, revision: str | None = None) -> Stored:
    """Finds the data that a source names; see `open_images`.

    Raises:
        FileNotFoundError: If there is no such folder or data set.
        ValueError: If the source is empty, a file but no tar shard, or a folder without images, or
            if no shard matches.
    """
    if not source.strip():
        raise ValueError(
            "The name of a data set, a folder or tar shards is expected, got an empty name; is a "
            "variable of the shell unset?"
        )
    if is_embedded(source):
        return Stored("embedded")
    if is_shard_pattern(source):
        return Stored(".tar", {"train": matching_files(source)})
    if Path(source).is_file():
        raise ValueError(
            f"{source} is a file: a folder, tar shards, or a data set on the Hub is expected."
        )
    if Path(source).is_dir():
        folder = Path(os.path.abspath(source))  # keys of samples are relative to this path
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            return Stored("saved")
        contents = read_folder(folder)
        files = {
            split: [str(folder / path) for path in paths] for split, paths in contents.files.items()
        }
        return Stored(contents.kind, files, contents=contents)
    try:
        builder = load_dataset_builder(source, revision=revision)
    except (ConnectionError, FileNotFoundError) as error:
        raise type(error)(f"There is no folder {source} here. {error}") from error
    files = {
        str(split): list(map(str, paths))
        for split, paths in (builder.config.data_files or {}).items()
    }
    kinds = {os.path.splitext(path)[1] for path in chain.from_iterable(files.values())}
    if kinds in ({".tar"}, {".parquet"}):
        return Stored(kinds.pop(), files, builder.info.features)
    return Stored("hub")


def is_shard_pattern(source: str) -> bool:
    """Whether a source is a tar file or a pattern, rather than a folder or a repository."""
    return source.endswith(".tar") or (
        any(sign in source for sign in "*?[{") and not Path(source).exists()
    )


def matching_files(pattern: str) -> list[str]:
    """Returns the tar files that match a pattern of `{0000..0015}` and `{a,b}` as in a shell, and
    `*`, `?` and `[]`.

    Raises:
        ValueError: If any alternative of the pattern matches no file.
    """
    if braces := re.search(r"\{([^{}]*)\}", pattern):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        if numbers:
            first, last = numbers.groups()
            options = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
        else:
            options = braces[1].split(",")
        each = (
            matching_files(pattern[: braces.start()] + option + pattern[braces.end() :])
            for option in options
        )
        return list(dict.fromkeys(chain.from_iterable(each)))
    files = sorted(
        os.path.abspath(path) for path in glob(pattern, recursive=True) if path.endswith(".tar")
    )
    if not files:
        raise ValueError(f"No tar file matches {pattern!r}.")
    return files


def load(
    source: str, stored: Stored, revision: str | None = None, *, labelled: bool = True
) -> DatasetDict:
    """Loads all splits of a data set that is not streamed; see `load_folder` for `labelled`."""
    match stored.kind:
        case "embedded":
            return load_embedded(source)
        case "saved":
            try:
                saved = load_from_disk(source).with_format(None)  # the format is saved, too
            except IndexError as error:  # how `datasets` fails on a table without rows
                raise ValueError(f"A split of {source!r} holds no images.") from error
            return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
        case "images":
            return load_folder(stored.contents, labelled)
        case ".parquet" if stored.contents is not None:
            # `datasets` treats paths as glob patterns
            files = {split: list(map(escape, paths)) for split, paths in stored.files.items()}
            return load_dataset("parquet", data_files=files)
    return load_dataset(source, revision=revision)


def is_embedded(source: str) -> bool:
    """Whether a source names a data set of the package, with or without arguments."""
    return source.partition(":")[0] in EMBEDDED


def load_embedded(source: str) -> DatasetDict:
    """Loads a data set of the package: `name` or `name:argument=value,argument=value`.

    Raises:
        ImportError: If an optional library is missing.
        ValueError: If there is no such argument, or its value is not valid.
    """
    name, _, text = source.partition(":")
    function, arguments = resolve_name(EMBEDDED[name]), {}
    override(arguments, text.split(",") if text else ())
    check_keys(f"the data set {name}", arguments, inspect.signature(function).parameters)
    return function(**arguments)


def describe(
    source: str,
    splits: DatasetDict | Mapping[str, int],
    stored: Stored,
    label_column: str = "label",
) -> str:
    """Returns one line that tells the images, classes and splits of a data set, and the files of a
    folder that are left out; logs it on the main process.

    Args:
        source: Name of the data set.
        splits: The splits; if they are streamed, their numbers of shards.
        stored: Storage format of the data set.
        label_column: Name of the column of labels.
    """
    streamed = isinstance(next(iter(splits.values())), int)
    sizes = {name: split if streamed else len(split) for name, split in splits.items()}
    features = {} if streamed else next(iter(splits.values())).features
    what = "shard" if streamed else "token sequence" if token_column(features) else "image"
    number = sum(sizes.values())
    described = f"{number:,} {what}{'' if number == 1 else 's'} "
    described += f"({', '.join(f'{name} {size:,}' for name, size in sizes.items())})"
    if isinstance(classes := features.get(label_column), ClassLabel):
        number = classes.num_classes
        described += f", {number:,} class{'' if number == 1 else 'es'}"
    left_out = [
        f"{reason} {len(names):,} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for reason, names in (stored.contents.left_out if stored.contents else {}).items()
    ]
    if left_out:
        described += f"; left out: {', '.join(left_out)}"
    described = f"{source}: {described}."
    if process_state().is_main_process:
        logger.info(described)
    return described


def open_shards(
    source: str,
    stored: Stored,
    split: str,
    *,
    image_column: str,
    label_column: str | None,
    text_column: str | None = None,
    revision: str | None = None,
) -> StreamedSamples:
    """Opens a split of tar or Parquet files; see `open_images`."""
    paths = stored.files[split]
    inspect = inspect_tar if stored.kind == ".tar" else inspect_parquet
    shards, stamps = inspect_shards(paths, inspect)
    damaged = {
        path: shard.damage for path, shard in zip(paths, shards, strict=True) if shard.damage
    }
    readable = [path for path, shard in zip(paths, shards, strict=True) if shard.samples]
    if not readable:
        raise ValueError(
            f"The {len(shards)} shards of {source!r} hold no whole sample. "
            f"{next(iter(damaged.values()), 'They are empty.')}"
        )
    classes, tokens = None, None
    if stored.kind == ".tar":
        images = image_extensions(shards, source, image_column)
        label = None if label_column is None else find_labels(shards, source, label_column)
        if label is not None:
            classes = tar_classes(paths, largest_label(shards, paths, label))
        layouts = set().union(*(layout.split() for shard in shards for layout in shard.layouts))
        if text_column is not None and not layouts & {"txt", "json"}:
            raise ValueError(
                f"The shards of {source!r} hold no captions, which are members .txt, or "
                f"{text_column!r} in members .json, but {', '.join(f'.{x}' for x in sorted(layouts))}."
            )
        read_file = partial(read_tar, images=images, label=label, text=text_column)
    else:
        features = stored.features or parquet_features(readable[0])
        tokens = token_column(features)
        content = tokens or image_column
        check_column(list(features), content, source)
        if not (tokens or holds_images(features[content])):
            raise no_images(content, source, features[content])
        classes = names_of_classes(features, label_column, source)
        if label_column is not None and all(
            label_column in shard.labels for shard in shards if shard.samples
        ):
            largest = largest_label(shards, paths, label_column)
            classes = classes or numbered_classes(largest)
        columns = {content: "content"} | {name: name for name in KEY_COLUMNS if name in features}
        columns |= {} if label_column is None else {label_column: "label"}
        check_captions(features, text_column, source)
        columns |= {} if text_column is None else {text_column: "text"}
        read_file = partial(read_parquet, columns=columns)
    return StreamedSamples(
        read_file,
        [shard.samples for shard in shards],
        paths,
        labelled=label_column is not None,
        captioned=text_column is not None,
        class_names=classes,
        damaged=damaged,
        stamps=stamps,
        token_column=tokens,
        latent_statistics=read_statistics(source, revision) if tokens == "latents" else None,
    )


def holds_images(feature: Any) -> bool:
    """Whether a column of Parquet files holds images, or the paths or bytes of image files."""
    if isinstance(feature, Value):
        return feature.dtype.removeprefix("large_") in ("string", "binary")
    return isinstance(feature, Image | dict)
