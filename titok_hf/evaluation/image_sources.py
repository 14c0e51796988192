"""Sources of the images of an evaluation: data sets, ADM's files and pipelines. Images are uint8
and of one size."""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from diffusers import DiffusionPipeline
from PIL import Image
from transformers.image_utils import PILImageResampling

from ..data.decoding import UnreadableImageError, decode_image
from ..data.opening import dataset_commit, open_images
from ..data.samples import check_labels
from ..distributed import process_state
from ..hub.hashes import file_sha256
from ..modeling.pixels import to_rgb
from ..modeling.titok import TiTokImageProcessor
from ..modeling.vtp import VTPImageProcessor
from ..pipelines.class_conditional import image_generators
from ..progress import ProgressBar
from .adm import ReferenceBatch
from .protocol import Protocol


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images of a source.

    Args:
        indices: Positions of the images in the source, `(B,)`.
        images: uint8 `(B, 3, H, W)`.
        labels: Classes of the images, `(B,)`, if the source has labels.
    """

    indices: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor | None = None


class ImageSource(ABC):
    """Images in a fixed order. Processes take turns batch by batch, so the batches do not depend
    on the number of processes.

    Args:
        num_images: Number of images.
        labelled: Whether the images have labels.
        class_names: Names of the classes, if they are known.
    """

    num_images: int
    labelled: bool = False
    class_names: Sequence[str] | None = None

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """Yields the batches of this process."""

    def progress(
        self, batch_size: int, description: str, shown: bool = True
    ) -> Iterator[ImageBatch]:
        """Yields the batches of this process, with a progress bar of all processes if `shown`."""
        with ProgressBar(description, self.num_images, shown=shown) as bar:
            for batch in self.batches(batch_size):
                yield batch
                done = len(batch.images) * process_state().num_processes
                bar.update(min(done, self.num_images - bar.n))

    def whole(self, batch_size: int = 64) -> "TensorImages":
        """Loads all images into memory, in every process."""
        batches = gather_object(list(self.progress(batch_size, "images")))
        order = torch.cat([batch.indices for batch in batches]).argsort()
        labels = torch.cat([batch.labels for batch in batches])[order] if self.labelled else None
        images = torch.cat([batch.images for batch in batches])[order]
        return TensorImages(images, labels, self.class_names)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the fields that describe it in a result."""


# Arguments of a pipeline's call that the evaluation sets itself or does not support.
RESERVED = {
    "batch_size",
    "callback_on_step_end",
    "class_labels",
    "codes",
    "generator",
    "num_images_per_label",
    "output_type",
    "return_dict",
    "self",
}


def is_ours(number: int) -> bool:
    """Whether this process handles batch `number`."""
    state = process_state()
    return number % state.num_processes == state.process_index


class DatasetImages(ImageSource):
    """Images of a data set, cropped to squares as the protocol says.

    Args:
        dataset: Data set with a column of images.
        protocol: Crop and image size.
        image_column: Name of the column of images.
        label_column: Name of the column of integer labels; none if not given.
        origin: Fields that describe the data set in a result, such as id, revision and split.
        num_images: Number of images to use, from the start; all if not given.
        crop: Crop that replaces the protocol's.

    Raises:
        ValueError: If there are fewer images, labels are missing or no integers, or uncropped
            images do not have the protocol's size.
    """

    def __init__(
        self,
        dataset: Dataset,
        protocol: Protocol,
        image_column: str = "image",
        label_column: str | None = None,
        origin: dict[str, Any] | None = None,
        num_images: int | None = None,
        crop: str | None = None,
    ):
        if num_images is not None and not 1 <= num_images <= len(dataset):
            raise ValueError(f"There are {len(dataset)} images, and {num_images} were asked for.")
        if label_column is not None and "int" not in (
            found := dataset.features[label_column].dtype
        ):
            raise ValueError(
                f"The column {label_column!r} must hold integers or classes, got {found}."
            )
        dataset = dataset if num_images is None else dataset.select(range(num_images))
        if label_column is not None:
            check_labels(dataset, label_column)
        self.images = encoded_images(dataset, image_column)
        self.num_images = len(dataset)
        self.protocol = (
            protocol if crop is None else replace(protocol, crop=crop, interpolation=None)
        )
        self.image_column = image_column
        self.labelled = label_column is not None
        if self.labelled:
            self.labels = torch.tensor(dataset[label_column])
            self.class_names = getattr(dataset.features[label_column], "names", None)
        self.origin = origin or {}
        if self.protocol.crop == "none":
            expected = (protocol.image_size, protocol.image_size)
            for index in range(self.num_images):
                if (size := self.open(index).size) != expected:
                    raise ValueError(
                        f"All images must be {expected[0]}x{expected[1]} pixels, since they are "
                        f"not cropped; image {index} is {size[0]}x{size[1]}. Resize them, or "
                        "choose a protocol of their size."
                    )

    def open(self, index: int) -> Image.Image:
        return decode_row(self.images[index][self.image_column], index)

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        for number, indices in enumerate(torch.arange(self.num_images).split(batch_size)):
            if is_ours(number):
                images = square_images(
                    [self.open(index) for index in indices.tolist()], self.protocol
                )
                yield ImageBatch(indices, images, self.labels[indices] if self.labelled else None)

    def describe(self) -> dict[str, Any]:
        return self.origin


