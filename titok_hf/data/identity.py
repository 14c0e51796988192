"""The identity of training data: a hash of their content, which a copied or renamed folder keeps."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..progress import counted
from .samples import IndexedSamples, Samples, StreamedSamples

SAMPLED = 256  # samples or shards whose bytes are hashed
PIECE = 2**16  # bytes that are hashed of the beginning, the middle and the end of a large file


def data_identity(samples: Samples) -> str:
    """Returns the SHA-256, in hex, of what a run trains on.

    It covers the names of the classes, the label, the captions and the name of every sample in
    their order, the size in bytes of every image, and the bytes of up to 256 samples that are
    spread evenly. Names are relative to the folder that contains all files. Of shards, it covers
    name, number of samples and size, and either the hash that the Hub states or bytes of up to 256
    shards.

    No image is decoded, and the time does not grow with the size of the images.
    """
    digest = outline_digest(samples)
    if isinstance(samples, StreamedSamples):
        add_shards(digest, samples)
    else:
        add_samples(digest, samples)
    return digest.hexdigest()


def data_outline(samples: Samples) -> str:
    """Returns the SHA-256, in hex, of the part of `data_identity` that needs no file to be read: names
    of classes and labels; of shards, names, numbers of samples and sizes. Every process can afford it.
    """
    return outline_digest(samples).hexdigest()


def outline_digest(samples: Samples) -> Any:
    """Returns the hash of `data_outline`, to be updated."""
    digest = hashlib.sha256(repr((len(samples), samples.class_names)).encode())
    if isinstance(samples, StreamedSamples):
        names = relative(samples.names)
        for name, size, stamp in zip(names, samples.sizes, stamps_of(samples), strict=True):
            digest.update(repr((name, size, stamp[0])).encode())
    elif samples.label_column is not None:
        digest.update(np.asarray(samples.stored[samples.label_column][:], np.int64))
    return digest


def stamps_of(samples: StreamedSamples) -> list[list[Any]]:
    """Returns for each shard its size, then its hash on the Hub, or else the time of its last change."""
    return samples.stamps or [[-1, ""]] * len(samples.names)


def add_shards(digest: Any, samples: StreamedSamples) -> None:
    for number in spread(len(samples.names)):
        if "://" in samples.names[number]:
            digest.update(stamps_of(samples)[number][1].encode())
        else:
            digest.update(bytes_of_file(samples.names[number]))


def add_samples(digest: Any, samples: IndexedSamples) -> None:
    if samples.captioned:
        digest.update(repr(samples.stored[samples.text_column][:]).encode())
    if samples.token_column is None:
        names, sizes = names_and_sizes(samples)
        digest.update("\n".join(relative(names)).encode())
        digest.update(sizes)
    for number in spread(len(samples)):
        stored = samples[number]
        if stored.tokens is not None:
            digest.update(repr(stored.tokens.shape).encode() + stored.tokens.tobytes())
        elif stored.image is not None and stored.image["bytes"] is None:
            digest.update(bytes_of_file(stored.image["path"]))
        elif stored.image is not None:
            digest.update(stored.image["bytes"])


def names_and_sizes(samples: IndexedSamples) -> tuple[list[str], np.ndarray]:
    """Returns path and size in bytes of every image, without reading the images."""
    dataset = samples.stored
    column = dataset.data.column(samples.content)  # all rows of the files, of which some are chosen
    images = {name: pc.struct_field(column, name) for name in ("bytes", "path")}
    images["bytes"] = pc.binary_length(images["bytes"])
    if dataset._indices is not None:
        chosen = dataset._indices.column(0)
        images = {name: values.take(chosen) for name, values in images.items()}
    names = pc.fill_null(images["path"], "").to_pylist()
    sizes = pc.fill_null(images["bytes"].cast(pa.int64()), -1).to_numpy().copy()
    files = np.flatnonzero(sizes < 0)
    for number in counted(files, "sizes of files", "files", total=len(files)):
        path = names[number]
        sizes[number] = os.path.getsize(path) if os.path.isfile(path) else -1
    return names, sizes


def relative(names: list[str]) -> list[str]:
    """Returns names without the folder that they have in common."""
    common = os.path.commonprefix(names)  # noqa: RUF071, it is cut at a slash
    return [name[common.rfind("/") + 1 :] for name in names]


def spread(count: int) -> list[int]:
    """Returns up to 256 numbers below `count`, with equal distances, the first and last among them."""
    return sorted({*np.linspace(0, count - 1, min(count, SAMPLED)).round().astype(int).tolist()})


def bytes_of_file(path: str) -> bytes:
    """Returns a file's bytes, of a large file those of three pieces; none if it cannot be read,
    which the training reports."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= 3 * PIECE:
                return file.read()
            pieces = []
            for start in (0, size // 2, size - PIECE):
                file.seek(start)
                pieces.append(file.read(PIECE))
            return b"".join(pieces)
    except OSError:
        return b""


__all__ = ["data_identity", "data_outline"]
