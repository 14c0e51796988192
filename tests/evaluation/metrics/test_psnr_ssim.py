import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from titok_hf.evaluation.metrics import peak_signal_to_noise_ratio, structural_similarity


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 16, 20), dtype=torch.uint8)


@pytest.fixture
def targets(images):
    noise = torch.randint(-20, 20, images.shape)
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_is_the_definition_of_each_image(images, targets):
    errors = ((images.numpy().astype(float) - targets.numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(
        peak_signal_to_noise_ratio(images, targets), 10 * np.log10(255**2 / errors), rtol=1e-12
    )


def test_psnr_of_black_against_white_is_0():
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert peak_signal_to_noise_ratio(black, black + 255) == 0


def test_psnr_of_equal_images_is_that_of_the_smallest_difference(images):
    other = images.clone()
    other[0, 0, 0, 0] ^= 1
    equal, nearly = (
        peak_signal_to_noise_ratio(images, images),
        peak_signal_to_noise_ratio(images, other),
    )
    assert equal[0] == nearly[0] == pytest.approx(10 * np.log10(255**2 * 3 * 16 * 20))
    assert (equal == equal[0]).all()


def ssim(image, target):
    """Wang et al. 2004 on (H, W) in [0, 1], 11x11 Gaussian window, reflected edges."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(values):
        return correlate1d(correlate1d(values, window, 0, mode="mirror"), window, 1, mode="mirror")

    c1, c2 = 0.01**2, 0.03**2
    mean, target_mean = blur(image), blur(target)
    variance, target_variance = blur(image**2) - mean**2, blur(target**2) - target_mean**2
    covariance = blur(image * target) - mean * target_mean
    return np.mean(
        (2 * mean * target_mean + c1)
        * (2 * covariance + c2)
        / ((mean**2 + target_mean**2 + c1) * (variance + target_variance + c2))
    )


def test_ssim_is_the_definition_of_each_image(images, targets):
    pairs = zip(images.numpy() / 255, targets.numpy() / 255, strict=True)
    expected = [
        np.mean([ssim(a, b) for a, b in zip(image, target, strict=True)]) for image, target in pairs
    ]
    np.testing.assert_allclose(structural_similarity(images, targets), expected, atol=1e-5)
    np.testing.assert_allclose(structural_similarity(images, images), np.ones(4), atol=1e-6)


@pytest.mark.parametrize("metric", [peak_signal_to_noise_ratio, structural_similarity])
def test_other_images_are_refused(metric, images):
    with pytest.raises(TypeError, match=r"uint8 in \[0, 255\], got torch.float32 and torch.uint8"):
        metric(images.float(), images)
    with pytest.raises(ValueError, match=r"got \(4, 3, 16, 20\) and \(1, 3, 16, 20\)"):
        metric(images, images[:1])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        metric(images[:, :1], images[:, :1])


def test_ssim_refuses_images_smaller_than_its_window():
    small = torch.zeros(1, 3, 10, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"at least 11x11 pixels.* got 10x32"):
        structural_similarity(small, small)
    smallest = torch.randint(0, 256, (2, 3, 11, 11), dtype=torch.uint8)
    assert structural_similarity(smallest, smallest).shape == (2,)
