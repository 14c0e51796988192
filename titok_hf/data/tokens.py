"""Images to token data sets, and those to the Hub."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Array2D, Array3D, Dataset, DatasetDict, Features, List, Value, load_from_disk
from datasets.fingerprint import generate_random_fingerprint
from huggingface_hub import CommitInfo, DatasetCard, HfApi
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ..hub.cards import GENERATED, token_dataset_text
from ..hub.errors import explain_hub_errors
from ..hub.folders import whole_folder
from ..modeling.auto import default_device, load_tokenizer
from .images import load_image_dataset


def tokenize_images(
    dataset: Dataset | DatasetDict,
    tokenizer: PreTrainedModel,
    processor: BaseImageProcessor,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
) -> Dataset | DatasetDict:
    """Images to the codes of a tokenizer, or to its latents if it is continuous.

    Args:
        dataset: Images with labels.
        tokenizer: A tokenizer of any family.
        processor: Its image processor.
        image_column, label_column: Columns of the data set.
        batch_size: Images that are encoded at once.
        cache_dir: Folder for the encoded data; if not given, where `datasets` keeps its cache.

    Returns:
        The same splits with the column `label`, as it was, and one of these: `codes`, `num_tokens` integers of the
        smallest type that holds the codebook; `latents` in float32, `(K, C)` or `(C, h, w)`.

    Raises:
        TypeError: If the model is no tokenizer.
        ValueError: If the data set is empty, or a column is missing.
    """
    if not hasattr(tokenizer, "encode"):
        raise TypeError(f"A tokenizer with `encode` is expected, got a {type(tokenizer).__name__}.")
    if not dataset:
        raise ValueError("The data set is empty.")
    splits = dataset if isinstance(dataset, DatasetDict) else {"train": dataset}
    for name, split in splits.items():
        if missing := {image_column, label_column} - set(split.column_names):
            raise ValueError(
                f"The split {name!r} has no column {', '.join(sorted(missing))} but {', '.join(split.column_names)}."
            )

    @torch.no_grad()
    def encode(images: Sequence[Image.Image]) -> dict[str, Any]:
        pixel_values = processor(images, return_tensors="pt")["pixel_values"]  # (B, 3, H, W)
        encoded = tokenizer.encode(pixel_values.to(tokenizer.device, tokenizer.dtype))
        if encoded.codes is not None:
            return {"codes": encoded.codes.cpu().numpy()}  # (B, N)
        return {"latents": encoded.latents.float().cpu().numpy()}  # (B, K, C) or (B, C, h, w)

    first = next(iter(splits.values()))
    [(column, example)] = encode(first[:1][image_column]).items()
    if column == "codes":
        integer = next(f"uint{bits}" for bits in (8, 16, 32) if tokenizer.config.codebook_size <= 2**bits)
        feature = List(Value(integer), length=example.shape[1])
    else:
        feature = {2: Array2D, 3: Array3D}[example[0].ndim](example.shape[1:], "float32")
    features = Features({column: feature, "label": first.features[label_column]})
    dataset = dataset.select_columns([image_column, label_column])
    if label_column != "label":
        dataset = dataset.rename_column(label_column, "label")

    def encode_split(name: str, split: Dataset) -> Dataset:
        return split.map(
            encode,
            input_columns=image_column,
            batched=True,
            batch_size=batch_size,
            remove_columns=image_column,
            features=features,
            cache_file_name=cache_dir and str(Path(cache_dir) / f"{name}.arrow"),
            new_fingerprint=generate_random_fingerprint(),  # the usual one hashes all weights
        )

    if isinstance(dataset, DatasetDict):
        return DatasetDict({name: encode_split(name, split) for name, split in dataset.items()})
    return encode_split("train", dataset)


def latent_statistics(dataset: Dataset, batch_size: int = 256) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of a data set of latents, in float64.

    Args:
        dataset: A split of the result of `tokenize_images` with a continuous tokenizer.
        batch_size: Latents that are read at once.

    Returns:
        `mean` and `std`, `C` numbers each.

    Raises:
        ValueError: If there are no latents.
    """
    if "latents" not in dataset.column_names:
        raise ValueError(f"The data set has no column 'latents' but {', '.join(dataset.column_names)}.")
    if not len(dataset):
        raise ValueError("The data set is empty.")
    count, total, squares = 0, 0.0, 0.0
    for batch in dataset.select_columns("latents").with_format("torch").iter(batch_size):
        latents = batch["latents"].double()  # (B, K, C) or (B, C, h, w)
        channels = latents.flatten(0, 1) if latents.ndim == 3 else latents.movedim(1, -1).flatten(0, 2)  # (n, C)
        count += len(channels)
        total = total + channels.sum(0)
        squares = squares + channels.square().sum(0)
    mean = total / count
    return {"mean": mean.tolist(), "std": (squares / count - mean.square()).clamp_min(0).sqrt().tolist()}


