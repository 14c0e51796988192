"""Folders whose images are easily lost, mixed or doubled."""

import logging
import tarfile
import zipfile

import pytest
from PIL import Image as PILImage

from titok_hf.data import open_images
from titok_hf.data.folders import read_folder
from titok_hf.evaluation.image_sources import open_dataset
from titok_hf.evaluation.protocol import Protocol

pytestmark = pytest.mark.usefixtures("caches")


def draw(path, gray=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("L", (8, 8), gray).save(path)


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of images, each of another gray value."""

    def folder(*names, root="images"):
        for gray, name in enumerate(names):
            draw(tmp_path / root / name, gray)
        return tmp_path / root

    return folder


def labelled(path, **arguments):
    """The class names of the images of a folder by split, in order."""
    splits = open_images(str(path), hold_out=False, **arguments)
    rows = {name: splits.dataset(name) for name in splits}
    return {
        name: [split.features["label"].int2str(label) for label in split["label"]]
        for name, split in rows.items()
    }


def grays(path, split="train"):
    """The gray values of all images of a split."""
    splits = open_images(str(path), label_column=None, hold_out=False)
    return sorted(image.getpixel((0, 0)) for image in splits.dataset(split)["image"])


@pytest.fixture
def found(caplog):
    """The lines that say what was found."""
    caplog.set_level(logging.INFO, "titok_hf.data")
    return lambda: [record.getMessage() for record in caplog.records]


class TestSplits:
    @pytest.mark.parametrize("word", ["train", "test", "val", "dev", "eval", "test-tube", "Train"])
    def test_a_class_may_have_the_name_of_a_split(self, folder, found, word):
        path = folder("bus/0.png", "car/1.png", f"{word}/2.png")
        assert labelled(path) == {"train": sorted(["bus", "car", word])}
        assert grays(path) == [0, 1, 2]
        warned = {line for line in found() if "is a class, not a split" in line}
        assert len(warned) == (word != "test-tube")

    def test_names_of_image_files_tell_no_split(self, folder):
        path = folder("a/img_test_0.png", "a/1.png", "b/val.png", "b/train-3.png")
        assert labelled(path) == {"train": ["a", "a", "b", "b"]}

    @pytest.mark.parametrize(
        ("train", "test", "split"),
        [
            ("train", "test", "test"),
            ("Train", "Test", "test"),
            ("TRAINING", "testing", "test"),
            ("train", "eval", "test"),
            ("training", "dev", "validation"),
            ("train", "Val", "validation"),
            ("train", "valid", "validation"),
        ],
    )
    @pytest.mark.parametrize("wrapper", ["", "data/", "a/b/"])
    def test_folders_are_splits_if_all_are(self, folder, train, test, split, wrapper):
        path = folder(*(f"{wrapper}{name}/x/0.png" for name in (train, test)))
        assert labelled(path) == {"train": ["x"], split: ["x"]}
        assert grays(path) == [0] and grays(path, split) == [1]

    def test_images_beside_folders_of_splits_are_said(self, folder, found):
        path = folder("train/a/0.png", "test/a/1.png", "logo.png")
        assert labelled(path) == {"train": ["a"], "test": ["a"]}
        assert "left out: images outside of the splits 1 (logo.png)" in found()[-1]

    def test_a_folder_without_images_is_no_class(self, folder):
        path = folder("train/a/0.png", "test/a/1.png")
        (path / "scripts").mkdir()
        (path / "scripts" / "run.py").write_text("pass")
        assert labelled(path) == {"train": ["a"], "test": ["a"]}

    def test_names_of_shards_tell_splits(self, tmp_path, found):
        def shards(*names):
            for name in names:
                (tmp_path / names[0]).mkdir(exist_ok=True)
                (tmp_path / names[0] / name).with_suffix(".tar").write_bytes(b"")
            contents = read_folder(tmp_path / names[0])
            return contents.files, contents.left_out

        files = {"train": ["data-0.tar", "data-1.tar"]}
        assert shards("data-0", "data-1") == (files, {})
        files = {"train": ["imagenet1k-train-0.tar"], "validation": ["imagenet1k-val-0.tar"]}
        assert shards("imagenet1k-train-0", "imagenet1k-val-0") == (files, {})
        files = {"train": ["a-0.tar"], "test": ["a-test.tar"]}
        assert shards("a-0", "a-test") == (files, {})
        files, left_out = (
            {"train": ["train-0.tar"]},
            {"tar files outside of the splits": ["more-0.tar"]},
        )
        assert shards("train-0", "more-0") == (files, left_out)


class TestClasses:
    def test_the_path_names_a_class(self, folder):
        path = folder("cats/persian/0.png", "dogs/persian/1.png", "dogs/2.png")
        assert labelled(path) == {"train": ["cats/persian", "dogs", "dogs/persian"]}

    def test_a_last_folder_that_all_classes_share_is_no_name(self, folder):
        path = folder("train/n01/images/0.png", "train/n02/images/1.png", "val/n01/images/2.png")
        assert labelled(path) == {"train": ["n01", "n02"], "validation": ["n01"]}

    def test_numbers_are_in_order(self, folder):
        path = folder(*(f"{number}/0.png" for number in range(12)))
        assert open_images(str(path), hold_out=False)["train"].class_names == [
            str(number) for number in range(12)
        ]

    def test_one_folder_is_one_class(self, folder):
        assert labelled(folder("cat/0.png", "cat/1.png")) == {"train": ["cat", "cat"]}

    def test_an_image_beside_the_classes_costs_no_labels(self, folder, found):
        path = folder("a/0.png", "b/1.png", "cover.png")
        assert labelled(path) == {"train": ["a", "b"]}
        assert "left out: images beside the class folders 1 (cover.png)" in found()[-1]
        assert grays(path) == [0, 1, 2]  # used where labels are not wanted

    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
    def test_metadata_adds_columns_and_keeps_the_classes(self, folder, found, name):
        path = folder("a/0.png", "a/1.png", "b/2.png")
        rows = [("a/0.png", "a zero"), ("b/2.png", "a two"), ("c/9.png", "nothing")]
        if name.endswith("csv"):
            lines = ["file_name,text", *(",".join(row) for row in rows)]
        else:
            lines = [f'{{"file_name": "{file}", "text": "{text}"}}' for file, text in rows]
        (path / name).write_text("\n".join(lines))
        split = open_images(str(path), hold_out=False).dataset("train")
        assert split["text"][:] == ["a zero", None, "a two"] and split["label"][:] == [0, 0, 1]
        assert "left out: rows of metadata without an image 1 (c/9.png)" in found()[-1]

    def test_labels_of_metadata_replace_the_folders(self, folder):
        path = folder("a/0.png", "a/1.png")
        (path / "a" / "metadata.csv").write_text("file_name,label\n0.png,owl\n1.png,eel\n")
        assert labelled(path) == {"train": ["owl", "eel"]}

    def test_another_table_of_that_name_costs_nothing(self, folder, found):
        path = folder("a/0.png", "b/1.png")
        (path / "metadata.csv").write_text("image,label\n0.png,1\n")
        assert labelled(path) == {"train": ["a", "b"]}
        assert "metadata without a column file_name 1 (metadata.csv)" in found()[-1]

    def test_a_column_of_metadata_cannot_be_the_images(self, folder):
        path = folder("a/0.png", "a/1.png")
        (path / "metadata.csv").write_text("file_name,image\na/0.png,zero\na/1.png,one\n")
        with pytest.raises(ValueError, match=r"metadata\.csv has a column 'image', .*: rename it"):
            open_images(str(path))

    def test_metadata_that_cannot_be_read_is_named(self, folder):
        path = folder("0.png")
        (path / "metadata.csv").write_text("file_name,label\n0.png\n")
        with pytest.raises(ValueError, match=r"The metadata file .*metadata.csv"):
            open_images(str(path))

    def test_a_folder_without_classes_says_where_labels_come_from(self, folder):
        with pytest.raises(ValueError, match=r"no column 'label' but image.* names of its subfold"):
            open_images(str(folder("0.png")))["train"]

    def test_a_split_without_classes_says_so(self, folder):
        splits = open_images(str(folder("train/a/0.png", "train/b/1.png", "test/2.png")))
        with pytest.raises(ValueError, match=r"no column 'label' but image.* names of its subfold"):
            splits["test"]


class TestLinksAndArchives:
    def test_links_are_followed_but_not_in_circles(self, folder, tmp_path):
        path = folder("a/0.png", "b/1.png")
        other = folder("x/0.png", "1.png", root="elsewhere")
        (path / "x").symlink_to(other / "x")
        (path / "b" / "linked.png").symlink_to(other / "1.png")
        (path / "b" / "again").symlink_to(path)
        (path / "a" / "ab").symlink_to(path / "b")
        (path / "b" / "ba").symlink_to(path / "a")
        (tmp_path / "root").symlink_to(path)
        classes = set(labelled(tmp_path / "root")["train"])
        assert {"a", "b", "x", "a/ab", "b/ba"} <= classes
        assert sum(name.count("again") for name in classes) == 0
        samples = open_images(str(tmp_path / "root"), label_column=None)["train"]
        assert {"a/0.png", "x/0.png"} <= {samples[i].key for i in range(len(samples))}

    def test_a_folder_of_links_is_a_folder(self, folder, tmp_path, found):
        other = folder("x/0.png", "y/1.png", root="elsewhere")
        (tmp_path / "images").mkdir()
        for name in "xy":
            (tmp_path / "images" / name).symlink_to(other / name)
        (tmp_path / "images" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        assert labelled(tmp_path / "images") == {"train": ["x", "y"]}
        assert "left out: broken links 1 (gone.png)" in found()[-1]

    @pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
    def test_an_archive_beside_its_images_is_left_out(self, folder, found, kind):
        path = folder("a/0.png", "a/1.png", "b/2.png")
        if kind == "zip":
            with zipfile.ZipFile(path / "images.zip", "w") as archive:
                for file in path.rglob("*.png"):
                    archive.write(file, file.relative_to(path))
        else:
            with tarfile.open(path / f"images.{kind}", "w:gz" if "gz" in kind else "w") as archive:
                archive.add(path / "a", "a")
        assert labelled(path) == {"train": ["a", "a", "b"]} and grays(path) == [0, 1, 2]
        what = "tar files" if kind == "tar" else "archives"
        assert f"left out: {what} 1 (images.{kind})" in found()[-1]

    def test_an_image_beside_shards_is_left_out(self, folder, found):
        path = folder("preview.png")
        for i in range(2):
            with tarfile.open(path / f"{i}.tar", "w") as archive:
                archive.add(path / "preview.png", f"{i}.png")
        assert len(open_images(str(path), label_column=None)["train"]) == 2
        assert "left out: images 1 (preview.png)" in found()[0]

    def test_archives_alone_are_to_be_unpacked(self, tmp_path):
        (tmp_path / "images.zip").write_bytes(b"")
        with pytest.raises(
            ValueError, match=r"holds only archives \(1\). Unpack the archives first"
        ):
            open_images(str(tmp_path))


class TestNames:
    @pytest.mark.parametrize("name", ["set[1]", "a b%#", "é", "画像", "🐟", "{x}*", "$HOME"])
    def test_signs_in_names_have_no_meaning(self, folder, name):
        path = folder(f"{name}/0.png", "b/1.png", root=name)
        assert sorted(labelled(path)["train"]) == sorted([name, "b"])

    def test_every_format_that_pillow_reads_is_found(self, folder):
        names = ["0.PNG", "1.JPEG", "2.webp", "3.avif", "4.bmp", "5.tiff"]
        assert len(open_images(str(folder(*names)), label_column=None)["train"]) == len(names)

    def test_what_systems_leave_behind_is_ignored(self, folder, found):
        path = folder("a/0.png", ".thumbnails/0.png", "__MACOSX/a/0.png", "a/._0.png")
        (path / "Thumbs.db").write_bytes(b"")
        (path / ".DS_Store").write_bytes(b"")
        assert labelled(path) == {"train": ["a"]}
        assert "left out" not in found()[-1]

    def test_an_empty_name_is_an_error(self):
        for name in ("", " "):
            with pytest.raises(ValueError, match="got an empty name"):
                open_images(name)
        with pytest.raises(ValueError, match="got an empty name"):
            open_dataset("", Protocol.load("demo"))

    def test_names_that_are_not_utf8_are_said(self, folder, found):
        path = folder("a/0.png", "b/1.png")
        with open(bytes(path / "a") + b"/\xff.png", "wb") as file:
            file.write((path / "a" / "0.png").read_bytes())
        assert labelled(path) == {"train": ["a", "b"]}
        assert r"names that are not UTF-8 1 ('a/\udcff.png')" in found()[-1]

    def test_the_home_folder_is_known(self, folder, monkeypatch):
        path = folder("a/0.png")
        monkeypatch.setenv("HOME", str(path.parent))
        assert labelled("~/images") == {"train": ["a"]}

    def test_the_line_counts_images_classes_and_splits(self, folder, found):
        path = folder(*(f"train/{name}/{i}.png" for name in "ab" for i in range(3)), "test/a/0.png")
        splits = open_images(str(path))
        assert found() == [splits.found] == [f"{path}: 7 images (train 6, test 1), 2 classes."]