class TensorImages(ImageSource):
    """Images in memory.

    Args:
        images: uint8 `(n, 3, H, W)`.
        labels: Classes of the images, `(n,)`, if they have labels.
        class_names: Names of the classes, if they are known.

    Raises:
        ValueError: If a label is negative, which marks a missing one in many data sets.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ):
        if labels is not None and (labels < 0).any():
            raise ValueError(f"Every image must have a label of 0 or more, got {labels.min()}.")
        self.images = images
        self.labels = labels
        self.class_names = class_names
        self.num_images = len(images)
        self.labelled = labels is not None

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        for number, indices in enumerate(torch.arange(self.num_images).split(batch_size)):
            if is_ours(number):
                yield ImageBatch(
                    indices, self.images[indices], self.labels[indices] if self.labelled else None
                )

    def describe(self) -> dict[str, Any]:
        return {}


class ReferenceImages(ImageSource):
    """The images of a file of ADM's, which must have the protocol's size; a file of statistics has
    none."""

    def __init__(self, batch: ReferenceBatch, protocol: Protocol):
        if batch.num_images and batch.image_size != protocol.image_size:
            raise ValueError(
                size_error(f"{batch.path} holds", (batch.image_size, batch.image_size), protocol)
            )
        self.batch = batch
        self.num_images = batch.num_images

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        start = 0
        for number, images in enumerate(self.batch.batches(batch_size)):
            indices = torch.arange(start, start + len(images))
            start += len(images)
            if is_ours(number):
                yield ImageBatch(indices, images)

    def describe(self) -> dict[str, Any]:
        return {"file": str(self.batch.path), "sha256": file_sha256(self.batch.path)}


class GeneratedImages(ImageSource):
    """Images that a pipeline generates, cycling through the classes if it takes classes.

    An image depends only on the seed, its position, and whether the pipeline is on CUDA, whose noise
    differs from that of other devices, up to arithmetic that depends on the batch,
    provided that the pipeline passes its generators to its scheduler. `DiTPipeline` does not: with
    a scheduler that draws noise, such as `DDPMScheduler`, an image also depends on the other images
    of its batch.

    Args:
        pipeline: A pipeline that takes `class_labels` (`TiTokPipeline`, diffusers' `DiTPipeline`)
            or `batch_size` (`DDPMPipeline`).
        num_images: Number of images.
        protocol: Rounding and image size.
        seed: Random seed.
        arguments: Arguments of the pipeline's call, such as `num_inference_steps`.

    Raises:
        TypeError: If the pipeline takes neither `class_labels` nor `batch_size`.
        ValueError: If it does not take one of the arguments, or is known to make images of another
            size.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        num_images: int,
        protocol: Protocol,
        seed: int = 0,
        **arguments: Any,
    ):
        parameters = inspect.signature(type(pipeline).__call__).parameters
        if not parameters.keys() & {"class_labels", "batch_size"}:
            raise TypeError(
                "A pipeline that is called with `class_labels` or `batch_size` is expected, got a "
                f"{type(pipeline).__name__}."
            )
        if others := arguments.keys() - parameters.keys() | arguments.keys() & RESERVED:
            raise ValueError(
                f"A {type(pipeline).__name__} takes no {', '.join(sorted(others))}, or the "
                "evaluation sets it."
            )
        tokenizer = getattr(pipeline, "tokenizer", None)
        size = getattr(getattr(tokenizer, "config", None), "image_size", protocol.image_size)
        if size != protocol.image_size:
            raise ValueError(size_error("the pipeline makes", (size, size), protocol))
        self.pipeline = pipeline
        self.num_images = num_images
        self.protocol = protocol
        self.seed = seed
        self.arguments = arguments
        self.num_classes = number_of_classes(pipeline) if "class_labels" in parameters else None
        self.labelled = self.num_classes is not None
        names = getattr(
            getattr(getattr(pipeline, "transformer", None), "config", None), "id2label", None
        )
        self.class_names = names and list(names.values())

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        for number, indices in enumerate(torch.arange(self.num_images).split(batch_size)):
            if is_ours(number):
                yield self.make(indices)

    def labels(self, indices: torch.Tensor) -> torch.Tensor | None:
        """Returns the classes `(B,)` of the images at `indices` `(B,)`."""
        return None if self.num_classes is None else indices % self.num_classes

    def make(self, indices: torch.Tensor) -> ImageBatch:
        """Generates the images at `indices` `(B,)`."""
        device = self.pipeline.device
        # a generator for each image, so that images do not depend on the batches
        generators = image_generators(self.seed, indices.tolist(), device)
        labels = self.labels(indices)
        classes = (
            {"batch_size": len(indices)} if labels is None else {"class_labels": labels.tolist()}
        )
        bar = getattr(self.pipeline, "_progress_bar_config", {})
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            # the global seed is for schedulers to which a pipeline passes no generator
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(generators[0].initial_seed())
                output = self.pipeline(
                    **classes, **self.arguments, generator=generators, output_type="np"
                )
        finally:
            self.pipeline.set_progress_bar_config(**bar)
        images = torch.from_numpy(np.asarray(output.images)).permute(0, 3, 1, 2)  # (B, 3, H, W)
        if images.shape[2:] != (self.protocol.image_size, self.protocol.image_size):
            raise ValueError(size_error("the pipeline makes", images.shape[2:], self.protocol))
        return ImageBatch(indices, to_uint8(images, self.protocol.rounding), labels)

    def describe(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "classes": f"{self.num_classes} in turn" if self.num_classes else None,
        }


