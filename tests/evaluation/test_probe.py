import hashlib
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import VQModel
from PIL import Image
from sklearn.linear_model import LogisticRegression

from titok_hf import TiTokImageProcessor, TiTokModel, VTPForImageReconstruction, VTPModel
from titok_hf.data.digits import load_digits_dataset, load_digits_pixels
from titok_hf.evaluation.probe import (
    fit,
    knn_probe,
    linear_probe,
    probe_tokenizer,
    token_features,
    vision_features,
)
from titok_hf.modeling.diffusers_tokenizer import DiffusersTokenizer


@pytest.fixture
def model(make_vtp_config):
    return VTPModel(make_vtp_config(vision_num_hidden_layers=3, has_text=False)).eval()


@pytest.fixture
def processor():
    return TiTokImageProcessor.from_image_size(32)


@torch.no_grad()
def test_features_are_cls_tokens_and_mean_patches(model):
    images = torch.randn(5, 3, 32, 32)
    features = vision_features(model, images.split(2), num_blocks=2)
    vision = model.get_vision_features(images, output_hidden_states=True)
    expected = [vision.hidden_states[1][:, 0], vision.cls_token, vision.patch_tokens.mean(1)]
    torch.testing.assert_close(features, torch.cat(expected, dim=-1), atol=1e-4, rtol=1e-4)

    latents = model.encode(images).latents
    behind = vision_features(model, images.split(2), bottleneck=True)
    torch.testing.assert_close(behind, latents.mean((2, 3)), atol=1e-4, rtol=1e-4)


def make_diffusers():
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return DiffusersTokenizer(
        VQModel(**blocks, block_out_channels=(8, 16), norm_num_groups=4)
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "shape"),
    [("titok", (8, 6)), ("vqgan", (16, 8)), ("vtp", (16, 8)), ("diffusers", (256, 3))],
)
def test_features_are_the_latents_of_every_family(request, make_vtp_config, family, shape):
    if family == "vtp":
        tokenizer = VTPForImageReconstruction(make_vtp_config()).eval()
    else:
        tokenizer = make_diffusers() if family == "diffusers" else request.getfixturevalue(family)
    images = torch.rand(5, 3, 32, 32) if family != "vtp" else torch.randn(5, 3, 32, 32)
    names = ["mean_token", "tokens"] + ["unquantized"] * (family != "vtp")
    features = token_features(tokenizer, images.split(2), names)
    assert list(features) == names
    encoded = tokenizer.encode(images)
    num_tokens, channels = shape
    assert features["tokens"].shape == (5, num_tokens * channels) and features[
        "mean_token"
    ].shape == (5, channels)
    for i in range(5):
        for name, tensor in (("tokens", encoded.latents), ("unquantized", encoded.unquantized)):
            if name in names:
                torch.testing.assert_close(
                    features[name][i], tensor[i].reshape(-1), atol=1e-4, rtol=1e-4
                )
        vectors = (
            encoded.latents[i] if family == "titok" else encoded.latents[i].reshape(channels, -1).T
        )  # (N, C)
        mean = sum(vectors) / num_tokens
        torch.testing.assert_close(features["mean_token"][i], mean, atol=1e-4, rtol=1e-4)
    if family != "vtp":
        assert not torch.allclose(features["tokens"], features["unquantized"], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("interleaved", [False, True])
def test_encoder_features_are_its_mean_latent_token(make_titok_config, interleaved):
    tokenizer = TiTokModel(make_titok_config("pixels", interleaved_latents=interleaved)).eval()
    images = torch.rand(5, 3, 32, 32)
    features = token_features(tokenizer, images.split(2), ["encoder"])["encoder"]
    assert not tokenizer.encoder.norm_out._forward_hooks

    seen = []
    tokenizer.encoder.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokenizer.encode(images)
    hidden = seen[0].numpy()  # (B, K, W)
    if interleaved:  # where the official code reads a (K, W) array as (W, K)
        hidden = np.stack([image.T.reshape(8, 32) for image in hidden])
    np.testing.assert_allclose(features, hidden.mean(1), atol=1e-4, rtol=1e-4)


def test_features_that_a_tokenizer_lacks_are_refused(vqgan, make_titok_config):
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(
        ValueError, match="Features are tokens, mean_token, unquantized, encoder; got pixels"
    ):
        token_features(vqgan, [images], ["tokens", "pixels"])
    with pytest.raises(
        ValueError, match="'encoder' is that of a TiTokModel, got a MaskGitVQGANModel"
    ):
        token_features(vqgan, [images], ["encoder"])
    continuous = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
    with pytest.raises(
        ValueError, match="'unquantized' is that of a discrete tokenizer; this TiTokModel is cont"
    ):
        token_features(continuous, [images], ["encoder", "unquantized"])
    assert not continuous.encoder.norm_out._forward_hooks


def digits(split, count):
    pixels, labels = load_digits_pixels(split)
    return torch.tensor(pixels[:count], dtype=torch.float32), torch.tensor(labels[:count])


def test_real_digits_are_told_apart():
    measured = linear_probe(*digits("train", 800), *digits("test", 300))
    assert 0.9 < measured["accuracy"] < 1
    assert measured == linear_probe(*digits("train", 800), *digits("test", 300))
    binomial = math.sqrt(measured["accuracy"] * (1 - measured["accuracy"]) / 299)
    assert measured["standard_error"] == pytest.approx(binomial)
    assert 0.95 < knn_probe(*digits("train", 800), *digits("test", 300))["accuracy"] < 1


def test_random_labels_are_not():
    features, _ = digits("train", 400)
    labels = torch.randint(10, (400,))
    for probe in (linear_probe, knn_probe):
        assert probe(features[:300], labels[:300], features[300:], labels[300:])["accuracy"] < 0.3


def test_fit_is_logistic_regression():
    features, labels = digits("train", 300)
    probe = fit(features, labels, 10, weight_decay=0.01)
    reference = LogisticRegression(C=1 / (0.01 * len(features)), max_iter=2000, tol=1e-8).fit(
        features, labels
    )
    torch.testing.assert_close(
        probe(features).softmax(-1),
        torch.tensor(reference.predict_proba(features), dtype=torch.float32),
        atol=5e-3,
        rtol=0,
    )


def brute_force_knn(train, train_labels, test, test_labels, k, temperature):
    correct = []
    for feature, label in zip(test, test_labels, strict=True):
        cosines = [
            float(feature @ other / np.linalg.norm(feature) / np.linalg.norm(other))
            for other in train
        ]
        votes = {}
        for i in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
            votes[int(train_labels[i])] = votes.get(int(train_labels[i]), 0) + math.exp(
                cosines[i] / temperature
            )
        correct.append(max(votes, key=votes.get) == label)
    return np.mean(correct), np.std(correct, ddof=1) / math.sqrt(len(correct))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.01), (20, 0.07), (90, 1.0)])
