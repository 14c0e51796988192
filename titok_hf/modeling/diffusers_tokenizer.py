"""Image autoencoders of diffusers with the interface of our visual tokenizers."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderRAE,
    AutoencoderTiny,
    ModelMixin,
    VQModel,
)
from torch import nn

from ..devices import with_dtypes
from ..hub.errors import explain_loading_errors
from ..hub.location import split_location
from .checks import check_id_range, check_ids, check_pixel_values
from .loading import refuse_misfit
from .outputs import TokenizerDecoderOutput, TokenizerEncoderOutput
from .quantization import DiagonalGaussian

# `ConsistencyDecoderVAE` is excluded: it decodes at random, and `decode` must be deterministic.
AUTOENCODERS: dict[str, type[ModelMixin]] = {
    model_class.__name__: model_class
    for model_class in (
        AutoencoderKL,
        AsymmetricAutoencoderKL,
        AutoencoderKLFlux2,
        AutoencoderDC,
        AutoencoderTiny,
        AutoencoderRAE,
        VQModel,
    )
}


@dataclass(frozen=True)
class DiffusersTokenizerConfig:
    """The configuration fields that every tokenizer provides.

    Args:
        image_size: Side of the square images that the image processor makes, in pixels.
        num_tokens: Number of latent vectors of such an image.
        codebook_size: Number of codes; `None` if the tokenizer is continuous.
    """

    image_size: int
    num_tokens: int
    codebook_size: int | None


class DiffusersTokenizer(nn.Module):
    """An image autoencoder of diffusers as a tokenizer: images `(B, 3, H, W)` in [0, 1] to latents
    and back.

    Images are converted to and from diffusers' range [-1, 1]. Latents are the autoencoder's own:
    the `scaling_factor` and `shift_factor` of diffusion models are not applied.

    Args:
        autoencoder: One of `AUTOENCODERS`.
        image_size: Side of the images that the image processor makes, a multiple of the
            downsampling factor. Defaults to the `sample_size` of the autoencoder's configuration,
            or 256 if it has none. An `AutoencoderRAE` takes one size only.

    Raises:
        TypeError: If it is another model, such as a video autoencoder.
        ValueError: If it does not take RGB images, or not of that size.
    """

    def __init__(self, autoencoder: ModelMixin, image_size: int | None = None):
        super().__init__()
        if not isinstance(autoencoder, tuple(AUTOENCODERS.values())):
            raise TypeError(
                f"An image autoencoder of diffusers is expected, one of {', '.join(AUTOENCODERS)}; "
                f"got a {type(autoencoder).__name__}."
            )
        name, config = type(autoencoder).__name__, autoencoder.config
        num_channels = config[
            "num_channels" if isinstance(autoencoder, AutoencoderRAE) else "in_channels"
        ]
        if num_channels != 3:
            raise ValueError(
                f"An autoencoder of RGB images is expected; this {name} takes {num_channels} "
                "channels."
            )
        if isinstance(autoencoder, AutoencoderRAE):
            factor = config.patch_size
            only_size = autoencoder.decoder_image_size
            if image_size not in (None, only_size):
                raise ValueError(
                    f"This {name} takes images of {only_size} pixels, got `image_size` "
                    f"{image_size}."
                )
            image_size = only_size
        else:
            widths = next(
                config[key]
                for key in (
                    "encoder_block_out_channels",
                    "down_block_out_channels",
                    "block_out_channels",
                )
                if key in config
            )
            factor = 2 ** (len(widths) - 1)
            image_size = image_size or config.get("sample_size") or 256
            if image_size % factor:
                raise ValueError(
                    f"`image_size` must be a multiple of {factor} for this {name}, got "
                    f"{image_size}."
                )
        self.autoencoder = autoencoder
        self.downsampling_factor = factor
        self.latent_channels: int = (
            config.encoder_hidden_size
            if isinstance(autoencoder, AutoencoderRAE)
            else config.get("vq_embed_dim") or config.latent_channels
        )
        codebook_size = config.num_vq_embeddings if isinstance(autoencoder, VQModel) else None
        self.config = DiffusersTokenizerConfig(
            image_size, (image_size // factor) ** 2, codebook_size
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        image_size: int | None = None,
        use_safetensors: bool = True,
        **kwargs: Any,
    ) -> "DiffusersTokenizer":
        """Loads an autoencoder from a folder or Hub repository, in evaluation mode.

        Args:
            path: Folder or repository of the autoencoder, or of a pipeline with `subfolder="vae"`.
            image_size: See the class.
            use_safetensors: Whether to read safetensors or PyTorch's older files, from which only
                tensors are loaded.
            kwargs: Passed to `from_pretrained` of the autoencoder; a `dtype` may be a name.

        Raises:
            OSError: If the folder, the repository or a file in it does not exist.
            ValueError: If it is not an image autoencoder, is corrupt, or has missing, unexpected or
                misshapen weights, or if the dtype is not the name of one.
        """
        location, _ = split_location(kwargs)
        with explain_loading_errors(path):
            class_name = AutoencoderKL.load_config(path, **location).get("_class_name")
            if class_name not in AUTOENCODERS:
                raise ValueError(
                    f"{path} must be an image autoencoder of diffusers, one of "
                    f"{', '.join(AUTOENCODERS)}; it is a {class_name!r}."
                )
            try:
                autoencoder, info = AUTOENCODERS[class_name].from_pretrained(
                    path,
                    use_safetensors=use_safetensors,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # misshapen weights are reported in `info` and refused below
                    **with_dtypes(kwargs),
                )
            except OSError as error:
                if "Unable to load weights" not in str(error):
                    raise
                raise ValueError(
                    f"The weights of {path} are truncated or corrupt. Copy them again, or download "
                    "them again with `force_download=True`."
                ) from error
        missing, unexpected, misshapen = (
            info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")
        )
        refuse_misfit(class_name, sorted(missing), sorted(unexpected), sorted(misshapen))
        return cls(autoencoder, image_size).eval()

    @property
    def device(self) -> torch.device:
        return self.autoencoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.autoencoder.dtype

    def encode(
        self,
        pixel_values: torch.Tensor,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
    ) -> TokenizerEncoderOutput:
        """Encodes float images `(B, 3, H, W)` in [0, 1].

        Args:
            pixel_values: Images whose height and width are multiples of the downsampling factor;
                for an `AutoencoderRAE`, equal to its image size.
            sample_posterior: Whether to sample a Gaussian posterior instead of taking its mode;
                other autoencoders are deterministic.
            generator: A `torch.Generator` for the noise of the sample.
            noise: Standard normal noise `(B, C, h, w)` of the sample; drawn if not given.

        Returns:
            Latents `(B, C, h, w)`; with a Gaussian posterior also its KL divergence as
            `quantizer_loss`; for a `VQModel` also codes `(B, h * w)` in raster order, `unquantized`
            `(B, C, h, w)` and the quantizer's loss.
        """
        only_size = self.config.image_size if isinstance(self.autoencoder, AutoencoderRAE) else None
        check_pixel_values(pixel_values, 3, only_size, self.downsampling_factor)
        if isinstance(
            self.autoencoder, AutoencoderRAE
        ):  # takes [0, 1] and normalizes by ImageNet's statistics
            return TokenizerEncoderOutput(
                latents=self.autoencoder.encode(pixel_values.to(self.dtype)).latent
            )
        encoded = self.autoencoder.encode((2 * pixel_values - 1).to(self.dtype))
        if isinstance(self.autoencoder, VQModel):
            latents, loss, (_, _, codes) = self.autoencoder.quantize(
                encoded.latents
            )  # (B, C, h, w), (), (B * h * w,)
            codes = codes.view(len(latents), latents.shape[2:].numel())
            return TokenizerEncoderOutput(
                latents=latents, codes=codes, unquantized=encoded.latents, quantizer_loss=loss
            )
        if "latent_dist" in encoded:
            posterior = DiagonalGaussian(encoded.latent_dist.mean, encoded.latent_dist.logvar)
            latents = posterior.sample(generator, noise) if sample_posterior else posterior.mean
            return TokenizerEncoderOutput(latents=latents, quantizer_loss=posterior.kl())
        return TokenizerEncoderOutput(latents=encoded[0])  # named `latent` or `latents`

    def decode(self, latents: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes latents `(B, C, h, w)` to images `(B, 3, H, W)`.

        The latents of a `VQModel` are taken as they are, without quantizing them again.
        """
        model, latents = self.autoencoder, latents.to(self.dtype)
        if isinstance(model, VQModel):
            condition = latents if model.config.norm_type == "spatial" else None
            images = model.decoder(model.post_quant_conv(latents), condition)
        else:
            images = model.decode(latents).sample
        return TokenizerDecoderOutput(
            reconstruction=images if isinstance(model, AutoencoderRAE) else (images + 1) / 2,
        )

    def decode_codes(self, codes: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes codes `(B, h * h)` of square images, in raster order, to images `(B, 3, H, H)`.

        Raises:
            TypeError, ValueError: If the codes are not integers, do not form a square, or are
                outside the codebook (not checked in training or compiled code), or if this
                tokenizer is continuous.
        """
        if self.config.codebook_size is None:
            raise ValueError(
                "`decode_codes` needs a discrete tokenizer, a VQModel; this "
                f"{type(self.autoencoder).__name__} is continuous."
            )
        check_ids(codes, "codes", ("batch", "tokens"))
        if not (
            self.autoencoder.training or torch.compiler.is_compiling()
        ):  # synchronizes with the device
            check_id_range(codes, "codes", self.config.codebook_size)
        if math.isqrt(codes.shape[1]) ** 2 != codes.shape[1]:
            raise ValueError(
                f"`codes` must have a square number of tokens per image, got {codes.shape[1]}; "
                "`decode` takes the latents of other images."
            )
        return self.decode(self.code_latents(codes))

    def code_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the latents `(B, C, h, h)` of codes `(B, h * h)` for `decode`, without checks."""
        side = math.isqrt(codes.shape[1])
        vectors = self.autoencoder.quantize.embedding(codes)  # (B, h * h, C)
        return vectors.transpose(1, 2).unflatten(-1, (side, side))


__all__ = ["AUTOENCODERS", "DiffusersTokenizer", "DiffusersTokenizerConfig"]
