"""An extractor from any vision model of transformers, such as DINOv2 for FD-DINOv2."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPVisionModel,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import ModelOutput, cached_file

from ..devices import default_device
from ..hub.errors import explain_loading_errors
from ..hub.hashes import state_sha256
from .extractors import Extracted, FeatureExtractor, check_images, float32_convolutions

# The image parts of models of images and texts, by model type.
VISION_PARTS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}


@dataclass(frozen=True)
class Preparation:
    """Tells how images are prepared and features are pooled, where it is not the model's own way: images in
    [0, 1] are resized in torch (bicubic, antialiased), as FDr6 (arXiv 2604.28190) does.

    Args:
        image_size: Side of the resized images.
        padded_size: Side to which normalized images are padded with zeros, below and to the right, so
            that patches divide it; not padded if not given. Positions are resized to the patches
            (bicubic, antialiased), as timm does.
        pooled: Whether features are the model's `pooler_output`, if it has one; otherwise they are
            those of the last layer.
    """

    image_size: int
    padded_size: int | None = None
    pooled: bool = True


class VisionExtractor(FeatureExtractor):
    """Extracts the features of a vision model, and its logits if it is a classifier, in float32.

    The features are the model's own summary of an image, `pooler_output`; for DINOv2 that is the
    CLS token after the final norm, as in FD-DINOv2 (arXiv 2306.04675). If the model has no pooler
    they are the CLS token, and without that the mean over positions. Whole images are resized to a
    square by PIL's bicubic filter, as in that paper's code, dgm-eval. One thing differs: DINOv2 of
    transformers interpolates the 37x37 position embeddings to exactly 16x16, where the original
    code (dinov2/models/vision_transformer.py) scales them by 16.1 / 37.

    Args:
        model: Folder or Hub repository of the model and its image processor, such as
            `"facebook/dinov2-large"`. It is loaded as a classifier if its configuration names one.
        revision: Branch, tag or commit on the Hub.
        device: Device to compute on; by default the accelerator if there is one.
        preparation: Another preparation of images and features than the one above.

    Raises:
        ValueError: If it is not a vision model, lacks weights, or does not take square images.
    """

    def __init__(
        self,
        model: str | Path,
        revision: str | None = None,
        device: str | torch.device | None = None,
        preparation: Preparation | None = None,
    ):
        self.preparation = preparation
        self.device = torch.device(device or default_device())
        with explain_loading_errors(model):
            config = AutoConfig.from_pretrained(model, revision=revision)
            classifies = any(
                name.endswith("ForImageClassification") for name in config.architectures or ()
            )
            auto_class = AutoModelForImageClassification if classifies else AutoModel
            auto_class = VISION_PARTS.get(config.model_type, auto_class)
            network, info = auto_class.from_pretrained(
                model, revision=revision, dtype=torch.float32, output_loading_info=True
            )
            processor = AutoImageProcessor.from_pretrained(model, revision=revision)
            snapshot = Path(
                cached_file(model, "config.json", revision=revision)
            ).parent  # the cached snapshot, named after its commit
        if network.main_input_name != "pixel_values":
            raise ValueError(
                f"{model} must be a vision model, one that takes images alone; it is a "
                f"{type(network).__name__}, which takes {network.main_input_name!r}."
            )
        missing = sorted(info["missing_keys"])
        if missing and all(name.startswith("pooler.") for name in missing):
            network.pooler = (
                None  # checkpoints of self-supervised training, such as DINO's, have no pooler
            )
        elif missing:
            raise ValueError(
                f"{len(missing)} weights are missing in {model}, {', '.join(missing[:3])} among "
                "them."
            )
        if config.model_type == "vit_mae":
            network.config.mask_ratio = 0.0  # otherwise it sees a random quarter of the image
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.has_cls_token = any(
            name.endswith("cls_token") for name, _ in network.base_model.named_parameters()
        )
        self.input_size = preparation.image_size if preparation else input_size(processor)
        self.scale = processor.rescale_factor
        mean, std = (
            (processor.image_mean, processor.image_std)
            if processor.do_normalize
            else ([0.0] * 3, [1.0] * 3)
        )
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (mean, std)
        )

        folder = Path(model).is_dir()
        self.name = Path(model).name if folder else str(model)
        self.weights = self.name if folder else f"{model}@{snapshot.name}"
        self.weights_sha256 = state_sha256(network)
        self.preprocessing = (
            f"{'antialiased' if preparation else 'PIL'} bicubic resize to "
            f"{self.input_size}x{self.input_size}, x * {self.scale:.7g}, "
            f"mean {list(mean)}, standard deviation {list(std)}"
        )
        if preparation:
            side = preparation.padded_size or preparation.image_size
            self.preprocessing += f", padded to {side}x{side}"
            resize_positions(self.network, side)
        black = torch.zeros(1, 3, self.input_size, self.input_size, dtype=torch.uint8)
        seen = self(black)
        self.num_features = seen.features.shape[1]
        if seen.logits is not None:
            self.num_classes = seen.logits.shape[1]
            self.class_names = [config.id2label[index] for index in range(self.num_classes)]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Extracted:
        check_images(images)
        pixel_values = self.prepare(images) if self.preparation else self.resized_by_pil(images)
        outputs: list[ModelOutput] = []  # a classifier does not return the output of its backbone
        hook = self.network.base_model.register_forward_hook(
            lambda _module, _inputs, output: outputs.append(output)
        )
        order = {}
        if self.network.config.model_type == "vit_mae":  # keeps the patches in their order
            places = (pixel_values.shape[-1] // self.network.config.patch_size) ** 2
            order["noise"] = torch.arange(places, device=self.device).expand(len(images), -1)
        with hook, float32_convolutions():
            result = self.network(pixel_values, **order)
        return Extracted(features=self.pool(outputs[0]), logits=result.get("logits"))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Returns uint8 images as their `preparation` says, `(B, 3, side, side)`."""
        size = (self.input_size, self.input_size)
        pixels = images.to(self.device).float()
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        pixel_values = (pixels * self.scale - self.mean) / self.std
        added = (self.preparation.padded_size or self.input_size) - self.input_size
        return F.pad(pixel_values, (0, added, 0, added))

    def resized_by_pil(self, images: torch.Tensor) -> torch.Tensor:
        """Returns uint8 images at the model's input size, normalized, `(B, 3, size, size)`."""
        size = (self.input_size, self.input_size)
        pictures = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy())
        resized = np.stack(
            [np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures]
        )
        pixels = (
            torch.from_numpy(resized).to(self.device).permute(0, 3, 1, 2).float()
        )  # (B, 3, size, size)
        return (pixels * self.scale - self.mean) / self.std

    def pool(self, output: ModelOutput) -> torch.Tensor:
        """Returns the features `(B, D)` of a backbone's output."""
        pooled = output.get("pooler_output")
        if pooled is not None and (self.preparation is None or self.preparation.pooled):
            return pooled.flatten(1)  # (B, D), or (B, D, 1, 1) in some models
        hidden = output.last_hidden_state  # (B, N, D) or (B, D, h, w)
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        return hidden[:, 0] if self.has_cls_token else hidden.mean(1)

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing,
        }


