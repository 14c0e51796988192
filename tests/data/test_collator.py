import numpy as np
import pytest
import torch
from PIL import Image

from titok_hf import TiTokImageProcessor
from titok_hf.data import Augmentation, ImageCollator
from titok_hf.data.loader import Sample
from titok_hf.data.samples import StoredSample

SIZE = 32


@pytest.fixture(scope="module")
def processor():
    return TiTokImageProcessor.from_image_size(SIZE)


def coordinates(width, height):
    """An image whose red is the row and whose green the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1))


def make_samples(images=None, labels=(3, 1, 7), codes=None, num_draws=0):
    """Samples whose random numbers are those of seed 0, epoch 2 and their number."""
    samples = []
    for index, label in enumerate(labels):
        rng = np.random.default_rng((0, 2, index))
        draws = rng.random(num_draws, np.float32)
        row = StoredSample(index, str(index), None, label, None if codes is None else codes[index])
        samples.append(Sample(2, row, None if images is None else images[index], draws, rng))
    return samples


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 51, (51, 51, 51)),
        ("RGB", (255, 102, 0), (255, 102, 0)),
        ("RGBA", (255, 102, 0, 255), (255, 102, 0)),
    ],
)
def test_every_mode_becomes_rgb_between_0_and_1(processor, mode, color, expected):
    batch = ImageCollator(processor)(
        [{"image": Image.new(mode, size, color)} for size in ((SIZE, SIZE), (50, 40))]
    )
    assert batch.keys() == {"pixel_values"}
    assert batch["pixel_values"].dtype == torch.float32
    wanted = (torch.tensor(expected) / 255).view(3, 1, 1).expand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(batch["pixel_values"], wanted)


def test_measuring_and_training_decode_alike(processor):
    """A gray image of 16 bits is scaled to 8, not clipped; a turned one is set upright."""
    deep = Image.fromarray(np.full((SIZE, SIZE), 51 * 257, np.uint16))
    turned = coordinates(SIZE, SIZE)
    turned.getexif()[0x0112] = 6  # the camera was held upright: rows are columns
    batch = ImageCollator(processor)([{"image": deep}, {"image": turned}])
    torch.testing.assert_close(batch["pixel_values"][0], torch.full((3, SIZE, SIZE), 0.2))
    assert (batch["pixel_values"][1, 1] * 255).round()[:, 0].tolist() == list(range(SIZE))


def test_images_of_several_modes_and_sizes_make_one_batch(processor):
    images = [Image.new("L", (32, 32)), Image.new("RGB", (64, 40)), Image.new("RGBA", (20, 90))]
    batch = ImageCollator(processor)([{"image": image} for image in images])
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)


def test_columns_have_the_names_that_are_asked_for(processor):
    rows = [{"picture": Image.new("L", (40, 40)), "kind": kind, "note": "?"} for kind in (7, 3)]
    batch = ImageCollator(processor, image_column="picture", label_column="kind")(rows)
    assert batch.keys() == {"pixel_values", "class_labels"}
    assert (batch["class_labels"].dtype, batch["class_labels"].tolist()) == (torch.int64, [7, 3])


@pytest.mark.parametrize(
    ("columns", "missing"), [({"image_column": "img"}, "img"), ({"label_column": "y"}, "y")]
)
def test_a_missing_column_is_an_error(processor, columns, missing):
    with pytest.raises(KeyError, match=missing):
        ImageCollator(processor, **columns)([{"image": Image.new("L", (32, 32)), "label": 0}])


def test_the_center_is_cut_out(processor):
    collator = ImageCollator(
        processor, augmentation=Augmentation("random", enlarge=2.0, rotation=30)
    )
    batch = collator([{"image": coordinates(64, 32)}, {"image": coordinates(32, 48)}])
    wide, tall = (batch["pixel_values"] * 255).round().long()
    assert wide[1, 0].tolist() == list(range(16, 48))
    assert tall[0, :, 0].tolist() == list(range(8, 40))


def test_without_augmentation_training_sees_what_is_measured(processor):
    images = [coordinates(64, 32), coordinates(32, 48), coordinates(50, 50)]
    measured = ImageCollator(processor, label_column="label")(
        [{"image": image, "label": label} for image, label in zip(images, (3, 1, 7), strict=True)]
    )
    batch = ImageCollator(processor, label_column="label").collate(make_samples(images))
    assert batch.keys() == {"pixel_values", "class_labels"}
    assert torch.equal(batch["pixel_values"], measured["pixel_values"])
    assert torch.equal(batch["class_labels"], measured["class_labels"])


def test_each_image_is_changed_by_its_own_random_numbers(processor):
    images = [coordinates(64, 32)] * 3
    augmentation = Augmentation("random", enlarge=1.5, horizontal_flip=True)
    batch = ImageCollator(processor, augmentation=augmentation).collate(
        make_samples(images, num_draws=3)
    )
    for index, pixel_values in enumerate(batch["pixel_values"]):
        rng = np.random.default_rng((0, 2, index))
        assert torch.equal(batch["draws"][index], torch.from_numpy(rng.random(3, np.float32)))
        assert torch.equal(pixel_values, augmentation(images[index], processor, rng))
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


@pytest.mark.parametrize(
    ("augmentation", "copies"), [(Augmentation(horizontal_flip=True), 2), (Augmentation("ten"), 10)]
)
def test_the_copy_of_tokens_is_the_variant_of_the_image(processor, augmentation, copies):
    """The tokens of an image's variants stand for the pixels that training sees without
    tokens."""
    images = [coordinates(64, 32), coordinates(32, 48), coordinates(50, 40)] * 5
    labels = [0] * len(images)
    variants = [
        [augmentation.variant(image, processor, number) for number in range(copies)]
        for image in images
    ]
    codes = np.arange(len(images) * copies * 4).reshape(len(images), copies, 4)
    collator = ImageCollator(processor, augmentation=augmentation)
    seen = collator.collate(make_samples(images, labels, num_draws=3))
    batch = collator.collate(make_samples(None, labels, codes, num_draws=3))
    assert batch.keys() == {"codes", "draws"}
    assert torch.equal(batch["draws"], seen["draws"])
    chosen = [
        np.flatnonzero((codes[i] == row.numpy()).all(1))[0] for i, row in enumerate(batch["codes"])
    ]
    assert len(set(chosen)) > 1
    assert torch.equal(
        torch.stack([variants[i][number] for i, number in enumerate(chosen)]), seen["pixel_values"]
    )


@pytest.mark.parametrize(
    ("augmentation", "made"),
    [(Augmentation(), 1), (Augmentation("ten"), 10), (Augmentation("random"), "ever new")],
    ids=["none", "ten", "random"],
)
def test_copies_of_tokens_that_are_not_the_augmentations_are_an_error(
    processor, augmentation, made
):
    samples = make_samples(codes=np.zeros((3, 2, 4), int))
    with pytest.raises(
        ValueError, match=f"makes {made} variants of each image, the tokens are of 2: tokenize"
    ):
        ImageCollator(processor, augmentation=augmentation).collate(samples)


def test_tokens_without_copies(processor):
    codes = np.array([[5, 2], [0, 9], [1, 1]])
    batch = ImageCollator(processor, label_column="label").collate(make_samples(codes=codes))
    assert batch.keys() == {"codes", "class_labels"}
    assert (batch["codes"].dtype, batch["codes"].tolist()) == (torch.int64, codes.tolist())
    assert (batch["class_labels"].dtype, batch["class_labels"].tolist()) == (torch.int64, [3, 1, 7])


def test_a_sample_without_a_label_is_an_error(processor):
    samples = make_samples([coordinates(32, 32)] * 3, labels=(3, None, 7))
    assert ImageCollator(processor).collate(samples).keys() == {"pixel_values"}
    with pytest.raises(
        ValueError, match="Every sample must have a label in 'kind', but 1 has none"
    ):
        ImageCollator(processor, label_column="kind").collate(samples)
