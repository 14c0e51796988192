"""`--json`: stdout is one JSON document, and all else is on stderr."""

import inspect
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPTokenizer

from titok_hf import MaskGitModel, VTPImageProcessor, VTPModel, VTPProcessor
from titok_hf.cli.evaluate import app as evaluate_app
from titok_hf.cli.main import app
from titok_hf.evaluation import Evaluation

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]


@pytest.fixture
def answer(call):
    """Runs a command with `--json`, and reads all of stdout as one document."""

    def answer(*arguments):
        code, output, errors = call(*arguments, "--json")
        assert code == 0, errors
        return json.loads(output)

    return answer


def test_a_command_has_the_option_if_it_returns_a_result():
    commands = [*app.registered_commands, *evaluate_app.registered_commands]
    returns = {
        command.callback.__name__: inspect.signature(command.callback) for command in commands
    }
    assert {"train", "generate", "push", "study", "fdr6"} <= returns.keys()
    for name, signature in returns.items():
        assert ("as_json" in signature.parameters) == (signature.return_annotation is not None), (
            name
        )


def test_generate(answer, saved_pipeline):
    options = ("--label", "7", "--label", "three", "--num-images", 2, "--seed", 5)
    made = answer("generate", "--pipeline", saved_pipeline, *options, "--separate", "single")
    assert (made["pipeline"], made["seed"], made["picture"]) == ("pipeline", 5, "samples.png")
    assert [image["label"] for image in made["images"]] == [7, 7, 3, 3]
    assert made["images"][2]["name"] == "three"
    assert all(Path(image["file"]).exists() for image in made["images"])


def test_reconstruct(answer, tokenizer, titok):
    Image.new("RGB", (40, 32), (200, 10, 90)).save("image.png")
    made = answer("reconstruct", "image.png", "--tokenizer", tokenizer)
    [image] = made["images"]
    assert Path(made["picture"]).exists() and image["file"] is None
    assert len(image["codes"]) == 8 and image["latents"] == [8, 6]
    assert image["psnr"] == pytest.approx(-10 * math.log10(image["mean_squared_error"]), rel=1e-4)
    assert (image["image"], made["tokenizer"]) == ("image.png", "tokenizer")


def test_results_of_evaluations(answer, tokenizer, saved_pipeline):
    data = ("--data", "digits")
    demo = ("--protocol", "demo")
    found = answer("evaluate", "reconstruction", tokenizer, *data, *demo)
    assert found == json.loads(Path("reconstruction.json").read_text())
    assert Evaluation.load("reconstruction.json").metrics["psnr"].value > 0
    options = (*demo, "--reference", "digits", "--num-samples", 70)
    found = answer("evaluate", "generation", saved_pipeline, *options)
    assert found == json.loads(Path("generation.json").read_text())
    found = answer("evaluate", "neighbors", saved_pipeline, *data, "--num-samples", 10)
    assert found == json.loads(Path("neighbors.json").read_text())
    found = answer("evaluate", "probe", tokenizer, *data, "--feature", "mean_token")
    assert found == json.loads(Path("probe.json").read_text())


def test_tokenize_and_push(answer, tokenizer, folder_of_images, hub):
    options = ("--tokenizer", tokenizer, "--output-dir", "tokens", "--num-workers", 0)
    made = answer("tokenize", folder_of_images, *options, "--no-labels", "--push", "user/tokens")
    assert made["folder"] == "tokens" and made["url"] == f"{hub.url}/datasets/user/tokens"
    assert made["result"]["splits"]["train"]["rows"] == 70

    assert answer("push", tokenizer, "user/tokenizer") == {
        "folder": "tokenizer",
        "url": f"{hub.url}/user/tokenizer",
    }


def test_convert(answer, generator, tmp_path):
    generator.save_pretrained(tmp_path / "generator")
    made = answer("convert", "generator", "--to-official", "--output-dir", "official")
    assert made == {"folder": "official", "url": None}
    made = answer("convert", "official", "--output-dir", "ours")
    assert MaskGitModel.from_pretrained(made["folder"]).config.num_tokens == 8


def test_zero_shot(answer, make_vtp_config, clip_files, tmp_path):
    config = make_vtp_config(text_vocab_size=514, text_context_length=77)
    VTPModel(config).save_pretrained(tmp_path / "vtp")
    texts = CLIPTokenizer.from_pretrained(clip_files, model_max_length=77)
    VTPProcessor(VTPImageProcessor.from_image_size(32), texts).save_pretrained(tmp_path / "vtp")
    Image.new("RGB", (32, 32)).save("image.png")
    options = ("--model", "vtp", "--labels", "cat, dog")
    [found] = answer("zero-shot", *options, "--image", "image.png")
    assert found["image"] == "image.png" and found["probabilities"].keys() == {"cat", "dog"}
    assert sum(found["probabilities"].values()) == pytest.approx(1)


def test_study(answer):
    found = answer("study", "codebook", "--quick")
    assert found == json.loads(Path("studies/codebook/results.json").read_text())
    assert found["runs"]


def test_an_error_leaves_stdout_empty(call, saved_pipeline):
    code, output, errors = call("generate", "--pipeline", "nowhere", "--label", "1", "--json")
    assert (code, output) == (1, "") and errors.startswith("Error: ")
