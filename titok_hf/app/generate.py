"""The tab that generates images of classes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
import torch
from PIL import Image

from ..data.grids import image_grid
from ..evaluation.pictures import step_pictures
from ..pipelines import ClassConditionalPipeline
from .answers import KEPT_SECONDS, QUEUE, answer, chosen_from, given, picture
from .models import AppModels

MAX_IMAGES = 64
MAX_STEPS = 100  # unless a pipeline takes more by default
KEPT_STEPS = 16  # whose codes or latents are kept for the slider


def generate_tab(models: AppModels) -> None:
    """Builds the tab."""
    titles = list(models.pipelines)
    first = models.pipelines[titles[0]]
    with gr.Row():
        with gr.Column(scale=1):
            title = gr.Dropdown(titles, label="Pipeline", visible=len(titles) > 1)
            labels = gr.Dropdown(names_of(first), label="Classes", multiselect=True)
            count = gr.Slider(1, 16, 4, step=1, label="Images of each class")
            defaults_of = [each.config.num_inference_steps for each in models.pipelines.values()]
            most = max(MAX_STEPS, *defaults_of)
            steps = gr.Slider(1, most, defaults_of[0], step=1, label="Steps")
            scale = gr.Slider(
                1.0, 20.0, first.config.guidance_scale, step=0.1, label="Guidance scale"
            )
            seed = gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed")
            button = gr.Button("Generate", variant="primary")
        with gr.Column(scale=2):
            grid = picture("Images", "samples")
            shown = gr.Slider(1, 8, 8, step=1, label="Progress", visible=False)
            step = picture("Images and tokens at this step", "step", visible=False)
            code = gr.Code(label="The same in Python", language="python", interactive=False)
    states = gr.State(time_to_live=KEPT_SECONDS)
    title.change(partial(defaults, models), title, [labels, steps, scale])
    button.click(
        answer(generate, models),
        [title, labels, count, steps, scale, seed],
        [grid, code, states, shown, step],
        **QUEUE,
    )
    shown.input(
        answer(draw_step, models),
        [title, states, shown],
        step,
        trigger_mode="always_last",
        **QUEUE,
    )


def names_of(pipeline: ClassConditionalPipeline) -> list[tuple[str, int]]:
    """Returns the names of the classes, with their ids."""
    return [(name, label) for label, name in pipeline.transformer.config.id2label.items()]


def defaults(models: AppModels, title: str) -> list[Any]:
    """Returns the classes and the sampling of another pipeline."""
    pipeline = models.pipelines[title]
    return [
        gr.Dropdown(names_of(pipeline), value=[]),
        pipeline.config.num_inference_steps,
        pipeline.config.guidance_scale,
    ]


def generate(
    models: AppModels,
    title: str,
    labels: Sequence[int],
    count: int,
    steps: int,
    scale: float,
    seed: int,
) -> list[Any]:
    """Generates images, and returns the values of the tab's outputs."""
    pipeline = chosen_from(models.pipelines, title)
    given(seed, "a seed")
    labels = pipeline.label_ids(given(labels, "a class"))
    if len(labels) * count > MAX_IMAGES:
        raise ValueError(f"At most {MAX_IMAGES} images are made at once: take fewer.")
    every: list[dict[str, torch.Tensor]] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> None:
        every.append(
            {
                name: tensor.cpu().half() if tensor.is_floating_point() else tensor.cpu()
                for name, tensor in tensors.items()
            }
        )

    images = pipeline(
        labels,
        num_images_per_label=count,
        num_inference_steps=steps,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=keep,
    ).images
    kept = torch.linspace(0, len(every) - 1, KEPT_STEPS).round().long().unique()
    states = [every[step] for step in kept.tolist()]
    names = [pipeline.transformer.config.id2label[label] for label in labels]
    code = f"""import torch
from titok_hf import {type(pipeline).__name__}

pipe = {type(pipeline).__name__}.from_pretrained("{models.places[title]}")
images = pipe(
    {labels},  # {", ".join(names)}
    num_images_per_label={count},
    num_inference_steps={steps},
    guidance_scale={scale},
    generator=torch.Generator().manual_seed({seed}),
).images"""
    sampled = {"names": names, "labels": labels, "steps": states}
    # a slider needs two values, even where it is not shown
    end = max(2, len(states))
    last = gr.Slider(1, end, len(states), step=1, visible=len(states) > 1)
    state = gr.Image(draw_step(models, title, sampled, len(states)), visible=True)
    return [draw(images, names, labels), code, sampled, last, state]


def draw_step(models: AppModels, title: str, sampled: dict[str, Any], step: int) -> Image.Image:
    """Draws the images, with their tokens, as they are after a step."""
    pipeline = chosen_from(models.pipelines, title)
    states = given(sampled, "images")["steps"]
    tensors = {
        name: tensor.to(pipeline.device, torch.float32 if tensor.is_floating_point() else None)
        for name, tensor in states[min(step, len(states)) - 1].items()
    }
    pictures = step_pictures(pipeline, tensors)
    return draw(pictures, sampled["names"], sampled["labels"])


def draw(images: Sequence[Image.Image], names: Sequence[str], labels: Sequence[int]) -> Image.Image:
    """Draws a row of images for each class."""
    each = len(images) // len(names)
    rows = [images[start : start + each] for start in range(0, len(images), each)]
    return image_grid(rows, names, zoom=max(1, 96 // images[0].width), substitutes=labels)
