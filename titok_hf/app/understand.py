"""The tab that shows what a VTP knows of an image."""

import gradio as gr
import torch
from PIL import Image

from ..evaluation.pictures import patch_colors
from ..evaluation.zero_shot import class_embeddings, probabilities_of
from ..modeling.vtp import VTPModel, VTPProcessor
from .answers import QUEUE, answer, chosen_from, gallery, given, image_upload, picture
from .models import AppModels
from .reconstruct import shown

MAX_WORDS = 50
NEAREST = 8


def understand_tab(models: AppModels) -> None:
    """Builds the tab."""
    titles = list(models.readers)
    known: dict[str, torch.Tensor] = {}  # features of the images of the data, by title
    with gr.Row():
        with gr.Column(scale=1):
            title = gr.Dropdown(titles, label="Model", visible=len(titles) > 1)
            image = image_upload("Image", "understand-upload")
            words = gr.Textbox("a cat, a dog, a flag", label="Words, separated by commas")
            button = gr.Button("Understand", variant="primary")
        with gr.Column(scale=2):
            answers = gr.Label(label="Which words fit", num_top_classes=5, elem_id="words")
            colors = picture("Patches of like features have like colors", "patches")
            nearest = gallery(
                "Nearest images of the data",
                "nearest",
                columns=NEAREST,
                height=150,
                visible=bool(models.images),
            )
    button.click(
        answer(understand, models, known),
        [title, image, words],
        [answers, colors, nearest],
        **QUEUE,
    )


def understand(
    models: AppModels,
    known: dict[str, torch.Tensor],
    title: str,
    image: Image.Image | None,
    words: str,
) -> tuple[dict[str, float], Image.Image, list[tuple[Image.Image, str]]]:
    """Returns the probabilities of the words, the colored patches, and the nearest images.

    Args:
        models: The models.
        known: Features of the images of the data by title; computed when first asked for.
        title: Title of the VTP.
        image: The image.
        words: Names to choose from, separated by commas.
    """
    model, processor = chosen_from(models.readers, title)
    image = given(image, "an image")
    names = [name.strip() for name in words.split(",") if name.strip()]
    if len(names) > MAX_WORDS:
        raise ValueError(f"Give at most {MAX_WORDS} words, got {len(names)}.")
    pixel_values = processor.image_processor(image, crop="squash", return_tensors="pt")
    pixel_values = pixel_values["pixel_values"].to(model.device)  # (1, 3, H, W)
    embeddings = class_embeddings(model, processor, names, ["{}"])
    vision = model.get_vision_features(pixel_values)
    embedded = model.embed_vision(vision).float()  # (1, E)
    [probabilities] = probabilities_of(embedded, embeddings).tolist()
    sides = [side // model.config.patch_size for side in pixel_values.shape[2:]]
    near = []
    if models.images:
        if title not in known:
            known[title] = image_embeddings(model, processor, models.images)
        similar = (known[title] @ embedded[0].cpu()).topk(min(NEAREST, len(models.images)))
        near = [
            (shown(models.images[row]), f"{value:.2f}")
            for value, row in zip(similar.values.tolist(), similar.indices.tolist(), strict=True)
        ]
    colors = shown(patch_colors(vision.patch_tokens[0].float().cpu(), *sides))
    return dict(zip(names, probabilities, strict=True)), colors, near


def image_embeddings(
    model: VTPModel, processor: VTPProcessor, images: list[Image.Image]
) -> torch.Tensor:
    """Returns the embeddings `(n, E)` of images, of unit length."""
    embeddings = []
    for start in range(0, len(images), 32):
        batch = processor.image_processor(
            images[start : start + 32], crop="squash", return_tensors="pt"
        )
        features = model.get_image_features(batch["pixel_values"].to(model.device))
        embeddings.append(features.float().cpu())
    return torch.cat(embeddings)
