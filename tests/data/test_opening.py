"""Data sets of every kind, opened."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict, Value

import titok_hf
from titok_hf.data.credits import credited
from titok_hf.data.decoding import decode_image
from titok_hf.data.digits import DIGIT_NAMES, load_digits_pixels
from titok_hf.data.opening import EMBEDDED, dataset_commit, open_images
from titok_hf.data.samples import IndexedSamples

from .sources import (
    AB,
    contents,
    draw,
    expected,
    gray_of,
    make_images,
    make_tokens,
    png,
    samples,
    write_tar,
)

pytestmark = pytest.mark.usefixtures("caches")


def test_datasets_is_used_through_its_public_modules():
    private = re.compile(r"^\s*(?:from|import) datasets\.(?:packaged_modules|data_files)\b", re.M)
    found = [
        str(path)
        for path in Path(titok_hf.__file__).parent.rglob("*.py")
        if private.search(path.read_text(encoding="utf-8"))
    ]
    assert not found, (
        f"{', '.join(found)} import modules of `datasets` that may change with any release."
    )


def test_the_name_of_a_data_set_on_a_card(tmp_path, monkeypatch):
    """Without the path of a machine."""
    write_tar(tmp_path / "imagenet" / "train-0000.tar", samples(0, 2))
    monkeypatch.chdir(tmp_path / "imagenet")
    for source, name in (
        ("user/photos", "user/photos"),
        ("imagenet-1k", "imagenet-1k"),
        ("digits", "digits"),
        (f"{tmp_path}/imagenet/", "imagenet"),
        (".", "imagenet"),
        ("train-0000.tar", "train-0000.tar"),
        ("train-{0000..1023}.tar", "imagenet"),
        ("*.tar", "imagenet"),
        (f"{tmp_path}/imagenet/train-{{0000..1023}}.tar", "imagenet"),
        (f"{tmp_path}/imagenet/*/*.tar", "imagenet"),
    ):
        assert credited(source) == name


class TestTarShards:
    def test_splits_are_folders_or_in_the_names(self, tmp_path):
        for split, first in (("train", 0), ("test", 10), ("validation", 20)):
            write_tar(tmp_path / "folders" / split / "0.tar", samples(first, 3))
            write_tar(tmp_path / "names" / f"{split}-0000.tar", samples(first, 3))
        for kind in ("folders", "names"):
            source = str(tmp_path / kind)
            assert sorted(open_images(source)) == ["test", "train", "validation"]
            for split, first in (("train", 0), ("test", 10), ("validation", 20)):
                assert [gray_of(row) for row in open_images(source)[split].read(0, 9)] == [
                    first,
                    first + 1,
                    first + 2,
                ]
            with pytest.raises(ValueError, match="has no split 'extra' but train, "):
                open_images(source)["extra"]

    def test_validation_stands_in_for_test(self, tmp_path):
        for split, first in (("train", 0), ("val", 10)):
            write_tar(tmp_path / f"{split}-0.tar", samples(first, 2))
        assert gray_of(next(open_images(str(tmp_path))["test"].read(0, 1))) == 10

    def test_hidden_files_are_none_of_them(self, tmp_path):
        write_tar(tmp_path / "0.tar", samples(0, 2))
        write_tar(tmp_path / ".partial" / "1.tar", samples(2, 2))
        write_tar(tmp_path / ".2.tar", samples(4, 2))
        assert contents(open_images(str(tmp_path))["train"].read(0, 9)) == expected(0, 2)

    def test_other_names_are_all_training_data(self, tmp_path):
        for i in range(3):
            write_tar(tmp_path / "deep" / f"{i}.tar", samples(4 * i, 4))
        (tmp_path / "train.txt").write_text("not a shard")
        assert list(open_images(str(tmp_path))) == ["train"]
        assert contents(open_images(str(tmp_path))["train"].read(0, 12)) == expected(0, 12)

    @pytest.mark.parametrize(
        ("pattern", "numbers"),
        [
            ("train-{0000..0002}.tar", [0, 1, 2]),
            ("train-000{1..2}.tar", [1, 2]),
            ("train-{0002,0000}.tar", [2, 0]),
            ("train-*.tar", [0, 1, 2, 10]),
            ("train-*", [0, 1, 2, 10]),
            ("train-000[02].tar", [0, 2]),
            ("{train,none}-0000.tar", None),
            ("train-{0008..0011}.tar", None),
            ("train-0010.tar", [10]),
            ("train-{0000..0001}.tar train-*.tar", None),
            ("test-*.tar", None),
            ("{train-*,train-0001}.tar", [0, 1, 2, 10]),
        ],
    )
    def test_patterns(self, tmp_path, pattern, numbers):
        for i in (0, 1, 2, 10):
            write_tar(tmp_path / f"train-{i:04d}.tar", samples(i, 1))
        (tmp_path / "train-notes.txt").write_text("not a shard")
        source = str(tmp_path / pattern)
        if numbers is None:
            with pytest.raises(ValueError, match="No tar file matches '"):
                open_images(source)["train"]
        else:
            assert [gray_of(row) for row in open_images(source)["train"].read(0, 9)] == numbers
            assert list(open_images(source)) == ["train"]
            assert dataset_commit(source) is None
            with pytest.raises(ValueError, match="has no split 'test' but train"):
                open_images(source)["test"]

    def test_a_relative_pattern(self, tmp_path, monkeypatch):
        write_tar(tmp_path / "0.tar", samples(0, 2))
        monkeypatch.chdir(tmp_path)
        assert contents(open_images("*.tar")["train"].read(0, 2)) == expected(0, 2)

    def test_a_folder_whose_name_looks_like_a_pattern(self, tmp_path):
        write_tar(tmp_path / "a[1]" / "0.tar", samples(0, 2))
        assert contents(open_images(str(tmp_path / "a[1]"))["train"].read(0, 2)) == expected(0, 2)
        (tmp_path / "b[1]").mkdir()
        make_tokens(3)[0].to_parquet(tmp_path / "b[1]" / "a.parquet")
        assert [
            len(open_images(str(tmp_path / "b[1]"), streaming=streaming)["train"])
            for streaming in (False, True)
        ] == [3, 3]

    def test_images_of_several_formats(self, tmp_path):
        write_tar(
            tmp_path / "0.tar", [*samples(0, 1, "JPEG"), *samples(1, 1, "webp"), *samples(2, 1)]
        )
        write_tar(tmp_path / "1.tar", samples(3, 2, "bmp"))
        assert contents(open_images(str(tmp_path))["train"].read(0, 5)) == expected(0, 5)

    def test_one_of_several_images_is_named(self, tmp_path):
        members = [("0.png", png(3)), ("0.seg.png", png(4)), ("0.cls", b"1")]
        write_tar(tmp_path / "a.tar", members)
        with pytest.raises(ValueError, match=r"several images \(png, seg.png\)"):
            open_images(str(tmp_path))["train"]
        rows = open_images(str(tmp_path), image_column="seg.png")["train"]
        assert contents(rows.read(0, 1)) == [(0, "0", 4, 1)]

    def test_a_sample_without_image_is_unreadable(self, tmp_path):
        write_tar(tmp_path / "a.tar", [*samples(0, 1), ("0001.cls", b"1"), *samples(2, 1)])
        rows = list(open_images(str(tmp_path))["train"].read(0, 3))
        assert [row.image is None for row in rows] == [False, True, False]

    def test_labels_in_json(self, tmp_path):
        members = []
        for i in range(3):
            members += [
                (f"{i}.png", png(i)),
                (f"{i}.json", json.dumps({"label": 2 - i, "kind": 5, "x": []}).encode()),
            ]
        write_tar(tmp_path / "a.tar", members)
        rows = open_images(str(tmp_path))["train"]
        assert [row.label for row in rows.read(0, 3)] == [2, 1, 0] and len(rows.class_names) == 3
        rows = open_images(str(tmp_path), label_column="kind")["train"]
        assert [row.label for row in rows.read(0, 3)] == [5] * 3 and len(rows.class_names) == 6

    def test_class_names_are_beside_the_shards_or_above_a_split(self, tmp_path):
        write_tar(tmp_path / "train" / "0.tar", samples(0, 3))
        (tmp_path / "classnames.txt").write_text("barn owl\ncat\neel\nfox\n")
        assert open_images(str(tmp_path))["train"].class_names == ["barn owl", "cat", "eel", "fox"]
        assert open_images(str(tmp_path / "train" / "*.tar"))["train"].class_names == [
            "barn owl",
            "cat",
            "eel",
            "fox",
        ]
        (tmp_path / "train" / "classnames.txt").write_text("x\ny")
        with pytest.raises(
            ValueError, match=r"train/classnames.txt names 2 classes, but there is a label 2"
        ):
            open_images(str(tmp_path))["train"]
        assert open_images(str(tmp_path), label_column=None)["train"].class_names is None

    @pytest.mark.parametrize(
        ("members", "sentence"),
        [
            (
                [("0.txt", b"x"), ("0.cls", b"1")],
                r"hold no images \(members such as .jpg\) but .cls, .txt",
            ),
            (
                [("0.png", b"x")],
                r"hold no labels \(members .cls, or the integer 'label' in .json\); say `label_column",
            ),
            (
                [*samples(0, 2), ("9.png", b"x")],
                "of the shard .*a.tar 1 of its 3 samples have none",
            ),
            ([], "The 1 shards of '.*' hold no whole sample. They are empty."),
            ([("README", b"x")], "hold no whole sample"),
        ],
        ids=["no image", "no label", "some labels", "empty", "no member"],
    )
    def test_what_is_missing_is_named(self, tmp_path, members, sentence):
        write_tar(tmp_path / "a.tar", members)
        with pytest.raises(ValueError, match=sentence):
            open_images(str(tmp_path))["train"]

    def test_shards_that_hold_nothing_are_damaged(self, tmp_path):
        (tmp_path / "0.tar").write_bytes(b"")
        with pytest.raises(
            ValueError, match=r"hold no whole sample. It is no tar file, or truncated.*empty file"
        ):
            open_images(str(tmp_path))["train"]
        write_tar(tmp_path / "1.tar", samples(0, 3))
        rows = open_images(str(tmp_path))["train"]
        assert (rows.sizes, list(rows.damaged)) == ([0, 3], [str(tmp_path / "0.tar")])
        assert contents(rows.read(0, 3)) == expected(0, 3)


def load_reds():
    return DatasetDict(train=make_images([0, 1], AB), test=make_images([0], AB, first=20))


class TestFolders:
    def test_a_folder_of_classes_holds_the_usual_fifth_out(self, tmp_path):
        for i in range(10):
            draw(i, tmp_path / "red" / f"{i}.png")
            draw(100 + i, tmp_path / "blue" / f"{i}.png")
        source = str(tmp_path)
        usual = open_images(source)
        for split in ("train", "test"):
            rows = open_images(source)[split]
            assert isinstance(rows, IndexedSamples) and rows.class_names == ["blue", "red"]
            read = contents(rows.read(0, len(rows)))
            assert [gray for _, _, gray, _ in read] == [
                image.getpixel((0, 0)) for image in usual.dataset(split)["image"]
            ]
            for _, key, gray, label in read:
                assert key == (f"red/{gray}.png" if gray < 100 else f"blue/{gray - 100}.png")
                assert label == (gray < 100)
            unlabelled = open_images(source, label_column=None)[split]
            assert [(row.key, row.label) for row in unlabelled.read(0, 4)] == [
                (key, None) for _, key, _, _ in read[:4]
            ]
        assert (
            list(open_images(source))
            == list(open_images(source, label_column=None))
            == ["train", "test"]
        )

    def test_a_flat_folder_has_no_labels(self, tmp_path):
        for i in range(3):
            draw(i, tmp_path / f"{i}.png")
        rows = open_images(str(tmp_path), label_column=None)["train"]
        assert contents(rows.read(0, 3)) == [(i, f"{i}.png", i, None) for i in range(3)]
        assert list(open_images(str(tmp_path))) == ["train"]
        with pytest.raises(
            ValueError,
            match=r"no column 'label' but image; .*one subfolder per class; .*pass `label_column=None`",
        ):
            open_images(str(tmp_path))["train"]
        with pytest.raises(ValueError, match="has no split 'test' but train"):
            open_images(str(tmp_path), label_column=None)["test"]

    def test_classes_of_one_image_hold_nothing_out(self, tmp_path):
        for i in range(3):
            draw(i, tmp_path / f"class{i}" / "0.png")
        rows = open_images(str(tmp_path), label_column=None)["train"]
        assert [row.key for row in rows.read(0, 3)] == [f"class{i}/0.png" for i in range(3)]
        assert list(open_images(str(tmp_path), label_column=None)) == ["train"]

    @pytest.mark.parametrize("sizes", [[5, 5], [9, 6, 5], [2, 2], [9, 1], [2] * 5 + [3], [4] * 5])
    def test_without_labels_a_fifth_is_held_out_where_it_can_be(self, tmp_path, sizes):
        for label, size in enumerate(sizes):
            for i in range(size):
                draw(i, tmp_path / f"class{label}" / f"{i}.png")
        splits = open_images(str(tmp_path))
        try:
            expected = {split: len(splits[split]) for split in splits}
        except ValueError:
            expected = {"train": sum(sizes)}
        assert list(open_images(str(tmp_path), label_column=None)) == list(expected)
        assert {
            split: len(open_images(str(tmp_path), label_column=None)[split]) for split in expected
        } == expected

    def test_folders_of_splits(self, tmp_path):
        for split, first in (("train", 0), ("test", 10), ("validation", 20)):
            for label, name in enumerate("ab"):
                for i in range(2):
                    draw(first + 2 * label + i, tmp_path / split / name / f"{i}.png")
        source = str(tmp_path)
        assert sorted(open_images(source)) == ["test", "train", "validation"]
        for split, first in (("train", 0), ("test", 10), ("validation", 20)):
            rows = open_images(source)[split]
            assert [(gray_of(row), row.label) for row in rows.read(0, 4)] == [
                (first + i, i // 2) for i in range(4)
            ]
            assert rows[0].key == f"{split}/a/0.png"

    def test_saved_data_sets(self, tmp_path):
        make_images(["b", "a"] * 5, Value("string")).save_to_disk(tmp_path / "one")
        rows = open_images(str(tmp_path / "one"))["train"]
        assert rows.class_names == ["a", "b"] and len(rows) == 8
        assert all(
            (row.label, row.key) == (1 - gray_of(row) % 2, f"{gray_of(row)}.png")
            for row in rows.read(0, 8)
        )
        tokens, codes = make_tokens(6)
        DatasetDict(train=tokens).save_to_disk(tmp_path / "tokens")
        rows = open_images(str(tmp_path / "tokens"))["train"]
        assert (
            rows.token_column == "codes"
            and len(rows) == 6
            and np.array_equal(rows[5].tokens, codes[5])
        )
        assert list(open_images(str(tmp_path / "tokens"))) == ["train"]

    def test_digits(self):
        for split in ("train", "test"):
            pixels, labels = load_digits_pixels(split)
            rows = open_images("digits")[split]
            assert (len(rows), rows.class_names, rows[7].key) == (len(labels), DIGIT_NAMES, "7")
            assert [row.label for row in rows.read(0, 20)] == labels[:20].tolist()
            assert np.array_equal(
                np.asarray(decode_image(rows[7].image))[..., 0].ravel(), (pixels[7] * 255).round()
            )
        assert isinstance(open_images("digits", streaming=True)["train"], IndexedSamples)
        assert list(open_images("digits")) == ["train", "test"]

    def test_an_embedded_data_set_takes_one_line(self, monkeypatch):
        monkeypatch.setitem(EMBEDDED, "reds", f"{__name__}:load_reds")
        splits = open_images("reds")
        assert list(splits) == ["train", "test"] and splits["train"].class_names == ["a", "b"]
        assert contents(splits["test"].read(0, 1)) == [(0, "20.png", 20, 0)]
        assert dataset_commit("reds") is None

    def test_labels_of_all_splits_mean_the_same(self, tmp_path):
        train, test = (
            make_images([0, 1, 2], ClassLabel(names=["a", "b", "c"])),
            make_images([0], ClassLabel(names=["c"])),
        )
        DatasetDict(train=train, extra=test, test=test).save_to_disk(tmp_path / "saved")
        for split in ("extra", "test"):
            rows = open_images(str(tmp_path / "saved"))[split]
            assert (rows.class_names, rows[0].label) == (["a", "b", "c"], 2)

    def test_an_image_without_label_is_an_error(self, tmp_path):
        make_images(["a", None, "b"], Value("string")).save_to_disk(tmp_path / "saved")
        with pytest.raises(
            ValueError, match=r"Some images of '.*saved' have no label in the column 'label'"
        ):
            open_images(str(tmp_path / "saved"))["train"]

    def test_what_is_not_there_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_images(str(tmp_path / "nowhere"))
        draw(0, tmp_path / "0.png")
        with pytest.raises(ValueError, match=r"0.png is a file: a folder, .* is expected"):
            open_images(str(tmp_path / "0.png"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(
            ValueError,
            match="empty must hold images, tar shards or Parquet files, but holds only hidden files or none",
        ):
            open_images(str(tmp_path / "empty"))
