import hashlib
import json
import platform
from dataclasses import asdict, replace

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import titok_hf
from titok_hf import TiTokModel
from titok_hf.evaluation import Evaluation, Protocol, compare_results
from titok_hf.evaluation.metrics.standard_error import Estimate
from titok_hf.evaluation.results import (
    command,
    describe_model,
    device_name,
    differences,
    versions,
)

INCEPTION = {
    "name": "inception-v3-fid",
    "weights": "a.pth",
    "weights_sha256": "6726825d" * 8,
    "preprocessing": "299",
}
DIGITS = {
    "name": "digits-8x8",
    "weights": "b",
    "weights_sha256": "01234567" * 8,
    "preprocessing": "8x8",
}
MODEL = {
    "id": "user/model",
    "revision": "c" * 40,
    "class": "TiTokModel",
    "weights_sha256": "ab" * 32,
}


@pytest.fixture
def reconstruction():
    data = {"id": "user/images", "revision": None, "split": "validation", "fingerprint": "f" * 64}
    return Evaluation(
        task="reconstruction",
        metrics={"frechet_distance": Estimate(1.5, 0.25, "jackknife"), "psnr": Estimate(20.0)},
        protocol=Protocol.load("titok-rfid").to_dict(),
        num_images=50000,
        data=data,
        reference=data,
        judges={"extractor": INCEPTION},
        tokenizer=MODEL,
        generator=None,
        sampler=None,
        seeds=None,
        device="cpu",
        dtype="float32",
        processes=1,
        versions={"torch": "2"},
        command="titok evaluate reconstruction user/model --data user/images",
    )


@pytest.fixture
def generation(reconstruction):
    return replace(
        reconstruction,
        task="generation",
        protocol=Protocol.load("adm-256").to_dict(),
        data={"seed": 3, "classes": "1000 in turn", "fingerprint": "e" * 64},
        reference={
            "file": "/data/VIRTUAL_imagenet256_labeled.npz",
            "sha256": "d" * 64,
            "fingerprint": "9" * 64,
        },
        generator=MODEL,
        sampler={"class": "MaskGitScheduler", "config": {}, "arguments": {"guidance_scale": 4.5}},
        seeds=[3],
    )


