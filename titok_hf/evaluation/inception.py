"""The Inception network that FID is defined on (arXiv 1706.08500)."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ..devices import default_device
from ..hub.hashes import file_sha256
from ..modeling.loading import load_strictly
from ..perceptual.published_weights import INCEPTION, find_weights, load_weights
from .extractors import INCEPTION as NAME
from .extractors import Extracted, FeatureExtractor, check_images, float32_convolutions

INPUT_SIZE = 299
NUM_SPATIAL_CHANNELS = (
    7  # of 192: ADM's choice, which keeps the size near that of the other features
)
PREPROCESSING = {
    "tensorflow": "bilinear resize to 299x299 as in TensorFlow 1 (corners not aligned, no half-pixel centers, no "
    "antialiasing), (x - 128) / 128",
    "pytorch-fid": "x / 255, bilinear resize to 299x299 (corners not aligned, half-pixel centers, no antialiasing), "
    "2x - 1",
}


class ConvNormReLU(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **kwargs: Any
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average_pool(x: torch.Tensor) -> torch.Tensor:
    """3x3 average pooling that leaves the padding out of the mean, as TensorFlow does."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    """Maps `(B, C, 35, 35)` to `(B, 224 + pool_channels, 35, 35)` with 5x5 convolutions and pairs
    of 3x3 convolutions."""

    def __init__(self, in_channels: int, pool_channels: int):
        super().__init__()
        self.branch1x1 = ConvNormReLU(in_channels, 64, 1)
        self.branch5x5_1 = ConvNormReLU(in_channels, 48, 1)
        self.branch5x5_2 = ConvNormReLU(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormReLU(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormReLU(96, 96, 3, padding=1)
        self.branch_pool = ConvNormReLU(in_channels, pool_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        three_twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = self.branch_pool(average_pool(x))
        return torch.cat([one, five, three_twice, pool], dim=1)


class InceptionB(nn.Module):
    """Maps `(B, 288, 35, 35)` to `(B, 768, 17, 17)` (arXiv 1512.00567, figure 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = ConvNormReLU(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormReLU(288, 64, 1)
        self.branch3x3dbl_2 = ConvNormReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormReLU(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3(x)
        three_twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([three, three_twice, F.max_pool2d(x, 3, stride=2)], dim=1)


class InceptionC(nn.Module):
    """Maps `(B, 768, 17, 17)` to the same shape, with 7x7 convolutions factorized into 1x7 and 7x1
    (arXiv 1512.00567, figure 6)."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch1x1 = ConvNormReLU(768, 192, 1)
        self.branch7x7_1 = ConvNormReLU(768, channels, 1)
        self.branch7x7_2 = ConvNormReLU(channels, channels, (1, 7), padding=(0, 3))
        self.branch7x7_3 = ConvNormReLU(channels, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = ConvNormReLU(768, channels, 1)
        self.branch7x7dbl_2 = ConvNormReLU(channels, channels, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = ConvNormReLU(channels, channels, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = ConvNormReLU(channels, channels, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = ConvNormReLU(channels, 192, (1, 7), padding=(0, 3))
        self.branch_pool = ConvNormReLU(768, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.branch1x1(x)
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        seven_once = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        seven_twice = self.branch7x7dbl_5(self.branch7x7dbl_4(seven_once))
        pool = self.branch_pool(average_pool(x))
        return torch.cat([one, seven, seven_twice, pool], dim=1)


class InceptionD(nn.Module):
    """Maps `(B, 768, 17, 17)` to `(B, 1280, 8, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNormReLU(768, 192, 1)
        self.branch3x3_2 = ConvNormReLU(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormReLU(768, 192, 1)
        self.branch7x7x3_2 = ConvNormReLU(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNormReLU(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNormReLU(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], dim=1)


class InceptionE(nn.Module):
    """Maps `(B, C, 8, 8)` to `(B, 2048, 8, 8)` (arXiv 1512.00567, figure 7).

    Args:
        in_channels: `C`.
        max_pool: Whether to pool by the maximum instead of the average, as the last block of the
            2015 graph does.
    """

    def __init__(self, in_channels: int, max_pool: bool = False):
        super().__init__()
        self.max_pool = max_pool
        self.branch1x1 = ConvNormReLU(in_channels, 320, 1)
        self.branch3x3_1 = ConvNormReLU(in_channels, 384, 1)
        self.branch3x3_2a = ConvNormReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNormReLU(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNormReLU(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNormReLU(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNormReLU(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvNormReLU(in_channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.branch1x1(x)
        three = self.branch3x3_1(x)
        three_twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pool = self.branch_pool(
            F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else average_pool(x)
        )
        branches = [
            one,
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(three_twice),
            self.branch3x3dbl_3b(three_twice),
            pool,
        ]
        return torch.cat(branches, dim=1)


class FIDInceptionV3(nn.Module):
    """The Inception v3 of TensorFlow's graph of 2015-12-05, `classify_image_graph_def.pb`, with its
    1008 classes.

    It differs from the paper's network (arXiv 1512.00567) and torchvision's: average pools do not
    count their padding, and the last block pools by the maximum. Parameters have torchvision's
    names, as in the file of the ported weights that torch-fidelity and pytorch-fid publish.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormReLU(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormReLU(80, 192, 3)
        self.Mixed_5b = InceptionA(192, pool_channels=32)
        self.Mixed_5c = InceptionA(256, pool_channels=64)
        self.Mixed_5d = InceptionA(288, pool_channels=64)
        self.Mixed_6a = InceptionB()
        self.Mixed_6b = InceptionC(128)
        self.Mixed_6c = InceptionC(160)
        self.Mixed_6d = InceptionC(160)
        self.Mixed_6e = InceptionC(192)
        self.Mixed_7a = InceptionD()
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: torch.Tensor) -> Extracted:
        """Computes features of images `(B, 3, 299, 299)` in [-1, 1].

        Returns:
            In the names of TensorFlow's graph: `features` `(B, 2048)`, `pool_3`; `spatial`
            `(B, 2023)`, the first 7 channels of `mixed_6/conv`, in the order height, width, channel
            (evaluations/evaluator.py of openai/guided-diffusion); `logits` `(B, 1008)`, without the
            bias (same file, and the code of arXiv 1606.03498).
        """
        # stem
        x = self.Conv2d_1a_3x3(x)  # (B, 32, 149, 149)
        x = self.Conv2d_2a_3x3(x)  # (B, 32, 147, 147)
        x = self.Conv2d_2b_3x3(x)  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        x = self.Conv2d_3b_1x1(x)  # (B, 80, 73, 73)
        x = self.Conv2d_4a_3x3(x)  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        # Inception blocks on 35x35
        x = self.Mixed_5b(x)  # (B, 256, 35, 35)
        x = self.Mixed_5c(x)  # (B, 288, 35, 35)
        x = self.Mixed_5d(x)  # (B, 288, 35, 35)
        # 17x17
        x = self.Mixed_6a(x)  # (B, 768, 17, 17)
        x = self.Mixed_6b(x)  # (B, 768, 17, 17)
        x = self.Mixed_6c(x)  # (B, 768, 17, 17)
        x = self.Mixed_6d(x)  # (B, 768, 17, 17), `mixed_6/conv` first: the 1x1 branch
        spatial = x[:, :NUM_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 17 * 17 * 7)
        x = self.Mixed_6e(x)  # (B, 768, 17, 17)
        # 8x8
        x = self.Mixed_7a(x)  # (B, 1280, 8, 8)
        x = self.Mixed_7b(x)  # (B, 2048, 8, 8)
        x = self.Mixed_7c(x)  # (B, 2048, 8, 8)
        features = x.mean((2, 3))  # (B, 2048)
        return Extracted(features=features, spatial=spatial, logits=features @ self.fc.weight.T)


class InceptionExtractor(FeatureExtractor):
    """The features of FID, sFID and Inception Score, in float32.

    Args:
        weights: File of the weights, local or `owner/repository/path/of/file` on the Hub; if not
            given, torch-fidelity's, from torch's cache or downloaded.
        preprocessing: `"tensorflow"` resizes like TensorFlow, ADM's evaluator and torch-fidelity,
            `"pytorch-fid"` like that package. The two give different FIDs.
        device: Device to compute on; by default the accelerator if there is one.
    """

    name = NAME
    num_features = 2048
    num_spatial = 2023
    num_classes = 1008
    input_size = INPUT_SIZE

    def __init__(
        self,
        weights: str | Path | None = None,
        preprocessing: Literal["tensorflow", "pytorch-fid"] = "tensorflow",
        device: str | torch.device | None = None,
    ):
        if preprocessing not in PREPROCESSING:
            raise ValueError(
                f"`preprocessing` must be one of {', '.join(PREPROCESSING)}, got {preprocessing!r}."
            )
        self.preprocessing = preprocessing
        self.device = torch.device(device or default_device())
        file = find_weights(INCEPTION, weights)
        network = FIDInceptionV3()
        load_strictly(network, load_weights(file))
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.weights = file.name if weights is None or Path(weights).is_file() else str(weights)
        self.weights_sha256 = file_sha256(file)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Extracted:
        check_images(images)
        images = images.to(self.device).float()
        if self.preprocessing == "tensorflow":
            pixel_values = (resize_like_tensorflow(images, INPUT_SIZE) - 128) / 128
        else:
            pixel_values = (
                2 * F.interpolate(images / 255, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear") - 1
            )
        with float32_convolutions():
            return self.network(pixel_values)

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "preprocessing": PREPROCESSING[self.preprocessing],
        }


def resize_like_tensorflow(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes bilinearly at the positions `i * length / size`, as `resize_bilinear` of TensorFlow 1
    does by default.

    Source: tensorflow/core/kernels/resize_bilinear_op.cc. Pixels lie at integers, not at half
    integers, and the last ones repeat, so the result is shifted by up to half a pixel against
    PyTorch's.

    Args:
        images: Float images `(B, C, H, W)`.
        size: Side of the square result.
    """
    for dim in (3, 2):
        length = images.shape[dim]
        position = torch.arange(size, dtype=torch.float32, device=images.device) * (length / size)
        low = position.long()
        fraction = (position - low).view(-1, 1) if dim == 2 else position - low
        below, above = (
            images.index_select(dim, low),
            images.index_select(dim, (low + 1).clamp_max(length - 1)),
        )
        images = below + (above - below) * fraction
    return images
