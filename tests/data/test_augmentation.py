import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare

from titok_hf import TiTokImageProcessor, VTPImageProcessor
from titok_hf.data import Augmentation

SIZE = 32
PROCESSOR = TiTokImageProcessor.from_image_size(SIZE)
VTP_PROCESSOR = VTPImageProcessor.from_image_size(SIZE)


def photo(width, height, seed=0):
    """A random image, smooth enough that its pixels differ from their neighbours' and from a
    mirrored image."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8
    )
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def blob(x, y):
    """An image of a soft dot at `(x, y)` in [-1, 1]."""
    axis = (np.arange(SIZE) + 0.5) / (SIZE / 2) - 1
    dot = np.exp(-((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / 0.02)
    return Image.fromarray((255 * dot).round().astype(np.uint8)).convert("RGB")


def coordinates(width, height):
    """An image whose red is the row and whose green the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1))


def many(augmentation, image, count=200, processor=PROCESSOR):
    """Random changes of an image, `(count, 3, H, W)`."""
    return torch.stack(
        [augmentation(image, processor, np.random.default_rng(seed)) for seed in range(count)]
    )


def centers(images):
    """Centers of mass `(B, 2)`, x and y in [-1, 1]."""
    axis = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1
    mass = images.mean(1)
    return (
        torch.stack([(mass * axis).sum((1, 2)), (mass * axis[:, None]).sum((1, 2))], -1)
        / mass.sum((1, 2))[:, None]
    )


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / 255).float()


def resized(image, shorter_side):
    """The longer side is rounded down, as by torchvision's `Resize`."""
    shorter, longer = sorted(image.size)
    longer = int(shorter_side * longer / shorter)
    return image.resize(
        (longer, shorter_side) if image.width > image.height else (shorter_side, longer), 3
    )


@pytest.mark.parametrize("processor", [PROCESSOR, VTP_PROCESSOR])
@pytest.mark.parametrize("size", [(32, 32), (50, 41), (100, 70), (20, 25)])
def test_augmentation_is_off_by_default(processor, size):
    image = photo(*size)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Augmentation()(image, processor, np.random.default_rng(0)), expected)
    assert torch.equal(Augmentation().variant(image, processor, 0), expected)


