"""Pictures of single files: folders of images, separate files, animations of unmasking."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from titok_hf import TiTokImageProcessor, TiTokModel
from titok_hf.devices import int8_is_exact
from titok_hf.evaluation.pictures import sampling_steps

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path):
    """Folder of three images, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for shade, name in enumerate(("b.png", "a.jpg", "c.webp")):
        Image.new("RGB", (40, 32), (80 * shade, 10, 200)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def tokenizer(titok, tmp_path):
    titok.save_pretrained(tmp_path / "titok")
    TiTokImageProcessor.from_image_size(32).save_pretrained(tmp_path / "titok")
    return tmp_path / "titok"


class TestReconstruct:
    def test_a_folder_and_separate_files(self, call, images, tokenizer):
        outputs = ("--output", "pairs.png", "--separate", "single")
        code, _, errors = call("reconstruct", images, "--tokenizer", tokenizer, *outputs)
        assert code == 0, errors
        names = [file.name for file in sorted(Path("single").iterdir())]
        assert names == ["a.png", "b.png", "c.png"]
        picture = np.asarray(Image.open("pairs.png"))
        for i, name in enumerate(names):
            single = Image.open(f"single/{name}").resize((64, 64), Image.Resampling.NEAREST)
            left = picture.shape[1] - (3 - i) * 68
            assert np.array_equal(picture[72:136, left : left + 64], np.asarray(single))

    def test_a_folder_without_images_is_said(self, call, tokenizer, tmp_path):
        (tmp_path / "empty").mkdir()
        code, _, errors = call("reconstruct", tmp_path / "empty", "--tokenizer", tokenizer)
        assert code == 1 and "empty has no image files" in errors

    def test_two_images_of_one_name_are_said(self, call, images, tokenizer):
        Image.new("RGB", (32, 32)).save(images / "a.png")
        options = ("--tokenizer", tokenizer, "--separate", "single")
        code, _, errors = call("reconstruct", images, *options)
        assert code == 1 and "Two images would become a.png in single" in errors
        assert not Path("single").exists()


class TestFaster:
    @pytest.fixture
    def titok(self, make_titok_config):
        """A tokenizer without convolutions, which the compiler is quick with."""
        return TiTokModel(make_titok_config("pixels")).eval()

    @pytest.mark.parametrize(
        "option",
        [
            "--fast",
            "--compile",
            pytest.param(
                "--int8",
                marks=pytest.mark.skipif(not int8_is_exact(), reason="no instructions for int8"),
            ),
        ],
    )
    def test_it_says_in_what_it_computes(self, call, pipeline, tmp_path, option):
        pipeline.save_pretrained(tmp_path / "pipeline")
        options = ("--pipeline", tmp_path / "pipeline", "--num-images", 2, "--steps", 1, option)
        code, _, errors = call("generate", "--label", "three", *options)
        assert code == 0 and "The following calls compute in " in errors
        assert ("compute in int8 and " in errors) == (option == "--int8")
        assert Image.open("samples.png").size[0] > 2 * 64

    def test_one_way_at_a_time(self, call):
        code, _, errors = call("generate", "--pipeline", "none", "--label", 3, "--fast", "--int8")
        assert code == 1 and "Give only one of `--compile`, `--fast` and `--int8`" in errors


class TestUnmasking:
    def test_an_animation_ends_with_the_samples(self, call, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path / "pipeline")
        options = ("--label", 3, "--num-images", 2, "--steps", 4, "--animation", "steps.gif")
        code, _, errors = call("generate", "--pipeline", tmp_path / "pipeline", *options)
        assert code == 0, errors
        with Image.open("steps.gif") as animation:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
            assert animation.info["loop"] == 0
        assert frames[0].height == 4 + (64 + 10) + 4  # with the tokens below

    def test_steps_are_decoded_from_what_is_predicted(self, pipeline):
        images, steps = sampling_steps(pipeline, [1, 2], num_inference_steps=3)
        assert len(steps) == 3 and all(len(step) == 2 for step in steps)
        last = np.asarray(steps[-1][0])
        assert np.array_equal(last[:32], np.asarray(images[0]))
        masked = np.asarray(steps[0][0])
        assert last.shape == (37, 32, 3)
        strips = [int((cell[33:] == (0, 0, 0)).all(-1).sum()) for cell in (masked, last)]
        assert strips[1] == 0
