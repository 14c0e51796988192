"""The stage `vtp_pretraining`: a VTP learns by contrast, self-supervision and reconstruction together
(arXiv 2512.13687)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...data.augmentation import Augmentation
from ...data.multi_crop import MultiCrop
from ...data.pretraining import (
    RECONSTRUCTION,
    SELF_SUPERVISION,
    Masking,
    PretrainingCollator,
    Subset,
)
from ...data.samples import Samples
from ...data.text_tokenizers import train_text_tokenizer, with_end_token
from ...distributed import process_state
from ...hub.errors import explain_loading_errors
from ...hub.folders import whole_folder
from ...modeling.vtp import VTPConfig, VTPImageProcessor, VTPModel, VTPProcessor
from ...modeling.vtp.processing_vtp import check_tokenizer
from ..alignment import Alignment
from ..arguments import TiTokTrainingArguments
from ..frozen_vision import load_vision_network
from ..initial_weights import initialize
from ..objectives import Objective
from ..pretraining import VTPPretrainingObjective
from ..self_supervision import DINOHead
from .base import Columns, keys_of, register_stage
from .reconstruction import PERCEPTUAL_WEIGHTS
from .vtp import VTPStage

TEXTS = 1_000_000  # captions on which a text tokenizer is trained, at most
LEAST_VOCABULARY = 257  # bytes and the end of a text
# Parts of the stage and arguments of the objective that belong to one of the losses.
PARTS_OF = {
    "ssl": ("head", "multi_crop", "masking"),
    "clip": ("text",),
    "reconstruction": ("lpips", "alignment"),
}
ARGUMENTS_OF = {
    "ssl": (
        "koleo_weight",
        "centering",
        "student_temperature",
        "initial_teacher_temperature",
        "teacher_temperature",
        "teacher_temperature_steps",
        "teacher_momentum",
        "final_teacher_momentum",
        "frozen_prototype_steps",
        "ssl_drop_rate",
    ),
    "clip": ("contrast", "clip_drop_rate"),
    "reconstruction": (
        "perceptual_weight",
        *PERCEPTUAL_WEIGHTS,
        "pixel_scale",
        "reconstruction_drop_rate",
        "alignment_weight",
        "equivariance_probability",
        "prior_probability",
        "scale_equivariance_weight",
        "latent_noise",
    ),
}


@register_stage
class VTPPretrainingStage(VTPStage):
    """Trains a `VTPModel`, which is saved with its processor.

    Objectives whose weight is 0 have no part in model, data or recipe. The part `subsets` holds the
    number of images of an optimizer step in `reconstruction` and `self_supervision`; by default all.
    The part `text` names a tokenizer (`tokenizer`, `revision`); by default, one with
    `text_vocab_size` tokens is trained on the captions. The part `initial` names a pretrained model
    to start from (`pretrained`, `revision`), see `initialize`. The part `alignment` names a vision
    model of transformers (`pretrained`, `revision`) with which the latents are aligned, by default
    that of the stage `classifier`, and holds arguments of `Alignment`.
    """

    name = "vtp_pretraining"
    folder = "vtp"
    parts = {
        "model": keys_of(VTPConfig),
        "objective": [
            key
            for key in keys_of(VTPPretrainingObjective, *PERCEPTUAL_WEIGHTS)
            if key != "num_local_crops"
        ],
        "subsets": ("reconstruction", "self_supervision"),
        "head": keys_of(DINOHead),
        "multi_crop": [key for key in keys_of(MultiCrop) if key != "patch_size"],
        "masking": keys_of(Masking),
        "text": ("tokenizer", "revision"),
        "initial": ("pretrained", "revision"),
        "lpips": ("backbone", "heads"),
        "alignment": (
            *keys_of(Alignment),
            "image_mean",
            "image_std",
            "pretrained",
            "revision",
        ),
    }

    def weight(self, loss: str) -> float:
        """Returns the weight of `"reconstruction"`, `"ssl"` or `"clip"`."""
        default = 0.1 if loss == "reconstruction" else 1.0
        return self.part("objective").get(f"{loss}_weight", default)

    @property
    def reads_captions(self) -> bool:
        return not self.is_pretrained and bool(self.weight("clip"))

    def perceptual_weight(self) -> float:
        if self.is_pretrained or not self.weight("reconstruction"):
            return 0.0
        return self.part("objective").get("perceptual_weight", 1.0)

    def check(self) -> None:
        super().check()
        if not any(self.weight(loss) for loss in ("reconstruction", "ssl", "clip")):
            raise ValueError(f"The stage {self.name} has no objective: all weights are 0.")
        for loss in ("ssl", "clip", "reconstruction"):
            unused = [part for part in PARTS_OF[loss] if self.part(part)]
            given = self.part("objective")
            unused += [f"objective.{name}" for name in ARGUMENTS_OF[loss] if name in given]
            if unused and not self.weight(loss):
                raise ValueError(
                    f"The stage {self.name} has {', '.join(f'`{name}`' for name in unused)} but no use "
                    f"for it, because `{loss}_weight` is 0: remove it (in a recipe with a `base`, set "
                    "it to null)."
                )
        if self.part("alignment") and not self.aligned:
            raise ValueError(
                f"The stage {self.name} has a part `alignment` but no `alignment_weight` in its objective."
            )
        named = "pretrained" in self.part("alignment")
        if self.aligned and not named and "classifier" not in self.recipe.stages:
            raise ValueError(
                f"The stage {self.name} has an `alignment_weight` but no foundation model: name one by "
                "`pretrained` in its part `alignment`, such as facebook/dinov2-large, or add the stage "
                "classifier."
            )
        for subset, loss in (("reconstruction", "reconstruction"), ("self_supervision", "ssl")):
            if subset in self.part("subsets") and not self.weight(loss):
                raise ValueError(
                    f"The stage {self.name} has a subset for {subset} but `{loss}_weight` is 0."
                )
        config = self.config(**self.part("model"))
        if self.weight("ssl"):
            self.multi_crop(config)
            Masking(**self.part("masking"))
        vocabulary = config.text_vocab_size
        if self.weight("clip") and not self.part("text") and vocabulary < LEAST_VOCABULARY:
            raise ValueError(
                f"`text_vocab_size` must be at least {LEAST_VOCABULARY}, for the bytes and the end of "
                f"a text, if the stage {self.name} trains its own tokenizer, got {vocabulary}."
            )

    def config(self, **fields: Any) -> VTPConfig:
        parts = {
            "has_decoder": bool(self.weight("reconstruction")),
            "has_text": bool(self.weight("clip")),
            "logit_bias": self.part("objective").get("contrast") == "sigmoid",
        }
        return super().config(**{**parts, **fields})

    def multi_crop(self, config: VTPConfig) -> MultiCrop:
        """Returns the crops of self-supervision."""
        return MultiCrop(**self.part("multi_crop"), patch_size=config.patch_size)

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> VTPPretrainingObjective:
        arguments = self.perceptual_arguments(results, load_weights)
        model = VTPModel(self.config(**self.part("model")))
        if self.part("initial") and load_weights:
            self.initialize(model)
        if self.aligned:
            arguments["alignment"] = self.alignment(results, model.config.latent_dim, load_weights)
        if self.weight("ssl"):
            arguments["head"] = DINOHead(model.config.vision_hidden_size, **self.part("head"))
            arguments["num_local_crops"] = self.multi_crop(model.config).num_local
        return VTPPretrainingObjective(model, **arguments)

    @property
    def aligned(self) -> bool:
        """Whether latents are aligned with a foundation model."""
        return not self.is_pretrained and bool(self.part("objective").get("alignment_weight"))

    def required(self) -> list[str]:
        required = super().required()
        from_stage = self.aligned and "pretrained" not in self.part("alignment")
        return [*required, *(["classifier"] if from_stage and "classifier" not in required else [])]

    def alignment(
        self, results: Mapping[str, Any], latent_dim: int, load_weights: bool = True
    ) -> Alignment:
        """Returns the alignment with the foundation model, whose image processor knows how its images
        are normalized.

        Raises:
            OSError: If it cannot be reached.
        """
        settings = dict(self.part("alignment"))
        source, location = settings.pop("pretrained", None), {}
        if "revision" in settings:
            location["revision"] = settings.pop("revision")
        if source is None:
            classifier = results["classifier"]
            own = {name: getattr(classifier, name) for name in ("image_mean", "image_std")}
            network = copy.deepcopy(classifier.model.base_model)
            settings = {"image_size": classifier.image_size, **own, **settings}
            return Alignment(network, latent_dim, **settings)
        network = load_vision_network(source, load_weights, **location)
        if not load_weights:
            return Alignment(network, latent_dim, **settings)
        with explain_loading_errors(source):
            processor = AutoImageProcessor.from_pretrained(source, **location)
        own = {"image_mean": processor.image_mean, "image_std": processor.image_std}
        return Alignment(network, latent_dim, **{**own, **settings})

    def initialize(self, model: VTPModel | None = None) -> None:
        """Gives a model, or a new one, the weights of the part `initial`."""
        location = dict(self.part("initial"))
        source = location.pop("pretrained")
        initialize(model or VTPModel(self.config(**self.part("model"))), source, **location)

    def downloads(self) -> dict[str, Callable[[], Any]]:
        downloads = super().downloads()
        if self.part("initial"):
            downloads["initial weights"] = self.initialize
        if "pretrained" in self.part("alignment"):
            downloads["foundation model"] = lambda: self.alignment({}, 1)
        if self.weight("clip") and self.part("text"):
            downloads["text tokenizer"] = lambda: self.pretrained_tokenizer
        return downloads

    @cached_property
    def pretrained_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the part `text`."""
        location = dict(self.part("text"))
        source = location.pop("tokenizer")
        config = self.config(**self.part("model"))
        tokenizer = with_end_token(AutoTokenizer.from_pretrained(source, **location))
        tokenizer.model_max_length = config.text_context_length
        check_tokenizer(tokenizer, config, source)
        return tokenizer

    def text_tokenizer(self, data: Samples, folder: Path) -> PreTrainedTokenizerBase:
        """Returns the text tokenizer; trains one if the recipe names none, and keeps it in `folder`."""
        if self.part("text"):
            return self.pretrained_tokenizer
        kept = folder / "text_tokenizer"
        if process_state().is_main_process and not kept.exists():
            config = self.config(**self.part("model"))
            captions = (sample.captions for sample in data.read(0, min(len(data), TEXTS)))
            texts = chain.from_iterable(captions)
            tokenizer = train_text_tokenizer(texts, config.text_vocab_size)
            tokenizer.model_max_length = config.text_context_length
            with whole_folder(kept) as partial_folder:
                tokenizer.save_pretrained(partial_folder)
        process_state().wait_for_everyone()
        return AutoTokenizer.from_pretrained(kept)

    def subsets(self, args: TiTokTrainingArguments) -> dict[str, Subset | None]:
        """Returns the subsets of a batch, by name; `None` if the weight of its objective is 0."""
        images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return {
            name: Subset(
                name=f"stages.{self.name}.subsets.{name}",
                size=self.part("subsets").get(name, images),
                global_batch_size=images,
                batch_size=args.train_batch_size,
                kind=kind,
            )
            if self.weight(loss)
            else None
            for name, loss, kind in (
                ("reconstruction", "reconstruction", RECONSTRUCTION),
                ("self_supervision", "ssl", SELF_SUPERVISION),
            )
        }

    def check_arguments(self, args: TiTokTrainingArguments) -> None:
        subset = self.subsets(args)["self_supervision"]
        koleo = self.part("objective").get("koleo_weight", 0.1)
        at_once = args.train_batch_size * args.world_size
        if subset and koleo and subset.size * at_once // subset.global_batch_size < 2:
            raise ValueError(
                "KoLeo compares at least two images in a batch of all processes, got one for "
                "self-supervision: enlarge the batch or its subset, or set `koleo_weight` to 0."
            )

    def collator(
        self,
        data: Samples,
        columns: Columns,
        args: TiTokTrainingArguments,
        folder: Path,
        objective: VTPPretrainingObjective,
    ) -> PretrainingCollator:
        if self.reads_captions:
            self.tokenizer = self.text_tokenizer(data, folder)
        arguments: dict[str, Any] = {}
        if self.weight("clip"):
            arguments["tokenizer"] = self.tokenizer
            arguments["text_column"] = columns.text
            arguments["context_length"] = objective.model.config.text_context_length
        if self.weight("ssl"):
            arguments["multi_crop"] = self.multi_crop(objective.model.config)
            arguments["masking"] = Masking(**self.part("masking"))
        return PretrainingCollator(
            self.image_processor(),
            columns.image,
            augmentation=Augmentation(**self.part("augmentation")),
            seed=args.seed if args.data_seed is None else args.data_seed,
            **arguments,
            **self.subsets(args),
        )

    def save(self, network: PreTrainedModel, results: Mapping[str, Any], folder: Path) -> None:
        network.save_pretrained(folder)
        self.processor().save_pretrained(folder)

    def processor(self) -> VTPProcessor | VTPImageProcessor:
        """Returns the processor of the trained network."""
        if self.weight("clip"):
            return VTPProcessor(self.image_processor(), self.tokenizer)
        return self.image_processor()

    def measured(self, network: VTPModel) -> tuple[VTPModel, VTPProcessor | VTPImageProcessor]:
        return network, self.processor()

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image] | None:
        if not self.weight("reconstruction"):
            return None
        return super().preview(data)

    @property
    def counted_batch(self) -> int:
        """Number of images in an optimizer step of one process, to count its operations."""
        training = self.part("training")
        of_one_process = training.get("per_device_train_batch_size", 8)
        of_one_process *= training.get("gradient_accumulation_steps", 1)
        return training.get("global_batch_size", of_one_process)

    @property
    def num_counted(self) -> int:
        # two of the smallest subset, since KoLeo compares images
        smallest = min([self.counted_batch, *self.part("subsets").values()])
        return ceil(2 * self.counted_batch / smallest)

    def batch(
        self, objective: VTPPretrainingObjective, tokens: bool = False
    ) -> dict[str, torch.Tensor]:
        config, images, whole = objective.model.config, self.num_counted, self.counted_batch
        sizes = self.part("subsets")
        rows = {
            name: torch.arange(sizes.get(name, whole) * images // whole)
            for name in ("reconstruction", "self_supervision")
        }
        batch: dict[str, torch.Tensor] = {}
        if self.weight("reconstruction"):
            batch["reconstruction_rows"] = rows["reconstruction"]
        if self.weight("clip"):
            batch["input_ids"] = torch.zeros(images, config.text_context_length, dtype=torch.long)
        if self.weight("reconstruction") or self.weight("clip"):
            seen = images if self.weight("clip") else len(rows["reconstruction"])
            side = self.recipe.image_size
            batch["pixel_values"] = torch.rand(seen, 3, side, side)
        if self.weight("ssl"):
            crops, masking = self.multi_crop(config), Masking(**self.part("masking"))
            size, patches = (
                len(rows["self_supervision"]),
                (crops.global_size // config.patch_size) ** 2,
            )
            share = masking.probability * (masking.least + masking.largest) / 2
            masked = round(2 * size * patches * share)
            batch |= {
                "ssl_rows": rows["self_supervision"],
                "global_crops": torch.rand(2, size, 3, crops.global_size, crops.global_size),
                "local_crops": torch.rand(
                    crops.num_local, size, 3, crops.local_size, crops.local_size
                ),
                "patch_mask": torch.zeros(2, size, patches, dtype=torch.bool),
                "masked_indices": torch.arange(masked),
                "mask_weights": torch.rand(masked),
            }
        if objective.num_draws:
            batch["draws"] = torch.rand(images, objective.num_draws)
        return batch
