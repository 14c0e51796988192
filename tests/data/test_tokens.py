"""Token data sets on the Hub and back, and their cards."""

import json
import re
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard

import titok_hf
from titok_hf import TiTokImageProcessor, TiTokModel
from titok_hf.data import (
    Augmentation,
    ImageCollator,
    TrainingLoader,
    open_images,
    push_tokens_to_hub,
    tokenize_to_folder,
)
from titok_hf.data.digits import DIGIT_NAMES, load_digits_dataset
from titok_hf.data.token_folder import channel_sums
from titok_hf.data.tokens import latent_statistics
from titok_hf.hub.cards import GENERATED

from .sources import write_images, write_shards

pytestmark = pytest.mark.slow

NUM_ROWS = {"train": 12, "test": 5}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folder of a few digits."""
    dataset = load_digits_dataset()
    for split, count in NUM_ROWS.items():
        dataset[split] = dataset[split].select(range(count))
    dataset.save_to_disk(tmp_path_factory.mktemp("digits") / "digits")
    return str(tmp_path_factory.getbasetemp() / "digits0" / "digits")


@pytest.fixture
def make_tokens(digits, tmp_path):
    """Tokenizes the digits into `name`: `make_tokens(model, part_size=4)`."""

    def make(model, name="tokens", tokenizer="tokenizer", **arguments):
        model.save_pretrained(tmp_path / tokenizer)
        tokenize_to_folder(
            digits, tmp_path / tokenizer, tmp_path / name, num_workers=0, **arguments
        )
        return tmp_path / name

    return make


@pytest.fixture
def tokens(make_tokens, titok):
    return make_tokens(titok, part_size=5)


def rows(source, **arguments):
    return {split: dataset[:] for split, dataset in load_dataset(str(source), **arguments).items()}


def card_of(hub, repo_id, revision="main"):
    return hub.files(repo_id, revision, repo_type="dataset")["README.md"].decode()


def test_statistics_are_those_of_all_values():
    """The parts have different sizes, and values are far from zero."""
    latents = np.random.default_rng(0).normal(100, 0.5, (50, 7, 3)).astype(np.float32)
    found = latent_statistics([channel_sums(part, 1) for part in np.split(latents, [3, 30])])
    assert np.allclose(found["mean"], latents.astype(np.float64).mean((0, 1)), rtol=1e-12)
    assert np.allclose(found["std"], latents.astype(np.float64).std((0, 1)), rtol=1e-6)
    maps = np.moveaxis(latents, -1, 1).reshape(25, 2, 3, 7, 1)  # copies of maps (C, h, w)
    again = latent_statistics([channel_sums(maps, 2)])
    assert np.allclose(again["std"], found["std"], rtol=1e-9)


def test_tokens_come_back(hub, tokens):
    push_tokens_to_hub(tokens, "user/tokens")
    assert rows("user/tokens") == rows(tokens)
    assert (
        load_dataset("user/tokens")["train"].features == load_dataset(str(tokens))["train"].features
    )
    opened = open_images("user/tokens")["test"]
    assert opened.class_names == DIGIT_NAMES
    assert [row.tokens.tolist() for row in opened.read(0, 5)] == rows(tokens)["test"]["codes"]


def test_latents_and_copies_come_back(hub, make_tokens, make_titok_config):
    model = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
    tokens = make_tokens(model, augmentation=Augmentation(horizontal_flip=True))
    push_tokens_to_hub(tokens, "user/latents")
    assert rows("user/latents") == rows(tokens)
    assert np.shape(rows("user/latents")["test"]["latents"]) == (5, 2, 8, 6)
    assert set(
        json.loads(hub.files("user/latents", repo_type="dataset")["latent_statistics.json"])
    ) == {"mean", "std"}


def test_there_is_one_commit(hub, tokens):
    push_tokens_to_hub(tokens, "user/once")
    history = hub.repositories["dataset", "user/once"].find("main").history()
    assert [commit.title for commit in history] == ["Upload tokens", "initial commit"]
    names = {path.relative_to(tokens).as_posix() for path in tokens.rglob("*") if path.is_file()}
    assert set(hub.files("user/once", repo_type="dataset")) == names | {".gitattributes"}


def test_a_private_branch(hub, tokens):
    push_tokens_to_hub(
        tokens, "user/secret-tokens", private=True, revision="v2", images="a few digits"
    )
    assert hub.repositories["dataset", "user/secret-tokens"].private
    assert set(hub.files("user/secret-tokens", repo_type="dataset")) == {".gitattributes"}
    assert rows("user/secret-tokens", revision="v2") == rows(tokens)
    assert "a few digits" in card_of(hub, "user/secret-tokens", "v2")


def test_a_second_push_replaces_the_tokens(hub, tokens, make_tokens, titok):
    (tokens / "unreadable.jsonl").write_text("")
    push_tokens_to_hub(tokens, "user/twice", images="digits in parts")
    hub.add("user/twice", {"notes.txt": b"mine"}, repo_type="dataset")
    whole = make_tokens(TiTokModel(titok.config).eval(), "whole", "other")
    push_tokens_to_hub(whole, "user/twice")
    assert rows("user/twice") == rows(whole) != rows(tokens)
    files = hub.files("user/twice", repo_type="dataset")
    assert sorted(name for name in files if name.endswith(".parquet")) == [
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    assert files["notes.txt"] == b"mine" and "unreadable.jsonl" not in files
    assert "digits in parts" not in card_of(hub, "user/twice")


def test_the_card(hub, tokens):
    push_tokens_to_hub(tokens, "user/described", "ten digits", "user/titok", "cc-by-4.0")
    card = DatasetCard.load("user/described")
    assert card.data.license == "cc-by-4.0"
    assert card.data.tags == ["titok", "image-tokens"]
    assert card.data.source_tokenizer == "user/titok"
    assert [split["num_examples"] for split in card.data.dataset_info["splits"]] == [12, 5]
    assert card.data.configs[0]["data_files"] == [
        {"split": "train", "path": "data/train-*"},
        {"split": "test", "path": "data/test-*"},
    ]
    for words in (
        "# Images as 8 tokens",
        "`ten digits`",
        "8 codes in [0, 64)",
        "`user/titok`",
        GENERATED,
        "@inproc",
    ):
        assert words in card.text
    assert "copies" not in card.text and "unreadable" not in card.text


def test_the_card_in_the_folder(tokens, digits, tmp_path):
    card = DatasetCard.load(tokens / "README.md")
    assert f"`{digits}`" in card.text and f"`{tmp_path / 'tokenizer'}`" in card.text
    assert "license" not in card.data.to_dict()
    sizes = card.data.dataset_info
    assert sizes["download_size"] == sum(path.stat().st_size for path in tokens.glob("data/*"))
    dataset = load_dataset(str(tokens))
    assert sizes["splits"][0]["num_bytes"] == dataset["train"].data.nbytes


@pytest.mark.parametrize("family", ["titok", "vqgan", "kl"])
@pytest.mark.parametrize(
    "augmentation", [Augmentation(), Augmentation("ten", 1.1)], ids=["one", "ten"]
)
def test_the_snippet_runs(hub, request, make_tokens, make_titok_config, family, augmentation):
    if family == "kl":
        tokenizer = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
    else:
        tokenizer = request.getfixturevalue(family)
    tokenizer.push_to_hub(f"user/{family}")
    tokens = make_tokens(tokenizer, augmentation=augmentation, split="test")
    push_tokens_to_hub(tokens, f"user/snippet-{family}", tokenizer=f"user/{family}")
    card, variables = card_of(hub, f"user/snippet-{family}"), {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], variables)
    column = "latents" if family == "kl" else "codes"
    expected = torch.tensor(rows(tokens)["test"][column][0])
    assert torch.equal(variables[column], expected)
    assert f"# {tuple(expected.shape)}" in card
    copies = augmentation.variants
    assert ("10 copies of each image: the crops of the four corners" in card) == (copies == 10)

    decode = re.search(r"`(.+?)` makes an image of them again", card)[1]
    decoded = eval(decode, {name: getattr(titok_hf, name) for name in titok_hf.__all__} | variables)
    assert decoded.reconstruction.shape == (copies, 3, 32, 32)


@pytest.mark.parametrize("place", ["here", "there"])
def test_an_edited_card_stays(hub, tokens, place):
    expected = rows(tokens)
    push_tokens_to_hub(tokens, "user/edited", license="cc-by-4.0")
    card = (
        card_of(hub, "user/edited")
        .replace(GENERATED, "Look at these digits: ä.")
        .replace("12\n", "13\n")
    )
    if place == "here":
        (tokens / "README.md").write_text(card, encoding="utf-8")
    else:
        hub.add("user/edited", {"README.md": card.encode()}, repo_type="dataset")
    push_tokens_to_hub(tokens, "user/edited")
    loaded = DatasetCard.load("user/edited")
    assert "Look at these digits: ä." in loaded.text and GENERATED not in loaded.text
    assert loaded.data.license == "cc-by-4.0"
    assert loaded.data.dataset_info["splits"][0]["num_examples"] == 12
    assert rows("user/edited") == expected


@pytest.mark.parametrize(
    ("token", "repo_id"),
    [
        ("hf_reader", "user/new"),
        ("hf_reader", "reader/new"),
        ("hf_stranger", "user/there"),
        ("hf_wrong", "user/there"),
        (False, "user/new"),
    ],
)
def test_no_permission(hub, tokens, token, repo_id):
    hub.add("user/there", {"a.txt": b"a"}, repo_type="dataset")
    with pytest.raises(PermissionError, match=repo_id):
        push_tokens_to_hub(tokens, repo_id, token=token)
    assert set(hub.repositories) == {("dataset", "user/there")}
    assert set(hub.files("user/there", repo_type="dataset")) == {".gitattributes", "a.txt"}


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/lfs/"), ("POST", "/preupload/"), ("POST", "/commit/")]
)
def test_a_cut_upload_changes_nothing(hub, tokens, method, path):
    repo_id = f"user/cut{path.replace('/', '-')}tokens"
    hub.break_connection(method, path, times=None)
    with pytest.raises(ConnectionError, match=repo_id):
        push_tokens_to_hub(tokens, repo_id)
    assert set(hub.files(repo_id, repo_type="dataset")) == {".gitattributes"}
    hub.faults.clear()
    sent = len(hub.log)
    push_tokens_to_hub(tokens, repo_id)
    uploads = [request for request in hub.log[sent:] if request.startswith("PUT")]
    assert len(uploads) == (0 if path == "/commit/" else 4)  # what had arrived is not sent again
    assert rows(repo_id) == rows(tokens)


def test_a_folder_of_something_else_is_refused(hub, tmp_path):
    (tmp_path / "tokens.partial").mkdir()
    with pytest.raises(FileNotFoundError, match="is no token data set"):
        push_tokens_to_hub(tmp_path / "tokens.partial", "user/nothing")
    assert not hub.repositories


@pytest.mark.parametrize("kind", ["images", "shards"])
@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(), Augmentation(horizontal_flip=True), Augmentation("ten", 1.1)],
    ids=["1", "2", "10"],
)
def test_training_sees_in_tokens_what_it_sees_in_images(titok, tmp_path, kind, augmentation):
    """Batch by batch; the tokens of shards are streamed, too, so that they come in the same order."""
    titok.save_pretrained(tmp_path / "tokenizer")
    source = tmp_path / kind
    if kind == "images":
        write_images(source, {"train": 11, "test": 2})
    else:
        write_shards(source, [3, 5, 0, 1, 4])
    tokenize_to_folder(
        str(source),
        tmp_path / "tokenizer",
        tmp_path / "tokens",
        augmentation=augmentation,
        num_workers=0,
    )
    collator = ImageCollator(
        TiTokImageProcessor.from_image_size(32), label_column="label", augmentation=augmentation
    )
    arguments = {
        "batch_size": 4,
        "seed": 3,
        "num_draws": 2,
        "shuffle_buffer": 3,
        "rank": 1,
        "world_size": 2,
    }
    images, tokens = (
        iter(
            TrainingLoader(
                open_images(str(folder), streaming=kind == "shards")["train"],
                collator.collate,
                **arguments,
            )
        )
        for folder in (source, tmp_path / "tokens")
    )
    for image_batch, token_batch in islice(zip(images, tokens, strict=True), 9):
        with torch.no_grad():
            codes = torch.cat(
                [titok.encode(image[None]).codes for image in image_batch["pixel_values"]]
            )
        assert torch.equal(token_batch["codes"], codes)
        for name in ("class_labels", "draws"):
            assert torch.equal(token_batch[name], image_batch[name])
