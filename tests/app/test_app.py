"""The demo without a browser: what it opens, requests of programs, and the files of a Space."""

import ast
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from packaging.requirements import Requirement
from PIL import Image
from scripts import load_script

from titok_hf import TiTokModel
from titok_hf.app import blocks, build_app, launch_app, open_models, push_space, write_space
from titok_hf.app.answers import decode_upload
from titok_hf.app.models import describe_tokens, title_of, without_paths
from titok_hf.app.space import own_requirement
from titok_hf.evaluation.pictures import patch_colors
from titok_hf.modeling.outputs import TokenizerEncoderOutput

USE_A_MODEL = {
    "generate",
    "draw_step",
    "reconstruct",
    "generate_one",
    "encode_one",
    "draw_anew",
    "painted",
    "understand",
}

pytestmark = [pytest.mark.xdist_group("app"), pytest.mark.slow]


class TestModels:
    def test_a_pipeline_brings_its_tokenizer_and_a_vtp_reads(self, models):
        assert list(models.pipelines) == list(models.editable) == ["pipeline"]
        assert list(models.tokenizers) == ["pipeline", "vtp", "autoencoder"]
        assert list(models.readers) == ["vtp"]
        assert any("pipeline was trained on UCI Optical" in line for line in models.credits)
        assert any("The nearest images are of " in line for line in models.credits)
        assert models.problems == ["here was not loaded: There is no folder here."]

    def test_nothing_at_all_is_an_error(self):
        with pytest.raises(ValueError, match="here was not loaded"):
            open_models(["/nothing/here"])

    @pytest.mark.parametrize(
        ("path", "title"),
        [
            ("user/model", "user/model"),
            ("demo/pipeline", "demo/pipeline"),
            ("/home/someone/runs/mine", "mine"),
            ("../mine", "mine"),
        ],
    )
    def test_a_title_tells_no_path_of_the_machine(self, path, title):
        assert title_of(path) == title

    def test_images_that_no_model_can_search_are_said(self, folders):
        models = open_models(folders[:1], data="/no/such/folder")
        assert models.problems == [
            "The images of `data` are not searched for the nearest: that takes a VTP with a text encoder."
        ]

    @pytest.mark.parametrize("path", ["../secret client/models/mine", "/home/Jane Doe/mine"])
    def test_the_path_of_a_model_is_not_told(self, folders, path):
        models = open_models([folders[2], path])
        assert models.problems == ["mine was not loaded: There is no folder mine."]

    def test_a_tokenizer_without_pixels_is_said(self, folders, make_titok_config, tmp_path):
        TiTokModel(make_titok_config("proxy_codes")).save_pretrained(tmp_path / "warm")
        models = open_models([folders[2], tmp_path / "warm"])
        assert "warm" not in models.tokenizers
        [problem] = models.problems
        assert "warm was not loaded: The tokenizer must decode to pixels" in problem

    def test_paths_in_a_message_are_shortened(self):
        message = "No file /home/someone/x/model.safetensors, see https://hf.co/a/b."
        assert without_paths(message) == "No file …/model.safetensors, see https://hf.co/a/b."

    def test_sizes_in_bytes(self, models):
        latents = torch.zeros(1, 4, 4, 4)
        coded = TokenizerEncoderOutput(latents=latents[0], codes=torch.zeros(1, 4).long())
        tokenizer, _ = models.tokenizers["pipeline"]
        assert describe_tokens(tokenizer, coded) == ("4 tokens of 16 codes", 2)
        continuous = TokenizerEncoderOutput(latents=latents)
        assert describe_tokens(tokenizer, continuous) == ("latents of 4 x 4 x 4", 128)


def test_patches_of_like_features_have_like_colors():
    torch.manual_seed(0)
    kinds = torch.randn(4, 16).repeat_interleave(2, 0) + 1e-3 * torch.randn(8, 16)
    picture = patch_colors(kinds, 4, 2)
    assert picture.size == (2, 4)
    rows = [[picture.getpixel((x, y)) for x in range(2)] for y in range(4)]
    differences = [max(abs(a - b) for a, b in zip(*row, strict=True)) for row in rows]
    assert max(differences) < 8 and len({row[0] for row in rows}) == 4


