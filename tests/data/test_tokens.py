"""Images to token data sets, and those to the Hub and back."""

import re

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from huggingface_hub import DatasetCard

import titok_hf
from titok_hf import TiTokImageProcessor, TiTokModel, VTPForImageReconstruction, VTPImageProcessor
from titok_hf.data import latent_statistics, push_tokens_to_hub, tokenize_images, tokenize_to_folder
from titok_hf.data.digits import DIGIT_NAMES, load_digits_dataset
from titok_hf.hub.cards import GENERATED


@pytest.fixture(scope="module")
def digits():
    """A dozen digits."""
    return load_digits_dataset()["train"].select(range(12))


@pytest.fixture
def processor():
    return TiTokImageProcessor.from_image_size(32)


@pytest.fixture
def tokens(digits, titok, processor):
    return tokenize_images(digits, titok, processor)


@pytest.fixture
def push(tokens, titok):
    """Pushes the digits' tokens, `push("user/tokens", token="hf_reader")`."""

    def push(repo_id, dataset=None, tokenizer=None, **arguments):
        arguments = {"images": "ten digits", "tokenizer_id": "user/titok", **arguments}
        return push_tokens_to_hub(dataset or tokens, repo_id, tokenizer or titok, **arguments)

    return push


@torch.no_grad()
def codes_of(images, tokenizer, processor):
    return tokenizer.encode(processor(list(images), return_tensors="pt")["pixel_values"]).codes.tolist()


def card_of(hub, repo_id, revision="main"):
    return hub.files(repo_id, revision, repo_type="dataset")["README.md"].decode()


@pytest.mark.parametrize("batch_size", [5, 64])
@pytest.mark.parametrize("family", ["titok", "vqgan"])
def test_codes_are_the_tokenizers(digits, processor, request, family, batch_size):
    tokenizer = request.getfixturevalue(family)
    tokens = tokenize_images(digits, tokenizer, processor, batch_size=batch_size)
    assert tokens.column_names == ["codes", "label"]
    assert tokens["codes"][:] == codes_of(digits["image"], tokenizer, processor)
    assert tokens["label"][:] == digits["label"][:]
    assert tokens.features["codes"].length == tokenizer.config.num_tokens
    assert len({tuple(codes) for codes in tokens["codes"]}) > 6


@pytest.mark.parametrize(
    ("codebook_size", "dtype"), [(64, "uint8"), (256, "uint8"), (257, "uint16"), (4096, "uint16")]
)
def test_integers_are_as_small_as_can_be(digits, make_titok_config, processor, codebook_size, dtype):
    tokenizer = TiTokModel(make_titok_config(codebook_size=codebook_size)).eval()
    tokens = tokenize_images(digits.select(range(4)), tokenizer, processor)
    assert tokens.features["codes"].feature == Value(dtype)
    assert tokens["codes"][:] == codes_of(digits["image"][:4], tokenizer, processor)


def test_labels_keep_their_type(digits, tokens, titok, processor):
    assert tokens.features["label"] == ClassLabel(names=DIGIT_NAMES)
    plain = digits.cast_column("label", Value("string"))
    tokens = tokenize_images(plain, titok, processor)
    assert tokens.features["label"] == Value("string")
    assert tokens["label"][:] == plain["label"][:]


def test_columns_of_other_names(digits, tokens, titok, processor):
    renamed = digits.rename_columns({"image": "picture", "label": "digit"}).add_column("number", list(range(12)))
    columns = {"image_column": "picture", "label_column": "digit"}
    again = tokenize_images(renamed, titok, processor, **columns)
    assert again.features == tokens.features and again[:] == tokens[:]

    # there is a column `label`, and it is not the one
    renamed = renamed.rename_column("number", "label")
    again = tokenize_images(renamed, titok, processor, **columns)
    assert again.features == tokens.features and again[:] == tokens[:]


def test_splits(digits, tokens, titok, processor):
    splits = DatasetDict({"train": digits, "test": digits.select([3, 1])})
    tokenized = tokenize_images(splits, titok, processor)
    assert isinstance(tokenized, DatasetDict)
    assert tokenized["train"][:] == tokens[:] and tokenized["test"][:] == tokens[[3, 1]]


def test_a_shuffled_data_set(digits, tokens, titok, processor):
    order = [5, 0, 7, 2]
    assert tokenize_images(digits.select(order), titok, processor)[:] == tokens[order]


