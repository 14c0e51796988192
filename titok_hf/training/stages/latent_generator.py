"""The stage `latent_generator`: a flow on the latents of a continuous tokenizer (LightningDiT, arXiv
2501.01423)."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from ...data.augmentation import Augmentation
from ...data.collator import ImageCollator
from ...data.decoding import UnreadableImageError, decoder_for
from ...data.grids import generation_grid
from ...data.samples import IndexedSamples, Samples
from ...data.token_folder import channel_sums
from ...data.tokens import STATISTICS, latent_statistics
from ...distributed import process_state
from ...hub.folders import whole_file
from ...hub.provenance import inherit_provenance
from ...modeling.auto import is_pipeline
from ...modeling.diffusers_tokenizer import DiffusersTokenizer
from ...modeling.lightning_dit import LightningDiTConfig, LightningDiTModel
from ...modeling.loading import load_strictly
from ...modeling.maskgit_vqgan import MaskGitVQGANModel
from ...modeling.titok import TiTokImageProcessor, TiTokModel
from ...modeling.vtp import VTPForImageReconstruction, VTPImageProcessor, VTPModel
from ...modeling.vtp.modeling_vtp import VTPPreTrainedModel
from ...pipelines import LatentDiTPipeline
from ..arguments import TiTokTrainingArguments
from ..flow import LatentFlowObjective
from ..known import KNOWN
from ..objectives import Objective
from ..previews import zoom_of
from .base import Columns, Stage, keys_of, register_stage

MEASURED = 10_000  # images for the statistics of latents, as the reference

Tokenizer = VTPForImageReconstruction | TiTokModel | DiffusersTokenizer


@register_stage
class LatentGeneratorStage(Stage):
    """Trains a `LightningDiTModel` on the latents of images, which are encoded on the fly or come from a
    token data set; its result is a `LatentDiTPipeline`.

    `size` in its part `model` is one of the paper's sizes, see `LightningDiTConfig.from_size`. The
    mean and standard deviation of the latents are those of the token data set, or are measured
    before training, on up to 10,000 images.

    The part `initial` names a generator to start from (`pretrained`, `revision`), a pipeline or its
    transformer, whose configuration becomes the default. Classes of the same name keep their
    embedding, new ones get that of "no class".
    """

    name = "latent_generator"
    folder = "pipeline"
    needs = (("vtp_decoder_finetuning", "vtp_pretraining", "single_stage", "tokenizer"),)
    parts = {
        "model": keys_of(LightningDiTConfig, "size"),
        "objective": keys_of(LatentFlowObjective),
        "initial": ("pretrained", "revision"),
    }
    recipe_parts = {"sampling": keys_of(LatentDiTPipeline, "guidance_channels")}
    reads_labels = True
    reads_tokens = "latents"
    can_be_pretrained = False
    config_class = LightningDiTConfig

    def required(self) -> list[str]:
        # the decoder is fine-tuned last, if it is
        return super().required()[:1]

    def config(self, size: str | None = None, **fields: Any) -> LightningDiTConfig:
        if size is None:
            return LightningDiTConfig(**fields)
        return LightningDiTConfig.from_size(size, **fields)

    def tokenizer(self, results: Mapping[str, Any]) -> Tokenizer:
        """Returns the tokenizer among the results of stages; of a VTP, the parts for images."""
        [name] = self.required()
        tokenizer = results[name]
        self.check_result(name, tokenizer)
        if not isinstance(tokenizer, VTPModel):
            return tokenizer
        alone = VTPForImageReconstruction(tokenizer.config).to(tokenizer.dtype)
        weights = tokenizer.state_dict()
        alone.load_state_dict({key: weights[key] for key in alone.state_dict()})
        return alone.eval()

    def check_result(self, name: str, result: Any) -> None:
        if isinstance(result, DiffusersTokenizer | MaskGitVQGANModel):
            if result.config.codebook_size is not None:
                raise ValueError(
                    "The generator of latents needs a tokenizer with continuous latents; this one "
                    f"has a codebook of {result.config.codebook_size} codes."
                )
            return
        if isinstance(result, TiTokModel) and result.config.quantizer != "kl":
            raise ValueError(
                "The generator of latents needs a tokenizer with continuous latents, "
                f"`quantizer='kl'`, got {result.config.quantizer!r}; the stage generator is for codes."
            )
        if isinstance(result, VTPPreTrainedModel) and not result.config.has_decoder:
            raise ValueError(
                "The generator of latents needs a tokenizer that decodes, but this VTP has no "
                "decoder (`has_decoder=False`)."
            )

    def objective(
        self, results: Mapping[str, Any], class_names: Sequence[str], load_weights: bool = True
    ) -> LatentFlowObjective:
        tokenizer = self.tokenizer(results)
        image = torch.zeros(1, 3, self.recipe.image_size, self.recipe.image_size)
        with torch.no_grad():
            latents = tokenizer.encode(image.to(tokenizer.device, tokenizer.dtype)).latents
        if latents.ndim == 3:  # (1, K, C)
            size, channels = latents.shape[1:]
        else:  # (1, C, h, w)
            channels, size = latents.shape[1:3]
        shape = {"dimensions": latents.ndim - 2, "sample_size": size, "in_channels": channels}
        fields = {**shape, "id2label": dict(enumerate(class_names)), **self.part("model")}
        if self.part("initial"):
            fields = {**self.initial_config(load_weights), **fields}
        model = LightningDiTModel(self.config(**fields))
        if self.part("initial") and load_weights:
            self.initialize(model)
        return LatentFlowObjective(model, tokenizer, **self.part("objective"))

    def initial_config(self, load_weights: bool) -> dict[str, Any]:
        """Returns the configuration of the part `initial`; to count, a known one is enough."""
        known = KNOWN["configurations"].get(self.part("initial")["pretrained"])
        if known is not None and not load_weights:
            return known
        source, location = self.initial_location()
        config = LightningDiTConfig.from_pretrained(source, **location).to_dict()
        del config["label2id"]
        return config

    def initial_location(self) -> tuple[str, dict[str, Any]]:
        """Returns the source of the part `initial`, and the arguments that locate its network."""
        location = dict(self.part("initial"))
        source = location.pop("pretrained")
        if is_pipeline(source, **location):
            location["subfolder"] = "transformer"
        return source, location

    def initial_model(self) -> LightningDiTModel:
        """Loads the generator of the part `initial`."""
        source, location = self.initial_location()
        return LightningDiTModel.from_pretrained(source, **location)

    def initialize(self, model: LightningDiTModel) -> None:
        """Gives a model the weights of the part `initial`, its classes those of the same names."""

        def numbered(config: LightningDiTConfig) -> Iterator[tuple[str, int]]:
            seen: Counter[str] = Counter()  # ImageNet has two classes "crane" and two "maillot"
            for name in config.id2label.values():
                yield name, seen[name]
                seen[name] += 1

        initial = self.initial_model()
        weights = initial.state_dict()
        *rows, no_class = weights["label_embedding.weight"]
        of_classes = dict(zip(numbered(initial.config), rows, strict=True))
        new = [of_classes.get(name, no_class) for name in numbered(model.config)]
        weights["label_embedding.weight"] = torch.stack([*new, no_class])
        load_strictly(model, weights)
        inherit_provenance(model, initial)

    def downloads(self) -> dict[str, Callable[[], Any]]:
        return {"initial weights": self.initial_model} if self.part("initial") else {}

    def load(self, source: str | Path, **location: Any) -> LatentDiTPipeline:
        return LatentDiTPipeline.from_pretrained(source, **location)

    def blank(self, config: LightningDiTConfig) -> LightningDiTModel:
        return LightningDiTModel(config)

    def check_data(self, objective: LatentFlowObjective, data: Samples) -> None:
        # fails now rather than at the end if the recipe's sampling is not valid
        channels = objective.model.config.in_channels
        given = objective.model.config.latent_mean is not None
        if not given:
            objective.model.config.latent_mean = [0.0] * channels
            objective.model.config.latent_std = [1.0] * channels
        self.pipeline(objective.tokenizer, objective.model)
        if data.token_column is None:
            return
        expected = objective.model.config.latent_shape
        shape = next(data.read(0, 1)).tokens.shape
        if shape[-len(expected) :] != expected or len(shape) > len(expected) + 1:
            raise ValueError(
                f"The data set has latents of shape {shape}, the tokenizer of {expected}: tokenize "
                "the images with it."
            )
        if objective.sample_posterior:
            raise ValueError(
                "`sample_posterior` needs images, but the data set holds latents, which are means: "
                "set it to false, or train on the images."
            )
        if data.latent_statistics is None and not given:
            raise ValueError(
                "The data set of latents has no latent_statistics.json: tokenize the images again "
                "with `titok tokenize`, which writes it, or set `latent_mean` and `latent_std` in the "
                "part `model` of the stage."
            )

    def pipeline(self, tokenizer: Tokenizer, model: LightningDiTModel) -> LatentDiTPipeline:
        """Returns the pipeline of a generator with the recipe's sampling."""
        if isinstance(tokenizer, DiffusersTokenizer):
            tokenizer = tokenizer.autoencoder
        scheduler = FlowMatchEulerDiscreteScheduler()
        return LatentDiTPipeline(tokenizer, model, scheduler, **self.recipe.sampling)

    def collator(
        self,
        data: Samples,
        columns: Columns,
        args: TiTokTrainingArguments,
        folder: Path,
        objective: LatentFlowObjective,
    ) -> ImageCollator:
        processor: TiTokImageProcessor = TiTokImageProcessor.from_image_size(self.recipe.image_size)
        if isinstance(objective.tokenizer, VTPPreTrainedModel):
            processor = VTPImageProcessor.from_image_size(self.recipe.image_size)
        if objective.model.config.latent_mean is None:
            if data.token_column is None:
                objective.tokenizer.to(args.device)
                self.measure(data, processor, folder, objective)
            else:
                objective.set_statistics(**data.latent_statistics)
        return ImageCollator(
            processor,
            columns.image,
            columns.label,
            Augmentation(**self.part("augmentation")),
            token_axes=len(objective.model.config.latent_shape),
        )

    def measure(
        self,
        data: Samples,
        processor: TiTokImageProcessor,
        folder: Path,
        objective: LatentFlowObjective,
    ) -> None:
        """Sets the statistics of the latents, measured once and kept in `folder`."""
        kept = folder / STATISTICS
        if process_state().is_main_process and not kept.exists():
            sums = []
            for images in batched(spread_images(data, decoder_for(processor)), 64):
                pixel_values = processor(images, return_tensors="pt")["pixel_values"]
                latents = objective.encode(pixel_values.to(objective.tokenizer.device), None)
                sums.append(channel_sums(latents.float().cpu().numpy(), num_copies=1))
            if not sums:
                raise ValueError(
                    "None of the images from which the statistics of the latents are measured could "
                    "be read: check the data set and the column of images."
                )
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(kept) as partial_file:
                partial_file.write_text(json.dumps(latent_statistics(sums)))
        process_state().wait_for_everyone()
        objective.set_statistics(**json.loads(kept.read_text()))

    def save(self, network: LightningDiTModel, results: Mapping[str, Any], folder: Path) -> None:
        self.pipeline(self.tokenizer(results), network).save_pretrained(folder)

    def preview(self, data: Samples) -> Callable[[Objective], Image.Image]:
        return partial(self.draw, labels=[*range(len(data.class_names))][:8])

    def draw(self, objective: LatentFlowObjective, labels: Sequence[int]) -> Image.Image:
        """Draws samples with the averaged weights, if any, one row for each label."""
        pipeline = self.pipeline(objective.tokenizer, objective.result)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            labels, generator=torch.Generator().manual_seed(0), num_images_per_label=8
        ).images
        names = [objective.model.config.id2label[label] for label in labels]
        zoom = zoom_of(images[0].width)
        return generation_grid(images, names, columns=8, zoom=zoom, substitutes=labels)

    def batch(
        self, objective: LatentFlowObjective, tokens: bool = False
    ) -> dict[str, torch.Tensor]:
        batch = super().batch(objective)
        if tokens:
            del batch["pixel_values"]
            batch["latents"] = torch.zeros(1, *objective.model.config.latent_shape)
        return batch


def spread_images(data: Samples, decode: Callable[[Any], Image.Image]) -> Iterator[Image.Image]:
    """Yields up to 10,000 readable images that are spread evenly, so that all classes of a sorted
    folder are among them; of a stream, the first ones."""
    samples = data.read(0, min(len(data), MEASURED))
    if isinstance(data, IndexedSamples):
        places = np.linspace(0, len(data) - 1, min(len(data), MEASURED)).round().astype(int)
        samples = (data[place] for place in places.tolist())
    for sample in samples:
        with suppress(UnreadableImageError):
            yield decode(sample.image)


def batched(images: Iterator[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    """Yields images in lists of `size`; the last one may be shorter."""
    while batch := list(islice(images, size)):
        yield batch
