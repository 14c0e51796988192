import math

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from titok_hf.data.digits import load_digits_dataset
from titok_hf.evaluation import IMAGE_METRICS, load_extractor
from titok_hf.evaluation.digits import DigitsExtractor
from titok_hf.evaluation.protocol import CODE_METRICS, METRICS, PAIR_METRICS

NUMBER = 70
ARRAY = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def digits():
    """Real digits: pictures 32x32, and their classes."""
    rows = load_digits_dataset()["test"][:NUMBER]
    pictures = [
        image.convert("RGB").resize((32, 32), Image.Resampling.NEAREST) for image in rows["image"]
    ]
    return pictures, rows["label"]


@pytest.fixture(scope="module")
def blurred(digits):
    return [picture.resize((16, 16)).resize((32, 32)) for picture in digits[0]]


@pytest.fixture(scope="module")
def features(digits, blurred):
    """Returns what the demo's extractor sees: the mean of each 4x4 block, in gray and [0, 1]."""

    def of(pictures):
        gray = np.stack([np.asarray(picture) for picture in pictures]).mean(3) / 255
        return gray.reshape(NUMBER, 8, 4, 8, 4).mean((2, 4)).reshape(NUMBER, 64)

    return of(blurred), of(digits[0])


def compute(name, **arguments):
    result = evaluate.load(IMAGE_METRICS, name).compute(**arguments)
    assert set(result) == {name, "standard_error"}
    return result[name], result["standard_error"]


def of_digits(name, predictions, references, **arguments):
    return compute(
        name, predictions=predictions, references=references, extractor="digits", **arguments
    )


class TestPairs:
    def test_mean_squared_error_and_psnr(self, digits, blurred):
        both = [
            np.stack([np.asarray(picture) for picture in side]).astype(float)
            for side in (blurred, digits[0])
        ]
        squares = (((both[0] - both[1]) / 255) ** 2).mean((1, 2, 3))
        ratios = -10 * np.log10(squares)
        for name, values in (("mean_squared_error", squares), ("psnr", ratios)):
            value, error = compute(name, predictions=blurred, references=digits[0])
            assert value == pytest.approx(values.mean(), rel=1e-6)
            assert error == pytest.approx(values.std(ddof=1) / math.sqrt(NUMBER), rel=1e-6)

    def test_ssim(self, digits, blurred):
        both = (
            torch.from_numpy(np.stack([np.asarray(picture) for picture in side]))
            .permute(0, 3, 1, 2)
            .float()
            / 255
            for side in (blurred, digits[0])
        )
        value, _ = compute("ssim", predictions=blurred, references=digits[0])
        assert value == pytest.approx(
            float(structural_similarity_index_measure(*both, data_range=1.0)), rel=1e-4
        )

    def test_arrays_and_gray_pictures(self, digits, blurred):
        expected = compute("psnr", predictions=blurred[:3], references=digits[0][:3])
        arrays = [np.asarray(picture) for picture in blurred[:3]]
        gray = [picture.convert("L") for picture in digits[0][:3]]
        assert compute("psnr", predictions=arrays, references=gray) == expected
        assert compute("psnr", predictions=[arrays[0], *blurred[1:3]], references=gray) == expected

    def test_batch_by_batch(self, digits, blurred):
        metric = evaluate.load(IMAGE_METRICS, "psnr")
        for start in (0, 30):
            metric.add_batch(
                predictions=blurred[start : start + 30], references=digits[0][start : start + 30]
            )
        expected = compute("psnr", predictions=blurred[:60], references=digits[0][:60])
        assert metric.compute()["psnr"] == pytest.approx(expected[0])

    def test_one_pair_has_no_standard_error(self, digits, blurred):
        assert compute("psnr", predictions=blurred[:1], references=digits[0][:1])[1] is None


