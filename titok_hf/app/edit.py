"""The tab that edits images by their tokens."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from ..evaluation.pictures import token_strip
from ..pipelines import (
    TiTokPipeline,
    complete,
    interpolate,
    interpolate_classes,
    swap_tokens,
    token_influence,
)
from .answers import KEPT_SECONDS, QUEUE, answer, chosen_from, gallery, given, image_upload, picture
from .generate import names_of
from .models import AppModels
from .reconstruct import shown

STRIP_WIDTH, STRIP_HEIGHT = 1024, 40
BETWEEN = 8  # images of an interpolation

Codes = list[int] | None  # `None` before there is an image


def edit_tab(models: AppModels) -> None:
    """Builds the tab."""
    titles = list(models.editable)
    names = names_of(models.editable[titles[0]])
    title = gr.Dropdown(titles, label="Pipeline", visible=len(titles) > 1)
    codes, chosen = (
        [gr.State(time_to_live=KEPT_SECONDS), gr.State(time_to_live=KEPT_SECONDS)],
        gr.State([]),
    )
    classes, seeds, makers, uploads, pictures = [], [], [], [], []
    with gr.Row():
        for letter in "AB":
            with gr.Column():
                with gr.Row():
                    classes.append(gr.Dropdown(names, label=f"Class {letter}"))
                    seeds.append(
                        gr.Number(
                            0, precision=0, minimum=0, maximum=2**31 - 1, label=f"Seed {letter}"
                        )
                    )
                makers.append(gr.Button(f"Generate {letter}"))
                with gr.Row():
                    uploads.append(image_upload(f"Or upload {letter}", f"upload-{letter}"))
                    pictures.append(picture(f"{letter}, from its tokens", f"picture-{letter}"))
    gr.Markdown("Tokens of A; click one to choose or release it.")
    strip = gr.Image(
        show_label=False, format="png", interactive=False, buttons=[], elem_id="tokens"
    )
    with gr.Row():
        every, none = gr.Button("Choose all tokens"), gr.Button("Release all tokens")
    with gr.Row():
        anew = gr.Button("Draw the chosen tokens of A anew, as class B", variant="primary")
        swap = gr.Button("Swap the chosen tokens of A and B")
        paints = gr.Button("What do the chosen tokens paint?")
        between = gr.Button("Interpolate from A to B")
        classes_between = gr.Button("Interpolate from class A to class B")
    results = gallery("Results", "results", columns=8, height=170)

    title.change(
        partial(other_pipeline, models), title, [*classes, *codes, chosen, *pictures, strip]
    )
    for place in (0, 1):
        shown_after = [codes[place], pictures[place]]
        # A comes with its tokens, none of which is chosen then
        after = [*shown_after, strip, chosen] if place == 0 else shown_after
        makers[place].click(
            answer(generate_one, models, place == 0),
            [title, classes[place], seeds[place]],
            after,
            **QUEUE,
        )
        uploads[place].upload(
            answer(encode_one, models, place == 0), [title, uploads[place]], after, **QUEUE
        )

    def clicked(title: str, codes: Codes, tokens: list[int], event: gr.SelectData) -> list[Any]:
        token = int(event.index[0] * len(given(codes, "an image A")) / STRIP_WIDTH)
        return choose(models, title, codes, sorted({*tokens} ^ {token}))

    strip.select(clicked, [title, codes[0], chosen], [chosen, strip])
    every.click(answer(choose_all, models), [title, codes[0]], [chosen, strip])
    none.click(answer(choose, models), [title, codes[0], gr.State([])], [chosen, strip])
    for button, function, inputs in (
        (anew, draw_anew, [codes[0], chosen, classes[1], seeds[1]]),
        (swap, swapped, [*codes, chosen]),
        (paints, painted, [codes[0], chosen]),
        (between, interpolated, codes),
        (classes_between, classes_interpolated, [*classes, seeds[0]]),
    ):
        button.click(answer(function, models), [title, *inputs], results, **QUEUE)


def other_pipeline(models: AppModels, title: str) -> list[Any]:
    """Returns the classes of another pipeline, and takes away what was made by the first."""
    names = names_of(models.editable[title])
    cleared = [None, None, [], None, None, None]
    return [gr.Dropdown(names, value=None), gr.Dropdown(names, value=None), *cleared]


def generate_one(
    models: AppModels, is_first: bool, title: str, label: int | None, seed: int | None
) -> list[Any]:
    """Generates an image of a class; returns its codes, its picture and, of A, its tokens."""
    pipeline = chosen_from(models.editable, title)
    given(label, "a class")
    generator = torch.Generator().manual_seed(given(seed, "a seed"))
    made = pipeline(label, generator=generator, output_type="codes").codes[0]
    return with_picture(pipeline, made, is_first)


def encode_one(
    models: AppModels, is_first: bool, title: str, image: Image.Image | None
) -> list[Any]:
    """Encodes an image; returns its codes, its picture and, of A, its tokens."""
    pipeline = chosen_from(models.editable, title)
    pixel_values = pipeline.image_processor(given(image, "an image"), return_tensors="pt")
    encoded = pipeline.tokenizer.encode(pixel_values["pixel_values"].to(pipeline.device))
    return with_picture(pipeline, encoded.codes[0], is_first)


def with_picture(pipeline: TiTokPipeline, codes: torch.Tensor, is_first: bool) -> list[Any]:
    """Returns codes with their picture and, of A, their tokens, none of which is chosen."""
    strip = [draw_strip(pipeline, codes, ()), []] if is_first else []
    return [codes.tolist(), decode(pipeline, codes[None])[0], *strip]


def decode(pipeline: TiTokPipeline, codes: torch.Tensor) -> list[Image.Image]:
    """Decodes codes `(B, N)` to pictures."""
    decoded = pipeline.tokenizer.decode_codes(codes.to(pipeline.device)).reconstruction
    return [shown(image) for image in pipeline.image_processor.postprocess(decoded)]


def draw_strip(pipeline: TiTokPipeline, codes: torch.Tensor, tokens: Sequence[int]) -> Image.Image:
    """Draws the tokens of A as a row; the chosen ones are dark."""
    size, drawn = pipeline.tokenizer.config.codebook_size, codes.cpu().numpy().copy()
    drawn[list(tokens)] = size
    return token_strip(drawn, size, STRIP_WIDTH, STRIP_HEIGHT)


def choose(models: AppModels, title: str, codes: Codes, tokens: Sequence[int]) -> list[Any]:
    """Returns the chosen tokens, and the row that shows them."""
    pipeline = chosen_from(models.editable, title)
    codes = torch.tensor(given(codes, "an image A"))
    return [list(tokens), draw_strip(pipeline, codes, tokens)]


def choose_all(models: AppModels, title: str, codes: Codes) -> list[Any]:
    """Chooses all tokens."""
    return choose(models, title, codes, range(len(given(codes, "an image A"))))


def draw_anew(
    models: AppModels,
    title: str,
    codes: Codes,
    tokens: list[int],
    label: int | None,
    seed: int | None,
) -> list[Any]:
    """Draws the chosen tokens anew, as a class."""
    pipeline = chosen_from(models.editable, title)
    codes = torch.tensor([given(codes, "an image A")])
    given(tokens, "tokens of A")
    given(label, "class B")
    generator = torch.Generator().manual_seed(given(seed, "seed B"))
    made = complete(pipeline, codes, tokens, label, generator=generator, output_type="codes")
    names = ("A", f"as {pipeline.transformer.config.id2label[label]}")
    return list(zip(decode(pipeline, torch.cat([codes, made.codes.cpu()])), names, strict=True))


def swapped(
    models: AppModels, title: str, first: Codes, second: Codes, tokens: list[int]
) -> list[Any]:
    """Swaps the chosen tokens of two images."""
    pipeline = chosen_from(models.editable, title)
    pair = torch.tensor([given(first, "an image A"), given(second, "an image B")])
    mixed = swap_tokens(*pair, given(tokens, "tokens of A"))
    names = ("A", "B", "A with tokens of B", "B with tokens of A")
    return list(zip(decode(pipeline, torch.cat([pair, torch.stack(mixed)])), names, strict=True))


def painted(models: AppModels, title: str, codes: Codes, tokens: list[int]) -> list[Any]:
    """Shows where an image changes when each of the chosen tokens is replaced."""
    pipeline = chosen_from(models.editable, title)
    codes = torch.tensor(given(codes, "an image A"), device=pipeline.device)
    given(tokens, "tokens of A")
    generator = torch.Generator().manual_seed(0)
    maps = token_influence(pipeline.tokenizer, codes, generator=generator, tokens=tokens).cpu()
    maps = (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-8) * 255).byte().numpy()
    [image] = decode(pipeline, codes[None])
    results = [(image, "A")]
    for token, influence in zip(tokens, maps, strict=True):
        heat = Image.fromarray(influence).resize(image.size)
        heat = heat.point(np.linspace(0, 200, 256).astype(int).tolist())  # the image shines through
        red = Image.new("RGB", image.size, (230, 30, 30))
        gray = image.convert("L").convert("RGB")
        results.append((Image.composite(red, gray, heat), f"token {token}"))
    return results


def interpolated(models: AppModels, title: str, first: Codes, second: Codes) -> list[Any]:
    """Walks between the latents of two images."""
    pipeline = chosen_from(models.editable, title)
    pair = torch.tensor([given(first, "an image A"), given(second, "an image B")])
    ends = pipeline.tokenizer.decode_codes(pair.to(pipeline.device)).reconstruction
    images = interpolate(pipeline.tokenizer, *ends.clamp(0, 1), num_images=BETWEEN)
    return [shown(image) for image in pipeline.image_processor.postprocess(images)]


def classes_interpolated(
    models: AppModels, title: str, first: int | None, second: int | None, seed: int | None
) -> list[Any]:
    """Generates images that go from one class to another."""
    pipeline = chosen_from(models.editable, title)
    given(first, "class A")
    given(second, "class B")
    given(seed, "seed A")
    images = interpolate_classes(pipeline, first, second, num_images=BETWEEN, seed=seed).images
    return [shown(image) for image in images]
