"""Images to token data sets, and those to the Hub."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from huggingface_hub import CommitInfo, DatasetCard, HfApi
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ..hub.cards import GENERATED, token_dataset_text
from ..hub.errors import explain_hub_errors


def tokenize_images(
    dataset: Dataset | DatasetDict,
    tokenizer: PreTrainedModel,
    processor: BaseImageProcessor,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
) -> Dataset | DatasetDict:
    """Images to the codes of a tokenizer.

    Args:
        dataset: Images with labels.
        tokenizer: A discrete tokenizer, of any family.
        processor: Its image processor.
        image_column, label_column: Columns of the data set.
        batch_size: Images that are encoded at once.

    Returns:
        The same splits with the columns `codes`, `num_tokens` integers of the smallest type that holds the codebook,
        and `label`, as it was.

    Raises:
        ValueError: If the tokenizer is continuous, or a column is missing.
    """
    if not hasattr(tokenizer, "decode_codes") or getattr(tokenizer.config, "quantizer", "vq") != "vq":
        raise ValueError(f"A tokenizer with codes is expected; this {type(tokenizer).__name__} has none.")
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
        codes = tokenizer.encode(pixel_values.to(tokenizer.device, tokenizer.dtype)).codes  # (B, N)
        return {"codes": codes.cpu().numpy()}

    config = tokenizer.config
    integer = next(f"uint{bits}" for bits in (8, 16, 32) if config.codebook_size <= 2**bits)
    labels = next(iter(splits.values())).features[label_column]
    features = Features({"codes": List(Value(integer), length=config.num_tokens), "label": labels})
    dataset = dataset.select_columns([image_column, label_column])
    if label_column != "label":
        dataset = dataset.rename_column(label_column, "label")
    return dataset.map(
        encode,
        input_columns=image_column,
        batched=True,
        batch_size=batch_size,
        remove_columns=image_column,
        features=features,
    )


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
    """Publishes a token data set as Parquet, then its card; the text of a card that someone edited stays.

    Args:
        dataset: Result of `tokenize_images`.
        repo_id: Repository, such as `"user/imagenet-titok-l-32"`; created if it is not there.
        tokenizer: The tokenizer of the codes.
        images: What the images are, such as the name of their data set.
        tokenizer_id: Repository of the tokenizer.
        license: Of the data set.
        private: Whether a new repository is private; if not given, as the account is set up.
        token: Access token; if not given, that of `hf auth login` or `HF_TOKEN`.
        revision: Branch; created if it is not there.

    Raises:
        OSError: If the Hub refused, or the connection broke; see `explain_hub_errors`.
    """
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


__all__ = ["push_tokens_to_hub", "tokenize_images"]
