import pytest
import torch
from fixtures.extractors.networks import lpips_heads, vgg16_weights
from torch.nn import functional as F

from titok_hf.perceptual.lpips import LPIPS
from titok_hf.training import PerceptualLoss


@pytest.fixture(scope="module")
def lpips():
    return LPIPS.from_state_dicts(vgg16_weights(), lpips_heads())


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32)


def test_it_is_the_mean_squared_error_of_logits(classifier, images):
    perceptual = PerceptualLoss(
        classifier, 32, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4)
    )
    others = torch.rand(3, 3, 32, 32)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    )
    logits, other_logits = (classifier((batch - mean) / std).logits for batch in (images, others))
    assert logits.shape == (3, 10)
    expected = (logits - other_logits).square().sum() / 30
    torch.testing.assert_close(perceptual(images, others), expected)


def test_it_is_0_for_equal_images_and_positive_for_others(perceptual, images):
    assert float(perceptual(images, images)) == 0
    assert float(perceptual(images, 1 - images)) > 0


def test_normalization_defaults_to_imagenets(classifier, images):
    perceptual = PerceptualLoss(classifier, 32)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(
        perceptual.logits(images), PerceptualLoss(classifier, 32, mean, std).logits(images)
    )


def test_images_of_another_size_are_resized(classifier, images):
    perceptual = PerceptualLoss(classifier, 32)
    large = torch.rand(2, 3, 64, 64)
    expected = perceptual.logits(F.interpolate(large, size=32, mode="bilinear", antialias=True))
    assert torch.equal(perceptual.logits(large), expected)
    assert not torch.equal(perceptual.logits(large), perceptual.logits(large[..., ::2, ::2]))


def test_the_classifier_is_frozen_and_stays_in_evaluation_mode(classifier):
    classifier.train()
    perceptual = PerceptualLoss(classifier, 32)
    parent = torch.nn.ModuleList([perceptual]).train()
    assert parent.training
    assert not any(module.training for module in perceptual.modules())
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())


def test_the_gradient_goes_to_the_reconstruction_only(perceptual, images):
    reconstruction = (images * 0.5).requires_grad_()
    target = images.clone().requires_grad_()
    perceptual(reconstruction, target).backward()
    assert reconstruction.grad.abs().sum() > 0
    assert target.grad is None
    assert all(parameter.grad is None for parameter in perceptual.parameters())


class TestLPIPS:
    """Images are in [0, 1], those of LPIPS in [-1, 1]."""

    def test_alone_it_is_the_mean_distance(self, lpips, images):
        perceptual = PerceptualLoss(lpips=lpips, classifier_weight=0, lpips_weight=0.7)
        targets = torch.rand(3, 3, 32, 32)
        expected = (
            sum(
                float(lpips(2 * x[None] - 1, 2 * y[None] - 1))
                for x, y in zip(images, targets, strict=True)
            )
            / 3
        )
        assert float(perceptual(images, targets)) == pytest.approx(expected, rel=1e-5)

    def test_with_a_classifier_it_is_the_weighted_mean_of_the_reference(
        self, classifier, lpips, images
    ):
        """`lpips-convnext_s-1.0-0.1`, which counts 1.1 times: LPIPS and a tenth of the classifier's
        error."""
        targets = torch.rand(3, 3, 32, 32)
        perceptual = PerceptualLoss(
            classifier, 32, lpips=lpips, classifier_weight=0.1, lpips_weight=1.0
        )
        mse = float(PerceptualLoss(classifier, 32)(images, targets))
        distance = float(lpips(2 * images - 1, 2 * targets - 1).mean())
        assert 1.1 * float(perceptual(images, targets)) == pytest.approx(
            distance + 0.1 * mse, rel=1e-5
        )
        assert mse > 0 and distance > 0

    def test_the_gradient_goes_to_the_reconstruction_only(self, classifier, lpips, images):
        perceptual = PerceptualLoss(classifier, 32, lpips=lpips, lpips_weight=1.0)
        reconstruction, target = (images * 0.5).requires_grad_(), images.clone().requires_grad_()
        perceptual(reconstruction, target).backward()
        assert reconstruction.grad.abs().sum() > 0
        assert target.grad is None


def test_without_a_size_the_classifier_sees_the_images_as_they_are(classifier, images):
    large = torch.rand(2, 3, 64, 64)
    perceptual = PerceptualLoss(classifier, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    assert torch.equal(perceptual.logits(large), classifier(large).logits)


def test_under_autocast_it_is_computed_in_float32(perceptual, images):
    expected = perceptual(images, 1 - images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = perceptual(images.bfloat16().float(), 1 - images)
        same = perceptual(images, 1 - images)
        half = perceptual(images.bfloat16(), 1 - images)
    assert torch.equal(same, expected)
    assert half.dtype == torch.float32
    assert torch.equal(half, loss)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classifier_weight": 0}, "one must be positive, got 0 and 0"),
        ({"classifier_weight": -1, "lpips_weight": 2}, "must not be negative"),
        ({"classifier_weight": 0.5}, "`classifier_weight` is 0.5, so `classifier` must be given"),
        (
            {"classifier_weight": 0, "lpips_weight": 2},
            "`lpips_weight` is 2, so `lpips` must be given",
        ),
    ],
)
def test_weights_that_do_not_fit_are_an_error(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        PerceptualLoss(**arguments)
