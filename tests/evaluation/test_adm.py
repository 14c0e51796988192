import io
import zipfile

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from titok_hf.evaluation.adm import ReferenceBatch, SampleWriter, write_statistics
from titok_hf.evaluation.metrics import GaussianStatistics, frechet_distance


@pytest.fixture
def images():
    return torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8)


@pytest.fixture
def moments():
    features = np.random.default_rng(0).normal(size=(30, 4))
    return features.mean(0), np.cov(features.T)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_reference_batch_of_images_and_statistics(tmp_path, images, moments, save):
    path = tmp_path / "reference.npz"
    mu, sigma = moments
    pixels = images.permute(0, 2, 3, 1).numpy()
    save(
        path,
        arr_0=np.ascontiguousarray(pixels),
        mu=mu,
        sigma=sigma,
        mu_s=mu[:2],
        sigma_s=sigma[:2, :2],
    )
    batch = ReferenceBatch.load(path)
    assert (batch.num_images, batch.image_size) == (11, 8)
    batches = list(batch.batches(4))
    assert [len(part) for part in batches] == [4, 4, 3]
    assert torch.equal(torch.cat(batches), images)
    np.testing.assert_array_equal(batch.statistics.mean, mu)
    np.testing.assert_array_equal(batch.statistics.covariance, sigma)
    np.testing.assert_array_equal(batch.spatial_statistics.covariance, sigma[:2, :2])


