import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forked import run
from PIL import Image

from titok_hf import TiTokImageProcessor, TiTokPipeline
from titok_hf.cli import main
from titok_hf.data.digits import DIGIT_NAMES, load_digits_dataset
from titok_hf.evaluation import generate_to_file
from titok_hf.version import __version__

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
COMMANDS = {
    "demo": ("--output-dir", "--seed", "--set", "--images-per-class"),
    "train": (
        "--data",
        "--output-dir",
        "--image-column",
        "--label-column",
        "--seed",
        "--set",
        "--json",
    ),
    "reconstruct": ("--tokenizer", "--output", "--device", "--json"),
    "app": ("--data", "--host", "--port", "--device", "--push-space", "--private"),
    "generate": (
        "--label",
        "--pipeline",
        "--num-images",
        "--steps",
        "--guidance-scale",
        "--guidance-schedule",
        "--sampler",
        "--seed",
        "--compile",
        "--fast",
        "--int8",
        "--device",
        "--json",
    ),
    "convert": (
        "--output-dir",
        "--generator",
        "--config",
        "--statistics",
        "--dtype",
        "--to-official",
        "--push",
        "--private",
        "--json",
    ),
    "push": ("--private", "--revision", "--json"),
    "tokenize": (
        "--tokenizer",
        "--output-dir",
        "--compile",
        "--split",
        "--image-column",
        "--label-column",
        "--no-labels",
        "--revision",
        "--streaming",
        "--augmentation",
        "--enlarge",
        "--batch-size",
        "--part-size",
        "--num-workers",
        "--max-unreadable",
        "--dtype",
        "--device",
        "--push",
        "--private",
        "--json",
    ),
    "zero-shot": ("--labels", "--image", "--model", "--json"),
}

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]


def run_titok(*arguments, cwd=None):
    """The command in a process of its own."""
    return run("titok_hf.cli", *arguments, folder=cwd, check=False)


