"""Running a recipe: stage after stage, each one resumable, each result a folder that `from_pretrained` loads."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from ..data.augmentation import Augmentation
from ..data.collator import ImageCollator
from ..data.images import class_names
from ..hub.folders import whole_folder
from ..hub.publish import PublishMixin
from ..modeling.maskgit.modeling_maskgit import MaskGitPreTrainedModel
from ..modeling.maskgit_vqgan import MaskGitVQGANConfig, MaskGitVQGANModel
from ..modeling.titok import TiTokConfig, TiTokImageProcessor, TiTokModel
from ..pipelines import MaskGitScheduler, TiTokPipeline
from .discriminator import PatchDiscriminator
from .memory import PeakMemory
from .objectives import (
    ClassifierObjective,
    MaskedTokenObjective,
    Objective,
    ReconstructionObjective,
    WarmupObjective,
)
from .perceptual import PerceptualLoss
from .recipe import Recipe
from .trainer import TiTokTrainer, TiTokTrainingArguments

# Where each stage's result ends up in the folder of a run.
FOLDERS = {
    "vqgan": "vqgan",
    "classifier": "work/classifier",
    "warmup": "work/warmup",
    "decoder_finetuning": "tokenizer",
    "single_stage": "tokenizer",
    "generator": "pipeline",
}


class RecipeRun:
    """Trains what a recipe says on a data set.

    Each method trains its stage, going on from its last checkpoint if there is one, or loads the result if it is
    there. A stage starts from the seed, whatever ran before it. The folder ends with `vqgan/`, `tokenizer/` and
    `pipeline/`, as far as the recipe has their stages; `work/` holds checkpoints, logs, and what only later stages
    need.

    Args:
        recipe: The recipe.
        dataset: Splits `train` and `test`; `train` alone trains.
        output_dir: The folder.
        image_column, label_column: Columns of the data set.
        seed: Of all that is random.
        callbacks: For every stage's trainer.
        data_name: Name of the data set, for the model cards.

    Raises:
        ValueError: If the folder holds a run of another recipe or seed.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: DatasetDict,
        output_dir: str | Path,
        image_column: str = "image",
        label_column: str = "label",
        seed: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
        data_name: str | None = None,
    ):
        self.recipe = recipe
        self.dataset = dataset
        self.output_dir = Path(output_dir)
        self.work_dir = self.output_dir / "work"
        self.image_column = image_column
        self.label_column = label_column
        self.seed = seed
        self.callbacks = list(callbacks)
        self.data_name = data_name
        self.processor = TiTokImageProcessor.from_image_size(recipe.image_size)
        record = self.output_dir / "recipe.yaml"
        resolved = {"seed": seed, **recipe.to_dict()}
        if record.exists() and yaml.safe_load(record.read_text()) != resolved:
            raise ValueError(
                f"{self.output_dir} holds a run of another recipe or seed (see {record.name}); choose another folder, "
                "or delete it."
            )
        self.output_dir.mkdir(parents=True, exist_ok=True)
        record.write_text(yaml.safe_dump(resolved, sort_keys=False))

    def train(self) -> PreTrainedModel | TiTokPipeline:
        """Runs the stages of the recipe, the classifier only if a perceptual loss or nothing else needs it.

        Returns:
            The result of the last stage: the pipeline, if there is a generator.
        """
        stages = self.recipe.stages
        if stages.keys() == {"classifier"}:
            return self.classifier()
        if "vqgan" in stages:
            result = vqgan = self.vqgan()
        if "warmup" in stages:
            result = warm = self.warmup(vqgan)
        if "decoder_finetuning" in stages:
            result = self.decoder_finetuning(vqgan, warm)
        if "single_stage" in stages:
            result = self.single_stage()
        if "generator" in stages:
            result = self.generator(result)
        return result

    def vqgan(self) -> MaskGitVQGANModel:
        """Stage `vqgan`: the 2D tokenizer of the proxy codes."""

        def objective() -> ReconstructionObjective:
            config = MaskGitVQGANConfig(image_size=self.recipe.image_size, **self.part("vqgan", "model"))
            return ReconstructionObjective(MaskGitVQGANModel(config), **self.part("vqgan", "objective"))

        return self.stage("vqgan", MaskGitVQGANModel, objective)

    def classifier(self) -> ConvNextForImageClassification:
        """Stage `classifier`: the net of the perceptual loss, for images that no pretrained one fits."""

        def objective() -> ClassifierObjective:
            config = ConvNextConfig(
                image_size=self.recipe.image_size,
                num_labels=len(class_names(self.dataset, self.label_column)),
                **self.part("classifier", "model"),
            )
            model = ConvNextForImageClassification(config)
            return ClassifierObjective(model, **self.part("classifier", "objective"))

        return self.stage("classifier", ConvNextForImageClassification, objective, labelled=True)

    def warmup(self, vqgan: MaskGitVQGANModel) -> TiTokModel:
        """Stage `warmup`: the 1D tokenizer learns to predict the codes of the VQGAN."""

        def objective() -> WarmupObjective:
            config = TiTokConfig(
                image_size=self.recipe.image_size,
                vqgan_config=vqgan.config.to_dict(),
                **self.part("warmup", "model"),
            )
            return WarmupObjective(TiTokModel(config), vqgan, **self.part("warmup", "objective"))

        return self.stage("warmup", TiTokModel, objective)

    def decoder_finetuning(self, vqgan: MaskGitVQGANModel, warm: TiTokModel) -> TiTokModel:
        """Stage `decoder_finetuning`: the decoder, with the VQGAN's at its end, learns to paint."""
        return self.painting("decoder_finetuning", lambda: warm.with_pixel_decoder(vqgan), freeze_encoder=True)

    def single_stage(self) -> TiTokModel:
        """Stage `single_stage`: the whole 1D tokenizer learns from pixels at once, without proxy codes."""

        def model() -> TiTokModel:
            model = self.part("single_stage", "model")
            return TiTokModel(TiTokConfig(image_size=self.recipe.image_size, head="pixels", **model))

        return self.painting("single_stage", model)

    def painting(self, name: str, make_model: Callable[[], TiTokModel], freeze_encoder: bool = False) -> TiTokModel:
        """A stage that trains a tokenizer to paint, with the perceptual and adversarial losses of the recipe."""
        arguments = self.part(name, "objective")
        perceptual = None
        if arguments.get("perceptual_weight"):
            perceptual = PerceptualLoss(
                self.classifier(), self.recipe.image_size, ClassifierObjective.MEAN, ClassifierObjective.STD
            )

        def objective() -> ReconstructionObjective:
            discriminator = None
            if arguments.get("adversarial_weight"):
                discriminator = PatchDiscriminator(**self.part(name, "discriminator"))
            return ReconstructionObjective(
                make_model(),
                perceptual=perceptual,
                discriminator=discriminator,
                **{"freeze_encoder": freeze_encoder, **arguments},
            )

        return self.stage(name, TiTokModel, objective)

    def generator(self, tokenizer: TiTokModel) -> TiTokPipeline:
        """Stage `generator`: the masked transformer over the tokenizer's codes."""

        def objective() -> MaskedTokenObjective:
            model = dict(self.part("generator", "model"))
            config = AutoConfig.for_model(
                model.pop("model_type", "maskgit"),
                codebook_size=tokenizer.config.codebook_size,
                num_tokens=tokenizer.config.num_tokens,
                id2label=dict(enumerate(class_names(self.dataset, self.label_column))),
                **model,
            )
            scheduler = MaskGitScheduler(config.mask_token_id, **self.recipe.scheduler)
            network = AutoModel.from_config(config)
            return MaskedTokenObjective(network, tokenizer, scheduler, **self.part("generator", "objective"))

        def save(generator: MaskGitPreTrainedModel, folder: Path) -> None:
            scheduler = MaskGitScheduler(generator.config.mask_token_id, **self.recipe.scheduler)
            TiTokPipeline(tokenizer, generator, scheduler, **self.recipe.sampling).save_pretrained(folder)

        return self.stage("generator", TiTokPipeline, objective, labelled=True, save=save)

    def folder(self, stage: str) -> Path:
        """Where the result of a stage is, or will be."""
        return self.output_dir / FOLDERS[stage]

    def part(self, stage: str, part: str) -> dict[str, Any]:
        """What the recipe says of a part of a stage."""
        return self.recipe.stages[stage].get(part, {})

    def stage(
        self,
        name: str,
        result_class: type,
        make_objective: Callable[[], Objective],
        labelled: bool = False,
        save: Callable[[PreTrainedModel, Path], None] | None = None,
    ) -> Any:
        """The result of a stage, from its folder; trains it first if the folder is not there.

        The folder appears in one rename, when it is whole, and the checkpoints go.
        """
        folder = self.folder(name)
        if folder.exists():
            return result_class.from_pretrained(folder)
        checkpoints = self.work_dir / "checkpoints" / name
        with PeakMemory() as memory:
            started = time.perf_counter()
            set_seed(self.seed)
            objective = make_objective()
            trainer = TiTokTrainer(
                objective,
                TiTokTrainingArguments(
                    output_dir=str(checkpoints),
                    seed=self.seed,
                    disable_tqdm=bool(self.callbacks),
                    dataloader_pin_memory=torch.cuda.is_available(),
                    **{"report_to": "none", "save_total_limit": 2, **self.part(name, "training")},
                ),
                train_dataset=self.dataset["train"],
                augmentation=Augmentation(**self.part(name, "augmentation")),
                data_collator=ImageCollator(
                    self.processor, self.image_column, self.label_column if labelled else None
                ),
                callbacks=self.callbacks,
            )
            if self.callbacks:
                trainer.remove_callback(PrinterCallback)
            checkpoint = last_checkpoint(checkpoints)
            state = checkpoint and TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            if state and state.global_step >= trainer.args.max_steps:
                # stopped after the last step: Trainer would take one more
                trainer._load_from_checkpoint(checkpoint)
                trainer.state = state
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
        log = {
            "seconds": time.perf_counter() - started,
            "peak_memory_gib": memory.gib,
            "resumed_from": checkpoint and Path(checkpoint).name,
            "history": trainer.state.log_history,
        }
        if trainer.is_world_process_zero():
            with whole_folder(folder) as partial:
                if isinstance(objective.result, PublishMixin):
                    stages = dict(list(self.recipe.stages.items())[: list(self.recipe.stages).index(name) + 1])
                    objective.result.config.provenance = {"training_data": self.data_name, "recipe": stages}
                if save is None:
                    objective.result.save_pretrained(partial)
                    self.processor.save_pretrained(partial)
                else:
                    save(objective.result, partial)
                logs = self.work_dir / "logs"
                logs.mkdir(exist_ok=True)
                (logs / f"{name}.json").write_text(json.dumps(log, indent=1))
            shutil.rmtree(checkpoints)
        trainer.accelerator.wait_for_everyone()
        return result_class.from_pretrained(folder)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in a trainer's folder that was written to its end."""
    finished = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(finished, key=lambda path: int(path.name.split("-")[1]))) if finished else None
