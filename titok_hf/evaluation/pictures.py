"""Pictures of what tokenizers and generators do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..modeling.titok import TiTokImageProcessor
from ..pipelines import TiTokPipeline

BACKGROUND = (24, 24, 27)
TEXT = (228, 228, 231)


def image_grid(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] = (), zoom: int = 2) -> Image.Image:
    """Rows of images of one size on a dark ground, each row with a label on its left if there are labels."""
    gap = 4
    width, height = (side * zoom for side in rows[0][0].size)
    font = ImageFont.load_default(size=14)
    margin = max((int(font.getlength(label)) for label in labels), default=-2 * gap) + 3 * gap
    columns = max(len(row) for row in rows)
    grid = Image.new("RGB", (margin + columns * (width + gap), gap + len(rows) * (height + gap)), BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for i, row in enumerate(rows):
        top = gap + i * (height + gap)
        if labels:
            draw.text((gap, top + height / 2), labels[i], fill=TEXT, font=font, anchor="lm")
        for j, image in enumerate(row):
            grid.paste(image.resize((width, height), Image.Resampling.NEAREST), (margin + j * (width + gap), top))
    return grid


def token_strip(codes: np.ndarray, codebook_size: int, width: int, height: int) -> Image.Image:
    """One image's codes `(N,)` as a strip of cells, a color a code; masked tokens (`codebook_size`) stay dark."""
    hues = (codes * 157) % 256  # neighboring codes in unlike colors
    cells = np.stack([hues, np.full_like(hues, 150), np.full_like(hues, 235)], axis=-1).astype(np.uint8)
    cells[codes == codebook_size] = (0, 0, 60)
    strip = Image.fromarray(cells[None], mode="HSV").convert("RGB")
    return strip.resize((width, height), Image.Resampling.NEAREST)


def reconstruction_grid(
    originals: torch.Tensor, reconstructions: torch.Tensor, columns: int = 16, pairs: int = 3, zoom: int = 2
) -> Image.Image:
    """Pairs of rows: images `(B, 3, H, W)` in [0, 1] above their reconstructions."""
    processor = TiTokImageProcessor()
    above, below = processor.postprocess(originals), processor.postprocess(reconstructions)
    rows, labels = [], []
    for start in range(0, min(pairs * columns, len(above)), columns):
        rows += [above[start : start + columns], below[start : start + columns]]
        labels += ["image", "from tokens"]
    return image_grid(rows, labels, zoom)


def generation_grid(
    images: Sequence[Image.Image], names: Sequence[str], columns: int = 12, zoom: int = 2
) -> Image.Image:
    """A row for each name, of at most `columns` images; the images come name by name, equally many of each."""
    each = len(images) // len(names)
    rows = [images[start : start + min(each, columns)] for start in range(0, len(images), each)]
    return image_grid(rows, names, zoom)


def unmasking_grid(
    pipeline: TiTokPipeline, class_labels: Sequence[int | str], seed: int = 0, zoom: int = 2
) -> Image.Image:
    """How images come about: a row for each label, a column for each step.

    Each cell shows the image decoded from the codes that the step predicts, and under it the tokens, a color a code,
    those still masked dark.
    """
    steps: list[dict[str, torch.Tensor]] = []
    pipeline(
        class_labels,
        generator=torch.Generator().manual_seed(seed),
        output_type="codes",
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(tensors),
    )
    columns = []
    for tensors in steps:
        with torch.no_grad():
            decoded = pipeline.tokenizer.decode_codes(tensors["predicted_codes"]).reconstruction
        column = []
        for image, codes in zip(pipeline.image_processor.postprocess(decoded), tensors["codes"], strict=True):
            cell = Image.new("RGB", (image.width, image.height + 5), BACKGROUND)
            cell.paste(image, (0, 0))
            codebook_size = pipeline.tokenizer.config.codebook_size
            cell.paste(token_strip(codes.cpu().numpy(), codebook_size, image.width, 4), (0, image.height + 1))
            column.append(cell)
        columns.append(column)
    names = pipeline.generator.config.id2label
    labels = [names[label] for label in pipeline.label_ids(class_labels)]
    return image_grid(list(zip(*columns, strict=True)), labels, zoom)


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Draws each stage's losses, and below them its accuracies and the use of its codebook; needs matplotlib.

    Args:
        histories: The trainer's log of each stage.
        path: Of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(histories), 5.6), layout="constrained")
    axes = figure.subplots(2, len(histories), squeeze=False)
    for column, (stage, history) in enumerate(histories.items()):
        entries = [entry for entry in history if "loss" in entry]
        names = sorted({name for entry in entries for name in entry})
        losses = [name for name in names if name.endswith("loss") and name != "loss"] or (names and ["loss"])
        shares = [name for name in names if name.endswith(("accuracy", "usage"))]
        for axis, shown in ((axes[0, column], losses), (axes[1, column], shares)):
            for name in shown:
                points = [(entry["step"], entry[name]) for entry in entries if name in entry]
                axis.plot(*zip(*points, strict=True), label=name.replace("_", " "))
            axis.grid(alpha=0.3)
            axis.set_xlabel("step")
            if shown:
                axis.legend(fontsize=8)
        axes[0, column].set_title(stage.replace("_", " "))
        if all(entry[name] > 0 for entry in entries for name in losses if name in entry):
            axes[0, column].set_yscale("log")
        axes[1, column].set_ylim(0, 1.02)
        axes[1, column].set_visible(bool(shares))
    figure.savefig(path, dpi=80)
