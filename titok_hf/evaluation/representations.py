"""Measures in one run what a VTP has learned: reconstruction, retrieval, zero-shot classification,
probes of its features, and the spatial structure of its latents."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F

from ..data.decoding import decoder_for
from ..data.opening import dataset_commit, open_images
from ..data.samples import captions_of
from ..devices import default_device
from ..modeling.vtp import VTPImageProcessor, VTPModel, VTPProcessor
from ..progress import index_batches, working
from .image_sources import Fingerprint, decode_row, encoded_images, to_uint8
from .metrics.psnr_ssim import peak_signal_to_noise_ratio
from .metrics.standard_error import Estimate
from .probe import knn_probe, linear_probe
from .results import command, describe_model, device_name, versions
from .retrieval import retrieval_recall
from .zero_shot import class_embeddings

FEATURES = ("cls", "patch_mean", "bottleneck")


def local_spatial_similarity(latents: torch.Tensor, far: int = 6) -> torch.Tensor:
    """Returns how much more similar neighboring latents are than distant ones (iREPA, arXiv
    2512.10794): the mean cosine of those that are next to each other in a row or column, minus that
    of those at a Manhattan distance of at least `far`.

    Args:
        latents: `(B, C, h, w)`.
        far: Least distance of distant latents; at most `h + w - 2`.

    Returns:
        `(B,)`.
    """
    height, width = latents.shape[2:]
    if far > height + width - 2:
        raise ValueError(
            f"Latents of {height}x{width} have no two at a distance of {far}: choose `far` from 2 to "
            f"{height + width - 2}."
        )
    cosines, distances = cosines_of_places(latents)  # (B, N, N), (N, N)
    return cosines[:, distances == 1].mean(1) - cosines[:, distances >= far].mean(1)


def region_self_similarity(
    latents: torch.Tensor, masks: torch.Tensor, far: int = 6
) -> torch.Tensor:
    """Returns how much more similar a foreground latent is to its neighbors in the foreground than to
    the distant background (SRSS of iREPA, arXiv 2512.10794): the mean cosine with those next to it in a
    row or column, minus that with background at a Manhattan distance of at least `far`, averaged over
    the foreground latents that have both.

    Args:
        latents: `(B, C, h, w)`.
        masks: `(B, h, w)`, true in the foreground.
        far: Least distance of the background.

    Returns:
        `(B,)`; NaN where an image has no such latent.
    """
    cosines, distances = cosines_of_places(latents)  # (B, N, N), (N, N)
    foreground = masks.flatten(1)  # (B, N)
    near = foreground[:, :, None] & foreground[:, None] & (distances == 1)  # (B, N, N)
    distant = foreground[:, :, None] & ~foreground[:, None] & (distances >= far)
    means = [(cosines * pairs).sum(2) / pairs.sum(2) for pairs in (near, distant)]  # (B, N) each
    return (means[0] - means[1]).nanmean(1)


def cosines_of_places(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the cosines `(B, N, N)` and Manhattan distances `(N, N)` between the places of latents
    `(B, C, h, w)`."""
    height, width = latents.shape[2:]
    unit = F.normalize(latents.float().flatten(2), dim=1)  # (B, C, N)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).to(latents.device)  # (N, 2)
    return unit.transpose(1, 2) @ unit, (places[:, None] - places[None]).abs().sum(-1)