def test_neighbors_vote_as_in_a_loop(k, temperature):
    generator = np.random.default_rng(k)
    centers = generator.normal(size=(4, 6))
    train_labels, test_labels = (
        generator.integers(4, size=90),
        generator.integers(4, size=300),
    )  # more than a block
    train, test = (
        3 * generator.normal(size=(len(x), 6)) + 2 * centers[x] for x in (train_labels, test_labels)
    )
    train *= generator.uniform(0.1, 10, (90, 1))  # lengths must not matter
    accuracy, error = brute_force_knn(train, train_labels, test, test_labels, k, temperature)
    assert 0.3 < accuracy < 0.9

    tensors = (torch.tensor(x) for x in (train, train_labels, test, test_labels))
    measured = knn_probe(*tensors, k=k, temperature=temperature)
    assert measured["accuracy"] == pytest.approx(accuracy)
    assert measured["standard_error"] == pytest.approx(error)


def test_what_cannot_be_probed_is_refused():
    features, labels = digits("train", 20)
    for probe in (linear_probe, knn_probe):
        with pytest.raises(ValueError, match="a label for each of 20 features, got 19"):
            probe(features, labels[:19], features, labels)
        with pytest.raises(ValueError, match="a label for each of 20 features, got 18"):
            probe(features, labels, features, labels[:18])
    with pytest.raises(ValueError, match="at least two classes, got one"):
        linear_probe(features, torch.zeros(20, dtype=torch.int64), features, labels)
    with pytest.raises(ValueError, match="`k` must be from 1 to the 20 training features, got 21"):
        knn_probe(features, labels, features, labels, k=21)
    assert linear_probe(features[:5], labels[:5], features, labels)["accuracy"] > 0.3
    with pytest.raises(ValueError, match=r"at least 5 training features, .*, got 4"):
        linear_probe(features[:4], labels[:4], features, labels)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_features_must_be_finite(probe, value):
    features, labels = digits("train", 30)
    broken = features.clone()
    broken[[3, 3, 7], [0, 5, 2]] = value
    for train, test in ((broken, features), (features, broken)):
        with pytest.raises(
            ValueError, match="Features must be finite, got NaN or infinity in 2 of 30"
        ):
            probe(train, labels, test, labels)


def test_one_test_image_has_no_standard_error():
    features, labels = digits("train", 30)
    for probe in (linear_probe, knn_probe):
        measured = probe(features, labels, features[:1], labels[:1])
        assert measured["accuracy"] in (0, 1) and measured["standard_error"] is None


