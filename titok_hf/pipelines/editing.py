"""Editing images by their tokens: drawing some anew, swapping, interpolating, what a token paints."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .pipeline_titok import TiTokPipeline, TiTokPipelineOutput


def complete(
    pipeline: TiTokPipeline,
    codes: torch.Tensor,
    tokens: Sequence[int],
    class_labels: int | str | Sequence[int | str],
    **arguments: Any,
) -> TiTokPipelineOutput:
    """Draws some tokens of images anew, as images of given classes; the others stay.

    Args:
        pipeline: The pipeline.
        codes: `(B, N)`.
        tokens: Places of the tokens to draw.
        class_labels: Classes, by id or name, one for each image.
        arguments: Further arguments of the pipeline's call, such as `generator`.

    Raises:
        ValueError: If a place is not one of the N tokens; see also the pipeline.
    """
    check_places(tokens, codes.shape[1])
    masked = codes.clone()
    masked[:, list(tokens)] = pipeline.transformer.config.mask_token_id
    return pipeline(class_labels, codes=masked, **arguments)


def swap_tokens(
    first: torch.Tensor, second: torch.Tensor, tokens: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exchanges some tokens of two images.

    Args:
        first, second: Codes `(N,)`, or `(B, N)`, of one tokenizer.
        tokens: Places of the tokens to exchange.

    Returns:
        Both codes with those of the other in these places.

    Raises:
        ValueError: If a place is not one of the N tokens.
    """
    check_places(tokens, first.shape[-1])
    chosen = torch.zeros(first.shape[-1], dtype=torch.bool, device=first.device)
    chosen[list(tokens)] = True
    return torch.where(chosen, second, first), torch.where(chosen, first, second)


def check_places(tokens: Sequence[int], count: int) -> None:
    """Raises `ValueError` if a place is not one of `count` tokens."""
    if wrong := [token for token in tokens if not 0 <= token < count]:
        raise ValueError(f"`tokens` must be places from 0 to {count - 1}, got {wrong[0]}.")


@torch.no_grad()
def interpolate(
    tokenizer: nn.Module, first: torch.Tensor, second: torch.Tensor, num_images: int = 8
) -> torch.Tensor:
    """Decodes images from the straight line between the latents of two images.

    Latents between those of codes are no codes, but decode all the same.

    Args:
        tokenizer: A tokenizer of any family.
        first, second: Images `(3, H, W)` in the range that the tokenizer takes.
        num_images: Number of images, with both ends; at least 2.

    Returns:
        `(num_images, 3, H, W)`, in the tokenizer's range.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if num_images < 2:
        raise ValueError(f"`num_images` must be at least 2, for both ends, got {num_images}.")
    latents = tokenizer.encode(torch.stack([first, second])).latents  # (2, ...)
    shares = torch.linspace(0, 1, num_images, device=latents.device, dtype=latents.dtype)
    shares = shares.view(-1, *[1] * (latents.ndim - 1))
    return tokenizer.decode(torch.lerp(latents[:1], latents[1:], shares)).reconstruction


def interpolate_classes(
    pipeline: TiTokPipeline,
    first: int | str,
    second: int | str,
    num_images: int = 8,
    seed: int = 0,
    **arguments: Any,
) -> TiTokPipelineOutput:
    """Generates images that go from one class to another: the first is one of the first class, the last
    one of the second, and those between keep ever fewer tokens of the first image, while the others
    are drawn as the second class.

    Args:
        pipeline: The pipeline.
        first, second: Classes, by id or name.
        num_images: Number of images, with both ends; at least 2.
        seed: Random seed, of the images and of the order in which tokens are given up.
        arguments: Further arguments of the pipeline's call, such as `guidance_scale`.

    Raises:
        ValueError: If there are fewer than two images; see also the pipeline.
    """
    if num_images < 2:
        raise ValueError(f"`num_images` must be at least 2, for both ends, got {num_images}.")
    generators = [torch.Generator().manual_seed(seed) for _ in range(num_images)]
    alone = arguments | {"generator": generators[:1], "output_type": "codes"}
    start = pipeline(first, **alone).codes  # (1, N)
    count = start.shape[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(start.device)
    masked = start.repeat(num_images, 1)  # (num_images, N)
    for image, codes in enumerate(masked):
        given_up = round(image * count / (num_images - 1))
        codes[order[:given_up]] = pipeline.transformer.config.mask_token_id
    labels = [first] + [second] * (num_images - 1)
    return pipeline(labels, codes=masked, generator=generators, **arguments)


@torch.no_grad()
def token_influence(
    tokenizer: nn.Module,
    codes: torch.Tensor,
    num_samples: int = 4,
    generator: torch.Generator | None = None,
    tokens: Sequence[int] | None = None,
) -> torch.Tensor:
    """Measures what each token of an image paints: how much each pixel changes, on average, when the
    token is replaced by random codes.

    Args:
        tokenizer: A discrete tokenizer.
        codes: Codes of an image `(N,)`.
        num_samples: Number of random codes for each token.
        generator: Draws the codes, on the CPU.
        tokens: Places of the tokens to measure; all N if not given.

    Returns:
        Mean absolute changes `(N, H, W)`, over samples and colors, of these tokens.

    Raises:
        ValueError: If a place is not one of the tokens.
    """
    tokens = range(len(codes)) if tokens is None else tokens
    check_places(tokens, len(codes))
    count = len(codes)
    size = (count, num_samples)
    drawn = torch.randint(tokenizer.config.codebook_size, size, generator=generator)
    original = tokenizer.decode_codes(codes[None]).reconstruction  # (1, 3, H, W)
    maps = []
    for token in tokens:
        changed = codes.repeat(num_samples, 1)  # (num_samples, N)
        changed[:, token] = drawn[token].to(codes.device)
        difference = tokenizer.decode_codes(changed).reconstruction - original
        maps.append(difference.abs().mean((0, 1)))
    return torch.stack(maps)


__all__ = ["complete", "interpolate", "interpolate_classes", "swap_tokens", "token_influence"]