class TestRequests:
    """Programs talk to the demo as the browser does."""

    @pytest.fixture
    def client(self, address):
        return Client(address, verbose=False)

    def test_bad_requests_and_many_users_take_no_memory(self, address, client, tmp_path):
        benchmark = load_script("benchmarks/app_memory.py")
        image, text = benchmark.write_uploads(tmp_path)
        words = ", ".join(map(str, range(60)))
        bad = [
            *benchmark.bad_requests("pipeline", image, text),
            ("/understand", ["vtp", handle_file(image), words]),
        ]
        good = [handle_file(image), ["pipeline", "vtp"]]
        client.predict(*good, api_name="/reconstruct")
        process = psutil.Process()
        before = process.memory_info().rss
        for request in bad * 3:
            message = benchmark.refusal(client, request)
            assert message.strip() and "Traceback" not in message and "/tmp" not in message
        for _ in range(10):
            user = Client(address, verbose=False)
            pictures, _, table = user.predict(*good, api_name="/reconstruct")
            assert len(pictures) == 3 and len(table["data"]) == 2
        assert process.memory_info().rss - before < 200 * 2**20

    def test_a_single_step_has_nothing_to_slide(self, client):
        asked = ("pipeline", [1], 1, 1, 1.0, 0)
        *_, slider, _ = client.predict(*asked, api_name="/generate")
        assert not slider["visible"] and slider["value"] == 1

    def test_of_many_users_the_last_are_remembered(self, models, monkeypatch):
        monkeypatch.setattr(blocks, "MAX_SESSIONS", 2)
        app = build_app(models)
        _, address, _ = launch_app(app, prevent_thread_lock=True)
        for label in (1, 2, 3, 4):
            asked = ("pipeline", [label], 1, 1, 1.0, 0)
            Client(address, verbose=False).predict(*asked, api_name="/generate")
        assert len(app.app.state_holder.session_data) == 2
        app.close()

    def test_two_users_at_once_get_their_own(self, address):
        def use(label):
            asked = ("pipeline", [label], 1, 2, 1.0, label)
            grid, *_ = Client(address, verbose=False).predict(*asked, api_name="/generate")
            return Image.open(grid).tobytes()

        alone = [use(label) for label in (3, 8)]
        with ThreadPoolExecutor(2) as users:
            together = list(users.map(use, (3, 8)))
        assert together == alone and alone[0] != alone[1]

    def test_requests_of_different_kinds_wait_for_each_other(self, models):
        functions = build_app(models).fns.values()
        waiting = {f.concurrency_id for f in functions if f.api_name in USE_A_MODEL}
        assert waiting == {"models"}
        assert len([f for f in functions if f.concurrency_id == "models"]) >= len(USE_A_MODEL)

    def test_a_drawing_has_bounds_too(self, client, tmp_path):
        large = tmp_path / "large.png"
        Image.new("1", (10_000, 5_000)).save(large)
        drawn = {"background": None, "layers": [], "composite": handle_file(large)}
        with pytest.raises(AppError, match="at most 40 million"):
            client.predict(drawn, ["pipeline"], api_name="/reconstruct_1")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    from gradio import Error
    from gradio.data_classes import ImageData

    path = tmp_path / "large.png"
    Image.new("1", (10_000, 5_000)).save(path)
    with pytest.raises(Error, match="50 million pixels; at most 40 million"):
        decode_upload(ImageData(path=str(path)))


