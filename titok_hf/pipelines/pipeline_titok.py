"""Class labels to images: a masked generator predicts the tokens, the tokenizer decodes them."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download
from PIL import Image

from ..devices import parse_dtype
from ..hub.errors import explain_hub_errors
from ..hub.location import split_location
from ..hub.publish import PublishMixin
from ..modeling.checks import check_id_range, check_ids
from ..modeling.maskgit.modeling_maskgit import (
    MaskGitModel,
    MaskGitPreTrainedModel,
    MaskGitUViTModel,
)
from ..modeling.maskgit_vqgan.modeling_maskgit_vqgan import MaskGitVQGANModel
from ..modeling.titok.image_processing_titok import TiTokImageProcessor
from ..modeling.titok.modeling_titok import TiTokModel
from ..version import __version__
from .scheduling_maskgit import MaskGitScheduler, positive_integer

GuidanceSchedule = Literal["constant", "linear", "power-cosine"]
ClassLabel = int | str
# One-line modules in a saved pipeline's folder, for `trust_remote_code`.
PIPELINE_MODULE, COMPONENT_MODULE = "pipeline", "component"
CLASSES = {
    component.__name__: component
    for component in (
        TiTokModel,
        MaskGitVQGANModel,
        MaskGitModel,
        MaskGitUViTModel,
        MaskGitScheduler,
    )
}


def guidance_scale_at(
    step: int, num_inference_steps: int, guidance_scale: float, guidance_schedule: GuidanceSchedule
) -> float:
    """Returns a step's scale `s` in `unconditional + s * (conditional - unconditional)`; 1 is no
    guidance.

    With `q = step / num_inference_steps`, counted from 0, so that every schedule but the constant
    one starts at 1: `"linear"` is `1 + (guidance_scale - 1) * q`, `"power-cosine"` is `1 +
    (guidance_scale - 1) * (1 - cos(pi * q ** 3)) / 2` (MDT, arXiv 2303.14389).

    The reference writes `conditional + s * (conditional - unconditional)` for the first two
    schedules: its scale of 4.5 there is 5.5 here.

    Raises:
        ValueError: If the schedule is none of the three, or the scale no finite number.
    """
    try:
        finite = math.isfinite(guidance_scale)
    except TypeError:
        finite = False
    if not finite:
        raise ValueError(f"`guidance_scale` must be a finite number, got {guidance_scale!r}.")
    progress = step / num_inference_steps
    if guidance_schedule == "constant":
        return guidance_scale
    if guidance_schedule == "linear":
        return 1 + (guidance_scale - 1) * progress
    if guidance_schedule == "power-cosine":
        return 1 + (guidance_scale - 1) * (1 - math.cos(math.pi * progress**3)) / 2
    raise ValueError(
        f"`guidance_schedule` must be one of {', '.join(get_args(GuidanceSchedule))}, got "
        f"{guidance_schedule!r}."
    )


def unwrapped(component: Any) -> Any:
    """Returns the module in the result of `torch.compile`, or any other component as it is."""
    return getattr(component, "_orig_mod", component)


@dataclass
class TiTokPipelineOutput(BaseOutput):
    """Result of `TiTokPipeline`.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The images, in the format of `output_type`; the codes for `"codes"`.
        codes (`torch.LongTensor` of shape `(B, N)`):
            Their codes.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    codes: torch.LongTensor


