import os
import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from torch.utils.data import DataLoader

from titok_hf.data.decoding import UnreadableImageError, decode_image
from titok_hf.data.opening import open_images
from titok_hf.data.samples import IndexedSamples, StreamedSamples

from .sources import (
    AB,
    WorkerSamples,
    contents,
    expected,
    make_images,
    make_tokens,
    png,
    samples,
    write_tar,
)

pytestmark = pytest.mark.usefixtures("caches")


class TestIndexedSamples:
    def test_rows_are_read_by_number_and_not_decoded(self):
        rows = IndexedSamples(make_images([0, 1, 1], AB))
        assert (len(rows), rows.class_names, rows.token_column) == (3, ["a", "b"], None)
        assert rows[1].image == {"bytes": png(1), "path": "1.png"}
        assert contents(rows.read(1, 3)) == [(1, "1.png", 1, 1), (2, "2.png", 2, 1)]
        assert rows[0].tokens is None

    def test_a_damaged_image_is_noticed_only_when_it_is_decoded(self):
        images = Dataset.from_dict(
            {"image": [{"bytes": b"?", "path": None}]}, features=Features({"image": Image()})
        )
        row = IndexedSamples(images, label_column=None)[0]
        assert (row.key, row.label) == ("0", None)
        with pytest.raises(UnreadableImageError):
            decode_image(row.image)

    def test_a_missing_image_is_unreadable(self):
        features = Features({"image": Image()})
        rows = IndexedSamples(
            Dataset.from_dict({"image": [None]}, features=features), label_column=None
        )
        with pytest.raises(UnreadableImageError, match="no image"):
            decode_image(rows[0].image)

    @pytest.mark.parametrize("copies", [None, 3])
    def test_tokens(self, copies):
        tokens, codes = make_tokens(5, copies)
        rows = IndexedSamples(tokens)
        assert rows.token_column == "codes"
        row = rows[3]
        assert (row.key, row.label, row.image, row.tokens.dtype) == ("k3", 1, None, np.int64)
        assert np.array_equal(row.tokens, codes[3])

    @pytest.mark.parametrize("label", [None, -1])
    def test_rows_without_label_are_counted_at_once(self, label):
        images = make_images([0, label, 1], AB)
        with pytest.raises(
            ValueError, match=r"in 'label'; 1 of the 3 samples have none: .*`label_column=None`"
        ):
            IndexedSamples(images)
        assert IndexedSamples(images, label_column=None)[1].label is None
        rows = IndexedSamples(images.select([2, 0]))
        assert [row.label for row in rows.read(0, 2)] == [1, 0]

    def test_plain_integers_are_called_by_their_numbers(self):
        names = ["0", "1", "2", "3", "4", "5"]
        assert IndexedSamples(make_images([5, 2], Value("int32"))).class_names == names
        tokens, _ = make_tokens(6)
        rows = IndexedSamples(
            tokens.remove_columns("label").add_column("label", [0, 5, 2, 1, 1, 0])
        )
        assert (rows.class_names, rows[1].label) == (names, 5)

    @pytest.mark.parametrize(
        ("columns", "sentence"),
        [
            (
                {"image_column": "picture"},
                "no column 'picture' but image, label, note; .*image_column",
            ),
            (
                {"label_column": "kind"},
                "The data set has no column 'kind' but image, .*label_column=None",
            ),
            (
                {"label_column": "note"},
                r"classes or integers, the column 'note' holds Value\('string'\)",
            ),
            (
                {"image_column": "label"},
                "The column 'label' of the data set holds no images but ClassLabel",
            ),
        ],
    )
    def test_wrong_columns_are_named(self, columns, sentence):
        with pytest.raises(ValueError, match=sentence):
            IndexedSamples(make_images([0, 1], AB), **columns)


