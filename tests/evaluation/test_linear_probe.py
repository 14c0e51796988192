import pytest
import torch
from sklearn.linear_model import LogisticRegression

from titok_hf import VTPModel
from titok_hf.data.digits import load_digits_pixels
from titok_hf.evaluation import linear_probe, vision_features
from titok_hf.evaluation.linear_probe import fit


@pytest.fixture
def model(make_vtp_config):
    return VTPModel(make_vtp_config(vision_num_hidden_layers=3, has_text=False)).eval()


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


def digits(split, count):
    pixels, labels = load_digits_pixels(split)
    return torch.tensor(pixels[:count], dtype=torch.float32), torch.tensor(labels[:count])


def test_real_digits_are_told_apart():
    measured = linear_probe(*digits("train", 800), *digits("test", 300))
    assert 0.9 < measured["accuracy"] < 1
    assert measured == linear_probe(*digits("train", 800), *digits("test", 300))


def test_random_labels_are_not():
    features, _ = digits("train", 400)
    labels = torch.randint(10, (400,))
    assert linear_probe(features[:300], labels[:300], features[300:], labels[300:])["accuracy"] < 0.3


def test_fit_is_logistic_regression():
    features, labels = digits("train", 300)
    probe = fit(features, labels, 10, weight_decay=0.01)
    reference = LogisticRegression(C=1 / (0.01 * len(features)), max_iter=2000, tol=1e-8).fit(features, labels)
    torch.testing.assert_close(
        probe(features).softmax(-1),
        torch.tensor(reference.predict_proba(features), dtype=torch.float32),
        atol=5e-3,
        rtol=0,
    )


def test_what_cannot_be_probed_is_refused():
    features, labels = digits("train", 20)
    with pytest.raises(ValueError, match="a label for each of 20 features, got 19"):
        linear_probe(features, labels[:19], features, labels)
    with pytest.raises(ValueError, match="at least two classes, got one"):
        linear_probe(features, torch.zeros(20, dtype=torch.int64), features, labels)