def open_source(
    source: str,
    protocol: Protocol,
    split: str | None = None,
    revision: str | None = None,
    image_column: str = "image",
) -> ImageSource:
    """Opens images to compare with: a file of ADM's (`.npz`), or a data set, see `open_dataset`."""
    if source.endswith(".npz"):
        return ReferenceImages(ReferenceBatch.load(source), protocol)
    return open_dataset(
        source,
        protocol,
        split,
        revision,
        image_column=image_column,
        hold_out=split == "test",
    )


def open_dataset(
    source: str,
    protocol: Protocol,
    split: str | None = None,
    revision: str | None = None,
    *,
    image_column: str = "image",
    label_column: str | None = None,
    num_images: int | None = None,
    crop: str | None = None,
    hold_out: bool = False,
) -> DatasetImages:
    """Opens a data set of images to evaluate.

    Args:
        source: See `open_images`. Tar shards are refused, since they can only be read in sequence.
        protocol: Crop and image size.
        split: Name of the split; if not given, `test`, else `validation`, else the only one.
        revision: Branch, tag or commit of a data set on the Hub.
        image_column: Name of the column of images.
        label_column: Name of the column of labels, which is used if the data set has it.
        num_images: Number of images to use, from the start; all if not given.
        crop: Crop that replaces the protocol's.
        hold_out: Whether `train` and `test` are the parts that a training run uses, see
            `open_images`; if not, splits are used as stored, a data set's only one as a whole.
    """
    splits = open_images(source, image_column, None, revision, hold_out=hold_out)
    split = splits.resolve(split)
    dataset = splits.dataset(split)
    labels = label_column if label_column in dataset.column_names else None
    origin = {"id": source, "revision": dataset_commit(source, revision), "split": split}
    return DatasetImages(
        dataset,
        protocol,
        image_column=image_column,
        label_column=labels,
        origin=origin,
        num_images=num_images,
        crop=crop,
    )


