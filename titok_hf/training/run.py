"""Running a recipe: stage after stage, each one resumable, each result a folder that
`from_pretrained` loads."""

import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import DatasetDict
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    ConvNextForImageClassification,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from ..data.augmentation import Augmentation
from ..data.collator import ImageCollator
from ..data.opening import open_images
from ..data.processes import process_state
from ..data.samples import IndexedSamples, Samples
from ..hub.folders import whole_folder
from ..hub.publish import PublishMixin
from ..modeling.lpips import LPIPS
from ..modeling.maskgit.modeling_maskgit import MaskGitPreTrainedModel
from ..modeling.maskgit_vqgan import MaskGitVQGANModel
from ..modeling.titok import TiTokImageProcessor, TiTokModel
from ..modeling.weights import load_lpips
from ..pipelines import MaskGitScheduler, TiTokPipeline
from .checkpoints import checkpoints, delete_checkpoint, last_checkpoint
from .memory import PeakMemory
from .objectives import ClassifierObjective, Objective
from .pretrained import load_pretrained
from .previews import Previews, first_images, reconstruction_preview, sample_preview
from .recipe import Recipe
from .stages import (
    Classifier,
    check_codes,
    classifier_objective,
    decoder_finetuning_objective,
    generator_objective,
    recipe_objectives,
    sees_through,
    single_stage_objective,
    vqgan_objective,
    warmup_objective,
)
from .trainer import TiTokTrainer, TiTokTrainingArguments

logger = logging.getLogger(__name__)

# Where each stage's result ends up in the folder of a run.
FOLDERS = {
    "vqgan": "vqgan",
    "classifier": "work/classifier",
    "warmup": "work/warmup",
    "decoder_finetuning": "tokenizer",
    "single_stage": "tokenizer",
    "generator": "pipeline",
}
LABELLED = ("classifier", "generator")
# Parts of a stage that may be changed until it is finished, such as a learning rate that was too
# high.
CHANGEABLE = ("training", "objective")


