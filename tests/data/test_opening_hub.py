"""Data sets on the Hub, opened; and what several processes count together."""

import json

import datasets
import numpy as np
import pytest
from datasets import DatasetDict
from forked import run
from huggingface_hub import HfApi

from titok_hf.data.opening import open_images
from titok_hf.data.samples import StreamedSamples

from .sources import (
    AB,
    contents,
    draw,
    expected,
    gray_of,
    make_images,
    make_tokens,
    samples,
    write_tar,
)

pytestmark = pytest.mark.usefixtures("caches")


class TestHub:
    def test_images_streamed_or_not(self, hub):
        make_images([0, 1] * 3, AB).push_to_hub("user/set", num_shards=2)
        HfApi().create_tag("user/set", tag="first", repo_type="dataset")
        make_images([0, 1] * 4, AB, first=10).push_to_hub("user/set", num_shards=2)
        for revision, number, first in ((None, 8, 10), ("first", 6, 0)):
            rows = open_images("user/set", revision=revision, streaming=True)["train"]
            assert rows.sizes == [number // 2] * 2 and rows.class_names == ["a", "b"]
            assert [(gray_of(row), row.label) for row in rows.read(1, number)] == [
                (first + i, i % 2) for i in range(1, number)
            ]
            held = [
                open_images("user/set", revision=revision)[split] for split in ("train", "test")
            ]
            grays = [gray_of(row) for rows in held for row in rows.read(0, len(rows))]
            assert sorted(grays) == [first + i for i in range(number)] and len(held[1]) == 2

    def test_tokens(self, hub):
        tokens, codes = make_tokens(6)
        DatasetDict(train=tokens).push_to_hub("user/tokens")
        for streaming in (False, True):
            rows = open_images("user/tokens", streaming=streaming)["train"]
            assert (rows.token_column, rows.class_names) == ("codes", ["a", "b"])
            assert np.array_equal(np.stack([row.tokens for row in rows.read(0, 6)]), codes)

    def test_tar_shards_are_always_streamed(self, hub, tmp_path):
        for i in range(3):
            write_tar(tmp_path / "set" / "train" / f"{i}.tar", samples(4 * i, 4))
        (tmp_path / "set" / "classnames.txt").write_text("owl\ncat\neel")
        data = (tmp_path / "set" / "train" / "2.tar").read_bytes()
        (tmp_path / "set" / "train" / "2.tar").write_bytes(data[:2600])  # in the second sample
        HfApi().create_repo("user/tars", repo_type="dataset")
        HfApi().upload_folder(
            folder_path=tmp_path / "set", repo_id="user/tars", repo_type="dataset"
        )
        rows = open_images("user/tars")["train"]
        assert isinstance(rows, StreamedSamples) and rows.class_names == ["owl", "cat", "eel"]
        assert rows.sizes == [4, 4, 1] and [name.rsplit("/", 1)[-1] for name in rows.damaged] == [
            "2.tar"
        ]
        assert contents(rows.read(3, 9)) == expected(3, 9)
        assert list(open_images("user/tars")) == ["train"]

    def test_shards_are_not_counted_again_in_a_new_commit(self, hub, tmp_path):
        write_tar(tmp_path / "0.tar", samples(0, 4))
        HfApi().create_repo("user/tars", repo_type="dataset")
        HfApi().upload_folder(folder_path=tmp_path, repo_id="user/tars", repo_type="dataset")
        open_images("user/tars")["train"]
        [file] = (datasets.config.HF_DATASETS_CACHE / "titok_shards").iterdir()
        counted = json.loads(file.read_text())
        counted["0.tar"]["shard"]["samples"] = 3  # whoever reads this has not counted
        file.write_text(json.dumps(counted))
        write_tar(tmp_path / "1.tar", samples(4, 2))
        HfApi().upload_folder(folder_path=tmp_path, repo_id="user/tars", repo_type="dataset")
        assert open_images("user/tars")["train"].sizes == [3, 2]

    def test_what_can_not_be_streamed_is_named(self, hub, tmp_path):
        draw(1, tmp_path / "0.png")
        HfApi().create_repo("user/files", repo_type="dataset")
        HfApi().upload_folder(folder_path=tmp_path, repo_id="user/files", repo_type="dataset")
        with pytest.raises(
            ValueError, match="'user/files' has no tar or Parquet files to stream; load it without"
        ):
            open_images("user/files", streaming=True)
        assert gray_of(open_images("user/files", label_column=None)["train"][0]) == 1

    def test_files_of_a_repository_are_called_by_their_paths(self, hub, tmp_path):
        for split in ("train", "test"):
            for name in ("a", "b"):
                draw(1, tmp_path / split / name / "0.png")
        HfApi().create_repo("user/files", repo_type="dataset")
        HfApi().upload_folder(folder_path=tmp_path, repo_id="user/files", repo_type="dataset")
        assert [row.key for row in open_images("user/files")["train"].read(0, 2)] == [
            "train/a/0.png",
            "train/b/0.png",
        ]


COUNTING = """
import sys

import datasets

datasets.config.HF_DATASETS_CACHE = sys.argv[2]
from titok_hf.data import opening, shard_index
from titok_hf.distributed import process_state

def inspect(path):
    print(f"inspected by {process_state().process_index}\\n", end="", flush=True)  # in one piece, of many threads
    return shard_index.inspect_tar(path)

opening.inspect_tar = inspect
print(f"sizes {opening.open_images(sys.argv[1])['train'].sizes}\\n", end="", flush=True)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
def test_the_main_process_counts_for_all(tmp_path):
    for i in range(3):
        write_tar(tmp_path / "shards" / f"{i}.tar", samples(0, i + 1))
    (tmp_path / "count.py").write_text(COUNTING)
    script, arguments = tmp_path / "count.py", (tmp_path / "shards", tmp_path / "cache")
    output = run(script, *arguments, num_processes=2)
    assert output.stdout.count("inspected by 0") == 3 and "inspected by 1" not in output.stdout
    assert output.stdout.count("sizes [1, 2, 3]") == 2
