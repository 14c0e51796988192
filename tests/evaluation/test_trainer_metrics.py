import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from titok_hf import TiTokImageProcessor, VTPImageProcessor
from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import ReconstructionMetrics, load_extractor
from titok_hf.evaluation.metrics.kernel import kernel_distance

NUMBER = 100


@pytest.fixture(scope="module")
def processor():
    return TiTokImageProcessor.from_image_size(32)


@pytest.fixture(scope="module")
def digits(processor):
    return processor(load_digits_dataset()["test"][:NUMBER]["image"], return_tensors="pt")[
        "pixel_values"
    ]


@pytest.fixture
def pairs(digits):
    """Reconstructions, which may leave [0, 1], and images."""
    return digits + 0.1 * torch.randn_like(digits), digits.clone()


def mean_of_squares(images, targets):
    """Computes it from the truncated images in NumPy."""
    images, targets = (
        tensor.numpy().astype(np.float64) for tensor in (images.clamp(0, 1), targets)
    )
    return ((np.floor(images * 255) / 255 - targets) ** 2).mean((1, 2, 3))


def test_metrics_of_pairs(processor, pairs):
    squares = mean_of_squares(*pairs)
    found = ReconstructionMetrics(processor)(EvalPrediction(*pairs))
    assert found == {
        "mean_squared_error": pytest.approx(squares.mean(), rel=1e-6),
        "psnr": pytest.approx((-10 * np.log10(squares)).mean(), rel=1e-6),
    }


