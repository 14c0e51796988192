"""Errors of `titok evaluate`, which come before the work, and its help."""

import numpy as np
import pytest

from .conftest import NUMBER
from .test_evaluate import DEMO, GENERATED_DIGITS

pytestmark = pytest.mark.xdist_group("cli")


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (
                ("--protocol", "titok"),
                "one of titok-rfid, vtp-rfid, adm-256, adm-512, fdr6, demo, emoji or a YAML file, got 'titok'",
            ),
            (("--protocol", "adm-256"), "'adm-256' is for generation, not for reconstruction"),
            ((*DEMO, "--set", "crop"), "`key=value`, got 'crop'"),
            ((*DEMO, "--set", "crop=[1"), "crop=[1 is not valid YAML"),
            ((*DEMO, "--set", "corp=adm"), "did you mean 'crop'?"),
            ((*DEMO, "--set", "extractor=5"), "`extractor` must be text, got 5"),
            ((*DEMO, "--set", "metrics.reconstruction=[psrn]"), "did you mean 'psnr'?"),
            ((*DEMO, "--set", "image_size=64"), "for images of 64 pixels, the tokenizer for 32"),
            (
                (*DEMO, "--set", "crop=none"),
                "All images must be 32x32 pixels, since they are not cropped",
            ),
            (
                (*DEMO, "--set", "metrics.reconstruction=[spatial_frechet_distance]"),
                "which only Inception has",
            ),
            ((*DEMO, "--num-images", 64), "needs at least 65 judged images, got 64"),
            ((*DEMO, "--num-images", 1000), "There are 360 images, and 1000 were asked for"),
            ((*DEMO, "--split", "validation"), "no split 'validation' but train, test"),
            ((*DEMO, "--image-column", "picture"), "no column 'picture' but image, label"),
            ((*DEMO, "--label-column", "class"), "accuracy needs labels"),
            ((*DEMO, "--reference", "none.npz"), "none.npz"),
        ],
    )
    def test_of_reconstruction(self, refused, tokenizer, options, expected):
        assert expected in refused("reconstruction", tokenizer, "--data", "digits", *options)

    def test_of_the_data(self, refused, tokenizer, tmp_path):
        (tmp_path / "empty").mkdir()
        error = refused("reconstruction", tokenizer, "--data", "empty", *DEMO)
        assert (
            "empty must hold images, tar shards or Parquet files, but holds only hidden files or none"
            in error
        )

    def test_of_weights_that_are_not_there(self, refused, tokenizer):
        error = refused(
            "reconstruction", tokenizer, "--data", "digits", "--extractor-weights", "none.pth"
        )
        assert "There is no file none.pth" in error

    def test_of_a_tokenizer_that_is_none(self, refused, saved_pipeline, generator, tmp_path):
        generator.save_pretrained(tmp_path / "generator")
        error = refused("reconstruction", "generator", "--data", "digits", *DEMO)
        assert "generator must be a tokenizer" in error
        assert "pipeline is a whole pipeline: name its tokenizer, pipeline/tokenizer." in refused(
            "reconstruction", saved_pipeline, "--data", "digits", *DEMO
        )

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (
                ("--protocol", "titok-rfid"),
                "'titok-rfid' is for reconstruction, not for generation",
            ),
            ((*GENERATED_DIGITS, "--sampler", "steps"), "`key=value`, got 'steps'"),
            ((*GENERATED_DIGITS, "--sampler", "steps=[1"), "steps=[1 is not valid YAML"),
            ((*GENERATED_DIGITS, "--sampler", "steps=3"), "A TiTokPipeline takes no steps"),
            (
                (*GENERATED_DIGITS, "--set", "kernel_subsets=many"),
                "`kernel_subsets` must be an integer of at least 1",
            ),
            ((*GENERATED_DIGITS, "--set", "image_size=64"), "the pipeline makes 32x32"),
            (
                (*GENERATED_DIGITS, "--samples", "a.npz", "--seed", 1, "--seed", 2),
                "`samples` takes the images of one",
            ),
            ((*DEMO, "--num-samples", NUMBER), "frechet_distance needs images to compare with"),
            (
                (*DEMO, "--reference", "digits", "--num-samples", 3),
                "needs at least 65 judged images, got 3",
            ),
        ],
    )
    def test_of_generation(self, refused, saved_pipeline, options, expected):
        assert expected in refused("generation", saved_pipeline, *options)

    def test_of_samples_that_are_there(self, refused, saved_pipeline, tmp_path):
        (tmp_path / "samples.npz").write_bytes(b"theirs")
        error = refused("generation", saved_pipeline, *GENERATED_DIGITS, "--samples", "samples.npz")
        assert "samples.npz exists already" in error
        error = refused("reference", "digits", *DEMO, "--output", "samples.npz")
        assert (
            "samples.npz exists already" in error
            and (tmp_path / "samples.npz").read_bytes() == b"theirs"
        )

    def test_of_images_that_do_not_fit(self, refused, tmp_path):
        np.savez(tmp_path / "large.npz", np.zeros((NUMBER, 64, 64, 3), np.uint8))
        np.savez(tmp_path / "float.npz", np.zeros((NUMBER, 32, 32, 3), np.float32))
        options = (
            "--protocol",
            "demo",
            "--set",
            "metrics.generation=[frechet_distance]",
            "--reference",
            "digits",
        )
        assert "large.npz holds 64x64" in refused("generation", "large.npz", *options)
        assert "must be uint8 in [0, 255], got float32" in refused(
            "generation", "float.npz", *options
        )

    @pytest.mark.parametrize(
        "arguments",
        [
            ("reconstruction",),
            ("reconstruction", "tokenizer"),
            ("reconstruction", "tokenizer", "--data", "digits", "--dtype", "int8"),
            ("reconstruction", "tokenizer", "--data", "digits", "--device", "abacus"),
            ("reconstruction", "tokenizer", "--data", "digits", "--num-images", 1),
            ("reconstruction", "tokenizer", "--data", "digits", "--batch-size", 0),
            ("reconstruction", "tokenizer", "--data", "digits", "--output", "."),
            ("generation", "pipeline", "--num-samples", 0),
            ("reference", "digits"),
            ("compare", "none.json"),
            ("probe", "tokenizer"),
            ("paint",),
        ],
        ids=lambda arguments: " ".join(map(str, arguments)),
    )
    def test_of_usage(self, call, arguments):
        code, _, errors = call("evaluate", *arguments)
        assert code == 2 and "Error" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ((), ("reconstruction", "generation", "reference", "compare", "probe")),
        (
            ("reconstruction",),
            ("--data", "--protocol", "--set", "--num-images", "--extractor-weights", "--dtype"),
        ),
        (
            ("generation",),
            ("--reference", "--num-samples", "--seed", "--sampler", "--samples", "--output"),
        ),
        (("reference",), ("--num-kept", "--split")),
        (("compare",), ("--different-protocols",)),
        (
            ("probe",),
            (
                "--feature",
                "--label-column",
                "--revision",
                "--subfolder",
                "--k",
                "--seed",
                "--dtype",
            ),
        ),
    ],
)
def test_help_tells_what_a_command_takes(call, monkeypatch, command, options):
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, _ = call("evaluate", *command, "--help")
    assert code == 0
    assert [option for option in options if option not in printed] == []
