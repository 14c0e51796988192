"""Runs a saved tokenizer or pipeline on files, and writes pictures or results."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from ..data.decoding import UnreadableImageError, decode_image, decoder_for
from ..data.opening import dataset_commit, open_images
from ..devices import default_device, parse_dtype
from ..hub.folders import output_file
from ..modeling.auto import load_tokenizer
from ..modeling.checks import check_ends_in_pixels
from ..modeling.titok import TiTokImageProcessor
from ..pipelines import ClassConditionalPipeline
from ..progress import bar_settings, index_batches, working
from .image_sources import to_uint8
from .pictures import generation_grid, reconstruction_grid, sampling_steps
from .probe import TokenFeature, probe_tokenizer
from .reconstruction import pair_metrics
from .results import command, describe_model, device_name, versions

ANIMATIONS = (".gif", ".webp")


@torch.no_grad()
def reconstruct_files(
    tokenizer: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    separate: str | Path | None = None,
    device: str | torch.device | None = None,
) -> list[dict[str, Any]]:
    """Draws images above their reconstructions.

    Args:
        tokenizer: Folder or Hub repository of a tokenizer of any family.
        images: Image files, and folders of them.
        output: Path of the picture.
        separate: Folder for the reconstructions as single files, with the names of the images; files of
            the same name are replaced.
        device: Device to compute on; by default the accelerator if there is one.

    Returns:
        Fields of each image that can be written as JSON: `image`, its path; `codes`, or `None` of a
        continuous tokenizer; the shape of the `latents`; `mean_squared_error` and `psnr` of the
        reconstruction, see `pair_metrics`; and its single `file`, or `None`.

    Raises:
        ValueError: If a file is no image, a folder has none, two images have the same name and
            `separate` is given, or the tokenizer ends in proxy codes.
    """
    output = picture_file(output)
    images = [file for path in images for file in image_files(Path(path))]
    names = [f"{image.stem}.png" for image in images]
    if separate is not None and (twice := [name for name in names if names.count(name) > 1]):
        raise ValueError(f"Two images would become {twice[0]} in {separate}: rename one.")
    model, processor = load_tokenizer(tokenizer)
    check_ends_in_pixels(model)
    model.to(device or default_device())
    pixel_values = processor(open_image_files(images, decoder_for(processor)), return_tensors="pt")[
        "pixel_values"
    ]  # (B, 3, H, W)
    codes, shapes, decoded = [], [], []
    for indices in index_batches(len(images), 128, "reconstructions"):
        encoded = model.encode(pixel_values[indices].to(model.device))
        codes += [None] * len(indices) if encoded.codes is None else encoded.codes.tolist()
        shapes += [list(encoded.latents.shape[1:])] * len(indices)
        decoded.append(model.decode(encoded.latents).reconstruction.cpu())
    originals, reconstructions = (
        processor.postprocess(tensor, "pt") for tensor in (pixel_values, torch.cat(decoded))
    )
    metrics = pair_metrics(
        ("mean_squared_error", "psnr"),
        *(to_uint8(tensor, "round") for tensor in (reconstructions, originals)),
        lpips=None,
    )
    zoom = max(1, 64 // pixel_values.shape[-1])
    reconstruction_grid(originals, reconstructions, pairs=len(images), zoom=zoom).save(output)
    if separate is not None:
        folder = Path(separate)
        folder.mkdir(parents=True, exist_ok=True)
        reconstructed = TiTokImageProcessor().postprocess(reconstructions)
        for name, image in zip(names, reconstructed, strict=True):
            image.save(folder / name)
    return [
        {
            "image": str(image),
            "codes": codes[number],
            "latents": shapes[number],
            **{name: float(values[number]) for name, values in metrics.items()},
            "file": None if separate is None else str(Path(separate) / names[number]),
        }
        for number, image in enumerate(images)
    ]


def image_files(path: Path) -> list[Path]:
    """Returns an image file itself, or the image files of a folder in order of their names; raises
    `ValueError` if it has none."""
    if not path.is_dir():
        return [path]
    known = Image.registered_extensions()
    if found := sorted(file for file in path.iterdir() if file.suffix.lower() in known):
        return found
    raise ValueError(f"{path} has no image files: name a folder of images, or files.")


def open_image_files(
    paths: Sequence[str | Path], decode: Callable[[Any], Image.Image] = decode_image
) -> list[Image.Image]:
    """Opens image files; raises `ValueError` if one cannot be read."""
    opened = []
    for path in paths:
        try:
            opened.append(decode(path))
        except UnreadableImageError as error:
            raise ValueError(f"{path} must be an image file. {error}") from error
    return opened


def generate_to_file(
    pipeline: str | Path,
    class_labels: Sequence[int | str],
    output: str | Path,
    seed: int = 0,
    num_images_per_label: int = 1,
    separate: str | Path | None = None,
    animation: str | Path | None = None,
    faster: Literal["compiled", "fast", "int8"] | None = None,
    device: str | torch.device | None = None,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Draws a row of generated images for each label.

    Args:
        pipeline: Folder or Hub repository of a `TiTokPipeline` or `LatentDiTPipeline`.
        class_labels: Classes, by id or name.
        output: Path of the picture.
        seed: Random seed.
        num_images_per_label: Number of images per label.
        separate: Folder for the images as single files, `NUMBER-LABEL.png`; files of the same name are
            replaced.
        animation: Path of an animation of the sampling (`.gif` or `.webp`), see `sampling_steps`.
        faster: `"compiled"` compiles the pipeline first, which pays for many images; `"fast"` only
            takes the faster data type, and `"int8"` computes linear layers in int8, see
            `ClassConditionalPipeline.compile`.
        device: Device to compute on; by default the accelerator if there is one, but the CPU for
            `"int8"`, which needs one.
        arguments: Further arguments of the pipeline's call.

    Returns:
        `label` and `name` of the class of each image, and its single `file`, or `None`.

    Raises:
        OSError: If the networks cannot be compiled here.
        ValueError: If the pipeline does not take an argument, or its value is not valid.
    """
    output = picture_file(output)
    if animation is not None:
        animation = output_file(animation, ANIMATIONS)
    with working("loading pipeline"):
        loaded = ClassConditionalPipeline.from_pretrained(pipeline)
        loaded.to(device or ("cpu" if faster == "int8" else default_device()))
    loaded.set_progress_bar_config(**bar_settings("sampling", "steps"))
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if unknown := arguments.keys() - inspect.signature(type(loaded).__call__).parameters.keys():
        raise ValueError(
            f"A {type(loaded).__name__} takes no {', '.join(sorted(unknown))}; its sampling is set by "
            f"{', '.join(loaded.sampling_defaults)}."
        )
    if faster is not None:
        count = min(16, len(class_labels) * num_images_per_label)
        dtype = "int8" if faster == "int8" else None
        loaded.compile(count, dtype, backend="inductor" if faster == "compiled" else None)
    arguments["num_images_per_label"] = num_images_per_label
    arguments["generator"] = torch.Generator().manual_seed(seed)
    if animation is None:
        images, steps = loaded(class_labels, **arguments).images, []
    else:
        images, steps = sampling_steps(loaded, class_labels, **arguments)
    labels = loaded.label_ids(class_labels)
    names = [loaded.transformer.config.id2label[label] for label in labels]

    def grid(images: Sequence[Image.Image]) -> Image.Image:
        zoom = max(1, 64 // images[0].width)
        return generation_grid(
            images, names, columns=num_images_per_label, zoom=zoom, substitutes=labels
        )

    grid(images).save(output)
    described = []
    for number, image in enumerate(images):
        label, name = (of_rows[number // num_images_per_label] for of_rows in (labels, names))
        file = None
        if separate is not None:
            plain = re.sub(r"[^\w-]+", "_", name)
            file = Path(separate) / f"{number + 1:04}-{plain}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        described.append({"label": label, "name": name, "file": file and str(file)})
    if animation is not None:
        first, *others = map(grid, steps)
        durations = [150] * len(others) + [1500]  # milliseconds; the last one stays
        first.save(animation, save_all=True, append_images=others, duration=durations, loop=0)
    return described


def picture_file(path: str | Path) -> Path:
    """Same as `output_file`, of a picture: raises `ValueError` also if PIL saves none with this extension."""
    if Image.registered_extensions().get(Path(path).suffix.lower()) not in Image.SAVE:
        raise ValueError(
            f"The output file must be an image, such as .png, .jpg or .webp, got {str(path)!r}."
        )
    return output_file(path)


def probe_files(
    tokenizer: str | Path,
    data: str,
    features: Sequence[TokenFeature] = ("tokens", "mean_token"),
    revision: str | None = None,
    subfolder: str = "",
    data_revision: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    k: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Measures how much a tokenizer's tokens tell about the classes of images, by probes.

    Args:
        tokenizer: Folder or Hub repository of a tokenizer of any family.
        data: Images with labels, see `open_images`; probes are trained on `train` and measured on
            `test`.
        features: Features to probe, see `token_features`.
        revision: Branch, tag or commit of the tokenizer, if it is on the Hub.
        subfolder: Subfolder that holds the tokenizer, such as `"tokenizer"` or `"vae"` of a
            pipeline.
        data_revision: Branch, tag or commit of the data, if they are on the Hub.
        image_column, label_column: Columns of the data.
        k: Number of neighbors that vote, see `knn_probe`.
        seed: Random seed of the split that chooses the weight decay, see `linear_probe`.
        batch_size: Number of images encoded at once.
        device: Device to compute on; by default the accelerator if there is one.
        dtype: Data type of the tokenizer: `"float32"`, `"bfloat16"` or `"float16"`.

    Returns:
        The result of `probe_tokenizer`, with everything else that it depends on: `tokenizer`, see
        `describe_model`; `data`, its `id`, `revision` (the commit, if it is on the Hub), columns,
        and `train` and `test` as `probe_tokenizer` describes them; `image_size`; `device`, `dtype`
        and `versions`; and the `command` that repeats it.

    Raises:
        ValueError: If tokenizer and data do not fit, see `probe_tokenizer`.
    """
    arguments = dict(locals())  # as given, for the command that repeats the evaluation
    torch_dtype = parse_dtype(dtype)
    columns = {"image_column": image_column, "label_column": label_column}
    splits = open_images(data, **columns, revision=data_revision)
    datasets = {split: splits.dataset(split) for split in ("train", "test")}
    origin = {"id": data, "revision": dataset_commit(data, data_revision), **columns}
    model, processor = load_tokenizer(tokenizer, revision=revision, subfolder=subfolder)
    described = describe_model(model, tokenizer, revision, subfolder)
    model.to(device or default_device(), torch_dtype)
    probed = probe_tokenizer(
        model,
        processor,
        **datasets,
        **columns,
        features=features,
        batch_size=batch_size,
        k=k,
        seed=seed,
    )
    arguments |= {"revision": described["revision"], "data_revision": origin["revision"]}
    return {
        "tokenizer": described,
        "data": origin | {split: probed.pop(split) for split in ("train", "test")},
        "image_size": model.config.image_size,
        **probed,
        "device": device_name(model.device),
        "dtype": dtype,
        "versions": versions(),
        "command": command("probe", arguments),
    }