def test_distances_to_its_statistics_are_those_of_adm(tmp_path, moments):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 sqrtm(C1 C2)), as the evaluator computes it."""
    mu, sigma = moments
    np.savez(tmp_path / "reference.npz", mu=mu.astype(np.float32), sigma=sigma)
    features = np.random.default_rng(1).normal(1, 2, size=(50, 4))
    own_sigma = np.cov(features.T)
    expected = ((features.mean(0) - mu.astype(np.float32)) ** 2).sum()
    expected += np.trace(own_sigma + sigma - 2 * sqrtm(own_sigma @ sigma).real)
    batch = ReferenceBatch.load(tmp_path / "reference.npz")
    assert frechet_distance(features, batch.statistics) == pytest.approx(expected, rel=1e-9)
    assert batch.spatial_statistics is None
    assert (batch.num_images, batch.image_size) == (0, None)
    with pytest.raises(ValueError, match=r"holds statistics, but no images \(arr_0\)"):
        next(batch.batches(4))


def test_samples_of_adm_with_labels_are_read(tmp_path, images):
    np.savez(
        tmp_path / "samples.npz", images.permute(0, 2, 3, 1).contiguous().numpy(), np.arange(11)
    )
    batch = ReferenceBatch.load(tmp_path / "samples.npz")
    assert torch.equal(torch.cat(list(batch.batches(100))), images)
    assert batch.statistics is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"arr_0": np.zeros((2, 8, 8, 3), np.float32)},
            r"uint8 in \[0, 255\], got float32; .*\* 255",
        ),
        (
            {"arr_0": np.zeros((2, 3, 8, 8), np.uint8)},
            r"\(N, H, H, 3\), channels last, got \(2, 3, 8, 8\)",
        ),
        ({"arr_0": np.zeros((8, 8, 3), np.uint8)}, r"got \(8, 8, 3\)"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))}, "Fortran order"),
        (
            {"features": np.zeros(3), "x": np.zeros(1)},
            r"neither images \(arr_0\) nor statistics .* but features, x",
        ),
        ({}, "but nothing"),
        ({"mu": np.zeros(3)}, "must hold mu and sigma or neither, got mu alone"),
        ({"sigma_s": np.eye(3)}, "must hold mu_s and sigma_s or neither, got sigma_s alone"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(2)},
            r"mu and sigma of .*got shapes \(3,\) and \(2, 2\)",
        ),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "mu and sigma of .*allow_pickle"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ReferenceBatch.load(tmp_path / "reference.npz")


def test_other_files_are_refused(tmp_path, images):
    np.save(tmp_path / "images.npy", images.numpy())
    with pytest.raises(ValueError, match=r"images\.npy is not a complete npz file"):
        ReferenceBatch.load(tmp_path / "images.npy")
    with pytest.raises(FileNotFoundError):
        ReferenceBatch.load(tmp_path / "absent.npz")


def test_an_array_that_ends_too_early_is_an_error(tmp_path, images):
    array = io.BytesIO()
    np.save(array, images.permute(0, 2, 3, 1).contiguous().numpy())
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("arr_0.npy", array.getvalue()[:-1])
    with pytest.raises(ValueError, match="ends before its 11 images do"):
        list(ReferenceBatch.load(tmp_path / "cut.npz").batches(4))


def test_samples_are_written_a_batch_at_a_time(tmp_path, images):
    path = tmp_path / "new" / "samples.npz"
    with SampleWriter(path, num_images=11, image_size=8) as writer:
        for batch in images.split(4):
            writer.write(batch)
            assert not path.exists()
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"]
        assert arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1))
    assert torch.equal(torch.cat(list(ReferenceBatch.load(path).batches(5))), images)
    assert [file.name for file in path.parent.iterdir()] == ["samples.npz"]
    with pytest.raises(FileExistsError, match="choose another name"), SampleWriter(path, 11, 8):
        pass


def test_samples_that_are_not_whole_leave_no_file(tmp_path, images):
    path = tmp_path / "samples.npz"
    with (
        pytest.raises(ValueError, match="takes 12 images, got 11"),
        SampleWriter(path, 12, 8) as writer,
    ):
        writer.write(images)
    with (
        pytest.raises(ValueError, match="takes 10 images, got 11"),
        SampleWriter(path, 10, 8) as writer,
    ):
        writer.write(images)
    with pytest.raises(KeyboardInterrupt), SampleWriter(path, 11, 8) as writer:
        writer.write(images)
        raise KeyboardInterrupt
    with (
        pytest.raises(TypeError, match=r"uint8.*got torch.float32"),
        SampleWriter(path, 11, 8) as writer,
    ):
        writer.write(images / 255)
    with (
        pytest.raises(ValueError, match=r"\(B, 3, 16, 16\), got \(11, 3, 8, 8\)"),
        SampleWriter(path, 11, 16) as writer,
    ):
        writer.write(images)
    assert list(tmp_path.iterdir()) == []


def test_written_statistics_are_read_back(tmp_path, images):
    features, spatial = torch.randn(20, 4), torch.randn(20, 3)
    statistics, of_spatial = (
        GaussianStatistics.from_features(side) for side in (features, spatial)
    )
    write_statistics(tmp_path / "all.npz", statistics, of_spatial, images)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"mu", "sigma", "mu_s", "sigma_s", "arr_0"}
        np.testing.assert_allclose(arrays["mu"], features.mean(0), atol=1e-6)
        np.testing.assert_allclose(arrays["sigma"], np.cov(features.T), atol=1e-6)
        np.testing.assert_allclose(arrays["sigma_s"], np.cov(spatial.T), atol=1e-6)
        np.testing.assert_array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1))
    batch = ReferenceBatch.load(tmp_path / "all.npz")
    assert torch.equal(torch.cat(list(batch.batches(3))), images)
    assert frechet_distance(batch.statistics, statistics) == pytest.approx(0, abs=1e-12)

    write_statistics(tmp_path / "statistics.npz", statistics)
    assert ReferenceBatch.load(tmp_path / "statistics.npz").spatial_statistics is None
    with pytest.raises(FileExistsError, match="choose another name"):
        write_statistics(tmp_path / "statistics.npz", statistics)
    with pytest.raises(ValueError, match=r"\(N, 3, H, H\), got \(11, 3, 8, 7\)"):
        write_statistics(tmp_path / "new.npz", statistics, images=images[..., :7])
    with pytest.raises(TypeError, match="uint8"):
        write_statistics(tmp_path / "new.npz", statistics, images=images.float())