@torch.no_grad()
def measure_representations(
    model: VTPModel,
    processor: VTPProcessor | VTPImageProcessor,
    train: Dataset,
    test: Dataset,
    image_column: str = "image",
    label_column: str | None = "label",
    text_column: str | None = "text",
    templates: Sequence[str] | None = None,
    batch_size: int = 64,
    k: int = 20,
    far: int = 6,
) -> dict[str, Any]:
    """Measures what a VTP has learned; see the module.

    Args:
        model: A VTP, with or without decoder and text encoder.
        processor: Its processor, or its image processor if it has no text encoder.
        train: Images with labels, on which probes are trained.
        test: Images on which everything is measured.
        image_column, label_column, text_column: Columns of both; without labels there are no probes
            and no zero-shot classification, which also needs the names of classes; without texts there
            is no retrieval.
        templates: Prompts of zero-shot classification, see `class_embeddings`.
        batch_size: Number of images encoded at once.
        k: Number of neighbors that vote, see `knn_probe`; at most all training images.
        far: See `local_spatial_similarity`; at most what the latents allow.

    Returns:
        Fields that can be written as JSON: `num_images` of `test` and `num_training_images`, the
        `fingerprint` of the test images, `processor`, and `metrics`, each with `value` and
        `standard_error`: `psnr`; `text_recall_at_…` and `image_recall_at_…`;
        `zero_shot_accuracy`; `linear_accuracy_…`, `knn_accuracy_…` and the same `…_balanced_accuracy_…`,
        means over classes, of the features `cls`, `patch_mean` (both after the last norm) and
        `bottleneck` (the mean of the latents); and `spatial_similarity` of the latents.
    """
    image_processor = getattr(processor, "image_processor", processor)
    probed = label_column is not None
    fingerprint = Fingerprint()

    def batches(dataset: Dataset) -> Iterator[tuple[list[int], torch.Tensor]]:
        encoded, decode = encoded_images(dataset, image_column), decoder_for(image_processor)
        for indices in index_batches(len(dataset), batch_size, "features"):
            images = [decode_row(encoded[i][image_column], i, decode) for i in indices.tolist()]
            pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
            yield indices.tolist(), pixel_values.to(model.device)  # (B, 3, H, W)

    metrics: dict[str, Estimate] = {}
    features: dict[str, dict[str, list[torch.Tensor]]] = {}
    psnr, similarity, image_embeds, text_embeds, image_of_text = [], [], [], [], []
    texts = test[text_column] if model.config.has_text and text_column is not None else None
    for split, dataset in (("train", train), ("test", test)) if probed else (("test", test),):
        kept = features[split] = {name: [] for name in FEATURES}
        for rows, pixel_values in batches(dataset):
            vision = model.get_vision_features(pixel_values)
            height, width = (side // model.config.patch_size for side in pixel_values.shape[2:])
            latents = model.to_latents(vision.patch_tokens, height, width)  # (B, C, h, w)
            for name, values in zip(
                FEATURES,
                (vision.cls_token, vision.patch_tokens.mean(1), latents.mean((2, 3))),
                strict=True,
            ):
                kept[name].append(values.float().cpu())
            if split == "train":
                continue
            originals = to_uint8(image_processor.postprocess(pixel_values, "pt"), "round")
            fingerprint.update(originals)
            similarity.append(local_spatial_similarity(latents, min(far, height + width - 2)).cpu())
            if model.config.has_decoder:
                decoded = image_processor.postprocess(model.decode(latents).reconstruction, "pt")
                psnr.append(peak_signal_to_noise_ratio(to_uint8(decoded, "round"), originals))
            if model.config.has_text:
                image_embeds.append(model.embed_vision(vision).float().cpu())
            if texts is not None:
                captions = [captions_of(texts[row]) for row in rows]
                image_of_text += [
                    row for row, some in zip(rows, captions, strict=True) for _ in some
                ]
                ids = processor(
                    text=[text for some in captions for text in some],
                    truncation=True,
                    return_tensors="pt",
                )["input_ids"]
                text_embeds.append(model.get_text_features(ids.to(model.device)).float().cpu())
    if psnr:
        metrics["psnr"] = Estimate.mean(torch.cat(psnr))
    metrics["spatial_similarity"] = Estimate.mean(torch.cat(similarity))
    if texts is not None:
        # images without a text are left out
        of_texts, image_of_text = torch.tensor(image_of_text).unique(return_inverse=True)
        metrics |= retrieval_recall(
            torch.cat(image_embeds)[of_texts], torch.cat(text_embeds), image_of_text
        )
    if probed:
        labels = {
            "train": torch.tensor(train[label_column]),
            "test": torch.tensor(test[label_column]),
        }
        for name in FEATURES:
            sides = [
                side
                for split in ("train", "test")
                for side in (torch.cat(features[split][name]), labels[split])
            ]
            for kind, measured in (
                ("linear", linear_probe(*sides)),
                ("knn", knn_probe(*sides, k=min(k, len(train)))),
            ):
                metrics[f"{kind}_accuracy_{name}"] = Estimate(
                    measured["accuracy"], measured["standard_error"]
                )
                metrics[f"{kind}_balanced_accuracy_{name}"] = Estimate(
                    measured["balanced_accuracy"]
                )
        names = getattr(test.features[label_column], "names", None)
        if model.config.has_text and names is not None:
            classes = class_embeddings(model, processor, names, templates).cpu()
            chosen = (torch.cat(image_embeds) @ classes.T).argmax(1)
            metrics["zero_shot_accuracy"] = Estimate.mean(chosen == labels["test"])
    return {
        "num_images": len(test),
        "num_training_images": len(train) if probed else 0,
        "fingerprint": fingerprint.compute([fingerprint.total]),
        "processor": json.loads(image_processor.to_json_string()),
        "metrics": {
            name: {"value": measured.value, "standard_error": measured.standard_error}
            for name, measured in metrics.items()
        },
    }


def evaluate_representations(
    model: str | Path,
    data: str,
    revision: str | None = None,
    data_revision: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    text_column: str | None = "text",
    templates: Sequence[str] | None = None,
    batch_size: int = 64,
    k: int = 20,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Measures what a saved VTP has learned, on the split `test`; probes are trained on `train`.

    Args:
        model: Folder or Hub repository of a VTP.
        data: Images with labels, texts, or both, see `open_images`.
        revision: Branch, tag or commit of the model, if it is on the Hub.
        data_revision: Branch, tag or commit of the data, if they are on the Hub.
        device: Device to compute on; by default the accelerator if there is one.
        image_column, label_column, text_column, templates, batch_size, k: See
            `measure_representations`.

    Returns:
        The result of `measure_representations`, with `model`, see `describe_model`, `data`, `device`,
        `versions`, and the `command` that repeats it.
    """
    arguments = dict(locals())
    columns = {"image_column": image_column, "label_column": label_column}
    splits = open_images(data, **columns, revision=data_revision, text_column=text_column)
    with working("loading model"):
        loaded = VTPModel.from_pretrained(model, revision=revision or "main").eval()
    processor_class = VTPProcessor if loaded.config.has_text else VTPImageProcessor
    processor = processor_class.from_pretrained(model, revision=revision or "main")
    described = describe_model(loaded, model, revision, "")
    loaded.to(device or default_device())
    measured = measure_representations(
        loaded,
        processor,
        splits.dataset("train"),
        splits.dataset("test"),
        **columns,
        text_column=text_column,
        templates=templates,
        batch_size=batch_size,
        k=k,
    )
    commit = dataset_commit(data, data_revision)
    without = "" if label_column else " --no-labels"
    without += "" if text_column else " --no-texts"
    arguments |= {"revision": described["revision"], "data_revision": commit}
    return {
        "model": described,
        "data": {"id": data, "revision": commit, **columns, "text_column": text_column},
        **measured,
        "device": device_name(loaded.device),
        "versions": versions(),
        "command": command("representations", arguments) + without,
    }


__all__ = [
    "evaluate_representations",
    "local_spatial_similarity",
    "measure_representations",
    "region_self_similarity",
]
