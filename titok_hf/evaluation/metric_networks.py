"""The networks that the metrics of a protocol need."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..devices import default_device
from ..hub.hashes import state_sha256
from ..perceptual.lpips import LPIPS
from ..perceptual.published_weights import load_lpips
from ..progress import working
from ..settings import check_keys, load_yaml
from .digits import DigitsExtractor
from .extractors import FeatureExtractor
from .inception import InceptionExtractor
from .metrics.psnr_ssim import import_ssim
from .protocol import REFERENCE_METRICS, Protocol
from .vision_extractor import Preparation, VisionExtractor

ENCODERS: dict[str, dict[str, Any]] = load_yaml(Path(__file__).with_name("fdr6.yaml"))
"""The encoders of FDr6 by name."""


@working("loading extractor")
def load_extractor(
    name: str, weights: str | Path | None = None, device: str | torch.device | None = None
) -> FeatureExtractor:
    """Loads an extractor by its name.

    Args:
        name: `"inception"`, the network of FID, as ADM's and TiTok's evaluations use it;
            `"inception-pytorch-fid"`, the same with pytorch-fid's resizing; `"digits"` or `"emoji"`,
            the judges of these data sets; `"fdr6:inception"` and so on, the encoders of FDr6; or a
            folder or Hub repository of a transformers vision model, such as
            `"facebook/dinov2-large"`, optionally with a revision, as in `"owner/model@revision"`.
        weights: Inception's weights: a file, or a file on the Hub as `owner/repo/file`; if not
            given, see `find_weights`.
        device: Device to compute on; by default the accelerator if there is one.

    Raises:
        OSError: If the weights are missing; the error says where they should be.
        ValueError: If they belong to another network.
    """
    device = device or default_device()
    if name.startswith("fdr6:"):
        check_keys("fdr6", {name.removeprefix("fdr6:"): None}, ENCODERS)
        encoder = dict(ENCODERS[name.removeprefix("fdr6:")])
        del encoder["validation"]
        if "extractor" in encoder:
            return load_extractor(encoder["extractor"], weights, device)
        model = encoder.pop("model")
        return VisionExtractor(model, device=device, preparation=Preparation(**encoder))
    if name.startswith("inception"):
        names = {"inception": "tensorflow", "inception-pytorch-fid": "pytorch-fid"}
        if name not in names:
            raise ValueError(
                f"The extractor must be one of {', '.join(names)}, digits, emoji or a model, got {name!r}."
            )
        return InceptionExtractor(weights, names[name], device)
    if name == "digits":
        return DigitsExtractor()
    if name == "emoji":
        from .emoji import EmojiExtractor  # needs optional libraries

        return EmojiExtractor(device)
    model, _, revision = name.partition("@")
    return VisionExtractor(model, revision or None, device)


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that the metrics of a protocol need.

    Args:
        extractor: Network for metrics on features.
        classifier: Network for `accuracy`, if that is not the extractor.
        lpips: Network for `lpips`.
    """

    extractor: FeatureExtractor | None = None
    classifier: FeatureExtractor | None = None
    lpips: LPIPS | None = None

    @classmethod
    def load(
        cls,
        protocol: Protocol,
        metrics: Sequence[str],
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> "MetricNetworks":
        """Loads the networks that some metrics of a protocol need.

        Args:
            protocol: Names the networks.
            metrics: The metrics.
            weights: Weights of the extractor, see `load_extractor`.
            device: Device to compute on; by default the accelerator if there is one.

        Raises:
            ImportError: If `ssim` is among the metrics, and torchmetrics is not installed.
            OSError: If weights are missing; the error says where they should be.
            ValueError: If they belong to another network.
        """
        if "ssim" in metrics:
            import_ssim()
        device = device or default_device()
        on_features = {*REFERENCE_METRICS, "inception_score"} | (
            {"accuracy"} if protocol.classifier is None else set()
        )
        named = protocol.classifier if "accuracy" in metrics else None
        return cls(
            load_extractor(protocol.extractor, weights, device)
            if on_features & set(metrics)
            else None,
            load_extractor(named, device=device) if named else None,
            load_lpips().to(device) if "lpips" in metrics else None,
        )

    def identities(self) -> dict[str, dict[str, Any]]:
        """Returns the fields that describe the networks in a result."""
        said = {}
        if self.extractor is not None:
            said["extractor"] = self.extractor.identity()
        if self.classifier is not None:
            said["classifier"] = self.classifier.identity()
        if self.lpips is not None:
            said["lpips"] = {"name": "LPIPS 0.1, VGG16", "weights_sha256": state_sha256(self.lpips)}
        return said
