"""Training of a recipe, stage by stage. Each stage can be resumed, and its result is a folder that
`from_pretrained` loads."""

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerState, set_seed

from ..data.augmentation import Augmentation
from ..data.identity import data_identity, data_outline
from ..data.opening import ImageSplits
from ..data.samples import IndexedSamples, Samples, check_readable
from ..distributed import check_same, check_shared, gather_by_machine, process_state
from ..hub.folders import whole_file, whole_folder
from ..hub.lock import locked_folder
from ..hub.publish import PublishMixin
from ..modeling.titok import TiTokImageProcessor
from .arguments import TiTokTrainingArguments
from .checkpoints import checkpoints, delete_checkpoint, last_checkpoint
from .measurements import Measurements
from .memory import PeakMemory
from .objectives import Objective
from .previews import Previews
from .recipe import Recipe
from .snapshots import Snapshots
from .stages import STAGES, Columns, Stage, recipe_objectives
from .trainer import TiTokTrainer

logger = logging.getLogger(__name__)

# Parts of a stage that may change until it is finished, for example to lower a learning rate.
CHANGEABLE = ("training", "objective")
SNAPSHOTS = "work/snapshots"  # see `TiTokTrainingArguments.snapshot_steps`


class RecipeRun:
    """Trains the stages of a recipe on a data set.

    `result` returns the result of a stage: it loads the result if it exists or is pretrained, and
    otherwise trains the stage, from its last checkpoint if there is one. Every stage starts from
    the seed, regardless of the stages before it. At the end, the folder contains `vqgan/`,
    `tokenizer/` and `pipeline/` if the recipe trains their stages; `work/` contains checkpoints,
    logs, and results that only later stages need.

    Until a stage is finished, its `training` and `objective` may be changed: it resumes from its
    last checkpoint with the new settings.

    Under `torchrun`, all processes train together; they must share the folder, and see the same data.

    Args:
        recipe: The recipe.
        dataset: A data set with a split `train`, the splits of `open_images`, or the training split
            alone. A token data set can only train the generator, and then no image is encoded.
        output_dir: Folder of the run.
        image_column, label_column, text_column: Columns of images, labels and captions. Labels and
            captions are only read if the data set was opened with them; `DatasetDict` is opened here.
        seed: Random seed.
        callbacks: Callbacks of every stage's trainer.
        data_name: Name of the data set, for the model cards.
        make_metrics: Maps an image processor to the `compute_metrics` of a stage whose `training`
            has an `eval_strategy` and whose objective makes predictions. It is called with
            reconstructions and held-out images batch by batch (`batch_eval_metrics`).
        measure: Maps a network, its processor, training and held-out images to figures by name, for a
            VTP whose `training` has an `eval_strategy`.

    Raises:
        OSError: If a process does not see the folder of the others.
        ValueError: If the folder holds a run of another seed, on data of other content (see
            `data_identity`), or of a recipe with differences that are not allowed; or if a process
            has another recipe, seed or data than the others.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: DatasetDict | ImageSplits | Samples,
        output_dir: str | Path,
        image_column: str = "image",
        label_column: str | None = "label",
        text_column: str | None = None,
        seed: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
        data_name: str | None = None,
        make_metrics: Callable[[TiTokImageProcessor], Callable] | None = None,
        measure: Callable[..., dict[str, float]] | None = None,
    ):
        self.recipe = recipe
        if isinstance(dataset, DatasetDict):
            stored = dataset

            def open_split(split: str) -> IndexedSamples:
                return IndexedSamples(
                    stored[split], image_column, label_column, text_column=text_column
                )

            dataset = ImageSplits(data_name or "data set", stored, open_split)
        self.splits = dataset if isinstance(dataset, ImageSplits) else None
        self.train_samples = dataset if self.splits is None else self.splits["train"]
        self.output_dir = Path(output_dir)
        self.work_dir = self.output_dir / "work"
        self.columns = Columns(image_column, label_column, text_column)
        self.seed = seed
        self.callbacks = list(callbacks)
        self.data_name = data_name
        self.make_metrics = make_metrics
        self.measure = measure
        self.processor = TiTokImageProcessor.from_image_size(recipe.image_size)
        self.results: dict[str, Any] = {}
        check_same(recipe=recipe.to_dict(), seed=seed, data=data_outline(self.train_samples))
        check_shared(self.output_dir)
        identity = [data_identity(self.train_samples) if process_state().is_main_process else None]
        [identity] = broadcast_object_list(identity)
        with process_state().main_process_first():
            self.write_record(
                {"seed": seed, "data": data_name, "data_sha256": identity, **recipe.to_dict()}
            )

    def write_record(self, record: dict[str, Any]) -> None:
        """Writes `recipe.yaml`, and checks that an earlier one differs only in what may change."""
        path = self.output_dir / "recipe.yaml"
        earlier = yaml.safe_load(path.read_text()) if path.exists() else None
        if earlier is not None:
            made = [self.work_dir, *map(self.folder, earlier["stages"])]
            earlier = earlier if any(map(Path.exists, made)) else None  # else nothing was trained
        if earlier is not None and earlier["data_sha256"] == record["data_sha256"]:
            record["data"] = earlier["data"]  # a renamed folder is the same data
        if earlier == record:
            return
        if earlier is not None:
            if earlier["data_sha256"] != record["data_sha256"]:
                raise ValueError(
                    f"{self.output_dir} holds a run on other data ({earlier['data']!r}) than the "
                    f"{len(self.train_samples):,} samples given now ({record['data']!r}), which differ "
                    "in number, name, size, label or content: give the data of that run, or choose "
                    "another folder."
                )
            if self.lasting(earlier) != self.lasting(record):
                raise ValueError(
                    f"{self.output_dir} holds a run of another recipe or seed "
                    f"(see {path.name}); only {' and '.join(CHANGEABLE)} of a stage that is not "
                    "finished may change: choose another folder, or delete this one."
                )
            logger.warning("%s is resumed with a changed recipe.", self.output_dir)
        with self.lock():
            if process_state().is_main_process:
                with whole_file(path) as partial_file:
                    partial_file.write_text(yaml.safe_dump(record, sort_keys=False))

    def lock(self) -> AbstractContextManager[None]:
        """Locks the folder of the run in the main process, so that no other run uses it."""
        main = process_state().is_main_process
        return locked_folder(self.output_dir) if main else nullcontext()

    def lasting(self, record: dict[str, Any]) -> dict[str, Any]:
        """Returns the parts of a record that must not change once training has begun."""
        stages = {}
        for name, stage in record["stages"].items():
            changeable = () if self.folder(name).exists() else CHANGEABLE
            stages[name] = {
                part: arguments for part, arguments in stage.items() if part not in changeable
            }
        return {**record, "stages": stages, "evaluation": {}}  # evaluation does not affect training

    def train(self) -> Any:
        """Runs the stages of the recipe. A stage on demand runs only if another one requires it, or
        if there is no other.

        Returns:
            The result of the last stage: the pipeline, if there is a generator.

        Raises:
            BlockingIOError: If another run uses the folder.
            OSError, ValueError: See `prepare`.
        """
        stages = self.recipe.all_stages()
        stages = [stage for stage in stages if not stage.on_demand] or stages
        finished = all(stage.is_pretrained or self.folder(stage.name).exists() for stage in stages)
        with nullcontext() if finished else self.lock():
            self.prepare()
            for stage in stages:
                result = self.result(stage.name)
        return result

    def prepare(self) -> None:
        """Checks everything that could otherwise stop a run days after its start: the columns of
        the data, the existence and fit of pretrained networks, and all arguments.

        Raises:
            OSError: If a pretrained network is missing.
            ValueError: If data or a pretrained network do not fit, or an argument is not valid.
        """
        # data and arguments
        ahead = [
            stage for stage in self.recipe.trained_stages() if not self.folder(stage.name).exists()
        ]
        tokens = self.train_samples.token_column
        if tokens is not None and (
            of_images := [stage.name for stage in ahead if stage.reads_tokens != tokens]
        ):
            able = " and ".join(
                name for name, stage in STAGES.items() if stage.reads_tokens == tokens
            )
            raise ValueError(
                f"The data set holds {tokens}, which only the stage {able} can train on, and the "
                f"recipe also trains {', '.join(of_images)}: use a data set of images, or set "
                "`{pretrained: FOLDER}` for these stages."
            )
        if self.train_samples.class_names is None and (
            labelled := [stage.name for stage in ahead if stage.reads_labels]
        ):
            raise ValueError(
                f"The stage {labelled[0]} trains on class labels, but the data set has none."
            )
        if not self.train_samples.captioned and (
            of_texts := [stage.name for stage in ahead if stage.reads_captions]
        ):
            raise ValueError(
                f"The stage {of_texts[0]} trains on captions, but the data set was opened without: name "
                "their column by `--text-column` (in Python: `text_column`), or set its `clip_weight` "
                "to 0."
            )
        arguments = {stage.name: self.training_arguments(stage) for stage in ahead}
        for stage in ahead:
            stage.check_arguments(arguments[stage.name])
            Augmentation(**stage.part("augmentation"))
        if any(args.eval_strategy != "no" for args in arguments.values()):
            state, count = process_state(), len(self.held_out_images())
            check_readable(self.held_out, range(state.process_index, count, state.num_processes))

        # pretrained networks
        needed = {
            stage.name: functools.partial(self.checked_result, stage, ahead)
            for stage in self.recipe.all_stages()
            if stage.is_pretrained
        }
        needed |= {
            f"{what} of {stage.name}": load
            for stage in ahead
            for what, load in stage.downloads().items()
        }
        errors: dict[str, tuple[type[Exception], str]] = {}
        # one process downloads, the others find it in the cache
        with process_state().local_main_process_first():
            for name, load in needed.items():
                try:
                    load()
                except (OSError, ValueError) as error:
                    error_class = OSError if isinstance(error, OSError) else ValueError
                    errors[name] = error_class, str(error)
        if errors := gather_by_machine(errors):
            classes = [error_class for error_class, _ in errors.values()]
            raise (OSError if OSError in classes else ValueError)(
                "Nothing has been trained, because pretrained networks that the recipe needs are "
                "missing or do not fit. "
                + " ".join(f"{name}: {reason}" for name, (_, reason) in errors.items())
            )

        # objectives, without weights
        with torch.device("meta"):
            for stage, objective in recipe_objectives(
                self.recipe,
                lambda stage: stage.blank(stage.config_of(self.result(stage.name))),
                self.train_samples.class_names or (),
            ):
                stage.check_data(objective, self.train_samples)
                args = arguments.get(stage.name)
                if args is None:  # trained already
                    continue
                try:
                    args.build_parts(objective)
                except (ImportError, RuntimeError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"Training cannot begin with `stages.{stage.name}.training`: {error}"
                    ) from error
                if args.eval_strategy != "no" and self.make_metrics and objective.predict:
                    self.make_metrics(stage.image_processor())

    def folder(self, stage: str) -> Path:
        """Returns the folder of the result of a trained stage, which may not exist yet."""
        return self.output_dir / STAGES[stage].folder

    def result(self, name: str) -> Any:
        """Returns the result of a stage and keeps it in memory.

        The result of a pretrained stage is loaded from its source, any other from its folder. If
        the folder does not exist, the stages that it requires and then the stage itself are
        trained. The folder appears atomically; then the checkpoints are deleted.
        """
        if name not in self.results:
            stage = self.recipe.stage(name)
            if stage.is_pretrained:
                location = dict(self.recipe.stages[name])
                self.results[name] = stage.load(location.pop("pretrained"), **location)
                return self.results[name]
            folder = self.folder(name)
            if not folder.exists():
                with self.lock():
                    self.train_stage(stage)
            if process_state().is_main_process:
                for checkpoint in checkpoints(self.checkpoint_dir(name)).values():
                    delete_checkpoint(checkpoint)
            self.results[name] = stage.load(folder)
        return self.results[name]

    def checked_result(self, stage: Stage, users: Sequence[Stage]) -> None:
        """Loads the result of a pretrained stage, and has the stages that require it check it."""
        result = self.result(stage.name)
        for user in users:
            if stage.name in user.required():
                user.check_result(stage.name, result)

    @functools.cached_property
    def held_out(self) -> Samples | None:
        """The held-out split, `test` or else `validation`; `None` if there is neither."""
        if self.splits is None or not {"test", "validation"} & set(self.splits):
            return None
        return self.splits["test"]  # or `validation`, see `ImageSplits`

    def held_out_images(self) -> Dataset:
        """Returns the held-out images that `eval_strategy` evaluates on.

        Raises:
            ValueError: If no images are held out, or if they are streamed or tokens.
        """
        if self.held_out is None:
            raise ValueError(
                "`eval_strategy` evaluates on held-out images, but the data set has no split test "
                "or validation: add one, or remove `eval_strategy`."
            )
        images = self.splits.dataset("test")
        number = self.recipe.evaluation.get("num_images", len(images))
        return images.select(range(min(number, len(images))))

    def training_arguments(self, stage: Stage) -> TiTokTrainingArguments:
        """Returns the trainer's arguments for a stage.

        Raises:
            ValueError: If one is not valid, or `global_batch_size` is not a multiple of
                `per_device_train_batch_size` times the number of processes.
        """
        fields = dict(stage.part("training"))
        global_batch_size = fields.pop("global_batch_size", None)
        defaults = {
            "report_to": "none",
            "batch_eval_metrics": True,
            "save_total_limit": 2,
            # otherwise processes without an accelerator do not find each other
            "use_cpu": not torch.accelerator.is_available(),
            "disable_tqdm": bool(self.callbacks),
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        own = {"output_dir": str(self.checkpoint_dir(stage.name)), "seed": self.seed}
        args = TiTokTrainingArguments(**{**defaults, **fields, **own})
        if global_batch_size is not None:
            at_once = args.train_batch_size * args.world_size
            if global_batch_size < 1 or global_batch_size % at_once:
                raise ValueError(
                    f"`stages.{stage.name}.training.global_batch_size` {global_batch_size} must be a "
                    f"multiple of the {at_once} images that {args.world_size} processes take at "
                    "once: change `per_device_train_batch_size` "
                    f"({args.per_device_train_batch_size}) or the number of processes."
                )
            args.gradient_accumulation_steps = global_batch_size // at_once
        return args

    def checkpoint_dir(self, stage: str) -> Path:
        """Returns the folder for the checkpoints of a stage and other files of its trainer."""
        return self.work_dir / "checkpoints" / stage

    def train_stage(self, stage: Stage) -> None:
        """Trains a stage, from its last checkpoint if there is one, and writes its folder.

        Raises:
            OSError: If a checkpoint or the folder cannot be written.
            FloatingPointError, ValueError: See `TiTokTrainer`.
        """
        results = {name: self.result(name) for name in stage.required()}
        with PeakMemory() as memory:
            started = time.perf_counter()
            set_seed(self.seed)
            objective = stage.objective(results, self.train_samples.class_names or ())
            trainer = self.trainer(stage, objective, results)
            checkpoint = last_checkpoint(trainer.args.output_dir)
            state = None
            if checkpoint is not None:
                trainer.find_place(checkpoint)
                state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            if state is not None and state.global_step >= trainer.args.max_steps:
                # the run was stopped after the last step; `Trainer` would take one more
                if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
                    best = Path(checkpoint).with_name(Path(state.best_model_checkpoint).name)
                    trainer.load_from_checkpoint(str(best))
                else:
                    trainer.load_from_checkpoint(checkpoint)
                trainer.state = state
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
        log = {
            "seconds": time.perf_counter() - started,
            "peak_memory_gib": memory.gib,
            "resumed_from": None if checkpoint is None else Path(checkpoint).name,
            "history": trainer.state.log_history,
        }
        result = trainer.result()
        if trainer.is_world_process_zero():
            folder = self.folder(stage.name)
            try:
                with whole_folder(folder) as partial_folder:
                    self.save(stage, result, results, partial_folder)
                    logs = self.work_dir / "logs"
                    logs.mkdir(exist_ok=True)
                    (logs / f"{stage.name}.json").write_text(json.dumps(log, indent=1))
            except (OSError, SafetensorError) as error:
                raise OSError(
                    f"The stage {stage.name} is trained, but could not be written to {folder}: {error}. "
                    "Free disk space and run the same command again: it resumes from the last "
                    "checkpoint."
                ) from error
        trainer.accelerator.wait_for_everyone()

    def save(
        self, stage: Stage, network: PreTrainedModel, results: Mapping[str, Any], folder: Path
    ) -> None:
        """Writes a trained network as the result of a stage, with how it was made, to an empty folder."""
        if isinstance(network, PublishMixin):
            names = list(self.recipe.stages)
            names = names[: names.index(stage.name) + 1]
            network.provenance = {
                **network.provenance,
                "training_data": self.data_name,
                "recipe": {name: self.recipe.stages[name] for name in names},
            }
        stage.save(network, results, folder)

    def trainer(
        self, stage: Stage, objective: Objective, results: Mapping[str, Any]
    ) -> TiTokTrainer:
        """Returns the trainer of a stage, given the results of those that it requires."""
        args = self.training_arguments(stage)
        collator = stage.collator(
            self.train_samples,
            self.columns,
            args,
            folder=self.checkpoint_dir(stage.name),
            objective=objective,
        )
        evaluation: dict[str, Any] = {}
        if args.eval_strategy != "no":
            evaluation["eval_dataset"] = self.held_out_images()
            if self.make_metrics is not None and objective.predict is not None:
                evaluation["compute_metrics"] = self.make_metrics(collator.processor)
        trainer = TiTokTrainer(
            objective,
            args,
            train_dataset=self.train_samples,
            data_collator=collator,
            callbacks=self.callbacks,
            **evaluation,
        )
        if self.callbacks:
            trainer.remove_callback(PrinterCallback)
        if evaluation and self.measure is not None and stage.measured(objective.model) is not None:
            images = self.splits.dataset("train"), evaluation["eval_dataset"]
            trainer.add_callback(
                Measurements(
                    trainer, lambda network: self.measure(*stage.measured(network), *images)
                )
            )
        if args.preview_steps and (draw := stage.preview(self.held_out or self.train_samples)):
            folder = self.work_dir / "previews" / stage.name
            trainer.add_callback(Previews(trainer, args.preview_steps, folder, draw))
        if args.snapshot_steps:

            def write(network: PreTrainedModel, folder: Path) -> None:
                with whole_folder(folder) as partial_folder:
                    self.save(stage, network, results, partial_folder)

            folder = self.output_dir / SNAPSHOTS / stage.name
            trainer.add_callback(Snapshots(trainer, args.snapshot_steps, folder, write))
        return trainer
