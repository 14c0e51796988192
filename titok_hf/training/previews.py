"""Preview pictures during training: reconstructions below their images, or samples, one row per
class."""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..data.decoding import UnreadableImageError, decode_image, decoder_for
from ..data.grids import generation_grid, reconstruction_grid
from ..data.samples import Samples
from ..modeling.titok import TiTokImageProcessor
from ..pipelines import TiTokPipeline
from .objectives import MaskedTokenObjective, ReconstructionObjective, WarmupObjective
from .trainer import TiTokTrainer


class Previews(TrainerCallback):
    """Draws a picture at intervals, saves it as a PNG, and sends it to the loggers in `report_to`.

    The main process draws while the others continue until they need it. Drawing does not affect
    training: random states and modes of the networks are restored, and its time is not counted.

    Args:
        trainer: The trainer; add the callback by `trainer.add_callback(Previews(trainer, …))`.
        every_steps: Number of steps between pictures.
        folder: Folder of the pictures, which are named `step-….png`.
        draw: Draws a picture from the trainer's objective: `reconstruction_preview` or
            `sample_preview` with all other arguments bound.

    Raises:
        ValueError: If `every_steps` is below 1, or the network is sharded over processes (FSDP).
    """

    def __init__(
        self,
        trainer: TiTokTrainer,
        every_steps: int,
        folder: str | Path,
        draw: Callable[[Any], Image.Image],
    ):
        if every_steps < 1:
            raise ValueError(f"`every_steps` must be at least 1, got {every_steps}.")
        if trainer.is_fsdp_enabled:
            raise ValueError(
                "Previews need the whole network on the main process, but FSDP shards it."
            )
        self.trainer = trainer
        self.every_steps = every_steps
        self.folder = Path(folder)
        self.draw = draw

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every_steps or not state.is_world_process_zero:
            return
        objective = self.trainer.model
        modes = [(module, module.training) for module in objective.modules()]
        device = self.trainer.accelerator.device
        fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with self.trainer.throughput.paused(), fork, torch.no_grad():
            objective.eval()
            picture = self.draw(objective)
            for module, mode in modes:
                module.training = mode
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / f"step-{state.global_step:07}.png")
            self.send(picture, state.global_step)

    def send(self, picture: Image.Image, step: int) -> None:
        """Sends a picture to TensorBoard, Trackio and Weights & Biases, where the trainer logs."""
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.tb_writer.add_image(
                    "preview", np.asarray(picture), step, dataformats="HWC"
                )
            elif isinstance(callback, TrackioCallback):
                callback._trackio.log(
                    {"preview": callback._trackio.Image(picture), "train/global_step": step}
                )
            elif isinstance(callback, WandbCallback):
                callback._wandb.log(
                    {"preview": callback._wandb.Image(picture), "train/global_step": step}
                )


def first_images(
    rows: Samples, count: int = 24, decode: Callable[[Any], Image.Image] = decode_image
) -> list[Image.Image]:
    """Returns the first `count` readable images of a data set."""
    images: list[Image.Image] = []
    for row in rows.read(0, len(rows)):
        with suppress(UnreadableImageError):
            images.append(decode(row.image))
        if len(images) == count:
            break
    return images


def reconstruction_previews(
    data: Samples, processor: TiTokImageProcessor
) -> Callable[[ReconstructionObjective | WarmupObjective], Image.Image]:
    """Returns a function that draws the first images of a data set by `reconstruction_preview`."""
    images = first_images(data, decode=decoder_for(processor))
    pixel_values = processor(images, return_tensors="pt").pixel_values
    return partial(reconstruction_preview, pixel_values=pixel_values, processor=processor)


def reconstruction_preview(
    objective: ReconstructionObjective | WarmupObjective,
    pixel_values: torch.Tensor,
    processor: TiTokImageProcessor,
) -> Image.Image:
    """Draws images above their reconstructions by the tokenizer's averaged weights, if any, else by
    the current ones.

    Args:
        objective: Objective of a tokenizer; a warm-up decodes the most likely proxy codes.
        pixel_values: Images `(B, 3, H, W)` of the image processor.
        processor: The image processor.
    """
    images = pixel_values.to(next(objective.parameters()).device)
    images, reconstructions = (
        processor.postprocess(x, "pt") for x in (images, objective.reconstruct(images))
    )
    return reconstruction_grid(images, reconstructions, columns=8, zoom=zoom_of(images.shape[-1]))


def sample_preview(
    objective: MaskedTokenObjective,
    class_labels: Sequence[int],
    num_images_per_label: int = 8,
    seed: int = 0,
    **sampling: Any,
) -> Image.Image:
    """Draws samples of the generator, one row per class, with its averaged weights if any.

    Args:
        objective: Objective of the generator.
        class_labels: Classes to sample.
        num_images_per_label: Number of images per class.
        seed: Random seed of the sampling, the same for each picture.
        sampling: `num_inference_steps`, `guidance_scale` and `guidance_schedule`, see
            `TiTokPipeline`.
    """
    pipeline = TiTokPipeline(
        objective.tokenizer, objective.result, copy.deepcopy(objective.scheduler), **sampling
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        class_labels,
        generator=torch.Generator().manual_seed(seed),
        num_images_per_label=num_images_per_label,
    ).images
    names = [pipeline.transformer.config.id2label[label] for label in class_labels]
    return generation_grid(
        images,
        names,
        columns=num_images_per_label,
        zoom=zoom_of(images[0].width),
        substitutes=class_labels,
    )


def zoom_of(side: int) -> int:
    """Returns the factor by which images of a side are enlarged, so that small ones are visible."""
    return max(1, 64 // side)