class RecipeRun:
    """Trains what a recipe says on a data set.

    Each method trains its stage, going on from its last checkpoint if there is one, or loads the
    result if it is there or pretrained. A stage starts from the seed, whatever ran before it. The
    folder ends with `vqgan/`, `tokenizer/` and `pipeline/`, as far as the recipe trains their
    stages; `work/` holds checkpoints, logs, and what only later stages need.

    Until a stage is finished, its `training` and `objective` may be changed: it goes on from its
    last checkpoint with the new ones.

    Started by `torchrun`, all processes train together; the folder must be one that all of them
    see.

    Args:
        recipe: The recipe.
        dataset: A data set whose split `train` trains, or such a split of `open_images`. Those
            of a data set of tokens train a generator alone, and no image is encoded.
        output_dir: The folder.
        image_column, label_column: Columns of the data set; rows know their own.
        seed: Of all that is random.
        callbacks: For every stage's trainer.
        data_name: Name of the data set, for the model cards.

    Raises:
        ValueError: If the folder holds a run of a recipe that differs in more, of another seed, or
            on data of another name.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: DatasetDict | Samples,
        output_dir: str | Path,
        image_column: str = "image",
        label_column: str | None = "label",
        seed: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
        data_name: str | None = None,
    ):
        self.recipe = recipe
        if isinstance(dataset, DatasetDict):
            self.rows, self.preview_rows = (
                IndexedSamples(dataset[split], image_column, label_column)
                for split in ("train", "test" if "test" in dataset else "train")
            )
        else:
            self.rows = self.preview_rows = dataset
        self.output_dir = Path(output_dir)
        self.work_dir = self.output_dir / "work"
        self.image_column = image_column
        self.label_column = label_column
        self.seed = seed
        self.callbacks = list(callbacks)
        self.data_name = data_name
        self.processor = TiTokImageProcessor.from_image_size(recipe.image_size)
        self.pretrained: dict[str, Any] = {}
        with process_state().main_process_first():
            self.write_record({"seed": seed, "data": data_name, **recipe.to_dict()})

    def write_record(self, record: dict[str, Any]) -> None:
        """Writes `recipe.yaml`, if nothing has been trained yet, or nothing but what may change has
        changed."""
        path = self.output_dir / "recipe.yaml"
        earlier = (
            yaml.safe_load(path.read_text()) if path.exists() and self.work_dir.exists() else None
        )
        if earlier == record:
            return
        if earlier is not None:
            if self.lasting(earlier) != self.lasting(record):
                raise ValueError(
                    f"{self.output_dir} holds a run of another recipe or seed, or on other data "
                    f"(see {path.name}); only {' and '.join(CHANGEABLE)} of a stage that is not "
                    "finished may change: choose another "
                    "folder, or delete this one."
                )
            logger.warning("%s goes on with changes of its recipe.", self.output_dir)
        if process_state().is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            partial_file = path.with_suffix(".partial")
            partial_file.write_text(yaml.safe_dump(record, sort_keys=False))
            partial_file.replace(path)

    def lasting(self, record: dict[str, Any]) -> dict[str, Any]:
        """What of a record a run keeps to its end."""
        stages = {}
        for name, stage in record["stages"].items():
            changeable = () if self.folder(name).exists() else CHANGEABLE
            stages[name] = {
                part: arguments for part, arguments in stage.items() if part not in changeable
            }
        return record | {"stages": stages}

    def train(self) -> PreTrainedModel | TiTokPipeline:
        """Runs the stages of the recipe, the classifier only if a perceptual loss needs it or it is
        the only one.

        Returns:
            The result of the last stage: the pipeline, if there is a generator.

        Raises:
            OSError, ValueError: See `prepare`.
        """
        self.prepare()
        stages = self.recipe.stages
        if stages.keys() == {"classifier"}:
            return self.classifier()
        result = vqgan = warm = None
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

    def prepare(self) -> None:
        """Checks what would otherwise stop a run days after its start: that the data have what the
        stages need, that what is pretrained is there and fits, and that all arguments are valid.

        Raises:
            OSError: If something pretrained is not there.
            ValueError: If something does not fit, or an argument is not valid.
        """
        ahead = [stage for stage in self.recipe.trained_stages() if not self.folder(stage).exists()]
        if self.rows.holds_codes and (
            of_images := [stage for stage in ahead if stage != "generator"]
        ):
            raise ValueError(
                "The data set holds codes, on which the stage generator alone can train, and the "
                f"recipe also trains {', '.join(of_images)}: give a data set of images, or "
                f"`{{pretrained: FOLDER}}` for these stages."
            )
        if self.rows.class_names is None and (
            labelled := [stage for stage in ahead if stage in LABELLED]
        ):
            raise ValueError(
                f"The stage {labelled[0]} trains on class labels, which the data set does not have."
            )
        for stage in ahead:
            self.training_arguments(stage)
        needed = {
            stage: partial(self.load, stage)
            for stage in self.recipe.stages
            if self.recipe.is_pretrained(stage)
        }
        needed |= {
            f"LPIPS of {stage}": partial(self.lpips, stage)
            for stage in ahead
            if "lpips" in sees_through(self.recipe, stage)
        }
        errors: dict[str, OSError | ValueError] = {}
        with (
            process_state().local_main_process_first()
        ):  # one process downloads, the others find it in the cache
            for name, load in needed.items():
                try:
                    load()
                except (OSError, ValueError) as error:
                    errors[name] = error
        if errors:
            missing = any(isinstance(error, OSError) for error in errors.values())
            raise (OSError if missing else ValueError)(
                "Nothing has been trained, since what the recipe needs pretrained is not there or "
                "does not fit. " + " ".join(f"{name}: {error}" for name, error in errors.items())
            )
        for stage in ahead:
            Augmentation(**self.recipe.part(stage, "augmentation"))
        with torch.device("meta"):
            for stage, objective in recipe_objectives(
                self.recipe, self.blank, self.rows.class_names or ()
            ):
                if stage == "generator":
                    self.pipeline(objective.tokenizer, objective.model)
                    if self.rows.holds_codes:
                        check_codes(next(self.rows.read(0, 1)).codes, objective.tokenizer.config)

    def vqgan(self) -> MaskGitVQGANModel:
        """Stage `vqgan`: the 2D tokenizer of the proxy codes."""
        return self.stage(
            "vqgan",
            MaskGitVQGANModel,
            lambda: vqgan_objective(self.recipe, **self.perceptual_networks("vqgan")),
        )

    def classifier(self) -> ConvNextForImageClassification:
        """Stage `classifier`: the net of the perceptual loss, for images that no pretrained one
        fits."""
        if self.recipe.is_pretrained("classifier"):
            return self.load("classifier").model
        return self.stage(
            "classifier",
            ConvNextForImageClassification,
            lambda: classifier_objective(self.recipe, len(self.rows.class_names)),
        )

    def warmup(self, vqgan: MaskGitVQGANModel) -> TiTokModel:
        """Stage `warmup`: the 1D tokenizer learns to predict the codes of the VQGAN."""
        return self.stage("warmup", TiTokModel, lambda: warmup_objective(self.recipe, vqgan))

    def decoder_finetuning(self, vqgan: MaskGitVQGANModel, warm: TiTokModel) -> TiTokModel:
        """Stage `decoder_finetuning`: the decoder, with the VQGAN's at its end, learns to paint."""
        networks = self.perceptual_networks("decoder_finetuning")
        return self.stage(
            "decoder_finetuning",
            TiTokModel,
            lambda: decoder_finetuning_objective(self.recipe, vqgan, warm, **networks),
        )

    def single_stage(self) -> TiTokModel:
        """Stage `single_stage`: the whole 1D tokenizer learns from pixels at once, without proxy
        codes."""
        networks = self.perceptual_networks("single_stage")
        return self.stage(
            "single_stage", TiTokModel, lambda: single_stage_objective(self.recipe, **networks)
        )

    def generator(self, tokenizer: TiTokModel) -> TiTokPipeline:
        """Stage `generator`: the masked transformer over the tokenizer's codes."""

        return self.stage(
            "generator",
            TiTokPipeline,
            lambda: generator_objective(self.recipe, tokenizer, self.rows.class_names),
            save=lambda generator, folder: self.pipeline(tokenizer, generator).save_pretrained(
                folder
            ),
        )

    def pipeline(self, tokenizer: TiTokModel, generator: MaskGitPreTrainedModel) -> TiTokPipeline:
        """The pipeline of a generator."""
        scheduler = MaskGitScheduler(generator.config.mask_token_id, **self.recipe.scheduler)
        return TiTokPipeline(tokenizer, generator, scheduler, **self.recipe.sampling)

    def folder(self, stage: str) -> Path:
        """Where the result of a stage that is trained is, or will be."""
        return self.output_dir / FOLDERS[stage]

    def load(self, stage: str) -> Any:
        """The result of a pretrained stage, loaded once."""
        if stage not in self.pretrained:
            self.pretrained[stage] = load_pretrained(self.recipe, stage)
        return self.pretrained[stage]

    def blank(self, stage: str) -> Any:
        """As the result of a pretrained stage, with weights of its own."""
        loaded = self.load(stage)
        if isinstance(loaded, Classifier):
            return replace(loaded, model=type(loaded.model)(loaded.model.config))
        return type(loaded)(copy.deepcopy(loaded.config))

    def lpips(self, stage: str) -> LPIPS:
        """LPIPS with the weights that a stage names, loaded once."""
        files = self.recipe.part(stage, "lpips")
        name = f"lpips {files}"
        if name not in self.pretrained:
            self.pretrained[name] = load_lpips(**files)
        return self.pretrained[name]

    def perceptual_networks(self, stage: str) -> dict[str, Classifier | LPIPS]:
        """The networks that the perceptual loss of a stage needs; a classifier is trained, if it
        has to be."""
        if self.recipe.is_pretrained(stage) or self.folder(stage).exists():
            return {}
        needed, networks = sees_through(self.recipe, stage), {}
        if "classifier" in needed:
            if self.recipe.is_pretrained("classifier"):
                networks["classifier"] = self.load("classifier")
            else:
                size, mean, std = (
                    self.recipe.image_size,
                    ClassifierObjective.MEAN,
                    ClassifierObjective.STD,
                )
                networks["classifier"] = Classifier(self.classifier(), size, mean, std)
        if "lpips" in needed:
            networks["lpips"] = self.lpips(stage)
        return networks

    def training_arguments(self, stage: str) -> TiTokTrainingArguments:
        """The trainer's arguments of a stage.

        Raises:
            ValueError: If one is not valid, or `global_batch_size` is no multiple of what all
                processes take at once, or images are to be evaluated, of which a run holds out
                none.
        """
        fields = dict(self.recipe.part(stage, "training"))
        global_batch_size = fields.pop("global_batch_size", None)
        defaults = {
            "report_to": "none",
            "save_total_limit": 2,
            "use_cpu": not torch.accelerator.is_available(),  # or processes without an accelerator do not meet
            "disable_tqdm": bool(self.callbacks),
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        own = {"output_dir": str(self.checkpoint_dir(stage)), "seed": self.seed}
        args = TiTokTrainingArguments(**{**defaults, **fields, **own})
        if args.eval_strategy != "no":
            raise ValueError(
                f"`stages.{stage}.training.eval_strategy` must be 'no', got "
                f"{args.eval_strategy.value!r}: a run holds "
                "no images out; `titok evaluate` measures what the stage leaves."
            )
        if global_batch_size is not None:
            at_once = args.train_batch_size * args.world_size
            if global_batch_size % at_once:
                raise ValueError(
                    f"`stages.{stage}.training.global_batch_size` {global_batch_size} must be a "
                    f"multiple of the {at_once} images that {args.world_size} processes take at "
                    "once: change `per_device_train_batch_size` "
                    f"{args.per_device_train_batch_size}, or the number of processes."
                )
            args.gradient_accumulation_steps = global_batch_size // at_once
        return args

    def stage(
        self,
        name: str,
        result_class: type,
        make_objective: Callable[[], Objective],
        save: Callable[[PreTrainedModel, Path], None] | None = None,
    ) -> Any:
        """The result of a stage: loaded if it is pretrained, else from its folder; trains it if
        that is not there.

        The folder appears in one rename, when it is whole, and then the checkpoints go.
        """
        if self.recipe.is_pretrained(name):
            return self.load(name)
        folder = self.folder(name)
        if not folder.exists():
            self.train_stage(name, make_objective, save)
        if process_state().is_main_process:
            for checkpoint in checkpoints(self.checkpoint_dir(name)).values():
                delete_checkpoint(checkpoint)
        return result_class.from_pretrained(folder)

    def checkpoint_dir(self, stage: str) -> Path:
        """Where the checkpoints of a stage are, and what else its trainer writes."""
        return self.work_dir / "checkpoints" / stage

    def train_stage(
        self,
        name: str,
        make_objective: Callable[[], Objective],
        save: Callable[[PreTrainedModel, Path], None] | None,
    ) -> None:
        """Trains a stage to its end, from its last checkpoint if there is one, and writes its
        folder.

        Raises:
            OSError: If a checkpoint or the folder cannot be written.
            FloatingPointError, ValueError: See `TiTokTrainer`.
        """
        with PeakMemory() as memory:
            started = time.perf_counter()
            set_seed(self.seed)
            trainer = self.trainer(name, make_objective())
            checkpoint = last_checkpoint(trainer.args.output_dir)
            state = checkpoint and TrainerState.load_from_json(
                str(Path(checkpoint) / "trainer_state.json")
            )
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
        result = trainer.result()
        if trainer.is_world_process_zero():
            folder = self.folder(name)
            try:
                with whole_folder(folder) as partial_folder:
                    if isinstance(result, PublishMixin):
                        stages = dict(
                            list(self.recipe.stages.items())[
                                : list(self.recipe.stages).index(name) + 1
                            ]
                        )
                        result.config.provenance = {
                            "training_data": self.data_name,
                            "recipe": stages,
                        }
                    if save is None:
                        result.save_pretrained(partial_folder)
                        self.image_processor(name).save_pretrained(partial_folder)
                    else:
                        save(result, partial_folder)
                    logs = self.work_dir / "logs"
                    logs.mkdir(exist_ok=True)
                    (logs / f"{name}.json").write_text(json.dumps(log, indent=1))
            except (OSError, SafetensorError) as error:
                raise OSError(
                    f"The stage {name} is trained, but could not be written to {folder}: {error}. "
                    "Make room and start "
                    "again with the same command: it goes on from the last checkpoint."
                ) from error
        trainer.accelerator.wait_for_everyone()

    def trainer(self, stage: str, objective: Objective) -> TiTokTrainer:
        """The trainer of a stage."""
        args = self.training_arguments(stage)
        collator = ImageCollator(
            self.processor,
            self.image_column,
            self.label_column if stage in LABELLED else None,
            Augmentation(**self.recipe.part(stage, "augmentation")),
        )
        trainer = TiTokTrainer(
            objective,
            args,
            train_dataset=self.rows,
            data_collator=collator,
            callbacks=self.callbacks,
        )
        if self.callbacks:
            trainer.remove_callback(PrinterCallback)
        if args.preview_steps and stage != "classifier":
            folder = self.work_dir / "previews" / stage
            trainer.add_callback(Previews(trainer, args.preview_steps, folder, self.preview(stage)))
        return trainer

    def image_processor(self, stage: str) -> TiTokImageProcessor:
        """The image processor to save with the result of a stage; a classifier's normalizes, as its
        training did."""
        processor = TiTokImageProcessor.from_image_size(self.recipe.image_size)
        if stage == "classifier":
            processor.do_normalize = True
            processor.image_mean, processor.image_std = (
                list(ClassifierObjective.MEAN),
                list(ClassifierObjective.STD),
            )
        return processor

    def preview(self, stage: str) -> Callable[[Any], Image.Image]:
        """What draws a preview of a stage: samples of the first classes, or reconstructions of the
        first images that are held out, of training images if none are."""
        if stage == "generator":
            return partial(
                sample_preview,
                class_labels=[*range(len(self.rows.class_names))][:8],
                **self.recipe.sampling,
            )
        images = self.processor(first_images(self.preview_rows), return_tensors="pt")
        return partial(reconstruction_preview, pixel_values=images.pixel_values)


def train_recipe(
    recipe: str | Path,
    data: str,
    output_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    image_column: str = "image",
    label_column: str = "label",
    revision: str | None = None,
    streaming: bool = False,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> PreTrainedModel | TiTokPipeline:
    """Trains a recipe on images, or on tokens, from wherever they are; goes on with a run that was
    stopped.

    Args:
        recipe: A YAML file, or the name of a recipe that comes with the package.
        data: See `titok_hf.data.open_images`; the split `train` trains.
        output_dir: See `RecipeRun`.
        overrides: Changes of the recipe, `key=value`.
        image_column, label_column: Columns of the data; without a stage that needs labels, there
            need be none.
        revision: Branch, tag or commit of data on the Hub.
        streaming: Whether to stream data that could also be downloaded as a whole.
        seed: Of all that is random.
        callbacks: For every stage's trainer.

    Returns:
        The result of the last stage.

    Raises:
        OSError, ValueError: If recipe, data or what is pretrained do not load or fit.
    """
    loaded = Recipe.load(recipe, overrides)
    labelled = any(stage in LABELLED for stage in loaded.trained_stages())
    splits = open_images(
        data, image_column, label_column if labelled else None, revision, streaming=streaming
    )
    name = Path(data).name
    return RecipeRun(
        loaded, splits["train"], output_dir, image_column, label_column, seed, callbacks, name
    ).train()
