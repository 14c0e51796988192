"""The tab that shows what tokens keep of an image."""

from collections.abc import Sequence

import gradio as gr
import torch
from PIL import Image

from ..data.grids import image_grid
from ..evaluation.pictures import token_strip
from .answers import QUEUE, answer, chosen_from, gallery, given, image_upload, picture, sketchpad
from .models import AppModels, describe_tokens

COLUMNS = ["tokenizer", "keeps", "bytes", "mean squared error", "PSNR in dB"]
SHOWN_SIDE = 256  # pixels in which small images are shown


def reconstruct_tab(models: AppModels) -> None:
    """Builds the tab."""
    titles = list(models.tokenizers)
    with gr.Row():
        with gr.Column(scale=1):
            chosen = gr.CheckboxGroup(titles, value=titles[:2], label="Tokenizers")
            with gr.Tab("Upload"):
                image = image_upload("Image", "reconstruct-upload")
                button = gr.Button("Reconstruct", variant="primary")
            with gr.Tab("Draw"):
                drawn = sketchpad("Drawing", "reconstruct-draw")
                draw_button = gr.Button("Reconstruct the drawing", variant="primary")
        with gr.Column(scale=2):
            pictures = gallery("What the tokens keep", "reconstructions", columns=4)
            gr.Markdown("Tokens, a color for each code")
            strips = picture("Tokens", "strips", show_label=False)
            table = gr.Dataframe(headers=COLUMNS, label="Size and error", elem_id="errors")
    outputs = [pictures, strips, table]
    for source, press in ((image, button), (drawn, draw_button)):
        press.click(answer(reconstruct, models), [source, chosen], outputs, **QUEUE)


def reconstruct(
    models: AppModels, image: Image.Image | None, titles: Sequence[str]
) -> tuple[list[tuple[Image.Image, str]], Image.Image | None, list[list[str]]]:
    """Reconstructs an image by each tokenizer.

    Returns:
        The pictures with their titles, the original first; the tokens of the discrete tokenizers; and a
        row of the table for each tokenizer.
    """
    image = given(image, "an image")
    pictures, strips, discrete, rows = [], [], [], []
    for title in given(titles, "a tokenizer"):
        tokenizer, processor = chosen_from(models.tokenizers, title)
        pixel_values = processor(image, return_tensors="pt")["pixel_values"].to(tokenizer.device)
        encoded = tokenizer.encode(pixel_values)
        decoded = tokenizer.decode(encoded.latents).reconstruction.float()
        if not pictures:
            pictures.append((shown(processor.postprocess(pixel_values)[0]), "original"))
        pictures.append((shown(processor.postprocess(decoded)[0]), title))
        if encoded.codes is not None:
            codes = encoded.codes[0].cpu().numpy()
            strips.append([token_strip(codes, tokenizer.config.codebook_size, 768, 24)])
            discrete.append(title)
        before, after = (processor.postprocess(x, "pt") for x in (pixel_values, decoded))
        error = float(torch.mean((before - after) ** 2))
        kept, size = describe_tokens(tokenizer, encoded)
        psnr = f"{-10 * torch.log10(torch.tensor(error)).item():.1f}" if error else "exact"
        rows.append([title, kept, f"{size:,.0f}", f"{error:.4f}", psnr])
    return pictures, image_grid(strips, discrete, zoom=1) if strips else None, rows


def shown(image: Image.Image) -> Image.Image:
    """Returns a small image enlarged, so that its pixels can be seen."""
    zoom = max(1, SHOWN_SIDE // max(image.size))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
