"""Reference batches, held against numpy on features taken directly."""

import numpy as np
import pytest
import torch
from fixtures.extractors.networks import inception_weights

from titok_hf.evaluation import write_reference
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.image_sources import open_source
from titok_hf.evaluation.protocol import Protocol


@pytest.fixture(scope="module")
def images():
    """The held-out digits as an evaluation sees them."""
    return torch.cat(
        [batch.images for batch in open_source("digits", Protocol.load("demo")).batches(512)]
    )


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_it_holds_statistics_of_all_images_and_some_of_the_images(tmp_path, images, batch_size):
    path = tmp_path / "references" / "digits.npz"
    write_reference("digits", path, "demo", num_kept=50, batch_size=batch_size, device="cpu")
    features = DigitsExtractor()(images).features.numpy()
    with np.load(path) as written:
        assert sorted(written) == ["arr_0", "mu", "sigma"]
        np.testing.assert_allclose(written["mu"], features.mean(0), rtol=1e-12)
        np.testing.assert_allclose(written["sigma"], np.cov(features.T), atol=1e-14)
        expected = images[[i * 360 // 50 for i in range(50)]].permute(0, 2, 3, 1).numpy()
        assert written["arr_0"].dtype == np.uint8
        assert np.array_equal(written["arr_0"], expected)


@pytest.mark.parametrize(("num_kept", "kept"), [(360, 360), (10000, 360), (1, 1)])
def test_no_more_images_than_there_are_are_kept(tmp_path, images, num_kept, kept):
    write_reference("digits", tmp_path / "digits.npz", "demo", num_kept=num_kept)
    with np.load(tmp_path / "digits.npz") as written:
        assert np.array_equal(written["arr_0"], images[:kept].permute(0, 2, 3, 1))


def test_the_split_and_the_crop_are_those_that_are_asked_for(tmp_path):
    write_reference("digits", tmp_path / "digits.npz", "demo", ["image_size=16"], split="train")
    expected = next(
        iter(open_source("digits", Protocol.load("demo", ["image_size=16"]), "train").batches(2000))
    )
    with np.load(tmp_path / "digits.npz") as written:
        assert np.array_equal(written["arr_0"], expected.images.permute(0, 2, 3, 1))
        assert len(written["arr_0"]) == 1437


def test_a_file_that_is_there_stays(tmp_path):
    (tmp_path / "digits.npz").write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"digits\.npz exists already: choose another name, or delete it\."
    ):
        write_reference("nowhere", tmp_path / "digits.npz", "demo")
    assert (tmp_path / "digits.npz").read_text() == "precious"


def test_fewer_images_than_features_are_refused_before_any_is_seen(tmp_path, capsys):
    torch.save(inception_weights(), tmp_path / "inception.pth")
    with pytest.raises(
        ValueError, match="frechet_distance with inception-v3-fid needs at least 2049 judged"
    ):
        write_reference(
            "digits",
            tmp_path / "digits.npz",
            "adm-256",
            extractor_weights=tmp_path / "inception.pth",
            device="cpu",
        )
    assert not (tmp_path / "digits.npz").exists()
    assert capsys.readouterr().err == ""  # the bar of the images


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="'digits' has no split 'all' but train, test"):
        write_reference("digits", tmp_path / "digits.npz", "demo", split="all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError,
        match="must hold images, tar shards or Parquet files, but holds only hidden files or none",
    ):
        write_reference(str(tmp_path / "empty"), tmp_path / "digits.npz", "demo")