class TestSpace:
    @pytest.fixture(scope="class")
    def space(self, folders, tmp_path_factory):
        """Folder of a Space with a local model."""
        folder = tmp_path_factory.mktemp("space")
        write_space([folders[0], "user/model"], folder, "My space", data="digits")
        return folder

    def test_its_files(self, space):
        code = ast.parse((space / "app.py").read_text())
        call = next(
            node
            for node in ast.walk(code)
            if isinstance(node, ast.Call) and node.func.id == "open_models"
        )
        assert ast.literal_eval(call.args[0]) == ["models/pipeline", "user/model"]
        assert (space / "models/pipeline/model_index.json").exists()
        card = yaml.safe_load((space / "README.md").read_text().split("---")[1])
        assert card["sdk"] == "gradio" and card["models"] == ["user/model"]
        required = (space / "requirements.txt").read_text().splitlines()
        [wheel] = space.glob("*.whl")
        assert f"./{wheel.name}" in required
        assert any(line.startswith("torch==") and "+" not in line for line in required)
        assert any(line.startswith("scikit-learn==") for line in required)
        assert not any("gradio" in line or "openmoji" in line for line in required)

    def test_it_runs_from_its_files_alone(self, space, tmp_path):
        """With the wheel instead of this checkout, and no Hub, so that one of two models is missing."""
        [wheel] = space.glob("*.whl")
        unpacked = tmp_path / "unpacked"
        subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, unpacked], check=True)
        code = (space / "app.py").read_text()
        assert "port=7860" in code
        code = code.replace("port=7860", "port=7871, prevent_thread_lock=True")
        code += "\nimport titok_hf; print(titok_hf.__file__)\n"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=space,
            env=os.environ | {"PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert str(unpacked) in done.stdout

    @pytest.fixture
    def install(self, monkeypatch, tmp_path):
        """Writes the record of an installation, which comes before that of this checkout."""

        def install(**origin):
            record = tmp_path / "installed" / "titok_hf-9.9.dist-info"
            record.mkdir(parents=True)
            (record / "METADATA").write_text("Name: titok_hf\nVersion: 9.9\n")
            (record / "direct_url.json").write_text(json.dumps(origin))
            monkeypatch.syspath_prepend(record.parent)

        return install

    def test_the_wheel_that_was_installed_comes_along(self, install, tmp_path):
        installed = tmp_path / "titok_hf-9.9-py3-none-any.whl"
        installed.write_bytes(b"a wheel")
        install(url=installed.as_uri(), archive_info={})
        folder = tmp_path / "space"
        folder.mkdir()
        assert own_requirement(folder) == f"./{installed.name}"
        assert (folder / installed.name).read_bytes() == b"a wheel"

    @pytest.mark.parametrize(
        ("origin", "expected"),
        [
            (
                {"url": "https://x.org/a.git", "vcs_info": {"vcs": "git", "commit_id": "1f"}},
                "git+https://x.org/a.git@1f",
            ),
            ({"url": "https://x.org/a-1.whl", "archive_info": {}}, "https://x.org/a-1.whl"),
        ],
        ids=["repository", "wheel"],
    )
    def test_an_address_is_required_as_it_is(self, install, tmp_path, origin, expected):
        install(**origin)
        folder = tmp_path / "space"
        folder.mkdir()
        required = own_requirement(folder)
        assert Requirement(required).url == expected and required.startswith("titok_hf @ ")
        assert not [*folder.iterdir()]

    def test_a_push(self, hub, folders):
        place = push_space(folders[:1], "user/show")
        files = hub.files("user/show", repo_type="space")
        assert place.endswith("/spaces/user/show")
        assert {"app.py", "README.md", "requirements.txt"} <= files.keys()
        assert "models/pipeline/tokenizer/model.safetensors" in files

    def test_a_mistyped_folder_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no folder /home/me/secret/x"):
            write_space(["/home/me/secret/x"], tmp_path / "space", "x")

    def test_local_data_and_equal_names_are_refused(self, folders, tmp_path):
        with pytest.raises(ValueError, match="cannot read the folder"):
            write_space(folders[:1], tmp_path / "space", "x", data=str(tmp_path))
        with pytest.raises(ValueError, match="Two folders are named pipeline"):
            write_space([folders[0], f"{folders[0]}/"], tmp_path / "space", "x")


@contextmanager
def ended(process):
    """Kills a process that a failed test leaves."""
    try:
        yield
    finally:
        process.kill()


class TestCommand:
    def test_it_serves_until_it_is_stopped(self, folders):
        command = [sys.executable, "-m", "titok_hf.cli", "app", str(folders[0]), "--port", "7872"]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
            ended(process),
        ):
            line = process.stdout.readline()
            assert "The demo is at http://127.0.0.1:7872" in line
            assert (
                "/generate"
                in Client("http://127.0.0.1:7872", verbose=False).view_api(return_format="dict")[
                    "named_endpoints"
                ]
            )
            process.terminate()
            assert process.wait(30) == 0

    def test_without_a_model_it_says_what_to_do(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "titok_hf.cli", "app"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "There is no demo/pipeline here: name a pipeline" in done.stderr
