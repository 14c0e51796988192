import pytest
import torch
from torch.nn import functional as F

from titok_hf.training import PerceptualLoss


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32)


def test_it_is_the_mean_squared_error_of_logits(classifier, images):
    perceptual = PerceptualLoss(classifier, 32, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))
    others = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
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
    torch.testing.assert_close(perceptual.logits(images), PerceptualLoss(classifier, 32, mean, std).logits(images))


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
