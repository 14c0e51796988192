import pytest
import torch

from titok_hf.training.losses import (
    adaptive_weight,
    hinge_discriminator_loss,
    lecam_loss,
    mean_over_processes,
)


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ([2.0, 1.0], [-3.0, -1.0], 0.0),  # beyond the margins
        ([0.0, 0.0], [0.0, 0.0], 1.0),  # undecided
        ([2.0, 0.5], [-2.0, 0.0], 0.375),  # (0 + 0.5) / 2 and (0 + 1) / 2, averaged
        ([-1.0], [2.0], 2.5),  # wrong on both sides
    ],
)
def test_hinge_loss(real, fake, expected):
    assert float(hinge_discriminator_loss(torch.tensor(real), torch.tensor(fake))) == pytest.approx(
        expected
    )


def test_hinge_loss_averages_over_maps_of_logits():
    real, fake = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 3, 3)
    rows = [hinge_discriminator_loss(real[i], fake[i]) for i in range(4)]
    torch.testing.assert_close(hinge_discriminator_loss(real, fake), torch.stack(rows).mean())


def test_hinge_loss_pulls_on_logits_inside_the_margin_alone():
    real = torch.tensor([2.0, 0.5], requires_grad=True)
    fake = torch.tensor([-2.0, 0.0, 3.0, -1.5], requires_grad=True)
    hinge_discriminator_loss(real, fake).backward()
    assert real.grad.tolist() == [0, -0.25]
    assert fake.grad.tolist() == [0, 0.125, 0.125, 0]


@pytest.mark.parametrize(
    ("real_mean", "fake_mean", "real_average", "fake_average", "expected"),
    [
        (0.8, 0.1, 0.5, 0.3, 0.25 + 0.16),
        (0.8, 0.6, 0.5, 0.3, 0.25),  # fake logits over the average of the real ones cost nothing
        (0.2, 0.1, 0.5, 0.3, 0.16),  # real logits under the average of the fake ones cost nothing
        (0.2, 0.6, 0.5, 0.3, 0.0),
        (1.0, -2.0, 0.0, 0.0, 5.0),  # at the start, averages are 0
    ],
)
def test_lecam_loss(real_mean, fake_mean, real_average, fake_average, expected):
    scalars = (torch.tensor(value) for value in (real_mean, fake_mean, real_average, fake_average))
    assert float(lecam_loss(*scalars)) == pytest.approx(expected)


def test_lecam_loss_draws_the_mean_logits_together():
    real_mean, fake_mean = (
        torch.tensor(1.0, requires_grad=True),
        torch.tensor(-1.0, requires_grad=True),
    )
    lecam_loss(real_mean, fake_mean, torch.tensor(0.5), torch.tensor(-0.5)).backward()
    assert (float(real_mean.grad), float(fake_mean.grad)) == (
        3.0,
        -3.0,
    )  # 2 * (1 - -0.5), and its mirror image


@pytest.mark.parametrize(
    ("pull", "expected"), [(3.0, 3 * 2 / (0.5 * 2 + 1e-4)), (0.0, 0.0), (1e9, 1e4)]
)
def test_adaptive_weight_is_the_ratio_of_the_gradients_norms(pull, expected):
    """Sums over four weights have gradients whose norms are twice their factors."""
    layer = torch.rand(2, 2, requires_grad=True)
    weight = adaptive_weight((pull * layer).sum(), (-0.5 * layer).sum(), layer)
    assert float(weight) == pytest.approx(expected)
    assert not weight.requires_grad and layer.grad is None


def test_adaptive_weight_in_half_precision_is_that_of_full_precision():
    """The gradient of a mean over 32 images of 256 pixels is 1.6e-7 a pixel, and float16 ends at
    6e-8."""
    layer, images = torch.full((3,), 0.1, requires_grad=True), torch.rand(4096, 3)
    weights = {}
    for dtype in (torch.float32, torch.float16):
        made = (images.to(dtype) * layer.to(dtype) * 0.1).float()
        weights[dtype] = float(
            adaptive_weight(made.sum() * 1.6e-7, made.square().sum() * 1.6e-4, layer)
        )
    assert weights[torch.float16] == pytest.approx(weights[torch.float32], rel=0.01)


def test_the_mean_over_one_process_is_the_tensor_itself():
    values = torch.randn(3, requires_grad=True)
    assert mean_over_processes(values) is values
