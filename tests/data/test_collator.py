import numpy as np
import pytest
import torch
from PIL import Image

from titok_hf import TiTokImageProcessor
from titok_hf.data import ImageCollator

SIZE = 32


@pytest.fixture(scope="module")
def processor():
    return TiTokImageProcessor.from_image_size(SIZE)


def coordinates(width, height):
    """An image whose red is the row and whose green the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("L", 51, (51, 51, 51)), ("RGB", (255, 102, 0), (255, 102, 0)), ("RGBA", (255, 102, 0, 255), (255, 102, 0))],
)
def test_every_mode_becomes_rgb_between_0_and_1(processor, mode, color, expected):
    batch = ImageCollator(processor)([{"image": Image.new(mode, size, color)} for size in ((SIZE, SIZE), (50, 40))])
    assert batch.keys() == {"pixel_values"}
    assert batch["pixel_values"].dtype == torch.float32
    wanted = (torch.tensor(expected) / 255).view(3, 1, 1).expand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(batch["pixel_values"], wanted)


def test_images_of_several_modes_and_sizes_make_one_batch(processor):
    images = [Image.new("L", (32, 32)), Image.new("RGB", (64, 40)), Image.new("RGBA", (20, 90))]
    batch = ImageCollator(processor)([{"image": image} for image in images])
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)


def test_columns_have_the_names_that_are_asked_for(processor):
    rows = [{"picture": Image.new("L", (40, 40)), "kind": kind, "note": "?"} for kind in (7, 3)]
    batch = ImageCollator(processor, image_column="picture", label_column="kind")(rows)
    assert batch.keys() == {"pixel_values", "class_labels"}
    assert (batch["class_labels"].dtype, batch["class_labels"].tolist()) == (torch.int64, [7, 3])


@pytest.mark.parametrize(("columns", "missing"), [({"image_column": "img"}, "img"), ({"label_column": "y"}, "y")])
def test_a_missing_column_is_an_error(processor, columns, missing):
    with pytest.raises(KeyError, match=missing):
        ImageCollator(processor, **columns)([{"image": Image.new("L", (32, 32)), "label": 0}])


def test_the_center_is_cut_out(processor):
    batch = ImageCollator(processor)([{"image": coordinates(64, 32)}, {"image": coordinates(32, 48)}])
    wide, tall = (batch["pixel_values"] * 255).round().long()
    assert wide[1, 0].tolist() == list(range(16, 48))
    assert tall[0, :, 0].tolist() == list(range(8, 40))