class TestStreamedSamples:
    @pytest.fixture
    def rows(self, tmp_path):
        """12 samples in shards of 4, 0, 1 and 7."""
        for shard, (first, number) in enumerate([(0, 4), (4, 0), (4, 1), (5, 7)]):
            write_tar(tmp_path / "shards" / f"{shard}.tar", samples(first, number))
        return open_images(str(tmp_path / "shards"))["train"]

    def test_shards_with_their_sizes(self, rows, tmp_path):
        assert isinstance(rows, StreamedSamples)
        assert (len(rows), rows.sizes, rows.damaged, rows.token_column) == (
            12,
            [4, 0, 1, 7],
            {},
            None,
        )
        assert rows.names == [str(tmp_path / "shards" / f"{i}.tar") for i in range(4)]
        assert rows.class_names == ["0", "1", "2"]

    def test_reading_begins_and_ends_anywhere(self, rows):
        for start in range(13):
            for stop in range(start, 13):
                assert contents(rows.read(start, stop)) == expected(start, stop)
        assert contents(rows.read(0, 100)) == expected(0, 12)

    def test_a_shard_is_read_from_anywhere(self, rows):
        for start in range(8):
            assert contents(rows.read_shard(3, start)) == expected(5 + start, 12)
            assert (
                contents(rows.read_shard(3, start, 3))
                == expected(5 + start, 8)[: max(0, 3 - start)]
            )
        assert list(rows.read_shard(1)) == []

    def test_each_worker_of_a_loader_reads_all_that_it_asks_for(self, rows):
        """A stream of `datasets` would share its shards among the workers."""
        read = list(DataLoader(WorkerSamples(rows), batch_size=None, num_workers=2))
        for worker in range(2):
            assert [tuple(rest) for number, *rest in read if number == worker] == expected(0, 12)

    def test_they_are_pickled_with_little(self, rows):
        assert len(pickle.dumps(rows)) < 10_000
        assert contents(pickle.loads(pickle.dumps(rows)).read(2, 6)) == expected(2, 6)

    def test_no_image_is_decoded(self, tmp_path):
        write_tar(tmp_path / "a.tar", [("1.jpg", b"no image"), ("2.jpg", b"")])
        rows = open_images(str(tmp_path / "a.tar"), label_column=None)["train"]
        assert [(row.key, row.image, row.label) for row in rows.read(0, 2)] == [
            ("1", b"no image", None),
            ("2", b"", None),
        ]

    def test_a_file_of_the_same_name_is_not_taken_for_the_member(self, rows, tmp_path, monkeypatch):
        (tmp_path / "0002.png").write_bytes(png(77))
        monkeypatch.chdir(tmp_path)
        assert contents(rows.read(2, 3)) == expected(2, 3)

    @pytest.mark.parametrize(
        ("change", "sentence"), [("vanish", "vanished"), ("grow", "changed"), ("touch", "changed")]
    )
    def test_a_shard_that_is_another_now_is_named(self, rows, change, sentence):
        path = rows.names[3]
        if change == "vanish":
            os.remove(path)
        elif change == "grow":
            with open(path, "ab") as file:
                file.write(bytes(512))
        else:
            os.utime(path, ns=(0, 0))
        assert contents(rows.read(0, 5)) == expected(0, 5)
        with pytest.raises(OSError, match=f"The shard {path} has {sentence} since it was counted"):
            list(rows.read(0, 12))

    def test_a_shard_with_fewer_samples_than_said_is_named(self, rows):
        rows = StreamedSamples(rows.read_file, [4, 0, 2, 7], rows.names)
        with pytest.raises(OSError, match=r"2.tar has 1 samples now, 2 when it was counted"):
            list(rows.read(0, 13))

    def test_a_shard_that_cannot_be_read_is_named(self, rows, tmp_path):
        rows = StreamedSamples(rows.read_file, [4, 0, 1, 7], rows.names)
        with open(rows.names[3], "r+b") as file:
            file.truncate(5000)  # in the third sample
        with pytest.raises(OSError, match=r"The shard .*3.tar cannot be read at its sample 2: "):
            list(rows.read(0, 12))

    def test_members_that_nobody_asked_for_are_not_read(self, tmp_path):
        write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.npy", b"no array"), ("1.jpg", b"y")])
        rows = open_images(str(tmp_path / "a.tar"), label_column=None)["train"]
        assert [row.image for row in rows.read(0, 2)] == [b"x", b"y"]
