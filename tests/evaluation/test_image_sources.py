"""Images of data sets, files and tensors become those that plain Pillow, numpy and hashlib say."""

import hashlib
import tarfile

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from titok_hf.data import open_images
from titok_hf.data.digits import load_digits_pixels
from titok_hf.evaluation.adm import ReferenceBatch
from titok_hf.evaluation.image_sources import (
    DatasetImages,
    Fingerprint,
    ReferenceImages,
    TensorImages,
    open_source,
    square_images,
    to_uint8,
)

from .collecting import collected, protocol

RESAMPLING = PILImage.Resampling
SIZES = [
    (40, 50),
    (91, 33),
    (64, 64),
    (20, 30),
    (129, 70),
    (31, 32),
    (32, 32),
    (400, 140),
    (35, 32),
]


def picture(width, height, mode="RGB"):
    """Smooth, so that crops that are a pixel off differ, and a little noise."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(width * height).integers(0, 30, (height, width, 3))
    waves = np.stack(
        [columns * 220 / width, rows * 220 / height, 110 + 110 * np.sin(columns / 5)], -1
    )
    return PILImage.fromarray((waves + noise).astype(np.uint8)).convert(mode)


def pixels_of(image):
    """Converts a PIL image to `(3, H, W)`."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def cut(image, size):
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def center_crop(image, size, resampling):
    """The longer side is cut to an integer, as torchvision's `Resize` does; its `CenterCrop` rounds
    to even."""
    shorter = min(image.size)
    image = image.resize(tuple(size * side // shorter for side in image.size), resampling)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def adm_crop(image, size):
    """`center_crop_arr` of openai/guided-diffusion, `image_datasets.py`."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), RESAMPLING.BOX)
    scale = size / min(image.size)
    return cut(
        image.resize(tuple(round(side * scale) for side in image.size), RESAMPLING.BICUBIC), size
    )


class TestSquareImages:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_adm_crops_are_those_of_adm(self, size):
        image = picture(*size)
        found = square_images([image], protocol(crop="adm"))
        assert found.dtype == torch.uint8
        assert np.array_equal(found[0], pixels_of(adm_crop(image, 32)))

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
    def test_center_crops_are_resized_by_the_shorter_side(self, size, interpolation):
        image = picture(*size)
        found = square_images([image], protocol(interpolation=interpolation))
        assert found.dtype == torch.uint8
        assert np.array_equal(
            found[0], pixels_of(center_crop(image, 32, RESAMPLING[interpolation.upper()]))
        )

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_squashed_images_are_resized_by_both_sides(self, size):
        image = picture(*size)
        found = square_images([image], protocol(crop="squash"))
        assert np.array_equal(found[0], pixels_of(image.resize((32, 32), RESAMPLING.BILINEAR)))

    def test_crops_differ(self):
        image = picture(129, 70)
        found = [
            square_images([image], protocol(crop=crop)) for crop in ("adm", "center", "squash")
        ]
        assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))

    def test_images_that_are_not_cropped_stay_as_they_are(self):
        assert np.array_equal(
            square_images([picture(32, 32)], protocol(crop="none"))[0], pixels_of(picture(32, 32))
        )

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
    @pytest.mark.parametrize("crop", ["center", "adm", "squash", "none"])
    def test_all_modes_become_rgb(self, mode, crop):
        image = picture(32, 32, mode)
        assert np.array_equal(square_images([image], protocol(crop=crop))[0], pixels_of(image))

    def test_images_of_all_sizes_and_modes_go_together(self):
        modes = ["L", "RGB", "RGBA"] * 3
        images = [picture(*size, mode) for size, mode in zip(SIZES, modes, strict=True)]
        for crop in ("center", "adm", "squash"):
            together = square_images(images, protocol(crop=crop))
            alone = [square_images([image], protocol(crop=crop)) for image in images]
            assert torch.equal(together, torch.cat(alone))


class TestToUint8:
    VALUES = [0, 0.4 / 255, 0.6 / 255, 1.5 / 255, 2.5 / 255, 127.999 / 255, 254.6 / 255, 1]

    @pytest.mark.parametrize(
        ("rounding", "expected"),
        [("truncate", [0, 0, 0, 1, 2, 127, 254, 255]), ("round", [0, 0, 1, 2, 2, 128, 255, 255])],
    )
    def test_values_are_truncated_or_rounded(self, rounding, expected):
        images = torch.tensor(self.VALUES).view(1, 1, 2, 4)
        found = to_uint8(images, rounding)
        assert found.dtype == torch.uint8
        assert found.flatten().tolist() == expected

    @pytest.mark.parametrize("rounding", ["truncate", "round"])
    def test_integers_come_back(self, rounding):
        images = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 16) / 255
        assert torch.equal(
            to_uint8(images, rounding).flatten(), torch.arange(256, dtype=torch.uint8)
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_float_types(self, dtype):
        images = torch.tensor([0, 0.5, 1], dtype=dtype).view(1, 1, 1, 3)
        assert to_uint8(images, "truncate").flatten().tolist() == [0, 127, 255]

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            (torch.nan, "nan to nan"),
            (torch.inf, "0 to inf"),
            (1.01, "0 to 1.01"),
            (-0.01, "-0.01 to 0"),
            (255, "255"),
        ],
    )
    def test_other_values_are_refused(self, value, sentence):
        images = torch.zeros(2, 3, 4, 4)
        images[1, 2, 3, 3] = value
        with pytest.raises(ValueError, match=rf"Images must be in \[0, 1\], got .*{sentence}"):
            to_uint8(images, "truncate")


class TestFingerprint:
    def test_it_is_the_sum_of_the_hashes(self):
        images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
        total = sum(
            int(hashlib.sha256(bytes(image.flatten().tolist())).hexdigest(), 16) for image in images
        )
        fingerprint = Fingerprint()
        fingerprint.update(images)
        assert fingerprint.compute([fingerprint.total]) == f"{total % 2**256:064x}"

    def test_order_batches_and_processes_do_not_matter(self):
        images = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8)
        whole, first, second = Fingerprint(), Fingerprint(), Fingerprint()
        whole.update(images)
        first.update(images[[7, 2]])
        first.update(images[[0]])
        second.update(
            images[[1, 8, 3, 4, 5, 6]].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        )
        expected = whole.compute([whole.total])
        assert first.compute([first.total, second.total]) == expected
        assert len(expected) == 64

    def test_images_that_differ_in_a_pixel_and_copies_are_told_apart(self):
        images = torch.randint(0, 255, (4, 3, 4, 4), dtype=torch.uint8)
        changed = images.clone()
        changed[3, 2, 1, 0] += 1
        found = set()
        for each in (images, changed, images[[0, 1, 2, 2]], images[:3], images[[0, 0, 0, 1]]):
            fingerprint = Fingerprint()
            fingerprint.update(each)
            found.add(fingerprint.compute([fingerprint.total]))
        assert len(found) == 5


def make_dataset(num_images, size=(32, 32), column="image"):
    images = [PILImage.new("RGB", size, (i, 2 * i, 3 * i)) for i in range(num_images)]
    features = Features({column: Image(), "label": Value("int64")})
    return Dataset.from_dict(
        {column: images, "label": [i % 4 for i in range(num_images)]}, features=features
    )


class TestDatasetImages:
    @pytest.mark.parametrize("crop", ["center", "none"])
    def test_images_come_in_order_with_their_labels(self, crop):
        source = DatasetImages(
            make_dataset(10), protocol(crop=crop), label_column="label", origin={"id": "mine"}
        )
        sizes, indices, images, labels = collected(source, 4)
        assert sizes == [4, 4, 2]
        assert indices.tolist() == list(range(10))
        assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
        assert images[:, :, 5, 5].tolist() == [[i, 2 * i, 3 * i] for i in range(10)]
        assert (source.num_images, source.labelled, source.describe()) == (10, True, {"id": "mine"})

    def test_without_a_label_column_there_are_no_labels(self):
        source = DatasetImages(
            make_dataset(3, column="picture"), protocol(), image_column="picture"
        )
        assert collected(source, 2)[3] is None
        assert not source.labelled

    def test_the_first_images_may_be_enough(self):
        source = DatasetImages(make_dataset(10), protocol(), num_images=3)
        assert collected(source, 8)[1].tolist() == [0, 1, 2]
        assert source.num_images == 3

    def test_more_than_there_are_is_refused(self):
        with pytest.raises(ValueError, match=r"There are 10 images, and 11 were asked for\."):
            DatasetImages(make_dataset(10), protocol(), num_images=11)

    @pytest.mark.parametrize("number", [0, -1])
    def test_none_is_refused(self, number):
        with pytest.raises(ValueError, match=f"There are 10 images, and {number} were asked for"):
            DatasetImages(make_dataset(10), protocol(), num_images=number)

    def test_mixed_sizes_are_refused_where_they_are_not_cropped(self):
        images = [PILImage.new("RGB", (32, 32))] * 3 + [PILImage.new("RGB", (40, 32))]
        dataset = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
        with pytest.raises(
            ValueError, match="must be 32x32 pixels, since they are not cropped; image 3 is 40x32"
        ):
            DatasetImages(dataset, protocol(crop="none"))
        assert collected(DatasetImages(dataset, protocol()), 4)[2].shape == (4, 3, 32, 32)

    def test_the_crop_may_be_another_than_the_protocols(self):
        with pytest.raises(ValueError, match="image 0 is 40x32"):
            DatasetImages(make_dataset(2, (40, 32)), protocol(), crop="none")

    @pytest.mark.parametrize("kind", ["text", "truncated", "broken", "empty"])
    def test_a_file_that_cannot_be_read_is_named(self, tmp_path, kind):
        for i in range(3):
            picture(40, 40).save(tmp_path / f"{i}.png")
        content = (tmp_path / "1.png").read_bytes()
        middle = len(content) // 2
        (tmp_path / "1.png").write_bytes(
            {
                "text": b"no image",
                "truncated": content[:middle],
                "broken": content[:middle] + bytes(200) + content[middle + 200 :],
                "empty": b"",
            }[kind]
        )
        source = open_source(str(tmp_path), protocol())
        assert isinstance(source, DatasetImages) and source.num_images == 3
        with pytest.raises(ValueError, match=r"Image 1 \(.*1\.png\) cannot be read"):
            collected(source, 3)

    def test_string_labels_are_refused(self):
        dataset = Dataset.from_dict(
            {"image": [PILImage.new("L", (8, 8))] * 2, "label": ["cat", "owl"]}
        )
        with pytest.raises(ValueError, match="'label' must hold integers or classes, got string"):
            DatasetImages(dataset.cast_column("image", Image()), protocol(), label_column="label")

    @pytest.mark.parametrize("missing", [-1, None])
    def test_missing_labels_are_refused(self, missing):
        dataset = make_dataset(4).remove_columns("label").add_column("label", [0, missing, 1, 2])
        with pytest.raises(ValueError, match="a label of 0 or more in 'label'; 1 of the 4 samples"):
            DatasetImages(dataset, protocol(), label_column="label")
        assert not DatasetImages(dataset, protocol()).labelled
        first = DatasetImages(dataset, protocol(), label_column="label", num_images=1)
        assert first.labels.tolist() == [0]


class TestTensorImages:
    def test_images_come_in_order(self):
        images = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
        sizes, indices, found, labels = collected(TensorImages(images, torch.arange(7) % 3), 3)
        assert (sizes, indices.tolist(), labels.tolist()) == (
            [3, 3, 1],
            list(range(7)),
            [0, 1, 2, 0, 1, 2, 0],
        )
        assert torch.equal(found, images)
        unlabelled = TensorImages(images)
        assert (
            collected(unlabelled, 3)[3] is None
            and not unlabelled.labelled
            and TensorImages(images, images).labelled
        )

    def test_missing_labels_are_refused(self):
        images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
        with pytest.raises(ValueError, match="Every image must have a label of 0 or more, got -1"):
            TensorImages(images, torch.tensor([0, -1, 1]))


class TestReferenceImages:
    @pytest.fixture
    def file(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
        np.savez(tmp_path / "reference.npz", images)
        return tmp_path / "reference.npz", images

    def test_images_come_in_order(self, file):
        path, expected = file
        source = open_source(str(path), protocol())
        assert isinstance(source, ReferenceImages) and not source.labelled
        sizes, indices, images, labels = collected(source, 3)
        assert (sizes, indices.tolist(), labels) == ([3, 3, 1], list(range(7)), None)
        assert np.array_equal(images.permute(0, 2, 3, 1), expected)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert source.describe() == {"file": str(path), "sha256": digest}

    def test_another_resolution_is_refused(self, file):
        sentence = (
            r"The protocol 'demo\*' is for images of 64x64 pixels, .*reference\.npz holds 32x32\. Choose another "
            r"protocol, or change this one: `image_size=32`\."
        )
        with pytest.raises(ValueError, match=sentence):
            open_source(str(file[0]), protocol(image_size=64))

    def test_statistics_have_no_resolution(self, tmp_path):
        np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
        assert (
            ReferenceImages(ReferenceBatch.load(tmp_path / "statistics.npz"), protocol()).num_images
            == 0
        )


class TestOpenSource:
    def test_the_embedded_digits(self):
        source = open_source("digits", protocol(), "train")
        pixels, _ = load_digits_pixels("train")
        assert source.num_images == len(pixels)
        assert source.describe() == {"id": "digits", "revision": None, "split": "train"}
        first = PILImage.fromarray((pixels[0] * 255).round().astype(np.uint8).reshape(8, 8))
        expected = pixels_of(first.resize((32, 32), RESAMPLING.BICUBIC))
        assert np.array_equal(next(iter(source.batches(1))).images[0], expected)
        assert open_source("digits", protocol()).describe()["split"] == "test"

    def test_a_folder(self, tmp_path):
        for i in range(4):
            picture(40 + i, 36).save(tmp_path / f"{i}.png")
        source = open_source(str(tmp_path), protocol())
        assert source.describe() == {"id": str(tmp_path), "revision": None, "split": "train"}
        expected = [
            pixels_of(center_crop(picture(40 + i, 36), 32, RESAMPLING.BICUBIC)) for i in range(4)
        ]
        assert np.array_equal(collected(source, 3)[2], np.stack(expected))

    def test_a_folder_of_classes_is_measured_whole_or_on_the_fifth_that_training_holds_out(
        self, tmp_path
    ):
        for i in range(20):
            (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
            picture(40 + i, 36).save(tmp_path / "ab"[i % 2] / f"{i}.png")
        whole, held_out = (
            open_source(str(tmp_path), protocol(), split) for split in (None, "test")
        )
        assert (whole.num_images, whole.describe()["split"]) == (20, "train")
        assert (held_out.num_images, held_out.describe()["split"]) == (4, "test")
        sizes = [image.size for image in open_images(str(tmp_path)).dataset("test")["image"]]
        assert [held_out.open(index).size for index in range(4)] == sizes

    def test_what_cannot_be_read_in_any_order_is_refused(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            picture(40, 36).save(tmp_path / "0.png")
            archive.add(tmp_path / "0.png", "0.png")
        with pytest.raises(ValueError, match=r"a\.tar' holds shards"):
            open_source(str(tmp_path / "a.tar"), protocol())
        (tmp_path / "tokens").mkdir()
        Dataset.from_dict({"codes": [[1, 2]]}).to_parquet(tmp_path / "tokens" / "a.parquet")
        with pytest.raises(ValueError, match="tokens' holds tokens"):
            open_source(str(tmp_path / "tokens"), protocol())

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                {"split": "validation"},
                "'digits' has no split 'validation' but train, test; name one of these",
            ),
            (
                {"image_column": "picture"},
                "no column 'picture' but image, label; name the right one",
            ),
        ],
    )
    def test_what_is_not_there_is_refused(self, arguments, sentence):
        with pytest.raises(ValueError, match=sentence):
            open_source("digits", protocol(), **arguments)

    def test_an_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError,
            match=f"The folder {tmp_path} must hold images, tar shards or Parquet files, "
            "but holds only hidden files or none",
        ):
            open_source(str(tmp_path), protocol())
