"""Tokenizing of images to a token data set, in parts that processes share and a restart keeps."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedModel

from ..devices import check_backend, default_device, parse_dtype
from ..distributed import check_same, check_shared, process_state
from ..hub.hashes import state_sha256
from ..modeling.auto import load_tokenizer
from ..modeling.diffusers_tokenizer import DiffusersTokenizer
from ..modeling.titok import TiTokImageProcessor
from ..progress import ProgressBar
from .augmentation import Augmentation
from .decoding import UnreadableImageError, decoder_for
from .identity import data_identity, data_outline
from .opening import dataset_commit, open_images
from .samples import Samples, StoredSample, StreamedSamples
from .token_folder import Batch, Part, WorkFolder, explain_full_disk
from .tokens import token_features

Tokenizer = PreTrainedModel | DiffusersTokenizer


class PartBatches(IterableDataset):
    """The batches of parts; no batch spans two parts, so that parts are independent.

    With K workers, each makes every K-th batch, or every K-th shard, since shards are read
    sequentially.

    Args:
        rows: Samples of each split.
        parts: Remaining parts.
        processor: Image processor of the tokenizer.
        augmentation: Augmentation whose variants are the copies.
        batch_size: Number of images per batch, including copies.
        dtype: Data type of the pixel values.
    """

    def __init__(
        self,
        rows: Mapping[str, Samples],
        parts: list[Part],
        processor: TiTokImageProcessor,
        augmentation: Augmentation,
        batch_size: int,
        dtype: torch.dtype,
    ):
        self.rows, self.parts = rows, parts
        self.processor, self.augmentation, self.dtype = processor, augmentation, dtype
        self.rows_per_batch = max(1, batch_size // augmentation.variants)

    def pieces(self) -> Iterator[tuple[int, Callable[[], Iterator[StoredSample]]]]:
        """Yields the units of work: the index of a part, and a function that reads rows of it."""
        for i, part in enumerate(self.parts):
            rows = self.rows[part.split]
            if isinstance(rows, StreamedSamples):
                yield i, lambda rows=rows, part=part: rows.read_shard(part.number)
            else:
                for start in range(part.start, part.stop, self.rows_per_batch):
                    stop = min(start + self.rows_per_batch, part.stop)
                    yield i, lambda rows=rows, start=start, stop=stop: rows.read(start, stop)

    def __iter__(self) -> Iterator[Batch | Exception]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            for part, read in islice(self.pieces(), first, None, step):
                rows = read()
                while batch := list(islice(rows, self.rows_per_batch)):
                    yield self.decode(part, batch)
        # the data loader would turn an error raised in a worker into one with a traceback as text
        except (OSError, ValueError) as error:
            yield error

    def decode(self, part: int, rows: list[StoredSample]) -> Batch:
        """Decodes rows and makes the copies of each image."""
        batch, images = Batch(part=part, keys=[], labels=[], pixel_values=None, unreadable=[]), []
        decode = decoder_for(self.processor)
        for row in rows:
            try:
                image = decode(row.image)
            except UnreadableImageError as error:
                batch.unreadable.append({"key": row.key, "reason": str(error)})
                continue
            numbers = range(self.augmentation.variants)
            images += [
                self.augmentation.variant(image, self.processor, number) for number in numbers
            ]
            batch.keys.append(row.key)
            batch.labels.append(row.label)
        return batch._replace(pixel_values=torch.stack(images).to(self.dtype)) if images else batch


def tokenize_to_folder(
    source: str,
    tokenizer: str | Path,
    output_dir: str | Path,
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    revision: str | None = None,
    streaming: bool = False,
    augmentation: Augmentation | None = None,
    batch_size: int = 64,
    part_size: int = 10_000,
    num_workers: int | None = None,
    max_unreadable: float = 0.01,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """Writes the codes or latents of images as Parquet files for `load_dataset` and `open_images`.

    Any number of processes can share the work if all of them see the output folder. An interrupted
    run resumes with the same arguments, on any number of processes, and ends with the same files as
    an uninterrupted one. Unfinished data sets are in `OUTPUT_DIR.partial`. Images and tokenizer are
    the same if their content is (see `data_identity`), wherever they are.

    The columns are `key`; `label`, if there are labels; and `codes`, `N` integers of the smallest
    unsigned type that holds the codebook, or `latents` in float32, `(K, C)` or `(C, h, w)`. An
    augmentation with several variants adds an axis of copies, `(copies, …)`. With latents, the
    folder also has `latent_statistics.json`: mean and standard deviation of each channel over the
    split `train`, in float64.

    Args:
        source: See `open_images`.
        tokenizer: Folder or Hub repository of a tokenizer of any family.
        output_dir: The output folder; it appears when the data set is complete.
        split: The split to tokenize; all splits if not given.
        image_column, label_column: Columns of the images; `label_column=None` if labels are not
            wanted.
        revision: Branch, tag or commit of a data set on the Hub.
        streaming: Whether to stream files that could also be loaded.
        augmentation: Its variants are the copies of an image; by default one copy, with the crop of
            the image processor.
        batch_size: Number of images encoded at once.
        part_size: Number of samples per part, the most that an interruption can lose; each shard is
            a part of its own.
        num_workers: Number of decoding workers per process; by default the number of cores minus
            one, at most 8, shared by the processes of a machine.
        max_unreadable: Largest allowed share of unreadable samples in a split; those are left out
            and listed in `unreadable.jsonl`. A damaged shard counts as one.
        dtype: Data type of the tokenizer: `"float32"`, `"bfloat16"` or `"float16"`.
        device: Device to compute on; by default the accelerator if there is one.
        compiled: Whether the encoder is compiled by `torch.compile` first, which pays for many images. Where
            two codes are nearly equally near, rounding may choose the other one.

    Returns:
        The record of the data set, `tokenize.json`: `command` holds the arguments, `result` the
        contents.

    Raises:
        BlockingIOError: If another run writes to the folder.
        FileExistsError: If the folder holds anything else, or the result of other arguments, images
            or weights.
        OSError: If tokenizer or images do not load, the encoder cannot be compiled here, a process
            does not see the folder of the others, or the disk is full; finished parts are kept.
        ValueError: If tokenizer and images do not fit each other, a process has other ones than the
            others, or too many images are unreadable; finished parts are kept.
    """
    state = process_state()
    torch_dtype, augmentation = parse_dtype(dtype), augmentation or Augmentation()
    if augmentation.variants is None:
        raise ValueError(
            f"An augmentation with a fixed number of variants is expected, got {augmentation}."
        )
    model, processor = load_tokenizer(tokenizer)
    revision = dataset_commit(source, revision)
    rows = open_splits(
        source,
        split=split,
        image_column=image_column,
        label_column=label_column,
        revision=revision,
        streaming=streaming,
    )
    parts = plan_parts(rows, part_size)
    tokenizer_record = {
        "id": str(tokenizer),
        "class": type(model).__name__,
        "weights_sha256": state_sha256(model),
    }
    model.to(device or default_device(), torch_dtype)
    if compiled:
        check_backend("inductor", model.device)
    result = describe_result(
        model, processor, augmentation, rows, labelled=label_column is not None
    )
    check_same(
        data={name: data_outline(split_rows) for name, split_rows in rows.items()},
        tokenizer=tokenizer_record["weights_sha256"],
        arguments=(asdict(augmentation), dtype, part_size, compiled),
    )
    check_shared(Path(output_dir).parent)
    identities = [
        {name: data_identity(split_rows) for name, split_rows in rows.items()}
        if state.is_main_process
        else None
    ]
    [identities] = broadcast_object_list(identities)
    command = {
        "source": source,
        "data": identities,
        "revision": revision,
        "image_column": image_column,
        "label_column": label_column,
        "tokenizer": tokenizer_record,
        "augmentation": asdict(augmentation),
        "dtype": dtype,
        "parts": {
            name: [part.stop - part.start for part in parts if part.split == name] for name in rows
        },
        "features": result["features"],
        **({"compiled": True} if compiled else {}),
    }
    work = WorkFolder(output_dir, command, rows, max_unreadable)
    if work.is_made(work.folder):
        return work.read()
    with explain_full_disk(work.partial), work.locked() if state.is_main_process else nullcontext():
        [todo] = broadcast_object_list([work.prepare(parts) if state.is_main_process else None])
        mine, missing = todo[state.process_index :: state.num_processes], set(todo)
        batches = DataLoader(
            PartBatches(
                rows, mine, processor, augmentation, batch_size=batch_size, dtype=torch_dtype
            ),
            batch_size=None,
            num_workers=default_workers() if num_workers is None else num_workers,
            pin_memory=model.device.type == "cuda",
        )
        total = sum(part.stop - part.start for part in mine)
        with ProgressBar("tokens", total) as bar:
            copies = augmentation.variants
            rows = max(1, batch_size // copies) * copies if compiled else None
            encoded = encode_batches(model, batches, copies, compiled_rows=rows)
            for num_images in work.write(
                mine, [part for part in parts if part not in missing], encoded, result
            ):
                bar.update(num_images)
        state.wait_for_everyone()
        if state.is_main_process:
            work.finish(parts, result)
    state.wait_for_everyone()
    return work.read()


def open_splits(
    source: str,
    split: str | None,
    image_column: str,
    label_column: str | None,
    revision: str | None,
    streaming: bool,
) -> dict[str, Samples]:
    """Opens one split of a source, or all.

    Raises:
        ValueError: If a split already holds tokens.
    """
    splits = open_images(source, image_column, label_column, revision, streaming=streaming)
    rows = {name: splits[name] for name in (splits if split is None else [split])}
    for name, split_rows in rows.items():
        if split_rows.token_column is not None:
            raise ValueError(
                f"The split {name!r} of {source!r} holds tokens already: images are expected."
            )
    return rows


def plan_parts(rows: Mapping[str, Samples], part_size: int) -> list[Part]:
    """Returns the parts of all splits: the shards, or `part_size` samples each."""
    parts = []
    for name, split_rows in rows.items():
        if isinstance(split_rows, StreamedSamples):
            sizes = split_rows.sizes
        else:
            full, rest = divmod(len(split_rows), part_size)
            sizes = [part_size] * full + [rest] * (rest > 0)
        for i, (size, stop) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
            parts.append(Part(split=name, number=i, count=len(sizes), start=stop - size, stop=stop))
    return parts


def default_workers() -> int:
    """Returns the number of workers per process: its share of the machine's cores minus one, at
    most 8."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return min(8, max(0, os.cpu_count() // processes - 1))