@pytest.fixture
def call(monkeypatch, capsys):
    """The command in this process: exit code, what it prints, and what it prints as errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["titok", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `images/`, a subfolder a class, and the models trained on them by the command."""
    folder = tmp_path_factory.mktemp("cli")
    digits = load_digits_dataset()
    for split, rows in (("train", range(20)), ("test", range(5))):
        for row in rows:
            image, name = digits[split][row]["image"], DIGIT_NAMES[digits[split][row]["label"]]
            path = folder / "images" / split / name / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    overrides = [
        f"stages.{stage}.training.max_steps=2" for stage in ("vqgan", "classifier", "warmup")
    ]
    options = ["--set", *overrides]  # one as an option, the others as arguments
    done = run_titok(
        "train",
        MINIATURE,
        "--data",
        "images",
        "--output-dir",
        "models",
        "--seed",
        3,
        *options,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    (folder / "errors.txt").write_text(done.stderr)
    return folder


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_tells_what_a_command_takes(command):
    done = run_titok(*filter(None, [command]), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for expected in COMMANDS if command is None else COMMANDS[command]:
        assert expected in done.stdout


def test_the_version():
    done = run_titok("--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


def test_the_module_is_a_program():
    command = [sys.executable, "-m", "titok_hf.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == "" and all(command in done.stdout for command in COMMANDS)


class TestTraining:
    def test_the_models_are_there(self, folder):
        assert {path.name for path in (folder / "models").iterdir()} == {
            "recipe.yaml",
            "vqgan",
            "tokenizer",
            "pipeline",
            "work",
        }
        assert "The trained models are in models." in (folder / "printed.txt").read_text()

    def test_its_stages_are_shown_without_bars(self, folder):
        """stderr is no terminal: a line tells that a stage has ended."""
        found, *stages = (folder / "errors.txt").read_text().splitlines()
        assert found == "images: 25 images (train 20, test 5), 10 classes."
        names = ("vqgan", "warmup", "classifier", "decoder finetuning", "generator")
        for name, line in zip(names, stages, strict=True):
            assert re.fullmatch(rf"{name}: \d steps, loss [\d.]+, \d+ images/s", line), line

    def test_json_names_the_folders(self, folder, call, monkeypatch):
        monkeypatch.chdir(folder)
        options = ("--data", "images", "--output-dir", "models", "--seed", 3)
        overrides = [
            f"stages.{stage}.training.max_steps=2" for stage in ("vqgan", "classifier", "warmup")
        ]
        code, out, errors = call("train", MINIATURE, *options, *overrides, "--json")
        assert code == 0, errors
        made = json.loads(out)
        assert made["folder"] == "models"
        assert made["stages"] == {
            "vqgan": "models/vqgan",
            "warmup": "models/work/warmup",
            "classifier": "models/work/classifier",
            "decoder_finetuning": "models/tokenizer",
            "generator": "models/pipeline",
        }
        assert all(Path(path).is_dir() for path in made["stages"].values())

    def test_seed_and_overrides_arrive(self, folder):
        record = (folder / "models" / "recipe.yaml").read_text()
        assert record.startswith("seed: 3\ndata: images\ndata_sha256: ")
        assert "\nname: miniature\n" in record
        assert record.count("max_steps: 2\n") == 3

    def test_folders_are_the_classes(self, folder):
        pipeline = TiTokPipeline.from_pretrained(folder / "models" / "pipeline")
        assert list(pipeline.transformer.config.id2label.values()) == sorted(DIGIT_NAMES)


class TestReconstruct:
    def test_images_are_shown_above_their_reconstructions(self, folder):
        images = sorted((folder / "images" / "test").rglob("*.png"))[:3]
        done = run_titok(
            "reconstruct",
            *images,
            "--tokenizer",
            "models/tokenizer",
            "--output",
            "pairs.png",
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
        assert "Images above their reconstructions: pairs.png" in done.stdout
        processor = TiTokImageProcessor.from_pretrained(folder / "models" / "tokenizer")
        pixels = np.asarray(
            Image.open(folder / "pairs.png")
        )  # 64x64 cells and gaps of 4, labels on the left
        assert pixels.shape[0] == 4 + 2 * 68
        for i, path in enumerate(images):
            left = pixels.shape[1] - (3 - i) * 68
            image = processor.postprocess(
                processor([Image.open(path)], return_tensors="pt")["pixel_values"]
            )[0]
            expected = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST))
            assert np.array_equal(pixels[4:68, left : left + 64], expected)
            assert not np.array_equal(pixels[72:136, left : left + 64], expected)

    @pytest.mark.parametrize(
        ("mode", "size"), [("L", (40, 60)), ("RGBA", (32, 32)), ("P", (100, 50))]
    )
    def test_images_of_any_mode_and_size_fit(self, folder, call, tmp_path, mode, size):
        Image.new(mode, size).save(tmp_path / "image.png")
        output = tmp_path / "pair.png"
        code, *_ = call(
            "reconstruct",
            tmp_path / "image.png",
            "--tokenizer",
            folder / "models" / "tokenizer",
            "--output",
            output,
            "--device",
            "cpu",
        )
        assert code == 0
        assert Image.open(output).height == 4 + 2 * 68


class TestGenerate:
    def test_labels_are_ids_or_names(self, folder):
        options = ["--pipeline", "models/pipeline", "--num-images", "2", "--output", "images.png"]
        done = run_titok("generate", "--label", "7", "--label", "three", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "2 images of each label: images.png" in done.stdout
        assert Image.open(folder / "images.png").height > 64

    @pytest.mark.parametrize("labels", [["0"], ["zero", "5"], ["three", "three"], ["three", "7"]])
    def test_each_label_has_a_row(self, folder, tmp_path, labels):
        """A label may be given twice, by one name or by two: 7 is three, as folders are sorted by
        name."""
        labels = [int(label) if label.isdecimal() else label for label in labels]
        generate_to_file(
            folder / "models" / "pipeline", labels, tmp_path / "rows.png", num_images_per_label=2
        )
        picture = Image.open(tmp_path / "rows.png")
        assert picture.height == 4 + len(labels) * 68

    def test_options_arrive(self, folder, call, tmp_path):
        output = tmp_path / "images.png"
        pictures = []
        for options in (
            [],
            ["--seed", "0", "--device", "cpu"],
            ["--seed", "1"],
            ["--steps", "1"],
            ["--guidance-scale", "9"],
            ["--guidance-scale", "9", "--guidance-schedule", "linear"],
        ):
            arguments = [
                "--label",
                "3",
                "--num-images",
                "12",
                "--pipeline",
                folder / "models" / "pipeline",
            ]
            code, *_ = call("generate", *arguments, *options, "--output", output)
            assert code == 0
            pictures.append(output.read_bytes())
        assert pictures[0] == pictures[1]
        assert len(set(pictures)) == 5


class TestErrors:
    """An error that users can mend is one line, without a traceback."""

    def check(self, code, errors, *expected):
        assert code == 1
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if line.strip()]
        if re.match(r".*: [\d,]+ images \(", lines[0]):  # what data were found
            lines.pop(0)
        assert len(lines) == 1, errors
        assert lines[0].startswith("Error: ")
        for part in expected:
            assert part in lines[0]

    def test_of_the_command_itself(self, folder):
        done = run_titok(
            "generate", "--label", "eleven", "--pipeline", "models/pipeline", cwd=folder
        )
        lines = [line for line in done.stderr.splitlines() if "Error: " in line]
        self.check(
            done.returncode, "\n".join(lines), "'seven', 'five'", "'eleven' is not among them"
        )
        assert "Traceback" not in done.stderr
        assert not (folder / "samples.png").exists()

    @pytest.fixture
    def quiet(self, call):
        """Exit code and the printed error, without the progress bars of loading."""

        def quiet(*arguments):
            code, _, errors = call(*arguments)
            kept = [
                line for line in errors.splitlines() if "%|" not in line and "it/s]" not in line
            ]
            return code, "\n".join(kept)

        return quiet

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--label", "10"], "[0, 10)"),
            (["--label", "3", "--steps", "0"], "at least 1, got 0"),
            (["--label", "3", "--guidance-schedule", "cubic"], "'cubic'"),
            (["--label", "3", "--output", "picture.xyz"], ".xyz"),
            (
                ["--label", "3", "--sampler", "num_images_per_label=2"],
                "takes arguments of the sampling, got num_images_per_label",
            ),
        ],
    )
    def test_of_generating(self, folder, quiet, tmp_path, monkeypatch, options, expected):
        monkeypatch.chdir(tmp_path)
        self.check(
            *quiet("generate", "--pipeline", folder / "models" / "pipeline", *options), expected
        )

    @pytest.mark.parametrize("command", ["reconstruct", "evaluate", "probe"])
    @pytest.mark.parametrize("broken", [False, True], ids=["too many pixels", "no image"])
    def test_of_an_unreadable_image(self, folder, quiet, tmp_path, monkeypatch, command, broken):
        """One of the test images has too many pixels for PIL, or is no image."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32)  # the error comes at twice as many
        for number in range(12):
            path = tmp_path / "images" / ("train", "test")[number % 2] / "ab"[number // 6]
            path.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), number).save(path / f"{number}.png")
        bad = tmp_path / "images" / "test" / "b" / "bad.png"
        Image.new("L", (50, 50)).save(bad)
        if broken:
            bad.write_bytes(b"no image")
        tokenizer, output = folder / "models" / "tokenizer", tmp_path / "result.json"
        data = ["--data", tmp_path / "images", "--output", output]
        settings = ["--set", "reference=originals", "--set", "metrics.reconstruction=[psnr]"]
        protocol = ["--protocol", "demo", *settings]
        arguments = {
            "reconstruct": ["reconstruct", bad, "--tokenizer", tokenizer],
            "evaluate": ["evaluate", "reconstruction", tokenizer, *data, *protocol],
            "probe": ["evaluate", "probe", tokenizer, *data, "--k", "1"],
        }[command]
        code, errors = quiet(*arguments)
        assert "Traceback" not in errors
        *_, error = errors.splitlines()  # after the progress of reading the folder
        self.check(code, error, "bad.png", "no image" if broken else "exceeds limit")

    @pytest.mark.parametrize("name", ["notes.png", "photo[bold].png", "[/b].png"])
    def test_of_a_file_that_is_no_image(self, folder, quiet, tmp_path, name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
        tokenizer = folder / "models" / "tokenizer"
        self.check(
            *quiet("reconstruct", tmp_path / name, "--tokenizer", tokenizer),
            name,
            "must be an image file",
        )

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["imagenet", "--data", "digits"], "got 'imagenet'"),
            (
                [MINIATURE, "--data", "digits", "--set", "stages.warmup.modell={}"],
                "did you mean 'model'?",
            ),
            ([MINIATURE, "--data", "digits", "--set", "stages"], "key=value"),
            ([MINIATURE, "--data", "digits", "--set", "name.x.y=1"], "name"),
            ([MINIATURE, "--data", "digits", "--set", "image_size=[1"], "image_size"),
            ([MINIATURE, "--data", "nowhere/images"], "There is no folder nowhere/images here"),
            ([MINIATURE, "--data", "digits", "--label-column", "klass"], "'klass'"),
        ],
    )
    def test_of_training(self, quiet, tmp_path, monkeypatch, arguments, expected):
        monkeypatch.chdir(tmp_path)
        self.check(*quiet("train", *arguments, "--output-dir", tmp_path / "models"), expected)

    def test_of_another_seed_in_a_folder_that_is_in_use(self, folder, quiet, monkeypatch):
        monkeypatch.chdir(folder)
        arguments = [
            "train",
            MINIATURE,
            "--data",
            "images",
            "--output-dir",
            "models",
            "--seed",
            "4",
        ]
        self.check(*quiet(*arguments), "models holds a run of another recipe or seed")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["generate"],
            ["generate", "--label", "3", "--num-images", "0"],
            ["demo", "--images-per-class", "1"],
            ["train", "digits"],
            ["reconstruct", "no-such-file.png"],
            ["paint"],
        ],
        ids=" ".join,
    )
    def test_of_usage(self, call, arguments):
        code, _, errors = call(*arguments)
        assert code == 2
        assert "Error" in errors and "Traceback" not in errors

    def test_of_a_demo_that_has_not_run(self, call, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (32, 32)).save("image.png")
        for arguments, part in (
            (["generate", "--label", "3"], "pipeline"),
            (["reconstruct", "image.png"], "tokenizer"),
        ):
            code, _, errors = call(*arguments)
            assert code == 2 and f"'--{part}'" in errors
            for words in (f"no folder demo/{part} here", "`titok demo`"):
                assert words in " ".join(errors.replace("│", " ").split())


def test_output_paths_are_printed_as_they_are(folder, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = folder / "models" / "pipeline"
    code, printed, _ = call(
        "generate", "--label", "3", "--pipeline", pipeline, "--output", "a[b].png"
    )
    assert code == 0
    assert (tmp_path / "a[b].png").exists()
    assert "a[b].png" in printed
