"""The base class of stages that learn to reconstruct images."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from PIL import Image

from ...data.samples import Samples
from ...modeling.maskgit_vqgan import MaskGitVQGANModel
from ...modeling.titok import TiTokModel
from ...perceptual.lpips import LPIPS
from ...perceptual.published_weights import load_lpips
from ..discriminator import PatchDiscriminator
from ..objectives import Objective, ReconstructionObjective
from ..perceptual import PerceptualLoss
from ..previews import reconstruction_previews
from .base import Stage, keys_of

RECONSTRUCTION_PARTS = {
    "objective": keys_of(ReconstructionObjective, "classifier_weight", "lpips_weight"),
    "discriminator": keys_of(PatchDiscriminator),
    "lpips": ("backbone", "heads"),
}
PERCEPTUAL_WEIGHTS = {"classifier_weight": 1.0, "lpips_weight": 0.0}


class PerceptualStage(Stage):
    """A stage with a perceptual loss, which the recipe configures.

    The part `objective` also takes `classifier_weight` and `lpips_weight` of `PerceptualLoss`; the
    part `lpips` takes the arguments of `load_lpips`.
    """

    def perceptual_weight(self) -> float:
        """Returns the weight of the perceptual loss; 0 if there is none."""
        return self.part("objective").get("perceptual_weight", 0.0)

    def perceptual_weights(self) -> dict[str, float]:
        """Returns the weights of the perceptual loss's networks; all are 0 without such a loss."""
        if not self.perceptual_weight():
            return dict.fromkeys(PERCEPTUAL_WEIGHTS, 0.0)
        objective = self.part("objective")
        return {name: objective.get(name, default) for name, default in PERCEPTUAL_WEIGHTS.items()}

    def required(self) -> list[str]:
        needs_classifier = self.perceptual_weights()["classifier_weight"]
        return [*super().required(), *(["classifier"] if needs_classifier else [])]

    def check(self) -> None:
        super().check()
        objective, weights = self.part("objective"), self.perceptual_weights()
        if self.perceptual_weight():
            if not any(weights.values()):
                raise ValueError(
                    f"The stage {self.name} has a `perceptual_weight` but no network for it: "
                    "`classifier_weight` and `lpips_weight` are 0."
                )
            if weights["classifier_weight"] and "classifier" not in self.recipe.stages:
                raise ValueError(
                    f"The stage {self.name} has a `perceptual_weight` but the recipe lacks the "
                    "stage classifier; for LPIPS alone, set `classifier_weight: 0` and a "
                    "`lpips_weight`."
                )
        elif unused := [f"`{name}`" for name in weights if name in objective]:
            raise ValueError(
                f"The stage {self.name} has a {' and a '.join(unused)} but no `perceptual_weight`, "
                "so the perceptual loss is off."
            )

    def downloads(self) -> dict[str, Callable[[], Any]]:
        if not self.perceptual_weights()["lpips_weight"]:
            return {}
        return {"LPIPS": partial(load_lpips, **self.part("lpips"))}

    def perceptual_arguments(
        self, results: Mapping[str, Any], load_weights: bool
    ) -> dict[str, Any]:
        """Returns the arguments of an objective in the part `objective`, with the perceptual loss;
        see `Stage.objective`."""
        arguments = {
            name: value
            for name, value in self.part("objective").items()
            if name not in PERCEPTUAL_WEIGHTS
        }
        weights = self.perceptual_weights()
        if self.perceptual_weight():
            networks: dict[str, Any] = {}
            if weights["classifier_weight"]:
                networks |= results["classifier"].as_arguments()
            if weights["lpips_weight"]:
                networks["lpips"] = self.downloads()["LPIPS"]() if load_weights else LPIPS()
            arguments["perceptual"] = PerceptualLoss(**networks, **weights)
        return arguments


class ReconstructionStage(PerceptualStage):
    """A stage with a `ReconstructionObjective`, whose perceptual and adversarial losses the recipe
    configures."""

    freeze_encoder = False

    def reconstruction_objective(
        self, model: TiTokModel | MaskGitVQGANModel, results: Mapping[str, Any], load_weights: bool
    ) -> ReconstructionObjective:
        """Returns the objective of a tokenizer; see `Stage.objective`."""
        arguments = self.perceptual_arguments(results, load_weights)
        if arguments.get("adversarial_weight"):
            arguments["discriminator"] = PatchDiscriminator(**self.part("discriminator"))
        return ReconstructionObjective(
            model, **{"freeze_encoder": self.freeze_encoder, **arguments}
        )

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image]:
        return reconstruction_previews(data, self.image_processor())
