"""Class labels to images: a masked generator predicts the tokens, the tokenizer decodes them."""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import nn

from ..modeling.checks import check_id_range, check_ids
from ..modeling.diffusers_tokenizer import DiffusersTokenizer
from ..modeling.maskgit.modeling_maskgit import (
    MaskGitModel,
    MaskGitPreTrainedModel,
    MaskGitUViTModel,
)
from ..modeling.maskgit_vqgan.modeling_maskgit_vqgan import MaskGitVQGANModel
from ..modeling.titok.image_processing_titok import TiTokImageProcessor
from ..modeling.titok.modeling_titok import TiTokModel
from .class_conditional import (
    ClassConditionalPipeline,
    ClassLabel,
    decode_latents,
    in_evaluation_mode,
    random_generators,
    unwrapped,
)
from .scheduling_maskgit import MaskGitScheduler, positive_integer

GuidanceSchedule = Literal["constant", "linear", "power-cosine"]


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


class TiTokPipeline(ClassConditionalPipeline):
    """Generates images of given classes in a few steps (TiTok, arXiv 2406.07550; MaskGIT, arXiv
    2202.04200).

    Args:
        tokenizer: Decodes the codes: a TiTok with discrete latents, a MaskGIT-VQGAN, or any other with
            `code_latents` and `decode`. A `DiffusersTokenizer` is not saved with the pipeline: pass it
            to `from_pretrained`.
        transformer: The masked generator, which predicts the codes; its `config.id2label` holds the class names.
        scheduler: Decides what stays masked.
        num_inference_steps, guidance_scale, guidance_schedule: Defaults of `__call__`.

    Raises:
        TypeError: If a component is of another kind.
        ValueError: If the components do not fit each other, or the guidance schedule is unknown.
    """

    model_cpu_offload_seq = "transformer->tokenizer"
    sampling_defaults = ("num_inference_steps", "guidance_scale", "guidance_schedule")
    component_classes = (
        TiTokModel,
        MaskGitVQGANModel,
        MaskGitModel,
        MaskGitUViTModel,
        MaskGitScheduler,
    )

    def __init__(
        self,
        tokenizer: TiTokModel | MaskGitVQGANModel | DiffusersTokenizer,
        transformer: MaskGitPreTrainedModel,
        scheduler: MaskGitScheduler,
        num_inference_steps: int = 8,
        guidance_scale: float = 5.5,
        guidance_schedule: str = "linear",
    ):
        super().__init__()
        if not hasattr(tokenizer, "code_latents") or not isinstance(
            unwrapped(transformer), MaskGitPreTrainedModel
        ):
            raise TypeError(
                "A tokenizer with `code_latents` and a masked generator are expected, got a "
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

    def networks(self) -> dict[str, tuple[nn.Module, Callable[..., torch.Tensor]]]:
        """See the base class."""
        return {
            "transformer": (self.transformer, lambda model, *ids: model(*ids).logits),
            "tokenizer": (self.tokenizer, decode_latents),
        }

    @torch.no_grad()
    @in_evaluation_mode
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
        callback_on_step_end: Callable[["TiTokPipeline", int, int, dict], dict[str, Any] | None]
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
        labels = self.repeated_labels(class_labels, num_images_per_label, device)  # (B,)
        # start from masked codes
        if codes is None:
            codes = torch.full(
                (len(labels), config.num_tokens), config.mask_token_id, device=device
            )
        else:
            check_ids(codes, "codes", (len(labels), config.num_tokens))
            check_id_range(codes, "codes", config.codebook_size + 1)
            codes = codes.to(device, torch.int64)
        generator = random_generators(generator, len(labels))

        # sample the codes
        scheduler = copy(self.scheduler)  # calls in other threads may take another number of steps
        scheduler.set_timesteps(num_inference_steps)
        self.scheduler.set_timesteps(num_inference_steps)  # for callbacks, which see no copy
        num_masked_at_first = (codes == config.mask_token_id).sum(-1)  # (B,)
        transformer = self.network("transformer")
        for step, timestep in enumerate(self.progress_bar(scheduler.timesteps.tolist())):
            scale = guidance_scale_at(step, num_inference_steps, guidance_scale, guidance_schedule)
            if scale == 1:
                logits = transformer(codes, labels).float()  # (B, N, codebook_size)
            else:
                both = torch.cat([labels, torch.full_like(labels, config.null_label)])
                both_logits = transformer(torch.cat([codes, codes]), both).float()
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
            self.onload_tokenizer()
            images = self.image_processor.postprocess(
                self.network("tokenizer")(self.tokenizer.code_latents(codes)), output_type
            )
        self.maybe_free_model_hooks()
        return TiTokPipelineOutput(images, codes) if return_dict else (images,)


__all__ = ["TiTokPipeline", "TiTokPipelineOutput", "guidance_scale_at"]