@pytest.mark.parametrize("size", [(32, 32), (50, 41), (37, 90), (128, 70), (300, 200), (20, 25)])
def test_adms_crop_is_that_of_the_vtp_processor(size):
    image = photo(*size)
    published = VTPImageProcessor.from_image_size(SIZE)  # its own preprocessing is ADM's crop
    ours = Augmentation("adm").variant(image, VTP_PROCESSOR, 0)
    assert torch.equal(ours, published(image, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("size", [(32, 32), (50, 41), (37, 90), (128, 70), (300, 200)])
def test_adms_crop_is_center_crop_arr(size):
    image = photo(*size)
    expected = image
    while min(expected.size) >= 2 * SIZE:
        expected = expected.resize(
            (expected.width // 2, expected.height // 2), Image.Resampling.BOX
        )
    factor = SIZE / min(expected.size)
    expected = expected.resize(
        tuple(round(side * factor) for side in expected.size), Image.Resampling.BICUBIC
    )
    top, left = (expected.height - SIZE) // 2, (expected.width - SIZE) // 2
    expected = np.asarray(expected)[top : top + SIZE, left : left + SIZE]
    ours = Augmentation("adm").variant(image, PROCESSOR, 0)
    torch.testing.assert_close(ours, to_tensor(expected))


@pytest.mark.parametrize("crop", ["center", "adm"])
def test_a_flip_mirrors_about_half_of_the_images(crop):
    image = photo(51, 40)
    augmentation = Augmentation(crop, horizontal_flip=True)
    plain, mirrored = (augmentation.variant(image, PROCESSOR, number) for number in (0, 1))
    assert augmentation.variants == 2
    assert torch.equal(plain, Augmentation(crop).variant(image, PROCESSOR, 0))
    assert torch.equal(mirrored, plain.flip(-1)) and not torch.equal(mirrored, plain)
    images = many(augmentation, image)
    is_mirrored = (images == mirrored).flatten(1).all(1)
    assert (is_mirrored | (images == plain).flatten(1).all(1)).all()
    assert 70 <= is_mirrored.sum() <= 130


@pytest.mark.parametrize(
    ("enlarge", "shorter_side"), [(1.0, 32), (1.1, 35), (1.5, 48)]
)  # 1.1 * 32 = 35.2
@pytest.mark.parametrize("size", [(60, 40), (45, 77), (64, 64)])
def test_ten_crops_are_corners_and_center_and_mirrored_ones(size, enlarge, shorter_side):
    image = photo(*size)
    augmentation = Augmentation("ten", enlarge=enlarge)
    pixels = to_tensor(resized(image, shorter_side))
    height, width = pixels.shape[1:]
    top, left = round((height - SIZE) / 2), round((width - SIZE) / 2)
    crops = [
        pixels[:, :SIZE, :SIZE],
        pixels[:, :SIZE, -SIZE:],
        pixels[:, -SIZE:, :SIZE],
        pixels[:, -SIZE:, -SIZE:],
        pixels[:, top : top + SIZE, left : left + SIZE],
    ]
    assert augmentation.variants == 10
    for number, expected in enumerate([*crops, *(crop.flip(-1) for crop in crops)]):
        torch.testing.assert_close(augmentation.variant(image, PROCESSOR, number), expected)


def test_the_center_of_ten_crops_is_the_processors_crop():
    image = photo(70, 45)
    plain = PROCESSOR(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Augmentation("ten").variant(image, PROCESSOR, 4), plain)


def test_each_of_ten_crops_is_as_likely():
    image, augmentation = photo(60, 40), Augmentation("ten", enlarge=1.5)
    variants = [augmentation.variant(image, PROCESSOR, number) for number in range(10)]
    counts = np.zeros(10, int)
    for changed in many(augmentation, image, 300):
        counts += [torch.equal(changed, variant) for variant in variants]
    assert counts.sum() == 300
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation("adm", horizontal_flip=True),
        Augmentation("ten"),
        Augmentation(horizontal_flip=True),
    ],
)
def test_the_first_random_number_chooses_the_variant(augmentation):
    image = photo(50, 44)
    for seed in range(20):
        number = int(np.random.default_rng(seed).random() * augmentation.variants)
        changed = augmentation(image, PROCESSOR, np.random.default_rng(seed))
        assert torch.equal(changed, augmentation.variant(image, PROCESSOR, number))


def test_a_random_crop_is_anywhere_as_likely():
    image, augmentation = (
        coordinates(40, 35),
        Augmentation("random", enlarge=1.1),
    )  # 35 on the shorter side: as it is
    images = (many(augmentation, image, 3000) * 255).round().long()
    tops, lefts = images[:, 0, 0, 0], images[:, 1, 0, 0]
    for top, left, changed in zip(
        tops[:50].tolist(), lefts[:50].tolist(), images[:50], strict=True
    ):
        assert changed[0, :, 3].tolist() == list(range(top, top + SIZE))
        assert changed[1, 5].tolist() == list(range(left, left + SIZE))
    counts = np.zeros((4, 9), int)
    np.add.at(counts, (tops.numpy(), lefts.numpy()), 1)
    assert chisquare(counts.ravel()).pvalue > 1e-3


def test_a_random_crop_of_the_resized_image():
    image = photo(90, 50)
    pixels = to_tensor(resized(image, 40))
    windows = pixels.unfold(1, SIZE, 1).unfold(2, SIZE, 1)  # (3, rows, columns, SIZE, SIZE)
    for changed in many(Augmentation("random", enlarge=1.25), image, 20):
        apart = (windows - changed[:, None, None]).abs().amax((0, 3, 4))
        assert apart.min() < 1e-6


def test_a_random_crop_is_mirrored_half_of_the_time():
    images = many(Augmentation("random", horizontal_flip=True), coordinates(50, 32))
    mirrored = images[:, 1, 0, 0] > images[:, 1, 0, -1]
    assert 70 <= mirrored.sum() <= 130


def test_a_resized_crop_has_the_share_of_the_area_that_it_may_have():
    """The image's red and green are its rows and columns, so that the crop's range tells its box."""
    image, rng = coordinates(200, 160), np.random.default_rng(0)
    shares, centers = [], []
    for _ in range(300):
        crop = Augmentation("resized", least_area=0.3)(image, PROCESSOR, rng)
        assert crop.shape == (3, SIZE, SIZE)
        low, high = 255 * crop[:2].amin((1, 2)), 255 * crop[:2].amax((1, 2))
        shares.append(float((high - low + 5).prod() / (200 * 160)))
        centers.append(((high + low) / 2).tolist())
    assert 0.25 < min(shares) < 0.35 and 0.9 < max(shares) < 1.1
    assert np.std(centers, axis=0).min() > 5


def test_a_resized_crop_is_mirrored_half_of_the_time():
    image, rng = coordinates(64, 64), np.random.default_rng(0)
    augmentation = Augmentation("resized", horizontal_flip=True)
    crops = [augmentation(image, PROCESSOR, rng) for _ in range(200)]
    mirrored = sum(bool(crop[1, 0, 0] > crop[1, 0, -1]) for crop in crops)
    assert 75 < mirrored < 125


def test_crops_of_another_processor_are_normalized():
    image = photo(60, 40)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    for number in (1, 8):
        ten = Augmentation("ten", enlarge=1.2)
        plain, normalized = (
            ten.variant(image, processor, number) for processor in (PROCESSOR, VTP_PROCESSOR)
        )
        torch.testing.assert_close(normalized, (plain - mean) / std)


def test_rotation_turns_about_the_center_up_to_the_angle():
    moved = centers(many(Augmentation(rotation=30), blob(0.5, 0)))
    torch.testing.assert_close(moved.norm(dim=-1), torch.full((200,), 0.5), atol=0.02, rtol=0)
    angles = torch.atan2(moved[:, 1], moved[:, 0]) * 180 / math.pi
    assert angles.abs().max() < 31
    assert angles.min() < -25 and angles.max() > 25


def test_scaling_moves_points_to_or_from_the_center_up_to_the_fraction():
    moved = centers(many(Augmentation(scale=0.2), blob(0.5, 0)))
    assert moved[:, 1].abs().max() < 0.01
    # what is asked for at x is taken from x * factor, so points move by 1 / factor
    assert (
        0.5 / 1.2 - 0.01 < moved[:, 0].min() < 0.5 / 1.15
        and 0.5 / 0.85 < moved[:, 0].max() < 0.5 / 0.8 + 0.01
    )


def test_translation_shifts_each_axis_on_its_own_up_to_the_fraction():
    moved = centers(
        many(Augmentation(translation=0.1), blob(0, 0))
    )  # 0.1 of the side is 0.2 of [-1, 1]
    assert moved.abs().max() < 0.21
    assert (moved.min(0).values < -0.15).all() and (moved.max(0).values > 0.15).all()
    assert abs(float(torch.corrcoef(moved.T)[0, 1])) < 0.3


def test_what_comes_in_is_black():
    shifted = many(Augmentation(translation=0.25), Image.new("RGB", (SIZE, SIZE), "white"), 50)
    torch.testing.assert_close(shifted[:, :, 12:20, 12:20], torch.ones(50, 3, 8, 8))
    assert (shifted.flatten(1) == 0).any(1).float().mean() > 0.9


def test_affine_changes_come_after_the_crop():
    image, rng = photo(60, 40), np.random.default_rng(5)
    turned = Augmentation("ten", enlarge=1.2, rotation=20)(image, PROCESSOR, rng)
    crop = Augmentation("ten", enlarge=1.2)(image, PROCESSOR, np.random.default_rng(5))
    assert not torch.equal(turned, crop)
    middle = slice(14, 18)
    torch.testing.assert_close(
        turned[:, middle, middle].mean(), crop[:, middle, middle].mean(), atol=0.05, rtol=0
    )


@given(
    st.sampled_from(["center", "adm", "random"]),
    st.booleans(),
    st.floats(0, 180),
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 2**31),
)
def test_augmented_images_stay_between_0_and_1(
    crop, horizontal_flip, rotation, scale, translation, size, seed
):
    augmentation = Augmentation(crop, 1.0, horizontal_flip, rotation, scale, translation)
    augmented = augmentation(photo(*size), PROCESSOR, np.random.default_rng(seed))
    assert augmented.shape == (3, SIZE, SIZE) and augmented.dtype == torch.float32
    assert augmented.min() >= 0 and augmented.max() <= 1


