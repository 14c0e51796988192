"""The stage `vtp_decoder_finetuning`: the pixel decoder of a VTP learns from pixels alone, with an
adversarial loss (arXiv 2512.13687)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...modeling.vtp import VTPConfig, VTPImageProcessor, VTPModel, VTPProcessor
from ..discriminator import FeatureDiscriminator, PatchDiscriminator
from ..frozen_vision import load_vision_network
from ..vtp_decoder import VTPDecoderObjective
from .base import keys_of, register_stage
from .reconstruction import PERCEPTUAL_WEIGHTS
from .vtp import VTPStage


@register_stage
class VTPDecoderFinetuningStage(VTPStage):
    """Trains the pixel decoder of a `VTPModel`; all else keeps its weights.

    The adversarial loss has a `PatchDiscriminator` (part `discriminator`), or a
    `FeatureDiscriminator` (part `feature_discriminator`, whose `pretrained` and `revision` name its
    network).
    """

    name = "vtp_decoder_finetuning"
    folder = "tokenizer"
    needs = (("vtp_pretraining",),)
    parts = {
        "objective": keys_of(VTPDecoderObjective, *PERCEPTUAL_WEIGHTS),
        "discriminator": keys_of(PatchDiscriminator),
        "feature_discriminator": keys_of(FeatureDiscriminator, "pretrained", "revision"),
        "lpips": ("backbone", "heads"),
    }

    def check(self) -> None:
        super().check()
        parts = [name for name in ("discriminator", "feature_discriminator") if self.part(name)]
        if parts and not self.part("objective").get("adversarial_weight"):
            raise ValueError(
                f"The stage {self.name} has a part `{parts[0]}` but no `adversarial_weight`."
            )
        if len(parts) > 1:
            raise ValueError(
                f"The stage {self.name} must have one of `discriminator` and `feature_discriminator`, "
                "got both."
            )
        if parts == ["feature_discriminator"] and "pretrained" not in self.part(parts[0]):
            raise ValueError(
                f"`stages.{self.name}.feature_discriminator` must name its network by `pretrained`, "
                "such as facebook/dinov2-small."
            )

    def check_result(self, name: str, result: Any) -> None:
        if name == "vtp_pretraining" and not result.config.has_decoder:
            raise ValueError(
                f"The stage {self.name} trains the decoder of a VTP, but this VTP has none "
                "(`has_decoder=False`): pre-train it with a `reconstruction_weight`."
            )

    def feature_network(self, load_weights: bool = True) -> PreTrainedModel:
        """Returns the network of the feature discriminator.

        Raises:
            OSError: If it cannot be reached.
        """
        part = self.part("feature_discriminator")
        location = {key: part[key] for key in ("revision",) if key in part}
        return load_vision_network(part["pretrained"], load_weights, **location)

    def downloads(self) -> dict[str, Callable[[], Any]]:
        downloads = super().downloads()
        if self.part("feature_discriminator"):
            downloads["feature discriminator"] = self.feature_network
        before = self.recipe.stages["vtp_pretraining"]
        if "pretrained" in before:
            downloads["processor"] = lambda: self.processor(before["pretrained"])
        return downloads

    def processor(self, source: str | Path) -> VTPProcessor | VTPImageProcessor:
        """Returns the processor of the VTP at `source`, with the recipe's image size.

        Raises:
            OSError: If its text tokenizer cannot be reached.
        """
        before = self.recipe.stages["vtp_pretraining"]
        location = {key: before[key] for key in ("revision",) if key in before}
        if not VTPConfig.from_pretrained(source, **location).has_text:
            return self.image_processor()
        processor = VTPProcessor.from_pretrained(source, **location)
        processor.image_processor = self.image_processor()
        return processor

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> VTPDecoderObjective:
        model = copy.deepcopy(results["vtp_pretraining"])  # later stages may use it, too
        self.check_result("vtp_pretraining", model)
        arguments = self.perceptual_arguments(results, load_weights)
        if self.part("feature_discriminator"):
            settings = dict(self.part("feature_discriminator"))
            settings = {k: v for k, v in settings.items() if k not in ("pretrained", "revision")}
            network = self.feature_network(load_weights)
            arguments["discriminator"] = FeatureDiscriminator(network, **settings)
        elif arguments.get("adversarial_weight"):
            arguments["discriminator"] = PatchDiscriminator(**self.part("discriminator"))
        return VTPDecoderObjective(model, **arguments)

    def save(self, network: VTPModel, results: Mapping[str, Any], folder: Path) -> None:
        network.save_pretrained(folder)
        self.processor(results["vtp_pretraining"].name_or_path).save_pretrained(folder)