def test_metrics_on_features(processor, pairs):
    """Expected are the definitions, in NumPy: of the Gaussians, and of neighbors by brute force."""
    extractor = load_extractor("digits")
    names = ["precision", "frechet_distance", "recall", "kernel_distance"]
    metrics = ReconstructionMetrics(
        processor, names, extractor, precision_neighbors=2, kernel_subset_size=NUMBER
    )
    found = metrics(EvalPrediction(*pairs))
    assert list(found) == names

    features = [
        extractor((tensor.clamp(0, 1) * 255).add(offset).to(torch.uint8)).features
        for tensor, offset in zip(pairs, (0, 0.5), strict=True)
    ]
    distances = np.array([[np.linalg.norm(a - b) for b in features[1]] for a in features[0]])
    radii = [np.sort(torch.cdist(side, side).numpy(), 1)[:, 2] for side in features]
    assert found["precision"] == pytest.approx((distances <= radii[1][None]).any(1).mean())
    assert found["recall"] == pytest.approx((distances <= radii[0][:, None]).any(0).mean())
    (mean, covariance), (other_mean, other) = (
        (side.mean(0).numpy(), np.cov(side.numpy().T)) for side in features
    )
    roots = np.sqrt(np.linalg.eigvals(covariance @ other).real.clip(0)).sum()
    expected = ((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * roots
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-3)
    assert found["kernel_distance"] == pytest.approx(
        kernel_distance(*features, 1, NUMBER).value, abs=1e-6
    )


@pytest.mark.parametrize("sizes", [[100], [1, 99], [30, 30, 30, 10], [64, 36]])
def test_batches_give_what_all_images_do(processor, pairs, sizes):
    extractor = load_extractor("digits")
    names = ["psnr", "ssim", "frechet_distance", "coverage"]
    whole = ReconstructionMetrics(processor, names, extractor)(
        EvalPrediction(*(part.numpy() for part in pairs))
    )
    metrics = ReconstructionMetrics(processor, names, extractor)
    for _ in range(2):  # the second time from the start
        batches = list(zip(*(part.split(sizes) for part in pairs), strict=True))
        for batch in batches[:-1]:
            assert metrics(EvalPrediction(*batch), compute_result=False) == {}
        assert metrics(EvalPrediction(*batches[-1]), compute_result=True) == pytest.approx(
            whole, rel=1e-6
        )


def test_the_first_of_several_predictions(processor, pairs):
    metrics = ReconstructionMetrics(processor)
    several = EvalPrediction((pairs[0], torch.zeros(3)), pairs[1])
    assert metrics(several) == metrics(EvalPrediction(*pairs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(processor, pairs, dtype):
    metrics = ReconstructionMetrics(processor, ["psnr"])
    found = metrics(EvalPrediction(pairs[0].to(dtype), pairs[1]))["psnr"]
    assert found == pytest.approx(metrics(EvalPrediction(*pairs))["psnr"], abs=0.1)


@pytest.mark.parametrize(("rounding", "expected"), [("truncate", 9), ("round", 10)])
def test_rounding_is_that_of_reconstructions(processor, rounding, expected):
    images = torch.zeros(2, 3, 8, 8)
    metrics = ReconstructionMetrics(processor, ["mean_squared_error"], rounding=rounding)
    found = metrics(EvalPrediction(images + 9.7 / 255, images))["mean_squared_error"]
    assert found == pytest.approx((expected / 255) ** 2)


def test_normalized_images_come_back_as_they_were():
    """Truncation would change them, since their normalization does not come back to the bit."""
    processor = VTPImageProcessor.from_image_size(16)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    images = processor(levels, return_tensors="pt")["pixel_values"]
    metrics = ReconstructionMetrics(processor, ["mean_squared_error"], rounding="round")
    assert metrics(EvalPrediction(images, images)) == {"mean_squared_error": 0}


class TestErrors:
    @pytest.mark.parametrize(
        ("metrics", "error"),
        [
            (["psrn"], "Unknown metric 'psrn' of a trainer: did you mean 'psnr'?"),
            (
                ["accuracy"],
                "Unknown metric 'accuracy' of a trainer: known are frechet_distance, .*psnr",
            ),
            (["codebook_usage"], "Unknown metric 'codebook_usage'"),
            (["frechet_distance"], "frechet_distance needs an extractor"),
            ([], r"`metrics.reconstruction` must be a list of metrics"),
        ],
    )
    def test_metrics(self, processor, metrics, error):
        with pytest.raises(ValueError, match=error):
            ReconstructionMetrics(processor, metrics)

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"rounding": "floor"}, "`rounding` must be one of truncate, round, got 'floor'"),
            ({"roundig": "round"}, "did you mean 'rounding'?"),
            (
                {"kernel_subset_size": 0},
                "`kernel_subset_size` must be an integer of at least 1, got 0",
            ),
        ],
    )
    def test_fields(self, processor, fields, error):
        with pytest.raises(ValueError, match=error):
            ReconstructionMetrics(processor, ["psnr"], **fields)

    @pytest.mark.parametrize(
        ("metric", "needed"),
        [("frechet_distance", 65), ("kernel_distance", 1000), ("precision", 4), ("coverage", 6)],
    )
    def test_too_few_images(self, processor, pairs, metric, needed):
        metrics = ReconstructionMetrics(processor, ["psnr", metric], load_extractor("digits"))
        few = EvalPrediction(*(part[:3] for part in pairs))
        with pytest.raises(
            ValueError,
            match=f"{metric} with digits-8x8 needs at least {needed} judged images, got 3",
        ):
            metrics(few)

    @pytest.mark.parametrize("broken", [0, 1])
    def test_nan(self, processor, pairs, broken):
        pairs[broken][3, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="must be finite, got NaN"):
            ReconstructionMetrics(processor)(EvalPrediction(*pairs))

    def test_the_images_of_a_failed_call_are_forgotten(self, processor, pairs):
        metrics = ReconstructionMetrics(
            processor, ["psnr", "frechet_distance"], load_extractor("digits")
        )
        expected = metrics(EvalPrediction(*pairs))
        few = EvalPrediction(*(part[:3] for part in pairs))
        broken = EvalPrediction(
            pairs[0].clone().index_fill_(0, torch.tensor([70]), torch.nan), pairs[1]
        )
        for failing, compute_result, error in (
            (few, True, "at least 65 judged images"),
            (broken, False, "must be finite"),  # after a batch was added
        ):
            with pytest.raises(ValueError, match=error):
                metrics(failing, compute_result)
            assert metrics(EvalPrediction(*pairs)) == expected
