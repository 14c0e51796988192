"""The npz files of ADM's evaluator (openai/guided-diffusion, `evaluations/`): samples and reference
batches."""

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import torch

from ..hub.folders import whole_file
from .metrics.gaussian_statistics import GaussianStatistics

IMAGES = "arr_0"
MOMENTS = (("mu", "sigma"), ("mu_s", "sigma_s"))


@dataclass(frozen=True)
class ReferenceBatch:
    """A file for ADM's evaluator that holds images, statistics of Inception's features, or both.

    The published files (`VIRTUAL_imagenet256_labeled.npz`) hold 10,000 images for precision and
    recall, and statistics of the whole training set for FID and sFID.

    Args:
        path: The file.
        num_images: Number of images; 0 if the file has none.
        image_size: Side of the images; `None` if the file has none.
        statistics: Statistics of the pooled features, `mu` and `sigma`.
        spatial_statistics: Statistics of the spatial features, `mu_s` and `sigma_s`.
    """

    path: Path
    num_images: int
    image_size: int | None
    statistics: GaussianStatistics | None
    spatial_statistics: GaussianStatistics | None

    @classmethod
    def load(cls, path: str | Path) -> "ReferenceBatch":
        """Reads the statistics, and the number and size of the images. Nothing is unpickled.

        Args:
            path: An npz file with `arr_0`, uint8 `(N, H, H, 3)`, `mu` and `sigma`, `mu_s` and
                `sigma_s`, or some of them.
        """
        path = Path(path)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError(
                    f"{path} is not a complete npz file, as `np.savez` writes and ADM's evaluator "
                    "reads it."
                )
        num_images, image_size = 0, None
        with np.load(path, allow_pickle=False) as arrays:
            if IMAGES in arrays:
                with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as stream:
                    num_images, image_size = read_images_header(stream, path)
            found = [read_moments(arrays, *names, path) for names in MOMENTS]
            if num_images == 0 and found == [None, None]:
                raise ValueError(
                    f"{path} holds neither images (arr_0) nor statistics (mu and sigma, mu_s and "
                    f"sigma_s), but {', '.join(arrays.files) or 'nothing'}."
                )
        return cls(path, num_images, image_size, *found)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Yields the images in order, uint8 `(B, 3, H, H)` with `B <= size`, read batch by batch.

        Raises:
            ValueError: If there are no images, or the file ends early.
        """
        if not self.num_images:
            raise ValueError(f"{self.path} holds statistics, but no images (arr_0).")
        shape = (self.image_size, self.image_size, 3)
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as stream:
            read_images_header(stream, self.path)
            for start in range(0, self.num_images, size):
                count = min(size, self.num_images - start)
                content = bytearray(stream.read(count * self.image_size**2 * 3))
                if len(content) < count * self.image_size**2 * 3:
                    raise ValueError(
                        f"{self.path} ends before its {self.num_images} images do; download or "
                        "write it again."
                    )
                images = torch.frombuffer(content, dtype=torch.uint8).view(count, *shape)
                yield images.permute(0, 3, 1, 2).contiguous()


class SampleWriter:
    """Writes samples for ADM's evaluator batch by batch: `arr_0`, uint8 `(N, H, H, 3)`, in an npz.

        with SampleWriter("samples.npz", num_images=50000, image_size=256) as writer:
            writer.write(images)  # uint8 (B, 3, 256, 256)

    The file appears by one rename when all images are written, and not at all otherwise.

    Args:
        path: Path of the file, which must not exist.
        num_images: Number of images to be written.
        image_size: Side of the images.

    Raises:
        ValueError: At the end, if fewer images were written.
    """

    def __init__(self, path: str | Path, num_images: int, image_size: int) -> None:
        self.path = Path(path)
        self.num_images = num_images
        self.image_size = image_size
        self.num_written = 0

    def __enter__(self) -> "SampleWriter":
        refuse_existing(self.path)
        with ExitStack() as files:
            archive = zipfile.ZipFile(files.enter_context(whole_file(self.path)), "w")
            files.enter_context(archive)
            # zip64, since 50,000 images of 256 pixels exceed the 4 GiB of a plain zip
            member = zipfile.ZipInfo(f"{IMAGES}.npy")
            self.stream = files.enter_context(archive.open(member, "w", force_zip64=True))
            self.files = files.pop_all()
        header = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (self.num_images, *[self.image_size] * 2, 3),
        }
        np.lib.format.write_array_header_1_0(self.stream, header)
        return self

    def write(self, images: torch.Tensor) -> None:
        """Adds images, uint8 `(B, 3, H, H)`."""
        if images.dtype != torch.uint8:
            raise TypeError(f"Images must be uint8 in [0, 255], got {images.dtype}.")
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(
                f"Images must have shape (B, 3, {self.image_size}, {self.image_size}), got "
                f"{tuple(images.shape)}."
            )
        self.num_written += len(images)
        if self.num_written > self.num_images:
            raise ValueError(f"{self.path} takes {self.num_images} images, got {self.num_written}.")
        self.stream.write(images.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self.files:  # an error raised here removes the file
            if error is not None:
                raise error
            if self.num_written < self.num_images:
                raise ValueError(
                    f"{self.path} takes {self.num_images} images, got {self.num_written}."
                )


def write_statistics(
    path: str | Path,
    statistics: GaussianStatistics,
    spatial: GaussianStatistics | None = None,
    images: torch.Tensor | None = None,
) -> None:
    """Writes a reference batch for ADM's evaluator and `ReferenceBatch`.

    ADM's evaluator needs all of the parts; its own files have 10,000 images.

    Args:
        path: Path of the file, which must not exist.
        statistics: Statistics of the pooled features.
        spatial: Statistics of the spatial features.
        images: uint8 `(N, 3, H, H)`.
    """
    arrays = {}
    for (mu, sigma), side in zip(MOMENTS, (statistics, spatial), strict=True):
        if side is not None:
            arrays |= {mu: side.mean.cpu().numpy(), sigma: side.covariance.cpu().numpy()}
    if images is not None:
        if images.dtype != torch.uint8:
            raise TypeError(f"Images must be uint8 in [0, 255], got {images.dtype}.")
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"Images must have shape (N, 3, H, H), got {tuple(images.shape)}.")
        arrays[IMAGES] = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    refuse_existing(path)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def refuse_existing(path: str | Path) -> None:
    """Raises `FileExistsError` if the path exists."""
    if Path(path).exists():
        raise FileExistsError(f"{path} exists already: choose another name, or delete it.")


def read_moments(
    arrays: np.lib.npyio.NpzFile, mu: str, sigma: str, path: Path
) -> GaussianStatistics | None:
    """Reads the statistics with these names; `None` if the file has none. Raises `ValueError` if
    only one is there or their shapes do not match."""
    present = [name for name in (mu, sigma) if name in arrays]
    if len(present) == 1:
        raise ValueError(f"{path} must hold {mu} and {sigma} or neither, got {present[0]} alone.")
    if not present:
        return None
    try:
        return GaussianStatistics.from_moments(arrays[mu], arrays[sigma])
    except ValueError as error:
        raise ValueError(f"{mu} and {sigma} of {path}: {error}") from error


def read_images_header(stream: IO[bytes], path: Path) -> tuple[int, int]:
    """Reads the header of the array of images and returns their number and side; raises
    `ValueError` if it does not hold images. The stream is left at the first value.
    """
    version = np.lib.format.read_magic(stream)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran_order, dtype = read_header(stream)
    if dtype != np.uint8:
        raise ValueError(
            f"The images of {path} must be uint8 in [0, 255], got {dtype}; convert float images in "
            '[0, 1] by `(images * 255).round().astype("uint8")`.'
        )
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"The images of {path} must have shape (N, H, H, 3), channels last, got {shape}."
        )
    if fortran_order:
        raise ValueError(
            f"The images of {path} are in Fortran order; save `np.ascontiguousarray` of them."
        )
    return shape[0], shape[1]