def tokenize_to_folder(
    source: str,
    tokenizer: str | Path,
    output_dir: str | Path,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> DatasetDict:
    """Writes the codes or latents of images as a folder that `load_from_disk` reads.

    Args:
        source: See `load_image_dataset`.
        tokenizer: Folder or Hub repository of a tokenizer of any family.
        output_dir: The folder; appears when it is whole. With latents it also holds `latent_statistics.json`, mean and
            standard deviation of each channel over the split `train`.
        image_column, label_column: Columns of the images.
        batch_size: Images that are encoded at once.
        device: Where to compute; the accelerator if there is one, if not given.

    Raises:
        FileExistsError: If the folder holds something already.
        OSError, ValueError: If tokenizer or images do not load.
    """
    with whole_folder(output_dir) as folder:
        model, processor = load_tokenizer(tokenizer)
        model.to(device or default_device())
        images = load_image_dataset(source, image_column, label_column)
        with TemporaryDirectory(dir=folder.parent) as cache:
            tokens = tokenize_images(images, model, processor, image_column, label_column, batch_size, cache)
            tokens.save_to_disk(folder)
        train = load_from_disk(str(folder))["train"]
        if "latents" in train.column_names:
            statistics = latent_statistics(train)
            (folder / "latent_statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    return load_from_disk(str(output_dir))


def push_tokens_to_hub(
    dataset: Dataset | DatasetDict,
    repo_id: str,
    tokenizer: PreTrainedModel,
    images: str,
    tokenizer_id: str,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Publishes a data set of codes as Parquet, then its card; the text of a card that someone edited stays.

    Args:
        dataset: Result of `tokenize_images` with a discrete tokenizer.
        repo_id: Repository, such as `"user/imagenet-titok-l-32"`; created if it is not there.
        tokenizer: The tokenizer of the codes.
        images: What the images are, such as the name of their data set.
        tokenizer_id: Repository of the tokenizer.
        license: Of the data set.
        private: Whether a new repository is private; if not given, as the account is set up.
        token: Access token; if not given, that of `hf auth login` or `HF_TOKEN`.
        revision: Branch; created if it is not there.

    Raises:
        ValueError: If these are not codes.
        OSError: If the Hub refused, or the connection broke; see `explain_hub_errors`.
    """
    columns = next(iter(dataset.values())) if isinstance(dataset, DatasetDict) else dataset
    if "codes" not in columns.column_names:
        raise ValueError(f"A data set of codes is expected, got the columns {', '.join(columns.column_names)}.")
    with explain_hub_errors(repo_id):
        dataset.push_to_hub(repo_id, private=private, token=token, revision=revision)
        api = HfApi(token=token)
        card = DatasetCard.load(api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=revision))
        if not card.text.strip() or GENERATED in card.text:
            card.text = token_dataset_text(
                images,
                tokenizer_id,
                type(tokenizer).__name__,
                tokenizer.config.num_tokens,
                tokenizer.config.codebook_size,
                next(iter(dataset)) if isinstance(dataset, DatasetDict) else "train",
                repo_id,
            )
        card.data.tags = ["titok", "image-tokens"]
        card.data.license = license
        card.data.source_tokenizer = tokenizer_id
        return card.push_to_hub(repo_id, repo_type="dataset", token=token, revision=revision)


__all__ = ["latent_statistics", "push_tokens_to_hub", "tokenize_images", "tokenize_to_folder"]