def encoded_images(dataset: Dataset, image_column: str) -> Dataset:
    """Returns the images of a data set alone and undecoded, for `decode_row`."""
    return dataset.select_columns(image_column).cast_column(
        image_column, datasets.Image(decode=False)
    )


def decode_row(
    encoded: dict[str, Any] | None,
    index: int,
    decode: Callable[[Any], Image.Image] = decode_image,
) -> Image.Image:
    """Decodes image `index` of `encoded_images`; raises `ValueError` with its
    file if it cannot be read."""
    try:
        return decode(encoded)
    except UnreadableImageError as error:
        path = (encoded or {}).get("path") or "without a file"
        raise ValueError(f"Image {index} ({path}) cannot be read. {error}") from error


def number_of_classes(pipeline: DiffusionPipeline) -> int:
    """Returns the number of classes of a class-conditional pipeline; raises `TypeError` if it is
    not where the pipelines of TiTok and DiT have it."""
    config = getattr(getattr(pipeline, "transformer", None), "config", None)
    for name in ("num_labels", "num_embeds_ada_norm"):  # of TiTok's, of DiT's transformer
        if hasattr(config, name):
            return getattr(config, name)
    raise TypeError(
        f"The number of classes of a {type(pipeline).__name__} is not known: a TiTok or DiT is "
        "expected."
    )


def size_error(what: str, size: Sequence[int], protocol: Protocol) -> str:
    """Returns the error message for images that do not have the protocol's size."""
    return (
        f"The protocol {protocol.name!r} is for images of "
        f"{protocol.image_size}x{protocol.image_size} pixels, {what} {size[0]}x{size[1]}. Choose "
        f"another protocol, or change this one: `image_size={size[0]}`."
    )


def square_images(images: Sequence[Image.Image], protocol: Protocol) -> torch.Tensor:
    """Crops images as the protocol says, to uint8 `(B, 3, image_size, image_size)`."""
    if protocol.crop == "center":
        processor = TiTokImageProcessor.from_image_size(protocol.image_size)
        resample = PILImageResampling[protocol.interpolation.upper()]
        return processor(list(images), resample=resample, do_rescale=False, return_tensors="pt")[
            "pixel_values"
        ]
    if protocol.crop == "none":
        arrays = [np.asarray(to_rgb(image)) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    processor = VTPImageProcessor.from_image_size(protocol.image_size)
    plain = {"do_rescale": False, "do_normalize": False}
    return processor(list(images), crop=protocol.crop, **plain, return_tensors="pt")["pixel_values"]


def to_uint8(images: torch.Tensor, rounding: str) -> torch.Tensor:
    """Converts float images in [0, 1] to uint8, by truncation or rounding; raises `ValueError` if a
    value is NaN or outside [0, 1]."""
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"Images must be in [0, 1], got {images.min():.4g} to {images.max():.4g}.")
    scaled = images.float() * 255
    return (scaled.round() if rounding == "round" else scaled).to(torch.uint8)


class Fingerprint:
    """A hash of a set of images that does not depend on their order or batches."""

    def __init__(self) -> None:
        self.total = 0

    def update(self, images: torch.Tensor) -> None:
        """Adds uint8 images `(B, 3, H, W)`."""
        for image in images.cpu().numpy():
            self.total += int.from_bytes(hashlib.sha256(image.tobytes()).digest())

    def compute(self, totals: Sequence[int]) -> str:
        """Returns the sum of all images' SHA-256 modulo 2^256 in hexadecimal, from the `totals` of
        all processes."""
        return f"{sum(totals) % 2**256:064x}"