def test_images_of_all_kinds_on_disk(tmp_path, digits, titok, processor):
    """A second tokenizer is not answered from the cache of the first."""
    for index, image in enumerate(digits["image"][:3]):
        image.resize((40 + index, 33)).convert(("L", "RGB", "RGBA")[index]).save(tmp_path / f"{index}.png")
    files = sorted(map(str, tmp_path.glob("*.png")))
    dataset = Dataset.from_dict({"image": files, "label": [0, 1, 2]}).cast_column("image", Image())
    dataset.save_to_disk(tmp_path / "saved")
    dataset = Dataset.load_from_disk(tmp_path / "saved")
    first = tokenize_images(dataset, titok, processor)
    assert first["codes"][:] == codes_of(dataset["image"], titok, processor)
    other = TiTokModel(titok.config).eval()
    second = tokenize_images(dataset, other, processor)
    assert second["codes"][:] == codes_of(dataset["image"], other, processor) != first["codes"][:]


def test_a_tokenizer_in_half_precision(digits, titok, processor):
    tokens = tokenize_images(digits, titok.to(torch.bfloat16), processor)
    assert tokens.features["codes"].feature == Value("uint8") and len(tokens) == 12


def test_what_is_no_tokenizer_is_refused(digits, generator, processor):
    with pytest.raises(TypeError, match="with `encode` is expected, got a MaskGitModel"):
        tokenize_images(digits, generator, processor)


@pytest.mark.parametrize("family", ["titok", "vtp"])
def test_continuous_tokenizers_give_latents(digits, make_titok_config, make_vtp_config, processor, family):
    if family == "titok":
        tokenizer = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
    else:
        tokenizer = VTPForImageReconstruction(make_vtp_config(latent_dim=5)).eval()
        processor = VTPImageProcessor.from_image_size(32)
    tokens = tokenize_images(digits, tokenizer, processor, batch_size=5).with_format("torch")
    pixel_values = processor(digits["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        latents = tokenizer.encode(pixel_values).latents
    torch.testing.assert_close(tokens["latents"][:], latents, atol=1e-4, rtol=1e-4)

    statistics = latent_statistics(tokens, batch_size=5)
    channels = latents.flatten(0, 1) if family == "titok" else latents.movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(torch.tensor(statistics["mean"]), channels.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(statistics["std"]), channels.std(0, correction=0), atol=1e-4, rtol=1e-4)


def test_statistics_are_of_latents(digits, titok, processor):
    with pytest.raises(ValueError, match="has no column 'latents' but codes, label"):
        latent_statistics(tokenize_images(digits, titok, processor))


def test_folder_of_tokens(titok, tmp_path):
    titok.save_pretrained(tmp_path / "titok")
    load_digits_dataset().save_to_disk(tmp_path / "images")
    before = sorted((tmp_path / "images").rglob("*"))
    tokenize_to_folder(str(tmp_path / "images"), tmp_path / "titok", tmp_path / "from_disk")
    assert sorted((tmp_path / "images").rglob("*")) == before  # no cache in the user's folder
    assert {path.name for path in tmp_path.iterdir()} == {"titok", "images", "from_disk"}

    tokens = tokenize_to_folder("digits", tmp_path / "titok", tmp_path / "tokens")
    assert {split: len(rows) for split, rows in tokens.items()} == {"train": 1437, "test": 360}
    assert len(tokens["test"][0]["codes"]) == 8
    with pytest.raises(FileExistsError, match="tokens exists already"):
        tokenize_to_folder("digits", tmp_path / "titok", tmp_path / "tokens")


def test_nothing_to_tokenize_is_refused(digits, titok, processor):
    for nothing in (DatasetDict(), digits.select([])):
        with pytest.raises(ValueError, match="The data set is empty"):
            tokenize_images(nothing, titok, processor)


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        ({"image_column": "picture"}, "picture"),
        ({"label_column": "digit"}, "digit"),
        ({"image_column": "picture", "label_column": "digit"}, "digit, picture"),
    ],
)
def test_missing_columns_are_refused(digits, titok, processor, columns, missing):
    with pytest.raises(ValueError, match=f"The split 'train' has no column {missing} but image, label"):
        tokenize_images(digits, titok, processor, **columns)


def test_a_split_without_the_columns_is_refused(digits, titok, processor):
    splits = DatasetDict({"train": digits, "test": digits.rename_column("image", "picture")})
    with pytest.raises(ValueError, match="The split 'test' has no column image but picture, label"):
        tokenize_images(splits, titok, processor)


def test_images_of_another_size_are_refused(digits, titok):
    with pytest.raises(ValueError, match=r"must have shape \(batch, 3, 32, 32\)"):
        tokenize_images(digits, titok, TiTokImageProcessor.from_image_size(16))


def test_tokens_come_back(hub, push, tokens):
    push("user/tokens")
    loaded = load_dataset("user/tokens")
    assert set(loaded) == {"train"}
    assert loaded["train"].features == tokens.features and loaded["train"][:] == tokens[:]


