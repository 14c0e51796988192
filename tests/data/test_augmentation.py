import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from titok_hf.data import Augmentation

SIZE = 32


def blob(x, y, batch_size=1):
    """Images `(B, 3, 32, 32)` of a soft dot at `(x, y)` in [-1, 1]."""
    axis = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1
    distance = (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2
    return torch.exp(-distance / 0.02).expand(batch_size, 3, SIZE, SIZE)


def centers(images):
    """Centers of mass `(B, 2)`, x and y in [-1, 1]."""
    axis = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1
    mass = images.mean(1)
    return torch.stack([(mass * axis).sum((1, 2)), (mass * axis[:, None]).sum((1, 2))], -1) / mass.sum((1, 2))[:, None]


def test_augmentation_is_off_by_default():
    pixel_values = torch.rand(4, 3, SIZE, SIZE)
    state = torch.get_rng_state()
    assert torch.equal(Augmentation()(pixel_values), pixel_values)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_flip_mirrors_about_half_of_the_images():
    pixel_values = torch.rand(200, 3, 4, SIZE)
    flipped = Augmentation(horizontal_flip=True)(pixel_values)
    mirrored = (flipped == pixel_values.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == pixel_values).flatten(1).all(1)).all()
    assert 70 <= mirrored.sum() <= 130


def test_rotation_turns_about_the_center_up_to_the_angle():
    moved = centers(Augmentation(rotation=30)(blob(0.5, 0, batch_size=200)))
    torch.testing.assert_close(moved.norm(dim=-1), torch.full((200,), 0.5), atol=0.02, rtol=0)
    angles = torch.atan2(moved[:, 1], moved[:, 0]) * 180 / math.pi
    assert angles.abs().max() < 31
    assert angles.min() < -25 and angles.max() > 25


def test_scaling_moves_points_to_or_from_the_center_up_to_the_fraction():
    moved = centers(Augmentation(scale=0.2)(blob(0.5, 0, batch_size=200)))
    assert moved[:, 1].abs().max() < 0.01
    # what is asked for at x is taken from x * factor, so points move by 1 / factor
    assert 0.5 / 1.2 - 0.01 < moved[:, 0].min() < 0.5 / 1.15 and 0.5 / 0.85 < moved[:, 0].max() < 0.5 / 0.8 + 0.01


def test_translation_shifts_each_axis_on_its_own_up_to_the_fraction():
    moved = centers(Augmentation(translation=0.1)(blob(0, 0, batch_size=200)))  # 0.1 of the side is 0.2 of [-1, 1]
    assert moved.abs().max() < 0.21
    assert (moved.min(0).values < -0.15).all() and (moved.max(0).values > 0.15).all()
    assert abs(float(torch.corrcoef(moved.T)[0, 1])) < 0.3


def test_what_comes_in_is_black():
    shifted = Augmentation(translation=0.25)(torch.ones(50, 3, SIZE, SIZE))
    torch.testing.assert_close(shifted[:, :, 12:20, 12:20], torch.ones(50, 3, 8, 8))
    assert (shifted.flatten(1) == 0).any(1).float().mean() > 0.9


@given(st.booleans(), st.floats(0, 180), st.floats(0, 0.9), st.floats(0, 1), st.integers(0, 2**31))
def test_augmented_images_stay_between_0_and_1(horizontal_flip, rotation, scale, translation, seed):
    torch.manual_seed(seed)
    augmentation = Augmentation(horizontal_flip, rotation, scale, translation)
    augmented = augmentation(torch.rand(3, 3, 16, 16))
    assert augmented.shape == (3, 3, 16, 16)
    assert augmented.min() >= 0 and augmented.max() <= 1


def test_random_changes_come_from_torchs_seed():
    augmentation = Augmentation(True, rotation=10, scale=0.1, translation=0.1)
    pixel_values = torch.rand(1, 3, SIZE, SIZE).expand(3, -1, -1, -1)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(augmentation(pixel_values))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0][0], batches[0][1])
