import pytest
import torch
from torch import nn

from titok_hf.training import PatchDiscriminator
from titok_hf.training.discriminator import BlurDownsample


def test_the_blur_kernel_sums_to_1_and_falls_off_from_the_middle():
    kernel = BlurDownsample().kernel[0, 0]
    assert float(kernel.sum()) == 1
    assert torch.equal(
        kernel * 64, torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1]))
    )


def test_blurring_halves_the_side_and_keeps_channels_apart():
    x = torch.arange(1.0, 6.0).view(1, 5, 1, 1).expand(2, 5, 12, 16)  # each channel a constant
    blurred = BlurDownsample()(x)
    assert blurred.shape == (2, 5, 6, 8)
    torch.testing.assert_close(blurred[:, :, 1:-1, 1:-1], x[:, :, :4, :6])


def test_blurring_removes_the_highest_frequency():
    checkerboard = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    assert BlurDownsample()(checkerboard[None, None])[..., 1:-1, 1:-1].abs().max() == 0


@pytest.mark.parametrize(
    ("image_size", "num_stages", "logits_size", "side"),
    [
        (32, 2, 16, 8),
        (32, 1, 16, 16),
        (64, 3, 16, 8),
        (64, 1, 16, 16),
        (32, 1, 4, 4),
        (32, 0, 16, 16),
    ],
)
def test_logits_are_a_map_of_at_most_the_given_side(image_size, num_stages, logits_size, side):
    discriminator = PatchDiscriminator(
        hidden_channels=8, num_stages=num_stages, logits_size=logits_size
    )
    assert discriminator(torch.rand(2, 3, image_size, image_size)).shape == (2, 1, side, side)


def test_stages_double_the_channels_after_the_first():
    discriminator = PatchDiscriminator(num_channels=1, hidden_channels=8, num_stages=3)
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    channels = [(convolution.in_channels, convolution.out_channels) for convolution in convolutions]
    assert channels == [(1, 8), (8, 8), (8, 16), (16, 32), (32, 32), (32, 1)]


def test_images_of_a_batch_are_judged_on_their_own(discriminator):
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(discriminator(images)[2:3], discriminator(images[2:3]))


def test_every_parameter_and_the_images_get_a_gradient(discriminator):
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    discriminator(images).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())
    assert images.grad.abs().sum() > 0
    assert "stages.0.1.kernel" in discriminator.state_dict()


def test_real_and_fake_are_soon_told_apart(discriminator):
    """Bright squares from dark ones."""
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(20):
        real, fake = torch.rand(8, 3, 32, 32) / 2 + 0.5, torch.rand(8, 3, 32, 32) / 2
        real_logits, fake_logits = discriminator(torch.cat([real, fake])).chunk(2)
        loss = (1 - real_logits).relu().mean() + (1 + fake_logits).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert real_logits.mean() > 0 > fake_logits.mean()
