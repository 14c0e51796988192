"""The identity of training data changes with their content, and with nothing else."""

import io
import os
import shutil
import tarfile

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_from_disk
from PIL import Image as PILImage

from titok_hf.data import IndexedSamples, open_images
from titok_hf.data.identity import SAMPLED, data_identity


def write_folder(folder, classes=("cat", "dog"), number=6, shift=0):
    """Images of one color each, in one folder per class."""
    for i in range(number):
        path = folder / classes[i % len(classes)] / f"{i:03}.bmp"  # all of the same size
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 8), (i, shift, 0)).save(path)
    return folder


def write_shards(folder, shift=0):
    folder.mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for i in range(3):
                file = io.BytesIO()
                PILImage.new("RGB", (8, 8), (i, number, shift)).save(file, "BMP")
                member = tarfile.TarInfo(f"{i}.bmp")
                member.size = file.tell()
                file.seek(0)
                shard.addfile(member, file)
    return folder


def identity(source, label_column="label", split="train"):
    opened = open_images(str(source), label_column=label_column, hold_out=False)
    return data_identity(opened[split])


class TestFolder:
    def test_a_copy_and_another_name_are_the_same(self, tmp_path):
        first = identity(write_folder(tmp_path / "a" / "images"))
        shutil.copytree(tmp_path / "a" / "images", tmp_path / "b" / "copy")
        assert identity(tmp_path / "b" / "copy") == first
        (tmp_path / "a" / "images").rename(tmp_path / "moved")
        assert identity(tmp_path / "moved") == first
        (tmp_path / "link").symlink_to(tmp_path / "moved")
        assert identity(tmp_path / "link") == first

    def test_one_base_name_does_not_make_them_the_same(self, tmp_path):
        first = identity(write_folder(tmp_path / "a" / "images"))
        assert identity(write_folder(tmp_path / "b" / "images", ("ship", "car"))) != first
        assert identity(write_folder(tmp_path / "c" / "images", shift=1)) != first

    @pytest.mark.parametrize(
        "change",
        [
            lambda folder: (folder / "cat" / "000.bmp").unlink(),
            lambda folder: (folder / "cat" / "000.bmp").rename(folder / "cat" / "new.bmp"),
            lambda folder: (folder / "cat" / "000.bmp").rename(folder / "dog" / "000.bmp"),
            lambda folder: (folder / "cat").rename(folder / "cow"),
            lambda folder: PILImage.new("RGB", (8, 8), (9, 9, 9)).save(folder / "dog" / "005.bmp"),
            lambda folder: PILImage.new("RGB", (9, 8)).save(folder / "cat" / "002.bmp"),
        ],
        ids=["missing", "renamed", "moved", "class", "content", "size"],
    )
    def test_a_change_of_one_file_is_noticed(self, tmp_path, change):
        first = identity(write_folder(tmp_path / "images"))
        change(tmp_path / "images")
        assert identity(tmp_path / "images") != first

    def test_junk_and_times_do_not_matter(self, tmp_path):
        first = identity(write_folder(tmp_path / "images"))
        for name in (".DS_Store", "Thumbs.db", "README.md"):
            (tmp_path / "images" / name).write_text("nothing")
        os.utime(tmp_path / "images" / "cat" / "000.bmp", (1, 1))
        assert identity(tmp_path / "images") == first

    def test_sizes_of_all_files_count_although_bytes_are_sampled(self, tmp_path):
        folder = write_folder(tmp_path / "images", number=SAMPLED + 40)
        first = identity(folder)
        PILImage.new("RGB", (9, 8)).save(folder / "dog" / "003.bmp")
        assert identity(folder) != first


class TestStored:
    def data(self, shift=0):
        images = [PILImage.new("RGB", (8, 8), (i, shift, 0)) for i in range(12)]
        features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
        return Dataset.from_dict({"image": images, "label": [0, 1] * 6}, features=features)

    def test_equal_data_sets_in_python_are_the_same(self):
        assert self.data()._fingerprint != self.data(1)._fingerprint
        first = data_identity(IndexedSamples(self.data()))
        assert data_identity(IndexedSamples(self.data())) == first
        assert data_identity(IndexedSamples(self.data(1))) != first

    def test_a_saved_one_is_the_same_and_its_caches_do_not_matter(self, tmp_path):
        self.data().save_to_disk(tmp_path / "saved")
        first = data_identity(IndexedSamples(load_from_disk(tmp_path / "saved")))
        assert first == data_identity(IndexedSamples(self.data()))
        load_from_disk(tmp_path / "saved").train_test_split(test_size=0.5)  # writes a cache
        assert identity(tmp_path / "saved") == first

    def test_a_choice_of_rows_is_what_it_holds(self):
        """Though its file holds all rows."""
        rows = [7, 2, 3]
        chosen = data_identity(IndexedSamples(self.data().select(rows)))
        alone = Dataset.from_list([self.data()[row] for row in rows], features=self.data().features)
        assert chosen == data_identity(IndexedSamples(alone))
        assert chosen != data_identity(IndexedSamples(self.data().select([2, 7, 3])))

    def test_codes(self):
        features = Features({"codes": List(Value("int64")), "label": Value("int64")})

        def tokens(first, label=3):
            rows = {"codes": [[first, 1]] * 4, "label": [0, 1, 2, label]}
            return data_identity(IndexedSamples(Dataset.from_dict(rows, features)))

        assert tokens(0) == tokens(0)
        assert len({tokens(0), tokens(5), tokens(0, label=2)}) == 3


def test_shards(tmp_path):
    first = identity(write_shards(tmp_path / "a"), None)
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "copy")
    assert identity(tmp_path / "b" / "copy", None) == first
    assert identity(tmp_path / "b" / "copy" / "{0..1}.tar", None) == first
    assert identity(tmp_path / "b" / "copy" / "0.tar", None) != first
    assert identity(write_shards(tmp_path / "c", shift=1), None) != first  # of equal sizes


def test_embedded_data():
    assert identity("digits") == identity("digits")