class TiTokPipeline(PublishMixin, DiffusionPipeline):
    """Generates images of given classes in a few steps (TiTok, arXiv 2406.07550; MaskGIT, arXiv
    2202.04200).

    Args:
        tokenizer: Decodes the codes.
        transformer: The masked generator, which predicts the codes; its `config.id2label` holds the class names.
        scheduler: Decides what stays masked.
        num_inference_steps, guidance_scale, guidance_schedule: Defaults of `__call__`.

    Raises:
        TypeError: If a component is of another kind.
        ValueError: If the components do not fit each other, or the guidance schedule is unknown.
    """

    model_cpu_offload_seq = "transformer->tokenizer"

    def __init__(
        self,
        tokenizer: TiTokModel | MaskGitVQGANModel,
        transformer: MaskGitPreTrainedModel,
        scheduler: MaskGitScheduler,
        num_inference_steps: int = 8,
        guidance_scale: float = 5.5,
        guidance_schedule: str = "linear",
    ):
        super().__init__()
        if not hasattr(tokenizer, "decode_codes") or not isinstance(
            unwrapped(transformer), MaskGitPreTrainedModel
        ):
            raise TypeError(
                "A tokenizer that decodes codes and a masked generator are expected, got a "
                f"{type(tokenizer).__name__} and a {type(transformer).__name__}."
            )
        if isinstance(unwrapped(tokenizer), TiTokModel):
            head, quantizer = tokenizer.config.head, tokenizer.config.quantizer
            if head == "proxy_codes" or quantizer != "vq":
                raise ValueError(
                    "The tokenizer must decode codes to pixels: `quantizer='vq'` and a head other "
                    "than 'proxy_codes' "
                    f"(see `TiTokModel.with_pixel_decoder`), got {quantizer!r} and {head!r}."
                )
        for name in ("codebook_size", "num_tokens"):
            of_tokenizer, of_generator = (
                getattr(tokenizer.config, name),
                getattr(transformer.config, name),
            )
            if of_tokenizer != of_generator:
                raise ValueError(
                    f"Tokenizer and generator must have the same `{name}`, got {of_tokenizer} and "
                    f"{of_generator}."
                )
        if scheduler.config.mask_token_id != transformer.config.mask_token_id:
            raise ValueError(
                "The scheduler's `mask_token_id` must be the generator's, "
                f"{transformer.config.mask_token_id}, got {scheduler.config.mask_token_id}."
            )
        guidance_scale_at(0, 1, guidance_scale, guidance_schedule)
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        self.register_to_config(
            num_inference_steps=positive_integer(num_inference_steps, "num_inference_steps"),
            guidance_scale=float(guidance_scale),
            guidance_schedule=guidance_schedule,
        )
        self.image_processor = TiTokImageProcessor.from_image_size(tokenizer.config.image_size)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str = "", **kwargs: Any
    ) -> "TiTokPipeline":
        """Same as in diffusers, from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: The folder or repository.
            subfolder: Subfolder of the pipeline.
            kwargs: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` find a
                repository; the rest, such as components and `dtype`, goes to diffusers.

        Raises:
            OSError: If the repository does not exist, or the connection broke.
            ValueError: If it holds no pipeline, or the pipeline's parts do not fit each other.
        """
        folder = Path(pretrained_model_name_or_path)
        location, kwargs = split_location(kwargs)
        for name in ("dtype", "torch_dtype"):
            if isinstance(kwargs.get(name), str):
                kwargs[name] = parse_dtype(kwargs[name])
        if not folder.is_dir():
            if str(folder).count("/") > 1 or str(pretrained_model_name_or_path).startswith(
                (".", "/", "~")
            ):
                raise FileNotFoundError(f"There is no folder {pretrained_model_name_or_path}.")
            repo_id, prefix = (
                str(pretrained_model_name_or_path),
                f"{subfolder}/" if subfolder else "",
            )
            with explain_hub_errors(repo_id):
                # the index first, so that without one nothing large is downloaded
                folder = Path(
                    snapshot_download(repo_id, allow_patterns=prefix + cls.config_name, **location)
                )
                if (folder / subfolder / cls.config_name).exists():
                    folder = Path(
                        snapshot_download(repo_id, allow_patterns=f"{prefix}*", **location)
                    )
        if not (folder / subfolder / cls.config_name).exists():
            raise ValueError(
                f"{pretrained_model_name_or_path} holds no pipeline, which would have a "
                f"{cls.config_name}. From a "
                "tokenizer and a generator `titok convert` or `TiTokPipeline(tokenizer, generator, "
                "scheduler)` make one."
            )
        try:
            return super().from_pretrained(folder / subfolder, **kwargs)
        except OSError as error:
            raise OSError(
                f"The pipeline in {pretrained_model_name_or_path} is incomplete: {error}"
            ) from error

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Same as in diffusers, with the real modules in place of the folder's one-line modules."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        unknown = {name for name in config if not name.startswith("_")} - set(
            inspect.signature(cls).parameters
        )
        for name, value in config.items():
            if isinstance(value, list) and value[0] == COMPONENT_MODULE:
                if value[1] in CLASSES:
                    value[0] = CLASSES[value[1]].__module__
                else:
                    unknown.add(f"{name}={value[1]}")
        if unknown:
            raise ValueError(
                f"This pipeline has parts or fields that titok_hf {__version__} does not know: "
                f"{', '.join(sorted(unknown))}. Install a newer version."
            )
        return loaded

    def complete_folder(self, folder: Path) -> None:
        """Writes the one-line modules with which `DiffusionPipeline.from_pretrained(...,
        trust_remote_code=True)` loads the folder, too."""
        index = json.loads((folder / self.config_name).read_text())
        index.pop("_name_or_path", None)  # a local path
        index["_class_name"] = [PIPELINE_MODULE, type(self).__name__]
        (folder / f"{PIPELINE_MODULE}.py").write_text(
            f"from titok_hf import {type(self).__name__}\n"
        )
        for name, component in self.components.items():
            class_name = type(unwrapped(component)).__name__
            index[name] = [COMPONENT_MODULE, class_name]
            (folder / name / f"{COMPONENT_MODULE}.py").write_text(
                f"from titok_hf import {class_name}\n"
            )
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")

    def label_ids(
        self, class_labels: ClassLabel | Sequence[ClassLabel] | torch.Tensor
    ) -> list[int]:
        """Returns the ids of classes given by id or name.

        An integer is an id. A string is a whole name in `id2label`, else an id, else the only name
        that has it as one of its comma-separated parts.

        Raises:
            ValueError: If an id is out of range, or a name unknown or shared by several classes.
            TypeError: If a label is neither an integer nor a string.
        """
        if isinstance(class_labels, torch.Tensor | np.ndarray):
            class_labels = class_labels.ravel().tolist()
        elif isinstance(class_labels, int | str | np.integer):
            class_labels = [class_labels]
        config, ids = self.transformer.config, []
        for label in class_labels:
            if isinstance(label, str):
                names = config.id2label
                found = [index for index, name in names.items() if label == name]
                if not found and label in map(str, names):
                    found = [int(label)]
                found = found or [
                    index
                    for index, name in names.items()
                    if label in (part.strip() for part in name.split(","))
                ]
                if len(found) != 1:
                    near = get_close_matches(label, names.values(), n=10, cutoff=0.4)
                    shown = ", ".join(map(repr, near or list(names.values())[:10]))
                    problem = (
                        f"names the classes {found}: pass one of these ids"
                        if found
                        else "is not among them"
                    )
                    raise ValueError(
                        f"`class_labels` must be ids in [0, {config.num_labels}) or names such as "
                        f"{shown}; {label!r} {problem}."
                    )
                ids.append(found[0])
            elif isinstance(label, bool) or not isinstance(label, int | np.integer):
                raise TypeError(f"`class_labels` must be integers or class names, got {label!r}.")
            elif not 0 <= label < config.num_labels:
                raise ValueError(
                    f"`class_labels` must be in [0, {config.num_labels}), got {label}."
                )
            else:
                ids.append(int(label))
        return ids

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabel | Sequence[ClassLabel] | torch.Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: GuidanceSchedule | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_label: int = 1,
        codes: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "codes"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[
            ["TiTokPipeline", int, torch.Tensor, dict], dict[str, Any] | None
        ]
        | None = None,
    ) -> TiTokPipelineOutput | tuple:
        """Generates images.

        Args:
            class_labels: Classes, by id or name; one image each by default.
            num_inference_steps: Number of sampling steps; defaults to the pipeline's.
            guidance_scale: Scale of classifier-free guidance, 1 for none (see `guidance_scale_at`).
            guidance_schedule: `"constant"`, `"linear"` or `"power-cosine"` (see
                `guidance_scale_at`).
            generator: A `torch.Generator`, or a list or tuple with one per image. A single one draws a seed
                for each image, so images never depend on the batch size.
            num_images_per_label: Images of each label.
            codes: `(B, N)` codes to complete, with `transformer.config.mask_token_id` where a token
                is to be filled in; the other tokens stay. `B` is the number of images.
            output_type: `"pil"` for PIL images, `"np"` for a float array `(B, H, W, 3)` in [0, 1],
                `"pt"` for a float tensor `(B, 3, H, W)` in [0, 1], `"codes"` for an int64 tensor
                `(B, N)`.
            return_dict: Whether to return a `TiTokPipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: Called after each step with the pipeline, the step, the timestep
                and a dict of `"codes"` `(B, N)`, some still masked, and `"predicted_codes"` `(B,
                N)`, all of them predicted; may return a dict with changed `"codes"`.

        Raises:
            ValueError, TypeError: If a label, the codes, the number of steps or generators, the
                output type or the guidance schedule is not valid.
        """
        config = self.transformer.config
        device = self._execution_device
        num_inference_steps = (
            self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        )
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        guidance_schedule = guidance_schedule or self.config.guidance_schedule
        if output_type not in ("pil", "np", "pt", "codes"):
            raise ValueError(
                f"`output_type` must be 'pil', 'np', 'pt' or 'codes', got {output_type!r}."
            )
        num_images_per_label = positive_integer(num_images_per_label, "num_images_per_label")
        guidance_scale_at(0, 1, guidance_scale, guidance_schedule)
        labels = torch.tensor(self.label_ids(class_labels), device=device).repeat_interleave(
            num_images_per_label
        )
        if len(labels) == 0:
            raise ValueError("`class_labels` must name at least one class, got none.")
        # start from masked codes
        if codes is None:
            codes = torch.full(
                (len(labels), config.num_tokens), config.mask_token_id, device=device
            )
        else:
            check_ids(codes, "codes", (len(labels), config.num_tokens))
            check_id_range(codes, "codes", config.codebook_size + 1)
            codes = codes.to(device, torch.int64)
        # one random generator per image
        if isinstance(generator, list | tuple):
            generator = list(generator)
        each = generator if isinstance(generator, list) else [generator]
        if wrong := [one for one in each if not isinstance(one, torch.Generator | None)]:
            raise TypeError(
                "`generator` must be a `torch.Generator`, as `torch.Generator().manual_seed(42)`, "
                f"or a list with one per image, got {wrong[0]!r}."
            )
        if not isinstance(generator, list):
            source = generator.device if generator is not None else "cpu"
            seeds = torch.stack(
                [torch.randint(2**63 - 1, (), generator=generator, device=source) for _ in labels]
            )
            generator = [torch.Generator(source).manual_seed(seed) for seed in seeds.tolist()]

        # sample the codes
        scheduler = copy(self.scheduler)  # calls in other threads may take another number of steps
        scheduler.set_timesteps(num_inference_steps)
        self.scheduler.set_timesteps(num_inference_steps)  # for callbacks, which see no copy
        num_masked_at_first = (codes == config.mask_token_id).sum(-1)  # (B,)
        for step, timestep in enumerate(self.progress_bar(scheduler.timesteps.tolist())):
            scale = guidance_scale_at(step, num_inference_steps, guidance_scale, guidance_schedule)
            if scale == 1:
                logits = self.transformer(codes, labels).logits.float()  # (B, N, codebook_size)
            else:
                both = torch.cat([labels, torch.full_like(labels, config.null_label)])
                both_logits = self.transformer(torch.cat([codes, codes]), both).logits.float()
                conditional, unconditional = both_logits.chunk(2)
                logits = unconditional + scale * (conditional - unconditional)
            output = scheduler.step(
                logits, timestep, codes, num_masked_at_first, generator=generator
            )
            codes = output.prev_sample  # (B, N)
            if callback_on_step_end is not None:
                tensors = {"codes": codes, "predicted_codes": output.pred_original_sample}
                changed = callback_on_step_end(self, step, timestep, tensors) or {}
                if "codes" in changed:
                    codes = changed["codes"]
                    check_ids(codes, "codes", tuple(tensors["codes"].shape))
                    is_last = step == num_inference_steps - 1
                    check_id_range(codes, "codes", config.codebook_size + (not is_last))

        # decode the codes
        if output_type == "codes":
            images = codes
        else:
            images = self.image_processor.postprocess(
                self.tokenizer.decode(self.tokenizer.code_latents(codes)).reconstruction,
                output_type,
            )
        self.maybe_free_model_hooks()
        return TiTokPipelineOutput(images, codes) if return_dict else (images,)


__all__ = ["TiTokPipeline", "TiTokPipelineOutput", "guidance_scale_at"]
