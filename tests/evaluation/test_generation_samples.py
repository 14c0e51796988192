"""Samples are kept in a file, and a run that was stopped makes the missing ones only."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import start

from titok_hf.evaluation import Protocol, evaluate_generation
from titok_hf.evaluation.generation import KeptImages
from titok_hf.evaluation.image_sources import GeneratedImages

from .generating import changes, generated
from .generation_to_file import BATCH_SIZE, NUM_SAMPLES, generate
from .tiny_models import make_ddpm

pytestmark = pytest.mark.slow


class TestSamples:
    def test_samples_are_written_and_measured(self, saved, tmp_path):
        path = tmp_path / "made" / "samples.npz"
        arguments = {
            "overrides": changes("inception_score", "accuracy"),
            "num_samples": 23,
            "batch_size": 8,
        }
        result = evaluate_generation(saved, "demo", samples=path, **arguments)
        images = generated(saved, 23, batch_size=8)
        with np.load(path) as written:
            assert written.files == ["arr_0"]
            assert written["arr_0"].dtype == np.uint8
            assert np.array_equal(written["arr_0"], images.permute(0, 2, 3, 1))
        assert sorted(file.name for file in path.parent.iterdir()) == [
            "samples.npz",
            "samples.npz.json",
        ]
        plain = evaluate_generation(saved, "demo", **arguments)
        assert result.metrics == plain.metrics and result.data == plain.data
        of_file = evaluate_generation(path, "demo", changes("inception_score"))
        assert of_file.metrics["inception_score"] == plain.metrics["inception_score"]
        assert of_file.data["fingerprint"] == plain.data["fingerprint"]
        parts = ("tokenizer", "generator", "sampler", "seeds", "dtype")  # the file beside it tells
        assert [getattr(of_file, part) for part in parts] == [
            getattr(plain, part) for part in parts
        ]

    def test_a_run_that_was_stopped_before_its_result_was_written(
        self, saved, tmp_path, monkeypatch
    ):
        """The samples are whole: none is made again, by whatever way the same pipeline is named."""
        path = tmp_path / "samples.npz"
        arguments = {
            "overrides": changes("inception_score", "accuracy"),
            "num_samples": 20,
            "samples": path,
        }
        result = evaluate_generation(saved, "demo", **arguments)
        monkeypatch.setattr(GeneratedImages, "make", lambda *_: pytest.fail("made again"))
        again = evaluate_generation(f"{saved}/", "demo", **arguments)
        assert again.metrics == result.metrics and again.data == result.data
        with pytest.raises(ValueError, match=r"samples\.npz holds samples with another seeds"):
            evaluate_generation(saved, "demo", **arguments, seeds=[1])

    def test_a_file_that_is_there_stays(self, saved, tmp_path):
        (tmp_path / "samples.npz").write_text("precious")
        with pytest.raises(
            FileExistsError,
            match=r"samples\.npz exists already: measure it instead, choose another",
        ):
            evaluate_generation(
                saved,
                "demo",
                changes("inception_score"),
                num_samples=20,
                samples=tmp_path / "samples.npz",
            )
        assert (tmp_path / "samples.npz").read_text() == "precious"
        assert not (tmp_path / "samples.npz.parts").exists()

    def test_a_run_that_was_stopped_makes_the_missing_ones_only(self, pipeline, tmp_path):
        source = GeneratedImages(pipeline, 20, Protocol.load("demo"))
        path, made_by = tmp_path / "samples.npz", {"seed": 0, "arguments": {"steps": (1, 2)}}
        stopped = KeptImages(source, path, made_by).batches(6)
        first, second = next(stopped), next(stopped)
        files = sorted(path.with_name("samples.npz.parts").glob("*.npy"))
        assert len(files) == 2
        np.save(
            files[0], np.zeros_like(first.images.numpy())
        )  # so that it tells if it is made again
        (files[0].parent / "000000012.npy.partial").write_bytes(b"half a batch")
        again = KeptImages(source, path, made_by)
        batches = list(again.batches(6))
        assert [batch.labels.tolist() for batch in batches][1] == [6, 7, 8, 9, 0, 1]
        again.join()
        expected = torch.cat([batch.images for batch in source.batches(6)])
        with np.load(path) as written:
            found = torch.from_numpy(written["arr_0"]).permute(0, 3, 1, 2)
        assert not found[:6].any() and first.images.any()
        assert torch.equal(found[6:], expected[6:]) and torch.equal(second.images, expected[6:12])

    def test_a_run_that_is_killed_goes_on_where_it_was(self, tmp_path):
        make_ddpm().save_pretrained(tmp_path / "ddpm")
        path, alone = tmp_path / "samples.npz", tmp_path / "alone.npz"
        parts = tmp_path / "samples.npz.parts"
        process = start(
            Path(__file__).with_name("generation_to_file.py"),
            tmp_path / "ddpm",
            path,
            outputs=[tmp_path / "printed", tmp_path / "errors"],
        )
        deadline = time.monotonic() + 90
        while len(list(parts.glob("*.npy"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kept = {file.name: file.read_bytes() for file in parts.glob("*.npy")}
        assert 2 <= len(kept) < NUM_SAMPLES // BATCH_SIZE
        assert not path.exists()

        sentence = r"samples\.npz\.parts holds samples with another seeds .*: choose another name"
        with pytest.raises(ValueError, match=sentence):
            generate(tmp_path / "ddpm", path, seed=1)
        assert {file.name: file.read_bytes() for file in parts.glob("*.npy")} == kept
        generate(tmp_path / "ddpm", path)
        assert not parts.exists()
        generate(tmp_path / "ddpm", alone)
        with np.load(path) as resumed, np.load(alone) as expected:
            assert resumed["arr_0"].shape == (NUM_SAMPLES, 32, 32, 3)
            assert np.array_equal(resumed["arr_0"], expected["arr_0"])
