"""The objective of VTP's pre-training: contrast, self-supervision and reconstruction together (arXiv
2512.13687)."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..modeling.vtp import VTPModel, VTPVisionOutput
from .alignment import Alignment
from .contrast import contrastive_loss, sigmoid_loss
from .equivariance import Transformation, halved
from .losses import adaptive_weight, at_least_float32
from .noise import branch_scales, noisy_latents
from .objectives import Objective, ObjectiveOutput
from .perceptual import PerceptualLoss
from .self_supervision import (
    Centering,
    DINOHead,
    Teacher,
    dino_losses,
    ibot_loss,
    koleo_loss,
    sinkhorn_targets,
)

LARGEST_LOGIT_SCALE = math.log(100)  # as in CLIP and OpenCLIP


class VTPPretrainingObjective(Objective):
    """Stage `vtp_pretraining`: `reconstruction_weight * reconstruction + ssl_weight *
    self_supervision + clip_weight * contrast` (VTP, section 3).

    - Reconstruction is the mean absolute error plus `perceptual_weight * perceptual`, through the
      bottleneck. Four switches make its latents easier to learn for a generator: alignment,
      equivariance, scale equivariance, and noise.
    - Self-supervision is DINO plus iBOT plus `koleo_weight * KoLeo`, as in DINOv2 with one head for
      both.
    - Contrast is CLIP's loss or SigLIP's over all processes.

    An objective of weight 0 costs nothing: its modules do not exist or are frozen, and batches need
    not hold its part.

    Args:
        model: A VTP with a decoder if there is reconstruction, and a text encoder if there is
            contrast.
        head: The head of self-supervision.
        perceptual: The perceptual loss of images in [0, 1]; required if `perceptual_weight` is not 0
            and there is reconstruction.
        reconstruction_weight, ssl_weight, clip_weight: Weights of the three losses. VTP's paper has
            0.1, 1 and 1.
        perceptual_weight: Weight of the perceptual loss within reconstruction; inferred.
        pixel_scale: Pixels of the mean absolute error: `"normalized"` by ImageNet's mean and standard
            deviation, as VTP's decoder predicts them, or `"unit"`, in [0, 1]. Normalized errors are
            about 4.4 times those in [0, 1], and 2.2 times those in [-1, 1].
        koleo_weight: Weight of KoLeo within self-supervision, as in DINOv2.
        contrast: `"softmax"`, CLIP's loss, or `"sigmoid"`, SigLIP's, for models with a logit bias.
        centering: How the teacher's targets are kept from collapsing: `"sinkhorn"`, or `"mean"`,
            minus their moving average.
        student_temperature: Temperature of the student's logits.
        initial_teacher_temperature, teacher_temperature: Temperature of the teacher's logits, which
            rises linearly from the first to the second over `teacher_temperature_steps`.
        teacher_momentum, final_teacher_momentum: Decay of the teacher, which follows a cosine from
            the first to the second; constant if they are equal, as DINOv3's.
        frozen_prototype_steps: Number of steps in which the last layer of the head is frozen.
        clip_drop_rate, ssl_drop_rate, reconstruction_drop_rate: Stochastic depth of the student in
            each of its forward passes: the probability that a branch of a block is left out for an
            image. Contrast and reconstruction share a forward pass if their rates are equal.
        num_local_crops: Number of local crops in batches; only for the number of draws.
        alignment: Alignment of the latents with a foundation model (VA-VAE, arXiv 2501.01423).
        alignment_weight: Its weight within reconstruction, times the adaptive weight of
            `titok_hf.training.losses.adaptive_weight` at the bottleneck. VA-VAE has 0.1, and 0.5 at
            first.
        equivariance_probability: Probability that a step scales and rotates its latents and decodes
            them to images treated alike (EQ-VAE, arXiv 2502.09509, which has 0.5).
        prior_probability: Probability that another step scales its images, in EQ-VAE.
        scale_equivariance_weight: Weight, within reconstruction, of the same loss of latents and images
            at half their size (SER, arXiv 2502.14831).
        latent_noise: Largest standard deviation of noise on the latents, in multiples of that of the
            image's latents; that of an image is uniform below (as RAE, arXiv 2510.11690, does for its
            decoder, and in the spirit of denoising tokenizers, arXiv 2507.15856).
        ema_decay: See `Objective`.
    """

    def __init__(
        self,
        model: VTPModel,
        head: DINOHead | None = None,
        perceptual: PerceptualLoss | None = None,
        reconstruction_weight: float = 0.1,
        ssl_weight: float = 1.0,
        clip_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        pixel_scale: Literal["normalized", "unit"] = "normalized",
        koleo_weight: float = 0.1,
        contrast: Literal["softmax", "sigmoid"] = "softmax",
        centering: Literal["sinkhorn", "mean"] = "sinkhorn",
        student_temperature: float = 0.1,
        initial_teacher_temperature: float = 0.04,
        teacher_temperature: float = 0.07,
        teacher_temperature_steps: int = 0,
        teacher_momentum: float = 0.994,
        final_teacher_momentum: float = 0.994,
        frozen_prototype_steps: int = 0,
        clip_drop_rate: float = 0.0,
        ssl_drop_rate: float = 0.0,
        reconstruction_drop_rate: float = 0.0,
        num_local_crops: int = 8,
        alignment: Alignment | None = None,
        alignment_weight: float = 0.0,
        equivariance_probability: float = 0.0,
        prior_probability: float = 0.25,
        scale_equivariance_weight: float = 0.0,
        latent_noise: float = 0.0,
        ema_decay: float = 0.0,
    ):
        for name, value, known in (
            ("pixel_scale", pixel_scale, ("normalized", "unit")),
            ("contrast", contrast, ("softmax", "sigmoid")),
            ("centering", centering, ("sinkhorn", "mean")),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}, got {value!r}.")
        config = model.config
        if not reconstruction_weight:
            self.predict = None
        for name, weight, part, there in (
            ("reconstruction_weight", reconstruction_weight, "has_decoder", config.has_decoder),
            ("clip_weight", clip_weight, "has_text", config.has_text),
        ):
            if bool(weight) != there:
                raise ValueError(
                    f"`{name}` is {weight}, so the model must have `{part}={bool(weight)}`."
                )
        if clip_weight and (contrast == "sigmoid") != config.logit_bias:
            raise ValueError(
                "`logit_bias` of the model and `contrast='sigmoid'` go together, got "
                f"{config.logit_bias} and {contrast!r}."
            )
        if bool(ssl_weight) != (head is not None):
            raise ValueError(f"`head` must be given if `ssl_weight` is not 0, got {ssl_weight}.")
        if reconstruction_weight and bool(perceptual_weight) != (perceptual is not None):
            raise ValueError(
                f"`perceptual` must be given if `perceptual_weight` is not 0, got {perceptual_weight}."
            )
        if bool(alignment_weight) != (alignment is not None):
            raise ValueError(
                f"`alignment` must be given if `alignment_weight` is not 0, got {alignment_weight}."
            )
        # weights that no loss reaches
        if not ssl_weight:
            model.vision_encoder.mask_token.requires_grad_(False)
        if not reconstruction_weight and not (clip_weight and config.bottleneck_everywhere):
            model.vision_encoder.bottleneck.requires_grad_(False)
        super().__init__(model, ema_decay)
        self.head = head
        self.teacher = None if head is None else Teacher(model, head)
        self.centerings = None
        if head is not None and centering == "mean":
            num_prototypes = head.prototypes.out_features
            self.centerings = nn.ModuleDict(
                {name: Centering(num_prototypes) for name in ("dino", "ibot")}
            )
        self.perceptual = perceptual
        self.alignment = alignment
        self.alignment_weight = alignment_weight
        self.equivariance_probability = equivariance_probability
        self.prior_probability = prior_probability
        self.scale_equivariance_weight = scale_equivariance_weight
        self.latent_noise = latent_noise
        self.reconstruction_weight = reconstruction_weight
        self.ssl_weight = ssl_weight
        self.clip_weight = clip_weight
        self.perceptual_weight = perceptual_weight
        self.pixel_scale = pixel_scale
        self.koleo_weight = koleo_weight
        self.contrast = contrast
        self.student_temperature = student_temperature
        self.initial_teacher_temperature = initial_teacher_temperature
        self.teacher_temperature = teacher_temperature
        self.teacher_temperature_steps = teacher_temperature_steps
        self.teacher_momentum = teacher_momentum
        self.final_teacher_momentum = final_teacher_momentum
        self.frozen_prototype_steps = frozen_prototype_steps
        self.clip_drop_rate = clip_drop_rate
        self.ssl_drop_rate = ssl_drop_rate
        self.reconstruction_drop_rate = reconstruction_drop_rate
        self.id_limits = {"input_ids": config.text_vocab_size}
        # one column of draws for each branch of each block, in each forward pass of an image
        passes = (
            int(bool(clip_weight and clip_drop_rate)),
            int(bool(reconstruction_weight and reconstruction_drop_rate)),
            (2 + num_local_crops) * int(bool(ssl_weight and ssl_drop_rate)),
        )
        branches = 2 * config.vision_num_hidden_layers
        self.draws_of_pass = [branches * count for count in passes]
        places = (config.image_size // config.patch_size) ** 2
        self.draws_of_pass.append((1 + config.latent_dim * places) * int(bool(latent_noise)))
        self.num_draws = sum(self.draws_of_pass)
        for name, values in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().networks()
        if self.head is not None:
            yield "head", self.head
        if self.alignment is not None:
            yield "alignment", self.alignment

    def check_batch(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Checks the ids of a batch; images are normalized, so that they have no range."""
        super().check_batch({name: batch[name] for name in self.id_limits if name in batch})

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes and decodes normalized images `(B, 3, H, W)`."""
        return self.result.decode(self.result.encode(pixel_values).latents).reconstruction

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns reconstructions `(B, 3, H, W)` and the images."""
        return self.reconstruct(inputs["pixel_values"]), inputs["pixel_values"]

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        captions_cut: torch.Tensor | None = None,
        reconstruction_rows: torch.Tensor | None = None,
        ssl_rows: torch.Tensor | None = None,
        global_crops: torch.Tensor | None = None,
        local_crops: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        masked_indices: torch.Tensor | None = None,
        mask_weights: torch.Tensor | None = None,
        draws: torch.Tensor | None = None,
        step: int = 0,
    ) -> ObjectiveOutput:
        """Maps a batch of `PretrainingCollator` to the loss; without crops, as in evaluation, there
        is no self-supervision. `step` counts from 0."""
        logged: dict[str, torch.Tensor] = {}
        loss, vision = 0.0, None
        layers = self.model.config.vision_num_hidden_layers
        if draws is not None:
            of_passes = draws.split(self.draws_of_pass, dim=1)
            for_clip, for_reconstruction, for_ssl, for_noise = of_passes

        # contrast
        if self.clip_weight:
            scales = None
            if draws is not None and self.clip_drop_rate:
                scales = branch_scales(for_clip, self.clip_drop_rate, layers)
            vision = self.model.get_vision_features(pixel_values, branch_scales=scales)
            logged["clip_loss"] = self.contrastive_loss(vision, input_ids, logged)
            loss = loss + self.clip_weight * logged["clip_loss"]
            if captions_cut is not None:
                logged["captions_cut"] = captions_cut.float().mean()

        # reconstruction
        if self.reconstruction_weight:
            rows = slice(None) if reconstruction_rows is None else reconstruction_rows
            # without contrast, the batch holds no other images
            images = pixel_values[rows] if self.clip_weight else pixel_values  # (R, 3, H, W)
            transformation = None
            if self.training and self.equivariance_probability:
                transformation = Transformation.draw(
                    step, self.equivariance_probability, self.prior_probability
                )
            scaled = transformation is not None and not transformation.of_latents
            if scaled:
                patch = self.model.config.patch_size
                height, width = (side // patch for side in images.shape[2:])
                places = transformation.places(height, width)
                images = transformation.apply(images, tuple(patch * count for count in places))
            shared = self.clip_drop_rate == self.reconstruction_drop_rate and not scaled
            if vision is not None and shared:
                patch_tokens = vision.patch_tokens[rows]  # (R, N, D)
            else:
                scales = None
                if draws is not None and self.reconstruction_drop_rate:
                    scales = branch_scales(
                        for_reconstruction[rows], self.reconstruction_drop_rate, layers
                    )
                patch_tokens = self.model.get_vision_features(
                    images, branch_scales=scales
                ).patch_tokens
            noise = None
            if self.latent_noise and draws is not None and not scaled:
                noise = for_noise[rows]
            reconstruction_loss = self.reconstruction_loss(
                patch_tokens,
                images,
                noise=noise,
                transformation=None if scaled else transformation,
                logged=logged,
            )
            loss = loss + self.reconstruction_weight * reconstruction_loss

        # self-supervision
        if self.ssl_weight and global_crops is not None:
            scales = None
            if draws is not None and self.ssl_drop_rate:
                scales = branch_scales(for_ssl[ssl_rows], self.ssl_drop_rate, layers)
            ssl_loss = self.self_supervised_loss(
                global_crops,
                local_crops,
                patch_mask=patch_mask,
                masked_indices=masked_indices,
                mask_weights=mask_weights,
                scales=scales,
                step=step,
                logged=logged,
            )
            loss = loss + self.ssl_weight * ssl_loss
        return ObjectiveOutput(loss=loss, logged_losses=logged)

    def contrastive_loss(
        self,
        vision: VTPVisionOutput,
        input_ids: torch.Tensor,
        logged: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Returns the contrastive loss of images and their captions."""
        image_embeds = self.model.embed_vision(vision)  # (B, E)
        text_embeds = self.model.get_text_features(input_ids)  # (B, E)
        logit_scale = at_least_float32(self.model.logit_scale).exp()  # (1,)
        logged["logit_scale"] = logit_scale.mean()
        with torch.no_grad():
            best = (image_embeds @ text_embeds.T).argmax(1)
            matches = best == torch.arange(len(best), device=best.device)
            logged["clip_accuracy"] = matches.float().mean()
        if self.contrast == "softmax":
            return contrastive_loss(image_embeds, text_embeds, logit_scale)
        return sigmoid_loss(image_embeds, text_embeds, logit_scale, self.model.logit_bias)

    def reconstruction_loss(
        self,
        patch_tokens: torch.Tensor,
        images: torch.Tensor,
        noise: torch.Tensor | None,
        transformation: Transformation | None,
        logged: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Returns the reconstruction loss of patch tokens `(R, N, D)` and their normalized images.

        Args:
            patch_tokens, images: `(R, N, D)` and `(R, 3, H, W)`.
            noise: Draws of the latents' noise `(R, 1 + C * h * w)`, if there is any.
            transformation: Transformation of latents and images, if there is any.
            logged: Takes the terms of the loss.
        """
        patch = self.model.config.patch_size
        height, width = (side // patch for side in images.shape[2:])
        latents = self.model.to_latents(patch_tokens, height, width)  # (R, C, h, w)
        decoded, targets = latents, images
        if noise is not None:
            decoded = noisy_latents(decoded, noise, self.latent_noise)
        if transformation is not None:
            places = transformation.places(height, width)
            decoded = transformation.apply(decoded, places)
            targets = transformation.apply(targets, tuple(patch * count for count in places))
        loss = self.distance(decoded, targets, logged)
        if self.scale_equivariance_weight:
            logged["scale_equivariance_loss"] = self.distance(halved(latents), halved(images), {})
            loss = loss + self.scale_equivariance_weight * logged["scale_equivariance_loss"]
        if self.alignment is not None:
            aligned, terms = self.alignment(latents, images * self.std + self.mean)
            logged |= terms
            weight = self.alignment_weight
            if torch.is_grad_enabled():
                bottleneck = self.model.vision_encoder.bottleneck.weight
                weight = weight * adaptive_weight(loss, aligned, bottleneck)
            loss = loss + weight * aligned
        return loss

    def distance(
        self, latents: torch.Tensor, images: torch.Tensor, logged: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the distance of the images decoded from latents `(R, C, h, w)` to normalized images."""
        reconstruction = at_least_float32(self.model.decode(latents).reconstruction)
        targets = images
        in_unit_range = [x * self.std + self.mean for x in (reconstruction, images)]
        if self.pixel_scale == "unit":
            reconstruction, targets = in_unit_range
        loss = logged["l1_loss"] = F.l1_loss(reconstruction, targets)
        if self.perceptual is not None:
            logged["perceptual_loss"] = self.perceptual(*in_unit_range)
            loss = loss + self.perceptual_weight * logged["perceptual_loss"]
        return loss

    def self_supervised_loss(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor,
        patch_mask: torch.Tensor,
        masked_indices: torch.Tensor,
        mask_weights: torch.Tensor,
        scales: torch.Tensor | None,
        step: int,
        logged: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Returns DINO's, iBOT's and KoLeo's loss of the crops of `S` images; see
        `PretrainingCollator.collate`."""
        num_local, size = local_crops.shape[:2]
        crops = global_crops.flatten(0, 1)  # (2 S, 3, G, G)
        masked = masked_indices.numel()
        parts = [2 * size, masked]

        # teacher
        with torch.no_grad():
            seen = self.teacher.vision_encoder(crops)
            features = [seen.cls_token, seen.patch_tokens.flatten(0, 1)[masked_indices]]
            logits = self.teacher.head(torch.cat(features)).split(parts)  # (2 S, K), (M, K)
            temperature = self.temperature(step)
            dino_targets, ibot_targets = (
                self.targets(name, of_kind, temperature)
                for name, of_kind in zip(("dino", "ibot"), logits, strict=True)
            )

        # student
        of_global, of_local = (
            (None, None) if scales is None else scales.split([2 * size, num_local * size], dim=-1)
        )
        student = self.model.get_vision_features(
            crops, patch_mask.flatten(0, 1), branch_scales=of_global
        )
        features = [student.cls_token, student.patch_tokens.flatten(0, 1)[masked_indices]]
        if num_local:
            local = self.model.get_vision_features(
                local_crops.flatten(0, 1), branch_scales=of_local
            )
            features.append(local.cls_token)  # (L S, D)
            parts = [*parts, num_local * size]
        global_logits, patch_logits, *local_logits = self.head(torch.cat(features)).split(parts)
        empty = global_logits.new_empty(0, size, global_logits.shape[-1])
        local_logits = local_logits[0].unflatten(0, (-1, size)) if num_local else empty

        # losses
        logged["dino_local_loss"], logged["dino_global_loss"] = dino_losses(
            dino_targets.unflatten(0, (2, size)),
            global_logits.unflatten(0, (2, size)),
            local_logits,
            self.student_temperature,
        )
        logged["ibot_loss"] = ibot_loss(
            ibot_targets,
            patch_logits,
            mask_weights,
            num_crops=2 * size,
            temperature=self.student_temperature,
        )
        loss = logged["dino_local_loss"] + logged["dino_global_loss"] + logged["ibot_loss"]
        if self.koleo_weight:
            # the crops of an image would be each other's neighbors
            first, second = student.cls_token.unflatten(0, (2, size))
            logged["koleo_loss"] = koleo_loss(first) + koleo_loss(second)
            loss = loss + self.koleo_weight * logged["koleo_loss"]

        # signs of a collapse
        with torch.no_grad():
            entropy = -torch.xlogy(dino_targets, dino_targets).sum(-1).mean()
            logged["teacher_entropy"] = entropy / math.log(dino_targets.shape[-1])
            unit = F.normalize(at_least_float32(seen.cls_token), dim=-1)  # (2 S, D)
            spread = unit.var(0, correction=0).sum().sqrt()
            logged["feature_deviation"] = spread
        return loss

    def temperature(self, step: int) -> float:
        """Returns the teacher's temperature at a step."""
        steps = self.teacher_temperature_steps
        progress = step / steps if step < steps else 1.0
        first, last = self.initial_teacher_temperature, self.teacher_temperature
        return first + progress * (last - first)

    def targets(self, name: str, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Returns the targets `(M, K)` of the teacher's logits `(M, K)`."""
        if self.centerings is None:
            return sinkhorn_targets(logits, temperature)
        targets = self.centerings[name](logits, temperature)
        if self.training:
            self.centerings[name].update(logits)
        return targets

    def before_optimizer_step(self, step: int) -> None:
        super().before_optimizer_step(step)
        if self.head is not None and step < self.frozen_prototype_steps:
            self.head.prototypes.zero_grad()  # the optimizer skips parameters without a gradient

    def after_optimizer_step(self, step: int) -> None:
        if self.clip_weight:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        if self.teacher is not None:
            first, last = self.teacher_momentum, self.final_teacher_momentum
            progress = min(step / max(self.num_steps, 1), 1.0)
            momentum = last - (last - first) * (1 + math.cos(math.pi * progress)) / 2
            self.teacher.follow(self.model, self.head, momentum)
        super().after_optimizer_step(step)