def test_splits_come_back_from_a_private_branch(hub, push, tokens, tmp_path):
    splits = DatasetDict({"train": tokens, "test": tokens.select(range(3))})
    push("user/secret-tokens", splits, private=True, revision="v2")
    assert hub.repositories["dataset", "user/secret-tokens"].private
    assert set(hub.files("user/secret-tokens", repo_type="dataset")) == {".gitattributes"}
    loaded = load_dataset("user/secret-tokens", revision="v2")
    assert {name: split[:] for name, split in loaded.items()} == {name: split[:] for name, split in splits.items()}
    assert "ten digits" in card_of(hub, "user/secret-tokens", "v2")


def test_a_second_push_replaces_the_tokens(hub, push, tokens):
    push("user/twice", tokens.select(range(4)))
    push("user/twice", tokens.select([7, 5]), images="two digits")
    assert load_dataset("user/twice")["train"][:] == tokens[[7, 5]]
    assert "two digits" in card_of(hub, "user/twice") and "ten digits" not in card_of(hub, "user/twice")


def test_the_card(hub, push):
    push("user/described", license="cc-by-4.0")
    card = DatasetCard.load("user/described")
    assert card.data.license == "cc-by-4.0"
    assert card.data.tags == ["titok", "image-tokens"]
    assert card.data.source_tokenizer == "user/titok"
    assert card.data.dataset_info["splits"][0]["num_examples"] == 12
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    for words in ("# Images as 8 tokens", "`ten digits`", "8 codes in [0, 64)", "`user/titok`", GENERATED, "@inproc"):
        assert words in card.text


def test_a_card_without_a_license(hub, push):
    push("user/unlicensed")
    assert "license" not in DatasetCard.load("user/unlicensed").data.to_dict()


@pytest.mark.parametrize(
    ("family", "splits"),
    [
        ("titok", ["train"]),
        ("titok", ["train", "test"]),
        ("titok", ["test"]),
        ("vqgan", ["train"]),
    ],
)
def test_the_snippet_runs(hub, request, push, digits, processor, family, splits):
    tokenizer = request.getfixturevalue(family)
    tokenizer.push_to_hub(f"user/{family}")
    tokens = tokenize_images(digits, tokenizer, processor)
    repo_id = f"user/snippet-{family}-{'-'.join(splits)}"
    push(repo_id, DatasetDict(dict.fromkeys(splits, tokens)), tokenizer, tokenizer_id=f"user/{family}")
    card, variables = card_of(hub, repo_id), {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], variables)
    assert variables["codes"].tolist() == tokens["codes"][0]
    assert f"# ({tokenizer.config.num_tokens},)" in card

    decode = re.search(r"`(.+?)` makes an image of them again", card)[1]
    decoded = eval(decode, vars(titok_hf) | variables)
    assert decoded.reconstruction.shape == (1, 3, 32, 32)


def test_an_edited_card_stays(hub, push, tokens):
    push("user/edited", tokens.select(range(4)))
    card = card_of(hub, "user/edited").replace(GENERATED, "Look at these digits: ä.")
    hub.add("user/edited", {"README.md": card.encode()}, repo_type="dataset")
    push("user/edited", tokens.select([7, 5]))
    loaded = DatasetCard.load("user/edited")
    assert "Look at these digits: ä." in loaded.text and GENERATED not in loaded.text
    assert loaded.data.dataset_info["splits"][0]["num_examples"] == 2
    assert load_dataset("user/edited")["train"][:] == tokens[[7, 5]]


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
def test_no_permission(hub, push, token, repo_id):
    hub.add("user/there", {"a.txt": b"a"}, repo_type="dataset")
    with pytest.raises(PermissionError, match=repo_id):
        push(repo_id, token=token)
    assert set(hub.repositories) == {("dataset", "user/there")}
    assert set(hub.files("user/there", repo_type="dataset")) == {".gitattributes", "a.txt"}


@pytest.mark.parametrize(("method", "path"), [("PUT", "/lfs/"), ("POST", "/preupload/"), ("POST", "/commit/")])
def test_a_cut_upload_changes_nothing(hub, push, tokens, method, path):
    repo_id = f"user/cut{path.replace('/', '-')}tokens"
    hub.break_connection(method, path, times=None)
    with pytest.raises(ConnectionError, match=repo_id):
        push(repo_id)
    assert set(hub.files(repo_id, repo_type="dataset")) == {".gitattributes"}
    hub.faults.clear()
    push(repo_id)
    assert load_dataset(repo_id)["train"][:] == tokens[:]


def test_the_card_of_an_interrupted_push_comes_with_the_next(hub, push):
    hub.fail("HEAD", "README.md", 500, times=None)
    with pytest.raises(OSError, match="user/interrupted"):
        push("user/interrupted")
    hub.faults.clear()
    push("user/interrupted")
    assert "# Images as 8 tokens" in card_of(hub, "user/interrupted")
