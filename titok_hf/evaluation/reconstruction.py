"""Evaluation of reconstructions by tokenizers."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..devices import default_device, parse_dtype
from ..distributed import check_same, process_state
from ..modeling.auto import load_tokenizer
from ..modeling.checks import check_ends_in_pixels
from ..modeling.diffusers_tokenizer import DiffusersTokenizer
from ..modeling.titok import TiTokImageProcessor
from ..modeling.vtp.modeling_vtp import VTPPreTrainedModel
from .extractors import float32_convolutions
from .feature_statistics import (
    FeatureStatistics,
    ReferenceSet,
    check_feasible,
    check_same_everywhere,
    feature_metrics,
    match_classes,
)
from .image_sources import DatasetImages, ImageSource, open_dataset, open_source, to_uint8
from .metric_networks import MetricNetworks
from .metrics.codebook import CodebookUsage
from .metrics.psnr_ssim import peak_signal_to_noise_ratio, structural_similarity
from .metrics.standard_error import Estimate, RunningMean
from .protocol import CODE_METRICS, PAIR_METRICS, REFERENCE_METRICS, Protocol
from .results import Evaluation, command, describe_model, device_name, versions


@dataclass(frozen=True)
class Measured:
    """Metrics, with the fingerprint of the images that were measured.

    Args:
        metrics: Name to estimate.
        fingerprint: Fingerprint of the evaluated images; for reconstructions, of their originals.
        reference: Fields that describe the reference in a result, if there is one.
    """

    metrics: dict[str, Estimate]
    fingerprint: str
    reference: dict[str, Any] | None

    @property
    def values(self) -> dict[str, float]:
        """The metrics without their standard errors."""
        return {name: estimate.value for name, estimate in self.metrics.items()}


@torch.no_grad()
def reconstruct(
    tokenizer: nn.Module, pixel_values: torch.Tensor, batch_size: int = 128
) -> torch.Tensor:
    """Encodes and decodes images `(B, 3, H, W)`, and returns the reconstructions on the CPU.

    They have the range of `pixel_values` and are not clamped; the image processor's `postprocess`
    does that.
    """
    batches = pixel_values.split(batch_size)
    reconstructions = [
        tokenizer.decode(tokenizer.encode(batch.to(tokenizer.device)).latents) for batch in batches
    ]
    return torch.cat([decoded.reconstruction.float().cpu() for decoded in reconstructions])


@torch.no_grad()
def codebook_statistics(tokenizer: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """Measures how much of its codebook a discrete tokenizer uses on batches of images
    `(B, 3, H, W)`, see `CodebookUsage`."""
    codes = CodebookUsage(tokenizer.config.codebook_size)
    for batch in batches:
        codes.update(tokenizer.encode(batch.to(tokenizer.device)).codes)
    return codes.compute()


@torch.no_grad()
def measure_reconstruction(
    tokenizer: nn.Module,
    processor: TiTokImageProcessor,
    images: DatasetImages,
    protocol: Protocol,
    reference: ImageSource | ReferenceSet | None = None,
    judges: MetricNetworks | None = None,
    batch_size: int = 64,
    progress_bar: bool = True,
) -> Measured:
    """Encodes and decodes images, and compares the reconstructions with the originals.

    Every process measures its share of the batches, and all get the same result.

    Args:
        tokenizer: A tokenizer of any family.
        processor: Its image processor.
        images: The images.
        protocol: Metrics and their settings; metrics of codes are left out if the tokenizer is
            continuous.
        reference: Images or statistics to compare features with; the originals if not given. A
            `ReferenceSet` is gathered once for several calls.
        judges: Networks of the metrics; those of the protocol if not given.
        batch_size: Number of images per batch.
        progress_bar: Whether to show a progress bar.

    Raises:
        ValueError: If the tokenizer ends in proxy codes, or the protocol does not fit it or the images,
            before anything is computed.
    """
    check_ends_in_pixels(tokenizer)
    metrics = protocol.metrics_of("reconstruction")
    judges = judges or MetricNetworks.load(protocol, metrics, device=tokenizer.device)
    processor = processor_for(tokenizer, processor, protocol)
    discrete = (
        getattr(tokenizer.config, "codebook_size", None)
        and getattr(tokenizer.config, "quantizer", "vq") == "vq"
    )
    if not discrete:
        metrics = tuple(name for name in metrics if name not in CODE_METRICS)
    # accumulators of the metrics
    codes = (
        CodebookUsage(tokenizer.config.codebook_size) if set(metrics) & {*CODE_METRICS} else None
    )
    against = reference
    if not isinstance(reference, ReferenceSet):
        against = ReferenceSet(images if reference is None else reference, metrics)
    check_same_everywhere(protocol, judges, images, against.source)
    check_feasible(
        metrics, protocol, judges, images.num_images, labelled=images.labelled, reference=against
    )
    means = {name: RunningMean() for name in metrics if name in PAIR_METRICS}
    classes = match_classes(images, judges, protocol) if "accuracy" in metrics else None
    reconstructed = FeatureStatistics(judges, metrics, images.num_images, protocol, classes=classes)
    compared = [name for name in metrics if name in REFERENCE_METRICS] if reference is None else []
    originals = FeatureStatistics(judges, compared, images.num_images, protocol)
    autocast = getattr(torch, protocol.encoder_autocast or "bfloat16")

    for batch in images.progress(batch_size, "reconstructions", progress_bar):
        # encode and decode
        pixel_values = processor(list(batch.images), return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(tokenizer.device, tokenizer.dtype)  # (B, 3, H, W)
        with torch.autocast(
            tokenizer.device.type, autocast, enabled=protocol.encoder_autocast is not None
        ):
            encoded = tokenizer.encode(pixel_values)
        decoded = tokenizer.decode(encoded.latents.to(tokenizer.dtype)).reconstruction
        reconstructions = to_uint8(processor.postprocess(decoded, "pt"), protocol.rounding)
        # compare
        if codes is not None:
            codes.update(encoded.codes, batch.indices)
        for name, values in pair_metrics(
            means, reconstructions, batch.images, judges.lpips
        ).items():
            means[name].update(values)
        originals.update(batch)
        reconstructed.update(replace(batch, images=reconstructions))

    # join the processes
    originals.reduce()
    reconstructed.reduce()
    for mean in means.values():
        mean.reduce()
    gathered = (
        originals
        if reference is None
        else against.gather(judges, protocol, batch_size, progress_bar)
    )
    results = feature_metrics(
        reconstructed, gathered, against.stored, protocol, metrics=metrics, paired=reference is None
    )
    results |= {name: mean.compute() for name, mean in means.items()}
    if codes is not None:
        codes.reduce()
        results |= {f"codebook_{name}": estimate for name, estimate in codes.estimates().items()}
    return Measured(
        {name: results[name] for name in metrics},
        originals.sha256,
        against.describe(gathered) if reference is not None else None,
    )


def processor_for(
    tokenizer: nn.Module, processor: TiTokImageProcessor, protocol: Protocol
) -> TiTokImageProcessor:
    """Returns a processor that makes images of the protocol's size; raises `ValueError` if the
    tokenizer does not take that size."""
    size, wanted = tokenizer.config.image_size, protocol.image_size
    if size == wanted:
        return processor
    if isinstance(tokenizer, DiffusersTokenizer):
        return type(processor).from_image_size(wanted)
    if isinstance(tokenizer, VTPPreTrainedModel) and wanted % tokenizer.config.patch_size == 0:
        return type(processor).from_dict(
            processor.to_dict() | {"size": {"height": wanted, "width": wanted}}
        )
    raise ValueError(
        f"The protocol {protocol.name!r} is for images of {wanted} pixels, the tokenizer for "
        f"{size}. Choose another protocol, or change this one: `image_size={size}`."
    )


def pair_metrics(
    names: Collection[str], images: torch.Tensor, targets: torch.Tensor, lpips: nn.Module | None
) -> dict[str, torch.Tensor]:
    """Computes metrics `(B,)` of pairs of uint8 images `(B, 3, H, W)`; `mean_squared_error` is
    that of images in [0, 1]."""
    computed = {}
    images, targets = images.cpu(), targets.cpu()
    if "mean_squared_error" in names:
        computed["mean_squared_error"] = (
            ((images.double() - targets.double()) / 255).square().flatten(1).mean(1)
        )
    if "psnr" in names:
        computed["psnr"] = peak_signal_to_noise_ratio(images, targets)
    if "ssim" in names:
        computed["ssim"] = structural_similarity(images, targets)
    if lpips is not None:
        device = next(lpips.parameters()).device
        with float32_convolutions():
            computed["lpips"] = lpips(
                *(tensor.to(device).float() / 127.5 - 1 for tensor in (images, targets))
            )
    return computed


def evaluate_reconstruction(
    tokenizer: str | Path,
    data: str,
    protocol: str | Path = "titok-rfid",
    overrides: Sequence[str] = (),
    split: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    data_revision: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    num_images: int | None = None,
    reference: str | None = None,
    reference_split: str | None = None,
    reference_revision: str | None = None,
    extractor_weights: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    dtype: str = "float32",
) -> Evaluation:
    """Evaluates how well a tokenizer of any family reconstructs images.

    Args:
        tokenizer: Folder or Hub repository of the tokenizer.
        data: `"digits"`, a folder of images, or a data set on the Hub.
        protocol, overrides: See `Protocol.load`.
        split: Split of the data, see `open_dataset`.
        revision, data_revision: Branch, tag or commit of tokenizer and data, if they are on the
            Hub.
        subfolder: Subfolder that holds the tokenizer, such as `"tokenizer"` or `"vae"` of a
            pipeline.
        image_column, label_column: Columns of the data; only `accuracy` needs labels.
        num_images: Number of images to use, from the start; all if not given.
        reference: Images to compare features with, instead of the protocol's reference: a file of
            ADM's, or images as for `data`.
        reference_split, reference_revision: Split and revision of the reference, see
            `open_dataset`.
        extractor_weights: See `load_extractor`.
        batch_size: Number of images per batch.
        device: Device to compute on; by default the accelerator if there is one.
        dtype: Data type of the tokenizer: `"float32"`, `"bfloat16"` or `"float16"`.

    Returns:
        The result with its protocol, the same in every process.

    Raises:
        ValueError: If the protocol does not fit the tokenizer or the images.
    """
    arguments = dict(locals())  # as given, for the command that repeats the evaluation
    state = process_state()
    torch_dtype = parse_dtype(dtype)
    loaded_protocol = Protocol.load(protocol, overrides)
    metrics = loaded_protocol.metrics_of("reconstruction")
    device = torch.device(device or default_device())
    images = open_dataset(
        data,
        loaded_protocol,
        split,
        data_revision,
        image_column=image_column,
        label_column=label_column if "accuracy" in metrics else None,
        num_images=num_images,
        hold_out=split == "test",
    )
    against = None
    if reference is not None:
        against = open_source(
            reference,
            loaded_protocol,
            reference_split,
            reference_revision,
            image_column=image_column,
        )
    elif loaded_protocol.reference == "train":
        against = open_dataset(
            data,
            loaded_protocol,
            "train",
            data_revision,
            image_column=image_column,
            hold_out=split == "test",
        )
    judges = MetricNetworks.load(loaded_protocol, metrics, extractor_weights, device)
    model, processor = load_tokenizer(tokenizer, revision=revision, subfolder=subfolder)
    described = describe_model(model, tokenizer, revision, subfolder)
    check_same(tokenizer=described["weights_sha256"])
    model.to(device, torch_dtype)
    measured = measure_reconstruction(
        model,
        processor,
        images,
        loaded_protocol,
        reference=against,
        judges=judges,
        batch_size=batch_size,
    )
    data_record = images.describe() | {"fingerprint": measured.fingerprint}
    arguments |= {
        "revision": described["revision"],
        "data_revision": data_record["revision"],
    }
    if reference is not None:
        arguments["reference_revision"] = measured.reference.get("revision")
    return Evaluation(
        task="reconstruction",
        metrics=measured.metrics,
        protocol=loaded_protocol.to_dict(),
        num_images=images.num_images,
        data=data_record,
        reference=measured.reference or data_record,
        judges=judges.identities(),
        tokenizer=described,
        generator=None,
        sampler=None,
        seeds=None,
        device=device_name(device),
        dtype=dtype,
        processes=state.num_processes,
        versions=versions(),
        command=command("reconstruction", arguments),
    )
