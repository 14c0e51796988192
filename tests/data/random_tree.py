"""Random trees of files whose images and classes are known, because they are made so."""

import os
import zipfile
from io import BytesIO

from PIL import Image as PILImage

SPLIT_WORDS = {"train": ["train", "Train", "training"], "test": ["test", "TESTING", "eval"]}
SPLIT_WORDS["validation"] = ["val", "Valid", "dev", "validation"]
WORDS = [
    "cat",
    "test-tube",
    "img_train",
    "1",
    "02",
    "10",
    "set[1]",
    "a b",
    "é",
    "画像",
    "%41",
    "x.y",
]
EXTENSIONS = [".png", ".PNG", ".jpg", ".JPEG", ".webp", ".bmp"]


class Tree:
    """Makes a tree of files and records what it holds.

    `images` are split, class (`None` outside of class folders) and width of each image; widths tell
    images apart. Those in `broken` are cut off. `left_out` counts the files that must be named as left
    out.
    """

    def __init__(self, root, rng, broken=0.1):
        self.root, self.rng = root, rng
        self.share_broken, self.broken = broken, set()
        self.images = []
        self.left_out = 0
        wrapper = root.joinpath(*rng.choice(["data", "images", "2024"], rng.integers(3), False))
        splits = [
            None,
            *rng.choice(list(SPLIT_WORDS), rng.integers(1, 4), replace=False),
        ]
        splits = splits[1:] if rng.random() < 0.5 else splits[:1]
        self.words = list(rng.choice(WORDS, rng.integers(2, 5), replace=False))
        for split in splits:
            folder = wrapper if split is None else wrapper / rng.choice(SPLIT_WORDS[split])
            self.fill(folder, split or "train", deep=split is None)
        self.clutter()

    def fill(self, folder, split, deep):
        rng = self.rng
        names = list(self.words)
        if deep and rng.random() < 0.5:  # class folders with names of splits, beside another one
            names.append(str(rng.choice(["train", "test", "Val"])))
        for name in names:
            for _ in range(rng.integers(1, 4)):
                self.draw(folder / name, split, name)
            if deep and rng.random() < 0.2:
                inner = f"{name}/{rng.choice(['in', 'test'])}"
                self.draw(folder / inner, split, inner)
            if deep and rng.random() < 0.2:
                linked = self.root.parent / f"linked{len(self.images)}"
                self.draw(linked, split, f"{name}-linked")
                (folder / f"{name}-linked").symlink_to(linked)
            if rng.random() < 0.2:
                (folder / name / "circle").symlink_to(self.root)
        if rng.random() < 0.3:
            self.draw(folder, split, None)

    def draw(self, folder, split, name):
        folder.mkdir(parents=True, exist_ok=True)
        width = len(self.images) + 8
        stem = self.rng.choice(["test_", "img.", "valid ", "#", "é"])
        extension = str(self.rng.choice(EXTENSIONS))
        path = folder / f"{stem}{width}{extension}"
        modes = ["RGB", "L", "RGBA", "P", "1", "I;16"] if "png" in path.suffix.lower() else ["RGB"]
        file = BytesIO()
        PILImage.new(str(self.rng.choice(modes)), (width, 8)).save(
            file, PILImage.registered_extensions()[extension.lower()]
        )
        content = file.getvalue()
        if self.rng.random() < self.share_broken:
            content = content[:20]
            self.broken.add(width)
        path.write_bytes(content)
        self.images.append((split, name, width))

    def seen(self, width):
        """The width of an image as `width_of` gives it: 0 if it is broken."""
        return 0 if width in self.broken else width

    def clutter(self):
        folders = [folder for folder, _, _ in os.walk(self.root)]
        for i in range(self.rng.integers(4)):
            folder = self.root / self.rng.choice(folders)
            match self.rng.integers(5):
                case 0:
                    (folder / f"notes{i}.txt").write_text("no image")
                    self.left_out += 1
                case 1:
                    with zipfile.ZipFile(folder / f"{i}.zip", "w") as archive:
                        archive.writestr("0.png", b"")
                    self.left_out += 1
                case 2:
                    (folder / f"gone{i}.png").symlink_to(self.root / "nowhere")
                    self.left_out += 1
                case 3:
                    (folder / f"._{i}.png").write_bytes(b"")
                case 4:
                    (folder / f".hidden{i}").mkdir()
                    (folder / f".hidden{i}" / "0.png").write_bytes(b"")
