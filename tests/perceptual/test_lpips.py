"""LPIPS, held against the package `lpips` on deterministic weights."""

import pytest
import torch
from fixtures.extractors.networks import images, lpips_heads, reference, vgg16_weights

from titok_hf.perceptual.lpips import LPIPS


@pytest.fixture(scope="module")
def lpips():
    return LPIPS.from_state_dicts(vgg16_weights(), lpips_heads())


@pytest.fixture(scope="module")
def pair():
    """Images and targets in [-1, 1], the last pair alike."""
    ours, targets = (images(name, 3, 64, 80).float() / 127.5 - 1 for name in ("lpips", "targets"))
    targets[2] = ours[2] * 0.9 + 0.1 * targets[2]
    return ours, targets


def test_distances_and_gradients_are_the_references(lpips, pair):
    ours, targets = pair[0].clone().requires_grad_(), pair[1]
    distances = lpips(ours, targets)
    assert distances.shape == (3,)
    torch.testing.assert_close(distances, reference("lpips")["distances"], rtol=1e-5, atol=0)
    distances.sum().backward()
    expected = reference("lpips")["gradient"]
    torch.testing.assert_close(
        ours.grad.flatten()[::97], expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


def test_it_is_symmetric_and_0_for_equal_images(lpips, pair):
    ours, targets = pair
    assert torch.equal(lpips(ours, ours), torch.zeros(3))
    torch.testing.assert_close(lpips(targets, ours), lpips(ours, targets))


def test_gradients_of_flat_images_are_finite(lpips):
    flat = torch.zeros(1, 3, 16, 16, requires_grad=True)
    lpips(flat, torch.ones(1, 3, 16, 16)).backward()
    assert torch.isfinite(flat.grad).all()


def test_gradients_where_all_features_are_0_are_finite():
    weights = {name: -tensor.abs() for name, tensor in vgg16_weights().items()}
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance = LPIPS.from_state_dicts(weights, lpips_heads())(image + 1, -torch.ones(1, 3, 16, 16))
    distance.backward()
    assert torch.isfinite(image.grad).all()


def test_it_is_frozen(lpips, pair):
    ours, targets = pair[0].clone().requires_grad_(), pair[1]
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    assert not lpips(*pair).requires_grad
    train = LPIPS.from_state_dicts(vgg16_weights(), lpips_heads()).train()
    assert torch.equal(train(ours, targets), lpips(ours, targets))


def test_weights_come_from_files_with_a_classifier(lpips, pair):
    backbone = {
        **vgg16_weights(),
        "classifier.0.weight": torch.zeros(1),
        "classifier.0.bias": torch.zeros(1),
    }
    assert torch.equal(LPIPS.from_state_dicts(backbone, lpips_heads())(*pair), lpips(*pair))


def test_the_weights_of_another_network_are_refused():
    heads = lpips_heads()
    heads["lin5.model.1.weight"] = heads.pop("lin4.model.1.weight")
    with pytest.raises(
        ValueError, match="not the weights of LPIPS: 1 tensors are missing, lin4"
    ) as refusal:
        LPIPS.from_state_dicts({**vgg16_weights(), "features.0.bias": torch.zeros(3)}, heads)
    assert "1 tensors are unexpected, lin5.model.1.weight among them" in str(refusal.value)
    assert "features.0.bias among them: (3,) instead of (64,)" in str(refusal.value)


@pytest.mark.parametrize(
    ("ours", "targets", "error", "sentence"),
    [
        (
            torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
            torch.zeros(1, 3, 16, 16),
            TypeError,
            "got torch.uint8 and",
        ),
        (
            torch.zeros(1, 3, 16, 16),
            torch.zeros(2, 3, 16, 16),
            ValueError,
            r"\(1, 3, 16, 16\) and \(2, 3, 16, 16\)",
        ),
        (torch.zeros(1, 3, 15, 16), torch.zeros(1, 3, 15, 16), ValueError, "at least 16x16 pixels"),
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), ValueError, r"got \(3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), ValueError, r"got \(1, 1, 16, 16\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(lpips, ours, targets, error, sentence):
    with pytest.raises(error, match=sentence):
        lpips(ours, targets)
