"""`Trainer` for objectives: resumable data order, optimizer groups and gradient norms per network,
and every term of the loss in the log."""

import copy
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    get_scheduler,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import HubStrategy

from ..data.collator import FeatureCollator, ImageCollator
from ..data.decoding import decode_image, decoder_for
from ..data.loader import TrainingLoader
from ..data.rows import IterableRows, evaluation_data, training_data
from ..hub.folders import whole_file
from ..hub.provenance import inherit_provenance
from .arguments import TiTokTrainingArguments
from .checkpoints import WholeCheckpoints
from .monitoring import Finiteness, HealthWarnings
from .objectives import Objective
from .open_trainer import OpenTrainer
from .place import KeptPlace
from .steps import Steps
from .throughput import Throughput

logger = logging.getLogger(__name__)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Returns whether weight decay applies to a parameter: to matrices and kernels, but not to
    gains, biases, embeddings, tokens and codes."""
    return parameter.ndim >= 2 and not any(
        word in name for word in ("embedding", "token", "codebook", "norm")
    )


class TiTokTrainer(KeptPlace, WholeCheckpoints, OpenTrainer):
    """Trains an `Objective`.

    The order of the images is a function of the seed and the step. A run resumed from a checkpoint
    sees the same images as an uninterrupted one. If the images can be read in any order, the number
    of processes and of accumulated batches does not matter either. Resumed with another batch size,
    or from shards with another number of processes or workers, it sees the images of the epoch that
    it has not seen yet. An unreadable image is replaced
    by the next one and listed in `unreadable.jsonl` in the output folder; a truncated shard is
    listed too and counts as one image.

    Args:
        model: The objective.
        args: `TiTokTrainingArguments`.
        data_collator: An `ImageCollator`, or any function that turns a list of features (rows of
            the data set) into a batch: the arguments of the objective's `forward`.
        train_dataset: A split of `titok_hf.data.open_images`; a `Dataset` of any format; or rows
            that are dictionaries: an `IterableDataset` of `datasets` or torch, a list, or a
            map-style data set of torch. Iterables are read in their own order and need `max_steps`;
            a resumed run reads again what it has seen. Not needed for evaluation.
        eval_dataset: The same, but no shards; or several by name.
        kwargs: Further arguments of `transformers.Trainer`. `compute_metrics` gets what the
            objective's `predict` returns: reconstructions and images, see
            `titok_hf.evaluation.ReconstructionMetrics`, or other predictions and targets.
            `processing_class` is published with the network and defaults to the processor of an
            `ImageCollator`.

    Raises:
        TypeError: If `compute_metrics` is given, but the objective makes no predictions.
        ValueError: During training, if there is no `train_dataset`, or more images than
            `args.max_unreadable` are unreadable.
        FloatingPointError: During training, if a loss, gradient or weight is not finite.
        OSError: During training, if a checkpoint cannot be written.
    """

    def __init__(
        self,
        model: Objective,
        args: TiTokTrainingArguments,
        data_collator: ImageCollator | Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        train_dataset: Any = None,
        **kwargs: Any,
    ):
        if kwargs.get("compute_metrics") is not None and model.predict is None:
            raise TypeError(
                f"`compute_metrics` needs predictions, but a {type(model).__name__} makes none."
            )
        args = copy.copy(args)  # the changes below must not reach the caller
        self.takes_images = isinstance(data_collator, ImageCollator)
        columns = (None, None, None)
        if self.takes_images:
            columns = (
                data_collator.image_column,
                data_collator.label_column,
                data_collator.text_column,
            )
        self.train_samples = training_data(train_dataset, *columns)
        if kwargs.get("eval_dataset") is not None:
            kwargs["eval_dataset"] = evaluation_data(kwargs["eval_dataset"], self.takes_images)
        self.global_batch_size = (
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self.samples_to_see = None
        if isinstance(self.train_samples, IterableRows):
            if args.max_steps <= 0:
                raise ValueError(
                    "The number of rows of an iterable data set is unknown: set `max_steps`."
                )
            self.num_samples = args.max_steps * self.global_batch_size
        elif self.train_samples is not None:
            self.num_samples = len(self.train_samples)
        if args.max_steps <= 0 and self.train_samples is not None:
            self.samples_to_see = args.num_train_epochs * self.num_samples
            args.max_steps = math.ceil(self.samples_to_see / self.global_batch_size)
        args.remove_unused_columns = False  # the collator needs columns that no network does
        args.ignore_data_skip = True  # the loader itself starts at the run's step
        if args.torch_compile:
            for module in model.model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
            # otherwise accelerate would compile the whole objective, which fails with adversarial
            # losses
            args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = (
                False,
                None,
                None,
            )
        super().__init__(
            model, args, train_dataset=self.train_samples, data_collator=data_collator, **kwargs
        )
        self.unreadable: dict[str, str] = {}
        self.unreadable_file = Path(args.output_dir) / "unreadable.jsonl"
        if self.unreadable_file.exists():  # written before the run was resumed
            lines = map(json.loads, self.unreadable_file.read_text().splitlines())
            self.unreadable = {line["key"]: line["reason"] for line in lines}
        self.throughput = Throughput(self.accelerator)
        self.finiteness = Finiteness(self.accelerator)
        for callback in (Steps(self), self.throughput, HealthWarnings()):
            self.add_callback(callback)
        self.model_accepts_loss_kwargs = False
        self.log_sums: dict[str, torch.Tensor] = {}
        self.counts: Counter[str] = Counter()

    def get_train_dataloader(self) -> TrainingLoader:
        if self.train_samples is None:
            raise ValueError("Training needs a `train_dataset`.")
        args, collator = self.args, self.data_collator
        decode = decode_image
        if self.takes_images:
            decode = decoder_for(collator.processor)
        else:
            collator = FeatureCollator(collator, self.train_samples)
        self.loader = TrainingLoader(
            self.train_samples,
            collator.collate,
            batch_size=args.train_batch_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            world_size=args.world_size,
            accumulated=args.gradient_accumulation_steps,
            num_draws=self.model.num_draws,
            shuffle_buffer=args.shuffle_buffer,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory and torch.accelerator.is_available(),
            decode=decode,
            captioned=not self.takes_images or collator.text_column is not None,
            legs=self.legs,
        )
        return self.loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if not isinstance(eval_dataset, str | None):
            eval_dataset = evaluation_data(eval_dataset, self.takes_images)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(evaluation_data(test_dataset, self.takes_images))

    def get_batch_samples(
        self,
        epoch_iterator: Iterator[dict[str, torch.Tensor]],
        num_batches: int,
        device: torch.device,
    ) -> tuple[list[dict[str, torch.Tensor]], None]:
        """Returns the batches of an optimizer step, each with the weight of its loss if the weights
        differ."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        for batch in batches:
            self.model.check_batch(batch)
        weights = self.model.batch_weights(batches)
        if weights is not None:
            weights = weights.to(device)
            weights = weights / self.accelerator.gather(weights).mean()
            batches = [
                batch | {"weight": weight} for batch, weight in zip(batches, weights, strict=True)
            ]
        return batches, None

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Creates one schedule per network, which starts when the network's training does."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if isinstance(scheduler, LambdaLR):
            schedules = []
            for group in scheduler.optimizer.param_groups:
                start = self.model.start_steps.get(group["network"], 0)
                length = max(num_training_steps - start, 1)
                own = get_scheduler(
                    self.args.lr_scheduler_type,
                    torch.optim.SGD([nn.Parameter(torch.empty(0))], lr=group["initial_lr"]),
                    self.args.get_warmup_steps(length),
                    length,
                    self.args.lr_scheduler_kwargs,
                ).lr_lambdas[0]
                schedules.append(lambda step, own=own, start=start: own(max(step - start, 0)))
            self.lr_scheduler = LambdaLR(scheduler.optimizer, schedules)
        return self.lr_scheduler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        groups = []
        for network, module in self.model.networks():
            parameters = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
            for decayed in (True, False):
                groups.append(
                    {
                        "network": network,
                        "params": [p for n, p in parameters if is_decayed(n, p) == decayed],
                        "lr": getattr(
                            self.args, f"{network}_learning_rate", self.args.learning_rate
                        ),
                        "weight_decay": self.args.weight_decay if decayed else 0.0,
                    }
                )
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    def load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads the states as `Trainer` does, but takes learning rates, weight decay and betas from
        `args`, which may have changed since the checkpoint. Warns if the checkpoint has no state
        for this optimizer; the schedule goes on nevertheless."""
        own = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        scheduler = self.lr_scheduler
        if checkpoint is None or (lost := self.lost_state(Path(checkpoint))) is None:
            super().load_optimizer_and_scheduler(checkpoint)
        else:
            if self.is_world_process_zero():
                logger.warning("%s", lost)
            if isinstance(scheduler, LambdaLR):
                scheduler.last_epoch = self.place["step"]
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in own]
            scheduler._last_lr = [
                rate * schedule(scheduler.last_epoch)
                for rate, schedule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate

    def clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        groups = itertools.groupby(self.optimizer.param_groups, key=lambda group: group["network"])
        norms = {}
        for network, group in groups:
            parameters = [parameter for part in group for parameter in part["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
            norms[f"grad_norm_{network}"] = (
                norm.full_tensor() if isinstance(norm, DTensor) else norm
            )  # a DTensor under FSDP
        if self.accelerator.scaler is None:  # a scaler skips steps with non-finite gradients
            self.finiteness.observe(self.state.global_step + 1, norms)
        self.add_to_log(norms)
        return torch.stack([*norms.values()]).norm()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        weight = inputs.pop("weight", 1.0)
        output = model(**inputs, step=self.state.global_step)
        if model.training:
            logged = output.logged_losses or {}
            self.add_to_log(logged)
            self.finiteness.observe(self.state.global_step + 1, {"loss": output.loss, **logged})
        loss = weight * output.loss
        return (loss, output) if return_outputs else loss

    def add_to_log(self, scalars: dict[str, torch.Tensor]) -> None:
        """Adds scalars to the means of the next log entry."""
        for name, value in scalars.items():
            self.log_sums[name] = self.log_sums.get(name, 0) + value.detach()
            self.counts[name] += 1

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Returns the loss, and the objective's predictions and targets for `compute_metrics`."""
        inputs = self.prepare_inputs(inputs)
        self.model.check_batch(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
            if prediction_loss_only or self.model.predict is None:
                return loss, None, None
            return loss, *self.model.predict(inputs)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        with self.throughput.batch(self.args.train_batch_size):
            return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as `Trainer` does, with the same random numbers each time and without affecting
        those of the training."""
        device = self.accelerator.device
        with (
            self.throughput.paused(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.finiteness.check(self.state.global_step, self.args.output_dir, self.model)
        self.check_unreadable()
        with self.throughput.paused():
            super().save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.log_sums:
            self.finiteness.check(self.state.global_step, self.args.output_dir)
            means = torch.stack(
                [total / self.counts[name] for name, total in self.log_sums.items()]
            )
            means = self.accelerator.gather(means[None]).mean(0)
            logs |= dict(zip(self.log_sums, means.tolist(), strict=True))
            logs |= {name: float(value) for name, value in self.model.statistics().items()}
            logs |= self.throughput.entries()
            self.log_sums.clear()
            self.counts.clear()
            self.check_unreadable()
            if self.unreadable:
                logs["unreadable_images"] = len(self.unreadable)
        super().log(logs, start_time)

    def check_unreadable(self) -> None:
        """Lists unreadable images in a file, and raises an error if there are too many."""
        for found in gather_object([self.loader.unreadable]):
            self.unreadable |= found
        if not self.unreadable:
            return
        if self.is_world_process_zero():
            lines = [
                json.dumps({"key": key, "reason": reason}) + "\n"
                for key, reason in sorted(self.unreadable.items())
            ]
            with whole_file(self.unreadable_file) as partial_file:
                partial_file.write_text("".join(lines))
        if len(self.unreadable) > self.args.max_unreadable * self.num_samples:
            key, reason = next(iter(self.unreadable.items()))
            raise ValueError(
                f"{len(self.unreadable)} of {self.num_samples} images could not be read, more than "
                f"the share of {self.args.max_unreadable:g} that `max_unreadable` allows; "
                f"{self.unreadable_file} lists them, such as {key}: {reason}"
            )

    def result(self) -> PreTrainedModel | None:
        """Returns the network to keep, see `Objective.result`. Under FSDP, it is an unsharded copy,
        on the main process only."""
        network = self.model.result
        if not self.is_fsdp_enabled:
            return network
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state_dict = get_model_state_dict(network, options=options)
        if not self.is_world_process_zero():
            return None
        whole = type(network)(network.config).eval()
        inherit_provenance(whole, network)
        whole.load_state_dict(state_dict)
        return whole

    def push_to_hub(
        self,
        commit_message: str | None = None,
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | None:
        """Publishes the network to keep, its model card and the image processor in the repository
        `args.hub_model_id`.

        Args:
            commit_message: Message of the commit.
            token: Access token; defaults to `args.hub_token`.
            revision: Branch; defaults to `args.hub_revision`.
            private: Whether a new repository is private; defaults to `args.hub_private_repo`.

        Returns:
            The commit; `None` on all processes but the main one.

        Raises:
            OSError: If the Hub refuses, or the connection breaks.
        """
        result = self.result()
        if not self.is_world_process_zero():
            return None
        repo_id = self.args.hub_model_id or Path(self.args.output_dir).name
        where = {
            "commit_message": commit_message,
            "token": token or self.args.hub_token,
            "revision": revision or self.args.hub_revision,
            "private": self.args.hub_private_repo if private is None else private,
        }
        commit = result.push_to_hub(repo_id, **where)
        processor = self.processing_class or getattr(self.data_collator, "processor", None)
        if processor is not None:
            processor.push_to_hub(repo_id, **where)
        return commit

    def push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes at each checkpoint, if `args.push_to_hub` and the strategy is not `"end"`; if
        the Hub is unreachable, training continues."""
        if self.args.hub_strategy != HubStrategy.END:
            try:
                self.push_to_hub(f"Training in progress, step {self.state.global_step}")
            except OSError as error:
                logger.warning("Step %d could not be published: %s", self.state.global_step, error)