def describe_result(
    model: Tokenizer,
    processor: TiTokImageProcessor,
    augmentation: Augmentation,
    rows: Mapping[str, Samples],
    labelled: bool,
) -> dict[str, Any]:
    """Returns the shape of a row, the size of the codebook, the number of copies and the columns.

    Raises:
        ValueError: If splits name their classes differently, or the processor does not fit the
            tokenizer.
    """
    class_names = max((split_rows.class_names or [] for split_rows in rows.values()), key=len)
    for name, split_rows in rows.items():
        if (split_rows.class_names or []) != class_names[: len(split_rows.class_names or [])]:
            raise ValueError(
                f"The classes of the split {name!r} differ from those of the others: tokenize it "
                "separately (`split`)."
            )
    # encode one image to learn the shape, whatever the family of the tokenizer
    pixel_values = augmentation.variant(Image.new("RGB", (64, 64)), processor, 0)[None]
    with torch.inference_mode():
        encoded = model.encode(pixel_values.to(model.device, model.dtype))
    codebook_size = None if encoded.codes is None else model.config.codebook_size
    shape = tuple((encoded.latents if encoded.codes is None else encoded.codes).shape[1:])
    copies = augmentation.variants
    shape = shape if copies == 1 else (copies, *shape)
    features = token_features(shape, codebook_size, class_names, labelled)
    return {
        "shape": shape,
        "codebook_size": codebook_size,
        "copies": copies,
        "features": features.to_dict(),
    }