def input_size(processor: BaseImageProcessor) -> int:
    """Returns the side of the images that a processor makes; raises `ValueError` if they are not
    square."""
    cropped = getattr(processor, "do_center_crop", False) and processor.crop_size
    size = processor.crop_size if cropped else processor.size
    height, width = size.get("height"), size.get("width")
    if height is None:
        height = width = size.get("shortest_edge")
    if height is None or height != width:
        raise ValueError(f"The image processor must make square images, got the size {dict(size)}.")
    return height


def resize_positions(network: PreTrainedModel, image_size: int) -> None:
    """Resizes the learned positions of a vision transformer to the patches of images of another size
    (bicubic, antialiased); a network without patches keeps what it has."""
    patch_size = getattr(network.config, "patch_size", None)
    if not isinstance(patch_size, int) or image_size % patch_size:
        return
    side = image_size // patch_size
    for module in network.modules():
        for name in ("position_embeddings", "position_embedding"):
            held = getattr(module, name, None)
            table = held.weight if isinstance(held, nn.Embedding) else held
            if not isinstance(table, nn.Parameter):
                continue
            positions = table.detach().view(-1, table.shape[-1])  # (prefix + N, D)
            grid = math.isqrt(len(positions))
            prefix, patches = positions.split([len(positions) - grid**2, grid**2])
            if grid == side:
                continue
            patches = patches.T.unflatten(1, (grid, grid))[None]  # (1, D, grid, grid)
            patches = F.interpolate(patches, (side, side), mode="bicubic", antialias=True)
            resized = torch.cat([prefix, patches[0].flatten(1).T])  # (prefix + side * side, D)
            if isinstance(held, nn.Embedding):
                module.position_embedding = nn.Embedding.from_pretrained(resized)
                module.position_ids = torch.arange(len(resized), device=resized.device)[None]
                module.image_size = image_size
            else:
                module.position_embeddings = nn.Parameter(resized[None], requires_grad=False)
