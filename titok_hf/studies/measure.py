"""Evaluation of a trained variant on held-out images."""

import dataclasses

from datasets import DatasetDict

from ..evaluation.feature_statistics import ReferenceSet, check_feasible
from ..evaluation.generation import measure_generation
from ..evaluation.image_sources import DatasetImages, GeneratedImages
from ..evaluation.metric_networks import MetricNetworks
from ..evaluation.protocol import Protocol
from ..evaluation.reconstruction import measure_reconstruction
from ..pipelines import TiTokPipeline
from ..training.recipe_run import RecipeRun

RECONSTRUCTED = ("mean_squared_error", "psnr", "codebook_usage", "codebook_perplexity")


class HeldOut:
    """Evaluates runs on the held-out images of a data set, by the demo's protocol.

    Args:
        dataset: Splits `train` and `test`; only the Fréchet distance uses `train`.
        image_size: Side of the images, in pixels.
        extractor: Network of the Fréchet distance, see `load_extractor`; `"digits"` and `"emoji"`
            also give accuracy. Neither is measured if not given.
        image_column, label_column: Columns of the data set.

    Raises:
        OSError: If the extractor's weights are missing.
        ValueError: If there are fewer images than features.
    """

    def __init__(
        self,
        dataset: DatasetDict,
        image_size: int,
        extractor: str | None,
        image_column: str = "image",
        label_column: str = "label",
    ):
        fields, metrics = {"image_size": image_size}, {"reconstruction": RECONSTRUCTED}
        if extractor is not None:
            judged = (
                ("accuracy", "frechet_distance")
                if extractor in ("digits", "emoji")
                else ("frechet_distance",)
            )
            metrics = {"reconstruction": judged + RECONSTRUCTED, "generation": judged}
            fields["extractor"] = extractor
        self.protocol = dataclasses.replace(Protocol.load("demo"), **fields, metrics=metrics)
        self.test = DatasetImages(dataset["test"], self.protocol, image_column, label_column)
        self.train, self.judges = None, MetricNetworks()
        if extractor is not None:
            self.train = DatasetImages(dataset["train"], self.protocol, image_column, label_column)
            self.judges = MetricNetworks.load(self.protocol, judged)
            reference = ReferenceSet(self.train, judged)
            check_feasible(
                judged,
                self.protocol,
                self.judges,
                self.test.num_images,
                labelled=True,
                reference=reference,
            )

    def measure(self, run: RecipeRun, images_per_class: int) -> dict[str, float]:
        """Trains the unfinished stages of a run, and evaluates the last one.

        Args:
            run: The run.
            images_per_class: Number of images to generate per class, if the last stage is a
                generator.

        Returns:
            The protocol's metrics of the reconstructions, or of the generated images.
        """
        result = run.train()
        protocol, train, judges = self.protocol, self.train, self.judges
        if isinstance(result, TiTokPipeline):
            number = images_per_class * result.transformer.config.num_labels
            images = [GeneratedImages(result, number, protocol, run.seed)]
            return measure_generation(
                images, train, protocol, judges, batch_size=256, progress_bar=False
            ).values
        if result.config.head == "proxy_codes":
            result = result.with_pixel_decoder(run.result("vqgan")).eval()
        return measure_reconstruction(
            result,
            run.processor,
            self.test,
            protocol,
            reference=train,
            judges=judges,
            progress_bar=False,
        ).values
