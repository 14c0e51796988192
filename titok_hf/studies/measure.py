"""Evaluation of a trained variant on held-out images."""

import dataclasses
from collections.abc import Sequence

import torch
from datasets import DatasetDict

from ..devices import default_device
from ..evaluation.feature_statistics import ReferenceSet, check_feasible
from ..evaluation.generation import measure_generation
from ..evaluation.image_sources import DatasetImages, GeneratedImages
from ..evaluation.interpolation import interpolated_frechet_distance
from ..evaluation.learnability import EncodedImages, measure_learnability
from ..evaluation.metric_networks import MetricNetworks
from ..evaluation.probe import knn_probe, linear_probe
from ..evaluation.protocol import Protocol
from ..evaluation.reconstruction import measure_reconstruction
from ..pipelines import ClassConditionalPipeline, LatentDiTPipeline
from ..training.recipe_run import RecipeRun

RECONSTRUCTED = ("mean_squared_error", "psnr", "codebook_usage", "codebook_perplexity")
NEIGHBORS = 20


class HeldOut:
    """Evaluates runs on the held-out images of a data set, by the demo's protocol.

    Reconstructions are compared with all training images, and generated images, as many of each class,
    with as many training images of each class as the smallest class has.

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
        self.dataset = dataset
        self.image_column, self.label_column = image_column, label_column
        fields, metrics = {"image_size": image_size}, {"reconstruction": RECONSTRUCTED}
        if extractor is not None:
            judged = (
                ("accuracy", "frechet_distance")
                if extractor in ("digits", "emoji")
                else ("frechet_distance",)
            )
            metrics = {
                "reconstruction": judged + RECONSTRUCTED,
                "generation": (*judged, "precision", "recall"),
            }
            fields["extractor"] = extractor
        self.protocol = dataclasses.replace(Protocol.load("demo"), **fields, metrics=metrics)
        self.test = DatasetImages(dataset["test"], self.protocol, image_column, label_column)
        self.train, self.of_classes, self.judges = None, None, MetricNetworks()
        if extractor is not None:
            even = dataset["train"].select(even_rows(dataset["train"][label_column]))
            self.train, self.of_classes = (
                ReferenceSet(
                    DatasetImages(rows, self.protocol, image_column, label_column), metrics[kind]
                )
                for rows, kind in ((dataset["train"], "reconstruction"), (even, "generation"))
            )
            self.judges = MetricNetworks.load(self.protocol, judged)
            check_feasible(
                judged,
                self.protocol,
                self.judges,
                self.test.num_images,
                labelled=True,
                reference=self.train,
            )

    def measure(self, run: RecipeRun, images_per_class: int) -> dict[str, float]:
        """Trains the unfinished stages of a run, and evaluates the last one.

        Args:
            run: The run.
            images_per_class: Number of images to generate per class, if the last stage is a
                generator.

        Returns:
            The protocol's metrics of the reconstructions or of the generated images; of a generator of
            latents, those of `measure_latents`, too.
        """
        result = run.train()
        protocol, train, judges = self.protocol, self.train, self.judges
        if isinstance(result, ClassConditionalPipeline):
            result.to(default_device())
            number = images_per_class * result.transformer.config.num_labels
            images = [GeneratedImages(result, number, protocol, run.seed)]
            values = measure_generation(
                images, self.of_classes, protocol, judges, batch_size=256
            ).values
            if isinstance(result, LatentDiTPipeline):
                values |= self.measure_latents(run)
            return values
        if result.config.head == "proxy_codes":
            result = result.with_pixel_decoder(run.result("vqgan")).eval()
        return measure_reconstruction(
            result,
            run.processor,
            self.test,
            protocol,
            reference=train,
            judges=judges,
        ).values

    def measure_latents(self, run: RecipeRun) -> dict[str, float]:
        """Measures the tokenizer of a run's generator of latents.

        Returns:
            `reconstruction_frechet_distance` (rFID, to the held-out images themselves), `psnr`, what
            `measure_learnability` measures, `interpolated_frechet_distance`, and the balanced
            accuracies of probes of the mean latent, `linear_probe` and `knn_probe`.
        """
        [stage] = run.recipe.stage("latent_generator").required()
        tokenizer = run.result(stage).to(default_device())
        processor = run.recipe.stage(stage).image_processor()
        reconstructed = measure_reconstruction(
            tokenizer, processor, self.test, self.protocol, judges=self.judges
        ).values
        only_of_test = {
            "mask_column": "mask" if "mask" in self.dataset["test"].column_names else None,
            "extractor": self.judges.extractor,
        }
        known, seen = (
            EncodedImages.encode(
                tokenizer,
                processor,
                self.dataset[split],
                image_column=self.image_column,
                label_column=self.label_column,
                **of_split,
            )
            for split, of_split in (("train", {}), ("test", only_of_test))
        )
        learnability = measure_learnability(seen.latents, seen.labels, seen.masks)["metrics"]
        sides = (known.mean, known.labels, seen.mean, seen.labels)
        return {
            "reconstruction_frechet_distance": reconstructed["frechet_distance"],
            "psnr": reconstructed["psnr"],
            **{name: measured["value"] for name, measured in learnability.items()},
            "interpolated_frechet_distance": interpolated_frechet_distance(
                tokenizer,
                processor,
                self.judges.extractor,
                features=seen.features,
                latents=seen.latents,
                known=known.latents,
            ),
            "linear_probe": linear_probe(*sides)["balanced_accuracy"],
            "knn_probe": knn_probe(*sides, k=min(NEIGHBORS, len(known.labels)))[
                "balanced_accuracy"
            ],
        }


def even_rows(labels: Sequence[int], seed: int = 0) -> list[int]:
    """Returns the rows of as many random images of each class as the smallest class has, in order."""
    all_labels = torch.tensor(labels)
    order = torch.randperm(len(all_labels), generator=torch.Generator().manual_seed(seed))
    of_classes = [order[all_labels[order] == label] for label in all_labels.unique()]
    smallest = min(map(len, of_classes))
    return sorted(torch.cat([rows[:smallest] for rows in of_classes]).tolist())
