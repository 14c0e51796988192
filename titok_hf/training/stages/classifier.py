"""The stage `classifier`: the perceptual loss's network if no pretrained classifier fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
)

from ...hub.errors import explain_loading_errors
from ..objectives import ClassifierObjective, Objective
from .base import Stage, keys_of, register_stage


@dataclass(frozen=True)
class Classifier:
    """A classifier with the size and normalization of its input images.

    Args:
        model: A model that takes `pixel_values` and returns `logits`.
        image_size: Side of the images, in pixels.
        image_mean, image_std: Normalization of images in [0, 1].
    """

    model: PreTrainedModel
    image_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.model.config

    def as_arguments(self) -> dict[str, Any]:
        """Returns the arguments of a `PerceptualLoss` that uses this classifier."""
        return {
            "classifier": self.model,
            "image_size": self.image_size,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        }


@register_stage
class ClassifierStage(Stage):
    """Trains a ConvNeXt on the labels, or loads any image classifier of transformers that has an
    image processor; the result is a `Classifier`."""

    name = "classifier"
    folder = "work/classifier"
    parts = {"model": keys_of(ConvNextConfig), "objective": keys_of(Objective)}
    reads_labels = True
    on_demand = True
    config_class = ConvNextConfig

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> ClassifierObjective:
        config = self.config(**{"num_labels": len(class_names), **self.part("model")})
        model = ConvNextForImageClassification(config)
        return ClassifierObjective(model, **self.part("objective"))

    def load(self, source: str | Path, **location: Any) -> Classifier:
        with explain_loading_errors(source):
            model, info = AutoModelForImageClassification.from_pretrained(
                source, output_loading_info=True, **location
            )
            processor = AutoImageProcessor.from_pretrained(source, **location)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{source} is no image classifier, or incomplete: {len(missing)} weights are "
                f"missing, {', '.join(missing[:3])} among them."
            )
        size = (
            getattr(processor, "do_center_crop", None) and processor.crop_size
        ) or processor.size
        side = size.get("height") or size.get("shortest_edge")
        if side is None:
            raise ValueError(
                f"The image processor of {source} must define the size of its images, got {size}."
            )
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if processor.do_normalize:
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        return Classifier(model.eval(), side, mean, std)

    def blank(self, config: ConvNextConfig) -> Classifier:
        return self.result_of(AutoModelForImageClassification.from_config(config))

    def result_of(self, network: PreTrainedModel) -> Classifier:
        size = getattr(network.config, "image_size", self.recipe.image_size)
        return Classifier(network, size, ClassifierObjective.MEAN, ClassifierObjective.STD)

    def save(self, network: PreTrainedModel, results: Mapping[str, Any], folder: Path) -> None:
        network.save_pretrained(folder)
        processor = self.image_processor()
        # the objective normalizes the images itself; a saved classifier needs a processor that does
        processor.do_normalize = True
        processor.image_mean = list(ClassifierObjective.MEAN)
        processor.image_std = list(ClassifierObjective.STD)
        processor.save_pretrained(folder)
