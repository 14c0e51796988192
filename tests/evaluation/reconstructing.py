"""Reconstructions of digits and their errors by hand, and the protocol that measures them."""

import math

import torch

from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import Protocol
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.image_sources import DatasetImages
from titok_hf.modeling.vtp import VTPForImageReconstruction

DIGITS = DigitsExtractor()


def protocol(*metrics, **fields):
    """The demo's, truncated, with other metrics."""
    fields = {"rounding": "truncate", **fields}
    changes = [f"{name}={value}" for name, value in fields.items()]
    return Protocol.load("demo", [f"metrics.reconstruction=[{','.join(metrics)}]", *changes])


def digits(num_images):
    """Source and pixels of held-out digits."""
    dataset = load_digits_dataset()["test"]
    source = DatasetImages(dataset, protocol("psnr"), label_column="label", num_images=num_images)
    return source, torch.cat([batch.images for batch in source.batches(512)])


@torch.no_grad()
def truncated(tokenizer, images, batch_size=16, autocast=False):
    """Reconstructions of uint8 images, by hand."""
    vtp = isinstance(tokenizer, VTPForImageReconstruction)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if vtp else ([0] * 3, [1] * 3)
    mean, std = (torch.tensor(each)[:, None, None] for each in (mean, std))
    found = []
    for batch in images.split(batch_size):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            latents = tokenizer.encode((batch / 255 - mean) / std).latents
        pixels = tokenizer.decode(latents.float()).reconstruction * std + mean
        found.append((255 * pixels.clamp(0, 1)).floor().to(torch.uint8))
    return torch.cat(found)


def squared_errors(images, targets):
    """Returns the error of each image on the scale of 0 to 255."""
    pairs = zip(images.numpy(), targets.numpy(), strict=True)
    return [((image.astype(float) - target.astype(float)) ** 2).mean() for image, target in pairs]


def decibels(errors):
    return [10 * math.log10(255**2 / error) for error in errors]
