"""Pictures of reconstructions, generated images, codes and training curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..data.grids import BACKGROUND, generation_grid, image_grid, reconstruction_grid
from ..hub.folders import output_file
from ..pipelines import ClassConditionalPipeline, TiTokPipeline
from ..settings import load_yaml


def token_strip(codes: np.ndarray, codebook_size: int, width: int, height: int) -> Image.Image:
    """Draws one image's codes `(N,)` as a strip of cells with a color per code; masked tokens
    (`codebook_size`) stay dark."""
    hues = (codes * 157) % 256  # neighboring codes get different colors
    cells = np.stack([hues, np.full_like(hues, 150), np.full_like(hues, 235)], axis=-1).astype(
        np.uint8
    )
    cells[codes == codebook_size] = (0, 0, 60)
    strip = Image.fromarray(cells[None], mode="HSV").convert("RGB")
    return strip.resize((width, height), Image.Resampling.NEAREST)


def sampling_steps(
    pipeline: ClassConditionalPipeline, class_labels: Sequence[int | str], **arguments: Any
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Generates images, and draws for each step the images that it has come to.

    Those of a `TiTokPipeline` are decoded from the codes that the step predicts, and have their tokens
    below them as a `token_strip`; those of a `LatentDiTPipeline` are decoded from its latents.

    Args:
        pipeline: The pipeline.
        class_labels: Classes, by id or name.
        arguments: Further arguments of the pipeline's call.

    Returns:
        The images; and for each step, a picture of each.
    """
    steps: list[dict[str, torch.Tensor]] = []
    images = pipeline(
        class_labels,
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(tensors),
        **arguments,
    ).images
    return images, [step_pictures(pipeline, tensors) for tensors in steps]


@torch.no_grad()
def step_pictures(
    pipeline: ClassConditionalPipeline, tensors: Mapping[str, torch.Tensor]
) -> list[Image.Image]:
    """Draws the images that a step has come to, see `sampling_steps`, from what its
    `callback_on_step_end` got."""
    if not isinstance(pipeline, TiTokPipeline):
        return pipeline.decode(pipeline.denormalized(tensors["latents"]), "pil")
    decoded = pipeline.tokenizer.decode_codes(tensors["predicted_codes"]).reconstruction
    codebook_size = pipeline.tokenizer.config.codebook_size
    pictures = []
    for image, codes in zip(
        pipeline.image_processor.postprocess(decoded), tensors["codes"], strict=True
    ):
        picture = Image.new("RGB", (image.width, image.height + 5), BACKGROUND)
        picture.paste(image, (0, 0))
        strip = token_strip(codes.cpu().numpy(), codebook_size, image.width, 4)
        picture.paste(strip, (0, image.height + 1))
        pictures.append(picture)
    return pictures


def patch_colors(patch_tokens: torch.Tensor, height: int, width: int) -> Image.Image:
    """Draws an image's patch tokens `(height * width, D)` as a pixel each: their first three principal
    components are red, green and blue, each from its smallest to its largest value; those that fewer
    patches do not have are 0."""
    centered = patch_tokens - patch_tokens.mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    # a direction's sign is arbitrary: its largest weight is made positive
    first = directions[:3]
    first = first * first.gather(1, first.abs().argmax(1, keepdim=True)).sign()
    scores = centered @ first.T  # (N, 3)
    low, high = scores.amin(0), scores.amax(0)
    colors = ((scores - low) / (high - low).clamp(min=1e-8) * 255).round().byte()
    colors = F.pad(colors, (0, 3 - colors.shape[1]))
    return Image.fromarray(colors.reshape(height, width, 3).numpy())


def unmasking_grid(
    pipeline: ClassConditionalPipeline,
    class_labels: Sequence[int | str],
    seed: int = 0,
    zoom: int = 2,
) -> Image.Image:
    """Draws how images are generated: a row for each label, a column for each of `sampling_steps`."""
    generator = torch.Generator().manual_seed(seed)
    _, columns = sampling_steps(pipeline, class_labels, generator=generator)
    labels, id2label = pipeline.label_ids(class_labels), pipeline.transformer.config.id2label
    names = [id2label[label] for label in labels]
    return image_grid(list(zip(*columns, strict=True)), names, zoom, substitutes=labels)


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Draws each stage's losses, and below them its accuracies and codebook usage, with matplotlib.

    Args:
        histories: The trainer's log of each stage.
        path: Path of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(histories), 5.6), layout="constrained")
    axes = figure.subplots(2, len(histories), squeeze=False)
    for column, (stage, history) in enumerate(histories.items()):
        entries = [entry for entry in history if "loss" in entry]
        names = sorted({name for entry in entries for name in entry})
        losses = [name for name in names if name.endswith("loss") and name != "loss"] or (
            names and ["loss"]
        )
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


def plot_run(run: str | Path, output: str | Path) -> None:
    """Draws the curves of a training run: of its finished stages, and of the one that it trains, up
    to its last checkpoint.

    Args:
        run: Folder of the run.
        output: Path of the picture.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If nothing is logged yet, or the picture cannot be written.
    """
    run, output = Path(run), output_file(output)
    if not (run / "recipe.yaml").exists():
        raise FileNotFoundError(f"{run} is no folder of a run, which would have a recipe.yaml.")
    histories = {}
    for stage in load_yaml(run / "recipe.yaml")["stages"]:
        log = run / "work" / "logs" / f"{stage}.json"
        states = (run / "work" / "checkpoints" / stage).glob("checkpoint-*/trainer_state.json")
        if log.exists():
            histories[stage] = json.loads(log.read_text())["history"]
        elif newest := max(states, key=lambda s: int(s.parent.name.split("-")[1]), default=None):
            histories[stage] = json.loads(newest.read_text())["log_history"]
    histories = {
        stage: history
        for stage, history in histories.items()
        if any("loss" in entry for entry in history)
    }
    if not histories:
        raise ValueError(f"{run} has no log yet: it has neither a finished stage nor a checkpoint.")
    training_curves(histories, output)


__all__ = [
    "BACKGROUND",
    "generation_grid",
    "image_grid",
    "plot_run",
    "reconstruction_grid",
    "sampling_steps",
    "token_strip",
    "training_curves",
    "unmasking_grid",
]