class TestJSON:
    def test_there_and_back(self, reconstruction, generation, tmp_path):
        for result in (reconstruction, generation):
            result.save(tmp_path / "result.json")
            assert Evaluation.load(tmp_path / "result.json") == result
            assert Evaluation.load(str(tmp_path / "result.json")) == result

    def test_it_is_plain(self, reconstruction, tmp_path):
        reconstruction.save(tmp_path / "new" / "folder" / "result.json")
        content = json.loads((tmp_path / "new" / "folder" / "result.json").read_text())
        assert content["metrics"]["frechet_distance"] == {
            "value": 1.5,
            "standard_error": 0.25,
            "method": "jackknife",
        }
        assert content["protocol"]["rounding"] == "truncate"
        assert content["judges"]["extractor"]["weights_sha256"] == "6726825d" * 8

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "no JSON",
            "[1]",
            "3",
            "{}",
            '{"metrics": 3}',
            '{"metrics": {"psnr": 3}}',
            '{"metrics": {"psnr": {"valu": 3}}}',
            '{"metrics": {"psnr": {"value": 3}}}',
            '{"metrics": {}, "results": []}',
            b"\xff\xfe\x00",
        ],
    )
    def test_what_is_no_result(self, content, tmp_path):
        path = tmp_path / "other.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=r"other\.json is not a result of `titok evaluate`: "):
            Evaluation.load(path)

    def test_there_is_none(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.json"):
            Evaluation.load(tmp_path / "none.json")


class TestNames:
    @pytest.mark.parametrize(
        ("metric", "with_inception", "with_digits"),
        [
            ("frechet_distance", "FID", "Fréchet distance (digits-8x8)"),
            ("spatial_frechet_distance", "sFID", "spatial Fréchet distance (digits-8x8)"),
            ("kernel_distance", "KID", "kernel distance (digits-8x8)"),
            ("psnr", "PSNR", "PSNR"),
            ("inception_score", "Inception Score", "Inception Score"),
            ("codebook_usage", "codebook usage", "codebook usage"),
            ("mean_squared_error", "mean squared error", "mean squared error"),
        ],
    )
    def test_fields_names_only_with_its_network(
        self, reconstruction, metric, with_inception, with_digits
    ):
        assert reconstruction.title(metric) == with_inception
        assert replace(reconstruction, judges={"extractor": DIGITS}).title(metric) == with_digits

    def test_what_needs_no_network(self, reconstruction):
        assert replace(reconstruction, judges={}).title("psnr") == "PSNR"


class TestCards:
    def test_the_protocol_in_a_sentence(self, reconstruction, generation):
        assert reconstruction.summary() == (
            "titok-rfid: 50000 images, 256x256, crop center (bicubic), truncated to uint8, "
            "inception-v3-fid (6726825d), against user/images validation"
        )
        assert generation.summary() == (
            "adm-256: 50000 images, 256x256, crop adm (bicubic), truncated to uint8, "
            "inception-v3-fid (6726825d), against VIRTUAL_imagenet256_labeled.npz, sampled with "
            "guidance_scale 4.5, seeds [3]"
        )
        defaults = replace(generation, sampler={**generation.sampler, "arguments": {}})
        assert "sampled with the defaults of the pipeline, seeds [3]" in defaults.summary()
        judged = replace(generation, sampler=None, seeds=None, reference=None, judges={})
        assert (
            judged.summary()
            == "adm-256: 50000 images, 256x256, crop adm (bicubic), truncated to uint8"
        )

    def test_results_become_metadata(self, reconstruction):
        first, second = reconstruction.card_results()
        assert first == {
            "task": "image-reconstruction",
            "dataset": "user/images",
            "split": "validation",
            "metric": "frechet_distance",
            "name": "FID",
            "value": 1.5,
            "standard_error": 0.25,
            "protocol": reconstruction.summary(),
        }
        assert (second["name"], second["value"], second["standard_error"]) == ("PSNR", 20.0, None)

    def test_generated_images_are_of_the_reference(self, generation):
        """A local file is named without its folder, which is private."""
        entry = generation.card_results()[0]
        assert (entry["task"], entry["dataset"]) == (
            "unconditional-image-generation",
            "VIRTUAL_imagenet256_labeled.npz",
        )
        assert "split" not in entry and "/data" not in json.dumps(generation.card_results())
        without = replace(generation, reference=None)
        assert without.card_results()[0]["dataset"] == "unknown"

    def test_a_card_takes_them(self, titok, reconstruction, generation):
        titok.provenance = {"results": reconstruction.card_results() + generation.card_results()}
        card = titok.model_card("user/model")
        found = [
            (r.metric_name, r.metric_value, r.dataset_type, r.dataset_split)
            for r in card.data.eval_results
        ]
        imagenet = "VIRTUAL_imagenet256_labeled.npz"
        assert found == [
            ("FID", 1.5, "user/images", "validation"),
            ("PSNR", 20.0, "user/images", "validation"),
            ("FID", 1.5, imagenet, None),
            ("PSNR", 20.0, imagenet, None),
        ]
        assert card.data.eval_results[0].metric_type == "frechet_distance"
        assert card.data.eval_results[0].metric_args == {
            "protocol": reconstruction.summary(),
            "standard_error": 0.25,
        }
        assert "| FID | 1.5 ± 0.25 | user/images | validation |" in card.text
        assert "| None |" not in card.text


class TestDifferences:
    def test_what_is_compared_may_differ(self, reconstruction):
        other = replace(
            reconstruction,
            metrics={"psnr": Estimate(1.0)},
            tokenizer=None,
            device="cuda (H200)",
            dtype=None,
            processes=8,
            versions={},
            command="titok",
        )
        assert differences([reconstruction, other, reconstruction]) == {}

    def test_samplers_and_seeds_may_differ(self, generation):
        other = replace(
            generation,
            sampler={"arguments": {}},
            seeds=[1, 2],
            generator=None,
            data={"fingerprint": "0"},
        )
        assert differences([generation, other]) == {}

    @pytest.mark.parametrize(
        ("change", "field", "values"),
        [
            ({"num_images": 5000}, "num_images", [50000, 5000]),
            ({"dtype": "bfloat16"}, "dtype", ["float32", "bfloat16"]),
            (
                {"data": {"id": "user/images", "fingerprint": "0" * 64}},
                "data",
                ["f" * 64, "0" * 64],
            ),
            (
                {"reference": {"id": "user/images", "fingerprint": "0" * 64}},
                "reference",
                ["f" * 64, "0" * 64],
            ),
            ({"judges": {"extractor": DIGITS}}, "extractor", None),
        ],
    )
    def test_one_difference(self, reconstruction, change, field, values):
        found = differences([reconstruction, replace(reconstruction, **change)])
        assert list(found) == [field]
        assert values is None or found[field] == values

    @pytest.mark.parametrize(
        "change",
        [
            "crop=adm",
            "interpolation=bilinear",
            "rounding=round",
            "image_size=512",
            "extractor=facebook/dinov2-large",
            "reference=train",
            "inception_score_splits=10",
            "precision_neighbors=5",
            "kernel_subset_size=10",
            "encoder_autocast=bfloat16",
        ],
    )
    def test_every_field_of_the_protocol_counts(self, reconstruction, change):
        other = replace(reconstruction, protocol=Protocol.load("titok-rfid", [change]).to_dict())
        assert list(differences([reconstruction, other])) == [
            f"protocol.{change.partition('=')[0]}"
        ]

    def test_the_same_protocol_by_another_name(self, reconstruction):
        """And other metrics, or another way to say the number of images, of the same numbers."""
        changes = ["metrics.reconstruction=[psnr]", "num_samples=50000"]
        other = replace(reconstruction, protocol=Protocol.load("titok-rfid", changes).to_dict())
        assert differences([reconstruction, other]) == {}

    def test_networks_that_one_did_not_need(self, reconstruction):
        lpips = {"name": "LPIPS 0.1, VGG16", "weights_sha256": "12" * 32}
        others = [
            replace(reconstruction, judges={}),
            replace(reconstruction, judges={"extractor": INCEPTION, "lpips": lpips}),
            replace(reconstruction, judges={"lpips": {**lpips, "weights_sha256": "34" * 32}}),
        ]
        assert differences([reconstruction, *others[:2]]) == {}
        assert list(differences([reconstruction, *others])) == ["lpips"]

    def test_the_same_files_elsewhere(self, reconstruction, generation):
        moved = replace(generation, reference={**generation.reference, "file": "elsewhere.npz"})
        assert differences([generation, moved]) == {}
        other = replace(generation, reference={**generation.reference, "sha256": "0" * 64})
        assert list(differences([generation, other])) == ["reference"]
        statistics_only = {"file": "a.npz", "sha256": "d" * 64}
        assert differences([generation, replace(generation, reference=statistics_only)]) == {}
        weights = {"extractor": {**INCEPTION, "weights": "owner/repo/file"}}
        assert differences([reconstruction, replace(reconstruction, judges=weights)]) == {}

    def test_no_reference_against_one(self, generation):
        assert list(differences([generation, replace(generation, reference=None)])) == ["reference"]

    def test_tasks(self, reconstruction, generation):
        assert {"task", "protocol.crop"} <= {*differences([reconstruction, generation])}
        assert {"task", "protocol.crop"} <= {*differences([generation, reconstruction])}


class TestComparing:
    @pytest.fixture
    def paths(self, reconstruction, tmp_path):
        other = replace(
            reconstruction,
            num_images=7,
            protocol=Protocol.load("titok-rfid", ["crop=adm"]).to_dict(),
        )
        for name, result in (("one", reconstruction), ("same", reconstruction), ("other", other)):
            result.save(tmp_path / name)
        return {name: tmp_path / name for name in ("one", "same", "other")}

    def test_of_one_protocol(self, paths, reconstruction):
        assert compare_results([paths["one"], paths["same"]]) == ([reconstruction] * 2, {})
        assert compare_results([paths["one"]], different_protocols=True) == ([reconstruction], {})

    def test_of_different_ones(self, paths):
        with pytest.raises(
            ValueError,
            match=r"differ in num_images: 50000 \| 7; protocol\.crop: center \| adm\. .*",
        ):
            compare_results([paths["one"], paths["other"]])

    def test_of_different_ones_if_so_wanted(self, paths):
        results, different = compare_results(
            [paths["one"], paths["other"]], different_protocols=True
        )
        assert [result.num_images for result in results] == [50000, 7]
        assert different == {"num_images": [50000, 7], "protocol.crop": ["center", "adm"]}


def hash_of(path):
    """The hash that a result has, from the file of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(
            f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes()
        )
    return digest.hexdigest()


class TestRecords:
    def test_a_model_of_a_folder(self, titok, tmp_path):
        titok.save_pretrained(tmp_path)
        assert describe_model(TiTokModel.from_pretrained(tmp_path), tmp_path) == {
            "id": str(tmp_path),
            "revision": None,
            "subfolder": "",
            "class": "TiTokModel",
            "weights_sha256": hash_of(tmp_path / "model.safetensors"),
        }

    def test_other_weights_have_another_hash(self, titok):
        before = describe_model(titok, ".")["weights_sha256"]
        with torch.no_grad():
            titok.encoder.latent_tokens[0, 0] += 1e-6
        assert describe_model(titok, ".")["weights_sha256"] != before

    @pytest.mark.parametrize("revision", [None, "main", "v1", "commit"])
    def test_a_model_of_the_hub_has_its_commit(self, hub, titok, revision):
        titok.push_to_hub("user/known")
        first = hub.repositories["model", "user/known"].find("main").sha
        if revision == "v1":
            titok.push_to_hub("user/known", revision="v1")
        expected = (
            hub.repositories["model", "user/known"].find("v1" if revision == "v1" else "main").sha
        )
        revision = first if revision == "commit" else revision
        model = AutoModel.from_pretrained("user/known", revision=revision)
        assert describe_model(model, "user/known", revision)["revision"] == expected

    def test_versions(self):
        found = versions()
        assert found["titok_hf"] == titok_hf.__version__
        assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert (found["python"], found["numpy"]) == (platform.python_version(), numpy.__version__)
        assert {"pillow", "transformers", "diffusers", "datasets", "accelerate"} < found.keys()

    def test_a_command_has_the_arguments_that_are_given(self):
        arguments = {
            "source": "my pipeline",
            "overrides": ("crop=adm", "rounding=round"),
            "seeds": [3, 4],
            "sampler": {"guidance_schedule": "constant", "guidance_scale": None},
            "num_samples": 5,
            "revision": None,
            "subfolder": "",
        }
        assert command("generation", arguments) == (
            "titok evaluate generation 'my pipeline' --set crop=adm --set rounding=round "
            "--seed 3 --seed 4 --sampler 'guidance_schedule=\"constant\"' "
            "--sampler guidance_scale=null --num-samples 5"
        )

    def test_the_device(self):
        assert device_name(torch.device("cpu")) == "cpu"

    def test_a_result_is_complete(self, reconstruction):
        assert asdict(reconstruction).keys() >= {
            "metrics",
            "protocol",
            "num_images",
            "data",
            "versions",
            "command",
        }
