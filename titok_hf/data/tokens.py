"""Token data sets: columns of their Parquet files, statistics, card, and upload to the Hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from datasets import (
    Array2D,
    Array3D,
    Array4D,
    ClassLabel,
    DatasetInfo,
    Features,
    List,
    SplitDict,
    SplitInfo,
    Value,
)
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    DatasetCardData,
    HfApi,
    hf_hub_download,
)
from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError

from ..hub.cards import GENERATED, TEMPLATES
from ..hub.errors import explain_hub_errors
from ..progress import working

RECORD = "tokenize.json"
UNREADABLE = "unreadable.jsonl"
STATISTICS = "latent_statistics.json"


def token_features(
    shape: tuple[int, ...], codebook_size: int | None, class_names: list[str], labelled: bool
) -> Features:
    """Returns the columns of a token data set.

    Args:
        shape: Shape per image: codes `(N,)`, or latents `(K, C)` or `(C, h, w)`; with copies, one
            more axis in front.
        codebook_size: Codebook size of a discrete tokenizer, which decides the integer type;
            `None` for latents.
        class_names: Names of the classes; empty if unknown.
        labelled: Whether there are labels.
    """
    features = Features({"key": Value("string")})
    if labelled:
        features["label"] = ClassLabel(names=class_names) if class_names else Value("int64")
    if codebook_size is None:
        features["latents"] = {2: Array2D, 3: Array3D, 4: Array4D}[len(shape)](shape, "float32")
    else:
        features["codes"] = Value(
            next(f"uint{bits}" for bits in (8, 16, 32) if codebook_size <= 2**bits)
        )
        for length in reversed(shape):
            features["codes"] = List(features["codes"], length=length)
    return features


def latent_statistics(sums: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Returns `mean` and `std` of each channel, `C` numbers each, from `channel_sums` of all parts; `std` is
    at least 1e-6, since latents are divided by it."""
    count, total, squares = np.sum(sums, axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return {"mean": mean.tolist(), "std": std.tolist()}


def read_statistics(source: str, revision: str | None = None) -> dict[str, list[float]] | None:
    """Returns `mean` and `std` of each channel of the latents of a token data set; `None` if it has no
    `latent_statistics.json`.

    Args:
        source: Folder, or data set on the Hub.
        revision: Branch, tag or commit of a data set on the Hub.
    """
    file = Path(source) / STATISTICS
    if not Path(source).exists():
        try:
            downloaded = hf_hub_download(source, STATISTICS, repo_type="dataset", revision=revision)
        except EntryNotFoundError:
            return None
        file = Path(downloaded)
    return json.loads(file.read_text()) if file.exists() else None


def token_card(
    record: Mapping[str, Any],
    repo_id: str,
    images: str | None = None,
    tokenizer: str | None = None,
    license: str | None = None,
) -> DatasetCard:
    """Returns the card of a token data set.

    Args:
        record: Content of `tokenize.json`.
        repo_id: Repository or folder that the card's snippet loads.
        images: Description of the images; the recorded source if not given.
        tokenizer: Repository of the tokenizer; the recorded one if not given.
        license: License of the data set.
    """
    command, result = record["command"], record["result"]
    tokenizer = tokenizer or command["tokenizer"]["id"]
    features = Features.from_dict(command["features"])
    splits = {
        name: SplitInfo(name, num_bytes=split["bytes"], num_examples=split["rows"])
        for name, split in result["splits"].items()
    }
    info = DatasetInfo(
        features=features,
        splits=SplitDict(splits),
        download_size=sum(split["download_bytes"] for split in result["splits"].values()),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
    data = DatasetCardData(
        license=license, tags=["titok", "image-tokens"], source_tokenizer=tokenizer
    )
    DatasetInfosDict(default=info).to_dataset_card_data(data)
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    MetadataConfigs(default={"data_files": files}).to_dataset_card_data(data)
    text = TEMPLATES.get_template("token_data.md").render(
        images=images or command["source"],
        tokenizer=tokenizer,
        model_class=command["tokenizer"]["class"],
        shape=tuple(result["shape"]),
        codebook_size=result["codebook_size"],
        copies=describe_copies(command["augmentation"]) if result["copies"] > 1 else None,
        labelled="label" in features,
        num_unreadable=sum(split["unreadable"] for split in result["splits"].values()),
        split=next(iter(splits)),
        repo_id=repo_id,
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{text}")


def describe_copies(augmentation: Mapping[str, Any]) -> str:
    """Describes the copies of an image in words, from the fields of an `Augmentation`."""
    if augmentation["crop"] != "ten":
        return "its own crop and that mirrored"
    enlarged = f" of the image, resized to {augmentation['enlarge']:g} times that size" * (
        augmentation["enlarge"] > 1
    )
    return f"the crops of the four corners and the center{enlarged}, and these mirrored"


@working("publishing")
def push_tokens_to_hub(
    folder: str | Path,
    repo_id: str,
    images: str | None = None,
    tokenizer: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Publishes a folder of tokens with its card, in one commit.

    The upload is atomic; after a lost connection, the next call reuses the files that had arrived.
    Files of an earlier push that the folder lacks are deleted. The text of a card that was written
    or edited by hand, locally or on the Hub, is kept.

    Args:
        folder: Output folder of `tokenize_to_folder`.
        repo_id: Repository, such as `"user/imagenet-titok-l-32"`; created if it does not exist.
        images: Description of the images, such as the name of their data set; the recorded source
            if not given.
        tokenizer: Repository of the tokenizer, if it was loaded from elsewhere.
        license: License of the data set.
        private: Whether a new repository is private; the account's default if not given.
        token: Access token; if not given, that of `hf auth login` or `HF_TOKEN`.
        revision: Branch; created if it does not exist.

    Raises:
        FileNotFoundError: If the folder is no complete token data set.
        OSError: If the Hub refuses, or the connection is lost; see `explain_hub_errors`.
    """
    folder = Path(folder)
    if not (folder / RECORD).exists():
        raise FileNotFoundError(
            f"{folder} is no token data set: a folder that `titok tokenize` wrote is expected."
        )
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    local = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    with explain_hub_errors(repo_id):
        api = HfApi(token=token)
        repo_id = api.create_repo(
            repo_id, repo_type="dataset", private=private, exist_ok=True
        ).repo_id
        if revision is not None:
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        sha = api.dataset_info(repo_id, revision=revision).sha
        card = token_card(record, repo_id, images=images, tokenizer=tokenizer, license=license)
        edited = DatasetCard.load(local["README.md"]) if "README.md" in local else None
        if edited is None or GENERATED in edited.text:
            try:
                # pinned to the commit, because a branch name might give a stale card from the cache
                remote = api.hf_hub_download(
                    repo_id, "README.md", repo_type="dataset", revision=sha
                )
                edited = DatasetCard.load(remote)
            except RemoteEntryNotFoundError:
                edited = None
        if edited is not None and edited.text.strip() and GENERATED not in edited.text:
            card.text = edited.text
            card.data.license = license or edited.data.license
        there = api.list_repo_files(repo_id, repo_type="dataset", revision=sha)
        old = [path for path in there if path not in local and is_ours(path)]
        return api.create_commit(
            repo_id,
            repo_type="dataset",
            operations=[
                *(CommitOperationDelete(path) for path in old),
                *(
                    CommitOperationAdd(path, file)
                    for path, file in local.items()
                    if path != "README.md"
                ),
                CommitOperationAdd("README.md", str(card).encode()),
            ],
            commit_message="Upload tokens",
            revision=revision,
        )


def is_ours(path: str) -> bool:
    """Whether a file of a repository belongs to the token data set in it."""
    return PurePosixPath(path).match("data/*.parquet") or path in (UNREADABLE, STATISTICS)
