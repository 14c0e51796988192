"""Pictures of what a network in training does: reconstructions under their images, samples a row a
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

from ..data.decoding import UnreadableImageError, decode_image
from ..data.grids import generation_grid, reconstruction_grid
from ..data.samples import Samples
from ..modeling.titok import TiTokImageProcessor
from ..pipelines import TiTokPipeline
from .objectives import MaskedTokenObjective, ReconstructionObjective, WarmupObjective
from .trainer import TiTokTrainer


class Previews(TrainerCallback):
    """Draws a picture at intervals, writes it as a PNG, and sends it where `report_to` sends the
    log.

    The main process draws, and the others go on until they need it. Training goes on as if nothing
    had been drawn: random numbers and the modes of the networks are left as they were, and the time
    does not count.

    Args:
        trainer: The trainer, to which the callback is added by
            `trainer.add_callback(Previews(trainer, …))`.
        every_steps: Steps from one picture to the next.
        folder: Where they are written, as `step-….png`.
        draw: Draws what the trainer's objective does: `reconstruction_preview` or `sample_preview`
            with all arguments but the objective.

    Raises:
        ValueError: If `every_steps` is not at least 1, or the network is in shards on several
            processes (FSDP).
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
                "Previews need the whole network on the main process, which it has not under FSDP."
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
        """Sends a picture to TensorBoard, Trackio and Weights & Biases, as far as the trainer's log
        goes there."""
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


def first_images(rows: Samples, count: int = 24) -> list[Image.Image]:
    """The first images of a data set that can be read."""
    images: list[Image.Image] = []
    for row in rows.read(0, len(rows)):
        with suppress(UnreadableImageError):
            images.append(decode_image(row.image))
        if len(images) == count:
            break
    return images


def reconstruction_previews(
    data: Samples, processor: TiTokImageProcessor
) -> Callable[[ReconstructionObjective | WarmupObjective], Image.Image]:
    """A function that draws the first images of a data set with `reconstruction_preview`."""
    pixel_values = processor(first_images(data), return_tensors="pt").pixel_values
    return partial(reconstruction_preview, pixel_values=pixel_values)


def reconstruction_preview(
    objective: ReconstructionObjective | WarmupObjective, pixel_values: torch.Tensor
) -> Image.Image:
    """Images above what the tokenizer in training, the averaged one if there is an average, makes
    of them.

    Args:
        objective: Of a tokenizer; of a stage that ends in proxy codes the most likely ones are
            decoded.
        pixel_values: Images `(B, 3, H, W)` in [0, 1].
    """
    images = pixel_values.to(next(objective.parameters()).device)
    return reconstruction_grid(
        images, objective.reconstruct(images), columns=8, zoom=zoom_of(images.shape[-1])
    )


def sample_preview(
    objective: MaskedTokenObjective,
    class_labels: Sequence[int],
    num_images_per_label: int = 8,
    seed: int = 0,
    **sampling: Any,
) -> Image.Image:
    """Samples of the generator in training, the averaged one if there is an average: a row a class.

    Args:
        objective: Of the generator.
        class_labels: Classes.
        num_images_per_label: Images of each.
        seed: Of the noise, the same in each picture.
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
        images, names, columns=num_images_per_label, zoom=zoom_of(images[0].width)
    )


def zoom_of(side: int) -> int:
    """How much to enlarge images of a side, so that small ones can be seen."""
    return max(1, 64 // side)