class TestSets:
    def test_frechet_distance(self, digits, blurred, features):
        means, covariances = zip(
            *((side.mean(0), np.cov(side.T)) for side in features), strict=True
        )
        roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
        expected = ((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances)) - 2 * roots
        value, error = of_digits("frechet_distance", blurred, digits[0])
        assert value == pytest.approx(expected, rel=1e-3) and error > 0

    def test_precision_and_recall(self, digits, blurred, features):
        distances = np.linalg.norm(features[0][:, None] - features[1][None], axis=-1)
        within = [np.linalg.norm(side[:, None] - side[None], axis=-1) for side in features]
        for k in (3, 5):
            radii = [
                np.sort(side, axis=1)[:, k] for side in within
            ]  # the first is the image itself
            precision = of_digits("precision", blurred, digits[0], precision_neighbors=k)[0]
            recall = of_digits("recall", blurred, digits[0], precision_neighbors=k)[0]
            assert precision == pytest.approx((distances <= radii[1][None]).any(1).mean())
            assert recall == pytest.approx((distances <= radii[0][:, None]).any(0).mean())

    def test_density_and_coverage(self, digits, blurred, features):
        distances = np.linalg.norm(features[0][:, None] - features[1][None], axis=-1)
        radii = np.sort(np.linalg.norm(features[1][:, None] - features[1][None], axis=-1), axis=1)[
            :, 5
        ]
        inside = distances < radii[None]
        assert of_digits("density", blurred, digits[0])[0] == pytest.approx(
            inside.sum(1).mean() / 5
        )
        assert of_digits("coverage", blurred, digits[0])[0] == pytest.approx(inside.any(0).mean())

    def test_kernel_distance(self, digits, blurred, features):
        """Subsets of all images have one value only: that of the unbiased estimator."""
        x, y = features

        def kernel(a, b):
            return (a @ b.T / 64 + 1) ** 3

        off_diagonal = ~np.eye(NUMBER, dtype=bool)
        expected = (
            sum(kernel(side, side)[off_diagonal].mean() for side in (x, y))
            - 2 * kernel(x, y).mean()
        )
        found = of_digits(
            "kernel_distance", blurred, digits[0], kernel_subset_size=NUMBER, kernel_subsets=2
        )
        assert found[0] == pytest.approx(expected, abs=1e-6)

    def test_inception_score(self, digits, features):
        """The exponential of the mean divergence of each image's classes from all images'; here of
        one part."""
        pixels = torch.from_numpy(features[1]).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
        images = (
            (pixels * 255).round().to(torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
        )
        shares = DigitsExtractor()(images).logits.softmax(1).numpy()
        divergences = (shares * np.log(shares / shares.mean(0))).sum(1)
        metric = evaluate.load(IMAGE_METRICS, "inception_score")
        found = metric.compute(predictions=digits[0], extractor="digits", inception_score_splits=1)
        assert found["inception_score"] == pytest.approx(np.exp(divergences.mean()), rel=1e-3)

    def test_accuracy(self, digits):
        pictures, labels = digits
        value, error = of_digits("accuracy", pictures, labels)
        assert value > 0.9
        wrong = [(label + 1) % 10 if i < 35 else label for i, label in enumerate(labels)]
        other, _ = of_digits("accuracy", pictures, wrong)
        extractor = load_extractor("digits")
        images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(
            0, 3, 1, 2
        )
        classes = extractor(images).logits.argmax(1).tolist()
        assert value == pytest.approx(
            sum(a == b for a, b in zip(classes, labels, strict=True)) / NUMBER
        )
        assert other == pytest.approx(
            sum(a == b for a, b in zip(classes, wrong, strict=True)) / NUMBER
        )
        assert error == pytest.approx(math.sqrt(value * (1 - value) / (NUMBER - 1)))


class TestCodes:
    """Twelve codes of seven images: 0 three times, 1 four times, 2 once, 5 four times, of 8."""

    codes = [[0, 1], [2, 5, 5], [0], [1, 1, 1], [5], [5], [0]]
    shares = np.array([3, 4, 1, 4]) / 12
    entropy = -(shares * np.log2(shares)).sum()

    def test_usage_perplexity_and_entropy(self):
        expected = {"usage": 4 / 8, "perplexity": 2**self.entropy, "entropy": self.entropy}
        for name, value in expected.items():
            found, error = compute(f"codebook_{name}", predictions=self.codes, codebook_size=8)
            assert found == pytest.approx(value)
            assert error > 0

    @pytest.mark.parametrize(
        "convert", [np.array, torch.tensor, lambda rows: torch.tensor(rows, dtype=torch.int32)]
    )
    def test_arrays_of_codes(self, convert):
        value, _ = compute(
            "codebook_usage", predictions=convert([[0, 1, 2], [3, 3, 3]]), codebook_size=16
        )
        assert value == 4 / 16

    def test_batch_by_batch(self):
        metric = evaluate.load(IMAGE_METRICS, "codebook_entropy")
        metric.add_batch(predictions=self.codes[:3])
        metric.add(prediction=self.codes[3])
        metric.add_batch(predictions=self.codes[4:])
        assert metric.compute(codebook_size=8)["codebook_entropy"] == pytest.approx(self.entropy)

    def test_the_standard_error_is_the_spread_over_samples_of_images(self):
        """Entropies of independent sets of images spread by as much as the error of one says."""
        generator = np.random.default_rng(0)
        shares = generator.dirichlet(np.ones(8))
        drawn = generator.choice(8, (300, 200, 4), p=shares)  # sets, images, codes
        counts = np.stack([np.bincount(codes.reshape(-1), minlength=8) for codes in drawn]) / 800
        entropies = -(counts * np.log2(np.where(counts > 0, counts, 1))).sum(1)
        errors = [
            compute("codebook_entropy", predictions=codes, codebook_size=8)[1]
            for codes in drawn[:8]
        ]
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(entropies.std(), rel=0.3)

    def test_one_image_has_no_standard_error(self):
        assert compute("codebook_usage", predictions=[[0, 1]], codebook_size=4) == (0.5, None)

    @pytest.mark.parametrize(
        ("arguments", "got"),
        [
            ({}, "none"),
            ({"codebook_size": 0}, "codebook_size=0"),
            ({"codebook_size": 8.0}, "codebook_size=8.0"),
            ({"codebook_size": 8, "extractor": "digits"}, "codebook_size=8, extractor='digits'"),
        ],
    )
    def test_arguments(self, arguments, got):
        with pytest.raises(
            ValueError,
            match=f"number of codes, `codebook_size=4096`, and no other argument, got {got}",
        ):
            compute("codebook_usage", predictions=self.codes, **arguments)

    @pytest.mark.parametrize(("codes", "values"), [([[0, 8]], "0 to 8"), ([[3], [-1]], "-1 to 3")])
    def test_codes_out_of_range(self, codes, values):
        with pytest.raises(
            ValueError, match=rf"`codes` must be in \[0, 8\), got values from {values}"
        ):
            compute("codebook_usage", predictions=codes, codebook_size=8)

    @pytest.mark.parametrize(
        ("codes", "got"),
        [
            ([[1, 2], [0.5, 1]], r"list \[0.5, 1\] at index 1"),
            (np.array([[1, np.nan]]), r"float64 values of shape \(2,\) at index 0"),
            ([[1, 2], []], r"list \[\] at index 1"),
            ([1, 2], "int 1 at index 0"),
            ([[[1], [2]]], r"list \[\[1\], \[2\]\] at index 0"),
            ([[1, [2]]], r"list \[1, \[2\]\] at index 0"),
            (["12"], "str 12 at index 0"),
            ([], "an empty one"),
            (7, "int 7"),
        ],
    )
    def test_what_is_no_code(self, codes, got):
        with pytest.raises(
            ValueError,
            match=rf"`predictions` must be (a list of )?sequences of codes, .*, got {got}\.$",
        ):
            compute("codebook_usage", predictions=codes, codebook_size=8)


class TestErrors:
    def test_the_metric_must_be_named(self):
        names = ", ".join((*METRICS["generation"], *PAIR_METRICS, *CODE_METRICS))
        for arguments, got in (([], "'default'"), (["fid"], "'fid'")):
            with pytest.raises(ValueError, match=f"Name the metric, one of {names}, got {got}"):
                evaluate.load(IMAGE_METRICS, *arguments)

    def test_fewer_images_than_features(self, digits, blurred):
        with pytest.raises(
            ValueError,
            match="frechet_distance with digits-8x8 needs at least 65 judged images, got",
        ):
            of_digits("frechet_distance", blurred[:64], digits[0][:64])
        with pytest.raises(ValueError, match="at least 1000 judged images, got 70"):
            of_digits("kernel_distance", blurred, digits[0])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "sizes", [((32, 32), (16, 16)), ((32, 16), (32, 16)), ((16, 16), (32, 32))]
    )
    @pytest.mark.parametrize("name", ["psnr", "precision"])
    def test_images_of_several_sizes(self, name, sizes):
        predictions, references = ([Image.new("RGB", size)] * 9 for size in sizes)
        listed = ", ".join(dict.fromkeys(f"{width}x{height}" for width, height in sorted(sizes)))
        with pytest.raises(
            ValueError, match=f"All images must be squares of one size, got {listed}"
        ):
            of_digits(name, predictions, references)

    def test_images_of_several_sizes_in_one_set(self):
        pictures = [Image.new("RGB", (size, size)) for size in (32, 16)]
        with pytest.raises(ValueError, match=r"squares of one size, got 16x16, 32x32\."):
            compute("psnr", predictions=pictures, references=pictures)

    def test_arguments(self, digits, blurred):
        with pytest.raises(ValueError, match=r"did you mean 'precision_neighbors'\?"):
            of_digits("precision", blurred, digits[0], precision_neighbor=3)
        with pytest.raises(
            ValueError, match="`precision_neighbors` must be an integer of at least 1, got 0"
        ):
            of_digits("precision", blurred, digits[0], precision_neighbors=0)

    @pytest.mark.parametrize(
        ("images", "got"),
        [
            ([ARRAY, ARRAY * np.nan], r"float64 values of shape \(32, 32, 3\) at index 1"),
            ([ARRAY / 255], r"float64 values of shape \(32, 32, 3\) at index 0"),
            ([ARRAY.astype(np.int64)], r"int64 values of shape \(32, 32, 3\) at index 0"),
            ([torch.zeros(3, 32, 32)], r"torch.float32 values of shape \(3, 32, 32\) at index 0"),
            ([ARRAY[..., 0]], r"uint8 values of shape \(32, 32\) at index 0"),
            (ARRAY, r"uint8 values of shape \(32, 3\) at index 0"),
            ([Image.fromarray(ARRAY), 3], "int 3 at index 1"),
            ([ARRAY, None], "none at index 1"),
            (["image.png"], "str image.png at index 0"),
            ([Image.new("F", (32, 32), float("nan"))], "a PIL image of mode F at index 0"),
            ([Image.new("I;16", (32, 32))], "a PIL image of mode I;16 at index 0"),
            ([], "an empty one"),
            (Image.new("RGB", (32, 32)), "a PIL image of mode RGB"),
            (None, "none"),
        ],
    )
    def test_what_is_no_image(self, images, got):
        number = 2 if images is None or isinstance(images, Image.Image) else len(images)
        others = [ARRAY] * number
        expected = (
            r"must be (a list of )?images, PIL with 8 bits a channel or uint8 arrays \(H, W, 3\)"
        )
        with pytest.raises(ValueError, match=rf"`references` {expected}, got {got}\.$"):
            compute("psnr", predictions=others or [ARRAY], references=images)
        if images is not None:
            with pytest.raises(ValueError, match=rf"`predictions` {expected}, got {got}\.$"):
                of_digits("frechet_distance", images, others)

    @pytest.mark.parametrize(
        ("classes", "got"),
        [
            ([0, 1.5], "float 1.5 at index 1"),
            ([0, "one"], "str one at index 1"),
            ([True, 0], "bool True at index 0"),
        ],
    )
    def test_what_is_no_class(self, classes, got):
        with pytest.raises(ValueError, match=f"`references` must be classes, integers, got {got}"):
            of_digits("accuracy", [ARRAY] * 2, classes)

    @pytest.mark.parametrize(("classes", "values"), [([3, 10], "3 to 10"), ([-1, 9], "-1 to 9")])
    def test_classes_that_the_classifier_lacks(self, classes, values):
        expected = rf"must be the classes of digits-8x8, in \[0, 10\), got values from {values}"
        with pytest.raises(ValueError, match=expected):
            of_digits("accuracy", [ARRAY] * 2, classes)

    def test_numbers_of_images_differ(self, digits, blurred):
        with pytest.raises(ValueError, match="number of"):
            compute("psnr", predictions=blurred, references=digits[0][:3])
