"""LPIPS: perceptual distance of images in VGG16's features (arXiv 1801.03924, version 0.1)."""

from collections.abc import Mapping

import torch
from torch import nn

from ..modeling.loading import load_strictly

# Channels of VGG16's convolutions between its max pools (arXiv 1409.1556, table 1, column D).
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MIN_SIZE = 16  # four max pools halve it to 1


class Head(nn.Module):
    """Learned per-channel weight (1x1 convolution); `Identity` replaces the reference's dropout."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class LPIPS(nn.Module):
    """Distance of images to their targets: the weighted squared difference of normalized VGG16
    features.

    Parameters are frozen but gradients flow to the images, so it is a loss as well as a metric. It
    equals the package `lpips` with `net="vgg"` and its copy in taming-transformers. Parameters have
    the names of the published files: `features.N.weight` and `features.N.bias` of VGG16,
    `lin0.model.1.weight` to `lin4.model.1.weight` of the heads.
    """

    def __init__(self) -> None:
        super().__init__()
        # ImageNet's mean and standard deviation for images in [-1, 1] (the reference's
        # `ScalingLayer`)
        self.register_buffer(
            "shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False
        )
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # indices of the last ReLU of each stage
        in_channels = 3
        for stage in VGG16_STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for channels in stage:
                layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
                in_channels = channels
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        for index, stage in enumerate(VGG16_STAGES):
            self.add_module(f"lin{index}", Head(stage[-1]))
        self.requires_grad_(False)

    @classmethod
    def from_state_dicts(
        cls, backbone: Mapping[str, torch.Tensor], heads: Mapping[str, torch.Tensor]
    ) -> "LPIPS":
        """Builds the network with published weights.

        Args:
            backbone: Weights of torchvision's VGG16, with or without its classifier.
            heads: The reference's linear heads for VGG16, `vgg.pth` of version 0.1.

        Raises:
            ValueError: If a tensor is missing, unexpected or misshapen.
        """
        features = {
            name: tensor for name, tensor in backbone.items() if not name.startswith("classifier.")
        }
        network = cls()
        load_strictly(network, {**features, **heads})
        return network

    def normalized_features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features `(B, C, h, w)` of each stage, with unit norm at each position."""
        x = (images - self.shift) / self.scale
        features = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.ends:
                features.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return features

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Computes the distance `(B,)` of each image to its target, 0 for equal images.

        Args:
            images, targets: Float images `(B, 3, H, W)` in [-1, 1], of at least 16x16 pixels.
        """
        if not (torch.is_floating_point(images) and torch.is_floating_point(targets)):
            raise TypeError(
                f"LPIPS needs float images in [-1, 1], got {images.dtype} and {targets.dtype}."
            )
        shape = tuple(images.shape)
        if (
            shape != tuple(targets.shape)
            or len(shape) != 4
            or shape[1] != 3
            or min(shape[2:]) < MIN_SIZE
        ):
            raise ValueError(
                "LPIPS needs images and targets of one shape (batch, 3, height, width), of at "
                f"least {MIN_SIZE}x{MIN_SIZE} pixels, got {shape} and {tuple(targets.shape)}."
            )
        distance = images.new_zeros(len(images))
        pairs = zip(
            self.normalized_features(images), self.normalized_features(targets), strict=True
        )
        for index, (x, y) in enumerate(pairs):
            distance = distance + self.get_submodule(f"lin{index}")((x - y).square()).mean(
                (1, 2, 3)
            )  # (B,)
        return distance
