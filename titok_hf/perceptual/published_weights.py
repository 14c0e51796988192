"""Finds the weights of metric networks: a given file, torch's cache, or a download."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from ..hub.errors import explain_hub_errors
from .lpips import LPIPS


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights.

    Args:
        names: Possible names in torch's cache, `torch.hub.get_dir()/checkpoints`; a download gets
            the first.
        url: Download address.
        sha256: Its SHA-256 in hex, or the first digits of it, at least 8.
    """

    names: tuple[str, ...]
    url: str
    sha256: str


# torch-fidelity and pytorch-fid publish the same file under two names.
INCEPTION = WeightsFile(
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
)
VGG16 = WeightsFile(
    ("vgg16-397923af.pth",), "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"
)
# Published as `vgg.pth`, a name too vague for a cache that all networks share. BSD-2-Clause.
LPIPS_HEADS = WeightsFile(
    ("lpips-v0.1-vgg-a78928a0.pth",),
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)


def find_weights(published: WeightsFile, given: str | Path | None = None) -> Path:
    """Returns the local file of a network's weights, downloading it if necessary.

    Args:
        published: File to use if none is given, from torch's cache or else its download address.
        given: A local file, or a file on the Hub as `owner/repository/path/of/file`.

    Raises:
        FileNotFoundError: If the given file is neither local nor on the Hub, or the download
            failed; the error then says where to get the file and where to put it.
        OSError: If the Hub refused or cannot be reached.
    """
    if given is not None:
        return find_given(given)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in published.names:
        if (folder / name).is_file():
            return folder / name
    target = folder / published.names[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(target), hash_prefix=published.sha256)
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash differs
        raise FileNotFoundError(
            f"{published.url} could not be downloaded ({error}): get it elsewhere and put it at "
            f"{target}."
        ) from error
    return target


def find_given(given: str | Path) -> Path:
    """Returns a local file, or downloads one from the Hub, see `find_weights`."""
    if Path(given).is_file():
        return Path(given)
    parts = str(given).split("/")
    if isinstance(given, Path) or len(parts) < 3 or not all(parts) or parts[0] in (".", "..", "~"):
        raise FileNotFoundError(
            f"There is no file {given}. Weights are a local file, or one on the Hub: "
            "owner/repository/path/of/file."
        )
    repo_id = "/".join(parts[:2])
    try:
        with explain_hub_errors(repo_id):
            return Path(hf_hub_download(repo_id, "/".join(parts[2:])))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no local file {given}. {error}") from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Loads the tensors of a file, by name, on the CPU.

    Args:
        path: A safetensors file, or a file of `torch.save`, from which only tensors are read.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If the file is corrupt, has another format, or holds anything but named tensors.
    """
    with path.open("rb") as file:
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises all kinds: KeyError, IndexError, OSError, …
            raise ValueError(
                f"{path} is corrupt, or not a file of tensors: expected safetensors or a state dict "
                f"saved by torch.save ({type(error).__name__}). Get it again."
            ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        held = list(tensors)[:5] if isinstance(tensors, dict) else type(tensors).__name__
        raise ValueError(f"{path} must hold a dict of tensors by name, got {held}.")
    return dict(tensors)


def load_lpips(backbone: str | Path | None = None, heads: str | Path | None = None) -> LPIPS:
    """Loads LPIPS with published weights.

    Args:
        backbone: File of torchvision's VGG16, local or on the Hub, see `find_weights`; downloaded
            if not given.
        heads: File of the linear heads, `vgg.pth` of version 0.1; downloaded if not given.

    Raises:
        OSError: If a file cannot be found, see `find_weights`.
        ValueError: If a file is corrupt, or holds the weights of another network.
    """
    files = find_weights(VGG16, backbone), find_weights(LPIPS_HEADS, heads)
    return LPIPS.from_state_dicts(*(load_weights(file) for file in files)).eval()
