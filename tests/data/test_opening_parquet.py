"""Parquet files are opened as they are laid out."""

import numpy as np
import pytest
from datasets import Dataset, Value
from pyarrow import parquet
from torch.utils.data import DataLoader

from titok_hf.data.opening import open_images
from titok_hf.data.samples import IndexedSamples, StreamedSamples

from .sources import (
    AB,
    WorkerSamples,
    contents,
    draw,
    gray_of,
    make_images,
    make_tokens,
    png,
)

pytestmark = pytest.mark.usefixtures("caches")


class TestParquet:
    @pytest.fixture
    def source(self, tmp_path):
        """Images in files of 3 and 4, and two to test."""
        for name, first, number in (
            ("train-00000-of-00002", 0, 3),
            ("train-00001-of-00002", 3, 4),
            ("test-00000-of-00001", 50, 2),
        ):
            images = make_images([(first + i) % 2 for i in range(number)], AB, first=first)
            (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
            images.to_parquet(tmp_path / "set" / "data" / f"{name}.parquet")
        (tmp_path / "set" / "README.md").write_text("# Images\n")
        (tmp_path / "set" / "notes.jsonl").write_text('{"a": 1}\n')
        return tmp_path / "set"

    @pytest.mark.parametrize("streaming", [False, True])
    def test_images(self, source, streaming):
        rows = open_images(str(source), streaming=streaming)["train"]
        assert isinstance(rows, StreamedSamples if streaming else IndexedSamples)
        assert (len(rows), rows.class_names, rows.token_column) == (7, ["a", "b"], None)
        assert contents(rows.read(0, 7)) == [(i, f"{i}.png", i, i % 2) for i in range(7)]
        assert [
            gray_of(row) for row in open_images(str(source), streaming=streaming)["test"].read(0, 2)
        ] == [50, 51]
        assert [
            row.label for row in open_images(str(source), label_column=None)["train"].read(0, 2)
        ] == [None] * 2
        assert sorted(open_images(str(source), streaming=streaming)) == ["test", "train"]

    def test_shards_are_read_from_anywhere(self, source):
        rows = open_images(str(source), streaming=True)["train"]
        assert rows.sizes == [3, 4]
        for start in range(7):
            assert contents(rows.read(start, 6)) == [
                (i, f"{i}.png", i, i % 2) for i in range(start, 6)
            ]
        assert [row.index for row in rows.read_shard(1, 2)] == [5, 6]

    def test_workers_read_after_the_main_process_has(self, source):
        rows = open_images(str(source), streaming=True)["train"]
        assert len(list(rows.read(0, 4))) == 4  # Arrow has its threads now
        read = list(DataLoader(WorkerSamples(rows), batch_size=None, num_workers=2))
        for worker in range(2):
            assert [gray for number, _, _, gray, _ in read if number == worker] == list(range(7))

    def test_a_damaged_file_is_left_out(self, source):
        path = source / "data" / "train-00000-of-00002.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        rows = open_images(str(source), streaming=True)["train"]
        assert (rows.sizes, list(rows.damaged)) == ([0, 4], [str(path)])
        assert [gray_of(row) for row in rows.read(0, 4)] == [3, 4, 5, 6]

    def test_plain_integers_are_called_by_their_numbers(self, tmp_path):
        for file, labels in enumerate([[2, 0], [], [3, 1, 0]]):
            make_images(labels, Value("int16")).to_parquet(tmp_path / f"{file}.parquet")
        rows = open_images(str(tmp_path), streaming=True)["train"]
        assert rows.class_names == ["0", "1", "2", "3"]
        assert [row.label for row in rows.read(0, 5)] == [2, 0, 3, 1, 0]

    @pytest.mark.parametrize(
        ("label", "sentence"), [(-1, "one is -1"), (None, "1 of its 3 samples have none")]
    )
    def test_a_missing_label_is_noticed_at_once(self, tmp_path, label, sentence):
        make_images([0, label, 1], AB).to_parquet(tmp_path / "a.parquet", batch_size=2)
        with pytest.raises(
            ValueError,
            match=f"in 'label'; of the shard .*a.parquet {sentence}: .*label_column=None",
        ):
            open_images(str(tmp_path), streaming=True)["train"]
        assert [
            row.label
            for row in open_images(str(tmp_path), label_column=None, streaming=True)["train"].read(
                0, 3
            )
        ] == [None] * 3

    def test_without_statistics_a_missing_label_is_noticed_when_it_is_read(self, tmp_path):
        table = make_images([0, -1], AB).data.table
        parquet.write_table(table, tmp_path / "a.parquet", write_statistics=False)
        rows = open_images(str(tmp_path), streaming=True)["train"]
        with pytest.raises(
            ValueError, match=r"sample '1.png' has no label but -1; .*`label_column=None`"
        ):
            list(rows.read(0, 2))

    def test_a_file_that_changed_is_named(self, source):
        rows = open_images(str(source), streaming=True)["train"]
        make_images([0], AB).to_parquet(source / "data" / "train-00001-of-00002.parquet")
        with pytest.raises(
            OSError, match=r"train-00001-of-00002.parquet has changed since it was counted"
        ):
            list(rows.read(0, 7))

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("copies", [None, 2])
    def test_tokens(self, tmp_path, streaming, copies):
        tokens, codes = make_tokens(10, copies, names=["owl", "cat"])
        (tmp_path / "data").mkdir()
        tokens.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", batch_size=4)
        rows = open_images(str(tmp_path), streaming=streaming)["train"]
        assert (len(rows), rows.class_names, rows.token_column) == (10, ["owl", "cat"], "codes")
        read = list(rows.read(2, 9))
        assert [(row.index, row.key, row.label, row.image) for row in read] == [
            (i, f"k{i}", i % 2, None) for i in range(2, 9)
        ]
        assert (
            np.array_equal(np.stack([row.tokens for row in read]), codes[2:9])
            and read[0].tokens.dtype == np.int64
        )
        assert list(open_images(str(tmp_path))) == ["train"]
        unlabelled = open_images(str(tmp_path), label_column=None, streaming=streaming)["train"]
        assert unlabelled.class_names is None and next(unlabelled.read(1, 2)).label is None

    @pytest.mark.parametrize("feature", ["string", "binary"])
    def test_paths_and_bytes_are_images(self, tmp_path, feature):
        draw(9, tmp_path / "a.png")
        stored = str(tmp_path / "a.png") if feature == "string" else png(9)
        (tmp_path / "set").mkdir()
        Dataset.from_dict({"image": [stored]}).to_parquet(tmp_path / "set" / "a.parquet")
        for streaming in (False, True):
            rows = open_images(str(tmp_path / "set"), label_column=None, streaming=streaming)[
                "train"
            ]
            assert gray_of(next(rows.read(0, 1))) == 9

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"image_column": "picture"}, "has no column 'picture' but image, label, note"),
            (
                {"label_column": "kind"},
                "has no column 'kind' but image, label, note; .*label_column=None",
            ),
            ({"label_column": "note"}, "must be classes or integers, the column 'note' holds"),
            (
                {"image_column": "label"},
                "The column 'label' of '.*' holds no images but ClassLabel",
            ),
        ],
    )
    def test_wrong_columns_of_a_stream_are_named(self, source, arguments, sentence):
        with pytest.raises(ValueError, match=sentence):
            open_images(str(source), streaming=True, **arguments)["train"]
        with pytest.raises(ValueError, match="has no split 'extra' but "):
            open_images(str(source), streaming=True)["extra"]