def test_a_data_set_is_probed(titok, processor):
    splits = load_digits_dataset()
    train, test = splits["train"].select(range(150)), splits["test"].select(range(60))
    names = ["unquantized", "encoder"]
    result = probe_tokenizer(titok, processor, train, test, features=names, batch_size=32, k=15)

    assert json.loads(json.dumps(result)) == result
    train_labels, test_labels = np.array(train["label"]), np.array(test["label"])
    majority = np.bincount(train_labels).argmax()
    assert result["num_classes"] == 10
    for name, dataset in (("train", train), ("test", test)):
        images = processor(list(dataset["image"]), do_rescale=False, return_tensors="np")[
            "pixel_values"
        ]
        assert images.dtype == np.uint8 and images.shape == (len(dataset), 3, 32, 32)
        total = sum(int.from_bytes(hashlib.sha256(image.tobytes()).digest()) for image in images)
        assert result[name] == {
            "num_images": len(dataset),
            "fingerprint": f"{total % 2**256:064x}",
            "labels_sha256": hashlib.sha256(
                np.array(dataset["label"], "<i8").tobytes()
            ).hexdigest(),
        }
    assert result["processor"]["image_processor_type"] == "TiTokImageProcessor"
    assert result["processor"]["crop_size"] == {"height": 32, "width": 32}
    assert result["linear"] == {"weight_decays": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1], "seed": 0}
    assert result["nearest_neighbors"] == {"k": 15, "temperature": 0.07}
    assert result["majority_accuracy"] == pytest.approx((test_labels == majority).mean())
    assert {name: measured["dimension"] for name, measured in result["features"].items()} == {
        "unquantized": 48,
        "encoder": 32,
    }
    for measured in result["features"].values():
        assert (
            measured["linear_accuracy"] > 0.2
        )  # twice chance: even random networks keep something of a digit
        assert 0 < measured["linear_standard_error"] < 0.1
        assert 1e-5 <= measured["weight_decay"] <= 1e-1
    # not "mean_token": where two codes are equally near, rounding decides which one is taken
    with torch.no_grad():
        unquantized = [
            titok.encode(processor(list(x["image"]), return_tensors="pt")["pixel_values"])
            .unquantized.flatten(1)
            .numpy()
            for x in (train, test)
        ]
    accuracy, error = brute_force_knn(
        unquantized[0], train_labels, unquantized[1], test_labels, 15, 0.07
    )
    assert result["features"]["unquantized"]["knn_accuracy"] == pytest.approx(accuracy)
    assert result["features"]["unquantized"]["knn_standard_error"] == pytest.approx(error)


def flat_images(labels, shades):
    pictures = [Image.new("RGB", (32, 32), (shade, shade, 255 - shade)) for shade in shades]
    return Dataset.from_dict({"picture": pictures, "kind": labels})


def test_labels_may_be_names(titok, processor):
    train = flat_images(["dark", "light"] * 6, [10, 240] * 6)
    test = flat_images(["light", "dark", "light", "light"], [240, 10, 240, 240])
    result = probe_tokenizer(
        titok, processor, train, test, "picture", "kind", ["tokens"], batch_size=5, k=3
    )
    assert (
        result["features"]["tokens"]["linear_accuracy"]
        == result["features"]["tokens"]["knn_accuracy"]
        == 1
    )
    assert result["features"]["tokens"]["dimension"] == 48


def test_the_seed_chooses_the_part_that_chooses_the_weight_decay(make_titok_config, processor):
    titok = TiTokModel(make_titok_config(quantizer="kl")).eval()  # noise has few codes
    generator = np.random.default_rng(0)
    pictures = [
        Image.fromarray(array)
        for array in generator.integers(256, size=(80, 32, 32, 3), dtype=np.uint8)
    ]
    train = Dataset.from_dict(
        {"image": pictures, "label": generator.integers(2, size=80)}
    )  # nothing to be learnt
    batches = [processor(pictures, return_tensors="pt")["pixel_values"]]
    features, labels = (
        token_features(titok, batches, ["tokens"])["tokens"],
        torch.tensor(train["label"]),
    )
    chosen = []
    seeds = range(8)  # with fewer, all might choose the same
    for seed in seeds:
        result = probe_tokenizer(titok, processor, train, train, features=["tokens"], seed=seed)
        assert result["linear"]["seed"] == seed
        chosen.append(result["features"]["tokens"]["weight_decay"])
    expected = [
        linear_probe(features, labels, features, labels, seed=seed)["weight_decay"]
        for seed in seeds
    ]
    assert chosen == expected
    assert len(set(chosen)) > 1, chosen


@pytest.mark.parametrize(
    ("train", "test", "columns", "sentence"),
    [
        (["a"] * 20, ["a"], ("picture", "kind"), "at least two classes, got 1"),
        (
            ["a", "b"] * 10,
            ["b", "c"],
            ("picture", "kind"),
            "a class that no training image has: 'c'",
        ),
        (["a", "b"] * 10, [], ("picture", "kind"), "There are no test images"),
        (
            ["a", "b"] * 9,
            ["a"],
            ("picture", "kind"),
            "`k` must be from 1 to the 18 training images, got 20",
        ),
        (["a", "b"] * 2, ["a"], ("picture", "kind"), "at least 5 training images, got 4"),
        (
            ["a", "b"] * 10,
            ["b"],
            ("picture", "label"),
            "The training images have no column label but picture, kind",
        ),
        (
            ["a", "b"] * 10,
            ["a"],
            ("image", "kind"),
            "The training images have no column image but picture, kind",
        ),
    ],
)
def test_data_sets_are_refused_before_anything_is_encoded(
    processor, train, test, columns, sentence
):
    splits = (flat_images(labels, [0] * len(labels)) for labels in (train, test))
    with pytest.raises(ValueError, match=sentence):
        probe_tokenizer(torch.nn.Identity(), processor, *splits, *columns)