@torch.inference_mode()
def encode_batches(
    model: Tokenizer,
    batches: Iterable[Batch | Exception],
    num_copies: int,
    compiled_rows: int | None = None,
) -> Iterator[tuple[Batch, np.ndarray | None]]:
    """Yields batches with their codes or latents `(B, …)`, with copies `(B, copies, …)`; `None` if
    no image is readable.

    A batch is yielded once the next one is queued, so that host and device work in parallel.

    Args:
        model: The tokenizer.
        batches: Batches, or the error that ends them.
        num_copies: Number of copies of each image.
        compiled_rows: Number of rows that the encoder is compiled for; fewer are padded. Not compiled if not
            given.
    """

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        encoded = model.encode(pixel_values)
        return encoded.latents.float() if encoded.codes is None else encoded.codes

    if compiled_rows is not None:
        encode = torch.compile(encode, dynamic=False)

    def fetch(batch: Batch, values: torch.Tensor | None) -> tuple[Batch, np.ndarray | None]:
        if values is None:
            return batch, None
        values = values if num_copies == 1 else values.unflatten(0, (-1, num_copies))
        return batch, values.cpu().numpy()

    running = None
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        fetched = fetch(*running) if running else None
        values = None
        if batch.pixel_values is not None:
            pixel_values = batch.pixel_values.to(model.device, non_blocking=True)
            count = len(pixel_values)
            if compiled_rows is not None:
                padding = pixel_values[:1].expand(compiled_rows - count, -1, -1, -1)
                pixel_values = torch.cat([pixel_values, padding])
            values = encode(pixel_values)[:count]
        running = batch, values
        if fetched:
            yield fetched
    if running:
        yield fetch(*running)