def test_random_changes_come_from_the_generator_alone():
    augmentation = Augmentation("random", 1.2, True, rotation=10, scale=0.1, translation=0.1)
    image, state = photo(60, 50), torch.get_rng_state()
    first, again, other = (
        augmentation(image, PROCESSOR, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_image_stays_as_it_is():
    image = photo(60, 50)
    before = image.tobytes()
    for crop in ("center", "random", "adm", "ten"):
        Augmentation(crop, rotation=10)(image, PROCESSOR, np.random.default_rng(0))
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("arguments", "variants"),
    [
        ({}, 1),
        ({"crop": "adm"}, 1),
        ({"horizontal_flip": True}, 2),
        ({"crop": "ten", "enlarge": 1.1}, 10),
        ({"crop": "random"}, None),
        ({"crop": "resized"}, None),
        ({"rotation": 1.0}, None),
        ({"crop": "ten", "scale": 0.1}, None),
        ({"translation": 0.1, "horizontal_flip": True}, None),
    ],
)
def test_how_many_variants_there_are(arguments, variants):
    assert Augmentation(**arguments).variants == variants


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "centre"}, "must be one of 'center', 'random', 'resized', 'adm', 'ten', got"),
        (
            {"crop": "random", "enlarge": 0.9},
            "`enlarge` must be at least 1, so that the crop fits, got 0.9",
        ),
        ({"crop": "resized", "least_area": 0.0}, "`least_area` must be a share in"),
        ({"enlarge": 1.1}, "goes with the crops 'random' and 'ten', not with 'center'"),
        ({"crop": "adm", "enlarge": 1.1}, "goes with the crops 'random' and 'ten', not with 'adm'"),
        (
            {"crop": "ten", "horizontal_flip": True},
            "mirrors images already: leave `horizontal_flip` off",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)
