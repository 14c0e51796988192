import io
import os
import tarfile

import datasets
import pyarrow as pa
import pytest
from counting import lines_run
from datasets import load_dataset
from pyarrow import parquet

from titok_hf.data.opening import open_images
from titok_hf.data.shard_index import (
    Shard,
    find_labels,
    image_extensions,
    inspect_parquet,
    inspect_shards,
    inspect_tar,
    largest_label,
)

pytestmark = pytest.mark.usefixtures("caches")


def write_tar(path, members, **options):
    """A tar file of `(name, content)`; a name that ends in `/` is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def content_of(number):
    """No image, but nothing decodes it; of a size that fills no block."""
    return bytes([number]) * (100 + 177 * number)


def pairs(number, folder=""):
    """Members of samples with label i."""
    members = []
    for i in range(number):
        members += [
            (f"{folder}{i:04d}.jpg", content_of(i % 9)),
            (f"{folder}{i:04d}.cls", b"%d" % i),
        ]
    return members


def read_whole(path):
    """All samples, by `datasets` with the features that it finds itself."""
    stream = load_dataset(
        "webdataset", data_files={"train": [path]}, split="train", streaming=True
    ).decode(False)
    return list(stream.iter(batch_size=1))


LAYOUTS = {
    "pairs": pairs(5),
    "label first": [m for i in range(4) for m in ((f"{i}.cls", b"1"), (f"{i}.jpg", b"x"))],
    "folders": [
        ("a/", b""),
        ("a/1.jpg", b"x"),
        ("b/", b""),
        ("b/1.jpg", b"y"),
        ("./c.d/1.jpg", b"z"),
    ],
    "hidden": [
        ("1.jpg", b"x"),
        ("._1.jpg", b"?"),
        (".DS_Store", b"?"),
        ("__index.json", b"?"),
        ("2.jpg", b"y"),
    ],
    "no extension": [
        ("README", b"?"),
        ("1.jpg", b"x"),
        ("LICENSE", b"?"),
        ("1.cls", b"3"),
        ("2.jpg", b"y"),
    ],
    "several dots": [("1.jpg", b"x"), ("1.seg.png", b"y"), ("2.jpg", b"x"), ("2.seg.png", b"y")],
    "the same key, apart": [("1.jpg", b"x"), ("2.jpg", b"y"), ("1.jpg", b"z")],
    "members apart": [("1.jpg", b"x"), ("2.jpg", b"y"), ("1.cls", b"5"), ("2.cls", b"6")],
    "long names": [(f"{'n' * 200}/{i}{'m' * 150}.jpg", b"x") for i in range(3)],
}


class TestTar:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_samples_are_those_that_datasets_reads(self, tmp_path, layout):
        path = write_tar(tmp_path / "a.tar", LAYOUTS[layout])
        features = datasets.Features({"__key__": datasets.Value("string")})
        stream = load_dataset(
            "webdataset", data_files=path, split="train", streaming=True, features=features
        )
        shard = inspect_tar(path)
        assert (shard.samples, shard.damage) == (len(list(stream.iter(1))), None)
        assert sum(shard.layouts.values()) == shard.samples > 1

    def test_members_and_labels_are_summed_up(self, tmp_path):
        members = [("1.jpg", b"x"), ("1.cls", b" 7\n"), ("2.png", b"y"), ("2.cls", b"2")]
        members += [
            ("3.jpg", b"z"),
            ("3.json", b'{"label": 4, "size": 1.5, "name": "owl", "seen": true}'),
        ]
        shard = inspect_tar(write_tar(tmp_path / "a.tar", members))
        layouts = {"cls jpg": 1, "cls png": 1, "jpg json": 1}
        assert shard == Shard(
            samples=3, layouts=layouts, labels={"cls": [2, 2, 7], "label": [1, 4, 4]}
        )

    def test_json_may_hold_something_else(self, tmp_path):
        shard = inspect_tar(write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.json", b"[1, 2]")]))
        assert (shard.samples, shard.labels) == (1, {})

    @pytest.mark.parametrize(
        ("member", "sentence"),
        [
            (
                ("1.cls", b"owl"),
                r"member .cls of the shard .*a.tar must hold the number of a class, got b'owl'\.",
            ),
            (("1.cls", b""), r"must hold the number of a class, got b''\."),
            (("1.json", b"{"), r"member .json of the shard .*a.tar holds no JSON: .*\."),
        ],
        ids=["word", "empty", "json"],
    )
    def test_what_datasets_fails_on_is_named(self, tmp_path, member, sentence):
        path = write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), member])
        with pytest.raises(ValueError):
            read_whole(path)
        with pytest.raises(ValueError, match=sentence):
            inspect_tar(path)

    def test_an_empty_tar_file_is_whole(self, tmp_path):
        assert inspect_tar(write_tar(tmp_path / "a.tar", [])) == Shard(samples=0)

    def test_counting_is_fast(self, tmp_path):
        """A sample more is always the same work more."""
        few, many = (write_tar(tmp_path / f"{n}.tar", pairs(n)) for n in (125, 1250))
        assert (inspect_tar(few).samples, inspect_tar(many).samples) == (125, 1250)
        lines = lines_run(inspect_tar, many)
        assert lines < 10.5 * lines_run(inspect_tar, few)
        assert lines < 1250 * 1000  # 430 a sample, most of them of `tarfile`


class TestDamage:
    @pytest.mark.parametrize("layout", ["labels", "images", "long names"])
    def test_truncated_anywhere_whole_samples_are_read_and_nothing_behind_them(
        self, tmp_path, layout
    ):
        folder = "f" * 99 + "/" + "g" * 99 + "/" if layout == "long names" else ""
        members = pairs(5, folder)
        if layout == "images":
            members = members[::2]
        path = write_tar(tmp_path / "a.tar", members)
        data = (tmp_path / "a.tar").read_bytes()
        with tarfile.open(path) as archive:
            ends = [m.offset_data + m.size for m in archive]
        sample_ends = ends if layout == "images" else ends[1::2]
        header = 3 * 512 if layout == "long names" else 512  # the name has a header of its own
        counts = []
        for size in range(0, sample_ends[-1], 97):
            cut = tmp_path / f"{size}.tar"
            cut.write_bytes(data[:size])
            shard = inspect_tar(str(cut))
            assert "truncated or damaged" in shard.damage
            whole = sum(end <= size for end in sample_ends)
            followed = sum((end + 511) // 512 * 512 + header <= size for end in sample_ends)
            assert followed <= shard.samples <= whole
            counts.append(shard.samples)
            if shard.samples:
                rows = open_images(str(cut), label_column=None if layout == "images" else "label")[
                    "train"
                ]
                assert rows.damaged == {str(cut): shard.damage}
                labels = [None] * 5 if layout == "images" else range(5)
                assert [(row.key, row.image, row.label) for row in rows.read(0, 5)] == [
                    (f"{folder}{i:04d}", content_of(i), labels[i]) for i in range(shard.samples)
                ]
        assert set(counts) == set(range(5))

    def test_without_its_end_mark_all_samples_are_read(self, tmp_path):
        write_tar(tmp_path / "a.tar", pairs(3))
        data = (tmp_path / "a.tar").read_bytes()
        with tarfile.open(tmp_path / "a.tar") as archive:
            end = archive.getmembers()[-1].offset_data + 512
        (tmp_path / "a.tar").write_bytes(data[:end])
        shard = inspect_tar(str(tmp_path / "a.tar"))
        assert (
            shard.samples == 3
            and shard.damage == "It is truncated or damaged after 3 samples: no end mark."
        )

    def test_a_damaged_header_ends_the_shard(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", pairs(5))
        with tarfile.open(path) as archive:
            place = archive.getmembers()[6].offset  # the image of the fourth sample
        with open(path, "r+b") as file:
            file.seek(place + 148)
            file.write(b"\xff" * 8)  # its checksum
        shard = inspect_tar(path)
        assert shard.samples == len(read_whole(path)) == 3
        assert shard.damage == "It is truncated or damaged after 3 samples: a damaged header."

    def test_two_members_of_a_kind_in_a_sample_end_the_shard(self, tmp_path):
        path = write_tar(
            tmp_path / "a.tar", [*pairs(2), ("x.jpg", b"1"), ("x.jpg", b"2"), ("y.jpg", b"3")]
        )
        shard = inspect_tar(path)
        assert shard.samples == 2 and "two members 'x.jpg' in a row" in shard.damage

    @pytest.mark.parametrize(
        "content", [b"", b"hello", bytes(range(256)) * 8], ids=["empty", "short", "long"]
    )
    def test_what_is_no_tar_file_holds_nothing(self, tmp_path, content):
        (tmp_path / "a.tar").write_bytes(content)
        shard = inspect_tar(str(tmp_path / "a.tar"))
        assert shard.samples == 0 and shard.damage.startswith("It is no tar file, or truncated")


class TestParquet:
    def test_rows_are_counted_from_the_footer(self, tmp_path):
        columns = {
            "a": range(7, 1007),
            "b": ["?"] * 1000,
            "c": [None, -2, 5, None] * 250,
            "d": [None] * 600 + [3] * 400,
        }
        table = pa.table(columns | {"e": [True] * 1000, "f": [1.5] * 1000, "g": [[1]] * 1000})
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
        shard = inspect_parquet(str(tmp_path / "a.parquet"))
        assert shard.samples == 1000 and shard.damage is None
        labels = {"a": [1000, 7, 1006], "c": [500, -2, 5], "d": [400, 3, 3]}
        assert {name: shard.labels.get(name) for name in table.column_names} == dict.fromkeys(
            "abcdefg"
        ) | labels
        parquet.write_table(table, tmp_path / "a.parquet", write_statistics=False)
        assert inspect_parquet(str(tmp_path / "a.parquet")) == Shard(samples=1000)

    def test_a_truncated_file_holds_nothing(self, tmp_path):
        parquet.write_table(pa.table({"a": range(1000)}), tmp_path / "a.parquet")
        data = (tmp_path / "a.parquet").read_bytes()
        for size in (0, 3, len(data) // 2, len(data) - 1):
            (tmp_path / "a.parquet").write_bytes(data[:size])
            shard = inspect_parquet(str(tmp_path / "a.parquet"))
            assert shard.samples == 0 and shard.damage.startswith(
                "It is no Parquet file, or truncated: "
            )


class TestCache:
    @pytest.fixture
    def inspected(self):
        """Paths that were really inspected."""
        return []

    @pytest.fixture
    def inspect(self, inspected):
        def inspect(path):
            inspected.append(os.path.basename(path))
            return inspect_tar(path)

        return inspect

    def test_each_shard_is_inspected_once(self, tmp_path, inspect, inspected):
        paths = [
            write_tar(tmp_path / folder / f"{i}.tar", pairs(i + 1))
            for folder in "ab"
            for i in range(3)
        ]
        first = inspect_shards(paths, inspect)
        assert [shard.samples for shard in first[0]] == [1, 2, 3, 1, 2, 3]
        assert sorted(inspected) == sorted(["0.tar", "1.tar", "2.tar"] * 2)
        assert inspect_shards(paths[::-1], inspect) == (first[0][::-1], first[1][::-1])
        assert len(inspected) == 6

    def test_a_changed_or_new_shard_is_inspected_again(self, tmp_path, inspect, inspected):
        paths = [write_tar(tmp_path / f"{i}.tar", pairs(2)) for i in range(3)]
        inspect_shards(paths[:2], inspect)
        write_tar(tmp_path / "1.tar", pairs(7))
        inspected.clear()
        assert [shard.samples for shard in inspect_shards(paths, inspect)[0]] == [2, 7, 2]
        assert sorted(inspected) == ["1.tar", "2.tar"]

    def test_one_of_the_same_size_that_was_written_later_is_inspected_again(
        self, tmp_path, inspect, inspected
    ):
        path = write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("2.jpg", b"x")])
        assert inspect_shards([path], inspect)[0][0].samples == 2
        write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.cls", b"1")])
        os.utime(path, ns=(0, 5))
        assert inspect_shards([path], inspect)[0][0].samples == 1

    def test_what_was_inspected_before_an_error_is_kept(self, tmp_path, inspect, inspected):
        paths = [write_tar(tmp_path / f"{i}.tar", pairs(1)) for i in range(3)]
        write_tar(tmp_path / "2.tar", [("1.cls", b"owl")])
        with pytest.raises(ValueError, match="owl"):
            inspect_shards(paths, inspect)
        write_tar(tmp_path / "2.tar", pairs(1))
        inspected.clear()
        assert [shard.samples for shard in inspect_shards(paths, inspect)[0]] == [1, 1, 1]
        assert inspected == ["2.tar"]

    def test_a_missing_shard_is_named(self, tmp_path, inspect):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            inspect_shards([str(tmp_path / "nowhere.tar")], inspect)


class TestMembers:
    def test_images_have_any_extension_of_images(self):
        shards = [Shard(2, {"JPG cls": 1, "cls": 1}), Shard(1, {"webp": 1, "cls png txt": 1})]
        assert image_extensions(shards, "here", "image") == ["JPG", "png", "webp"]
        assert image_extensions(shards, "here", "png") == ["png"]

    @pytest.mark.parametrize(
        ("layouts", "column", "sentence"),
        [
            (
                {"cls txt": 3},
                "image",
                r"shards of 'here' hold no images \(members such as .jpg\) but .cls, .txt\.",
            ),
            ({"jpg": 3}, "png", r"shards of 'here' hold no members .png but .jpg\."),
            (
                {"jpg seg.png": 1, "jpg": 2},
                "image",
                r"hold several images \(jpg, seg.png\); name .* `image_column`",
            ),
        ],
    )
    def test_images_that_are_missing_or_ambiguous_are_named(self, layouts, column, sentence):
        with pytest.raises(ValueError, match=sentence):
            image_extensions([Shard(3, layouts)], "here", column)

    def test_labels_are_in_cls_or_json(self):
        shards = [Shard(2, labels={"cls": [2, 0, 1], "label": [2, 0, 1], "kind": [2, 0, 1]})]
        assert find_labels(shards, "here", "label") == "cls"
        assert find_labels(shards, "here", "kind") == "kind"
        assert find_labels([Shard(2, labels={"label": [2, 0, 1]})], "here", "label") == "label"
        with pytest.raises(
            ValueError, match=r"shards of 'here' hold no labels .* say `label_column=None`"
        ):
            find_labels([Shard(3), Shard(0)], "here", "label")

    @pytest.mark.parametrize(
        ("labels", "sentence"),
        [
            ({}, "of the shard b 3 of its 3 samples have none"),
            ({"cls": [2, 0, 1]}, "of the shard b 1 of its 3 samples have none"),
            ({"cls": [3, -1, 1]}, "of the shard b one is -1"),
        ],
    )
    def test_missing_labels_are_named(self, labels, sentence):
        shards = [Shard(3, labels={"cls": [3, 0, 1]}), Shard(3, labels=labels), Shard(0)]
        with pytest.raises(ValueError, match=sentence):
            largest_label(shards, ["a", "b", "c"], "cls")

    def test_the_largest_label_of_all_shards(self):
        shards = [
            Shard(3, labels={"cls": [3, 0, 7]}),
            Shard(3, labels={"cls": [3, 2, 5]}),
            Shard(0),
        ]
        assert largest_label(shards, ["a", "b", "c"], "cls") == 7
