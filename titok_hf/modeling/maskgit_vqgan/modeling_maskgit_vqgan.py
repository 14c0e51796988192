"""MaskGIT-VQGAN: the convolutional 2D tokenizer whose codes are TiTok's proxy codes."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from ..checks import check_id_range, check_ids, check_pixel_values
from ..loading import CheckedLoadingMixin
from ..outputs import TokenizerDecoderOutput, TokenizerEncoderOutput, TokenizerOutput
from ..quantization import VectorQuantizer
from .configuration_maskgit_vqgan import MaskGitVQGANConfig


class ResidualBlock(nn.Module):
    def __init__(self, config: MaskGitVQGANConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.shortcut_of_output = config.shortcut_of_output
        self.norm1 = nn.GroupNorm(config.norm_num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels:
            shortcut_channels = out_channels if config.shortcut_of_output else in_channels
            self.shortcut = nn.Conv2d(shortcut_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, out, H, W)
        h = self.conv2(F.silu(self.norm2(h)))
        if self.shortcut is None:
            return x + h
        return self.shortcut(h if self.shortcut_of_output else x) + h


class MaskGitVQGANEncoder(nn.Module):
    """Maps images `(B, 3, H, W)` to latents `(B, latent_channels, h, w)`."""

    def __init__(self, config: MaskGitVQGANConfig):
        super().__init__()
        widths = [config.hidden_channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(
            config.num_channels, config.hidden_channels, 3, padding=1, bias=False
        )
        self.down = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(config, in_channels, out_channels),
                *(
                    ResidualBlock(config, out_channels, out_channels)
                    for _ in range(config.num_res_blocks - 1)
                ),
            )
            for in_channels, out_channels in zip(
                [config.hidden_channels, *widths], widths, strict=False
            )
        )
        self.mid = nn.Sequential(
            *(ResidualBlock(config, widths[-1], widths[-1]) for _ in range(config.num_res_blocks))
        )
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(pixel_values.to(self.conv_in.weight.dtype))
        for blocks in self.down[:-1]:  # every resolution but the last is halved
            x = F.avg_pool2d(blocks(x), 2)
        x = self.mid(self.down[-1](x))
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGitVQGANDecoder(nn.Module):
    """Maps latents `(B, latent_channels, h, w)` to images `(B, 3, H, W)`."""

    def __init__(self, config: MaskGitVQGANConfig):
        super().__init__()
        widths = [
            config.hidden_channels * multiplier
            for multiplier in reversed(config.channel_multipliers)
        ]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = nn.Sequential(
            *(ResidualBlock(config, widths[0], widths[0]) for _ in range(config.num_res_blocks))
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(config, in_channels, out_channels),
                *(
                    ResidualBlock(config, out_channels, out_channels)
                    for _ in range(config.num_res_blocks - 1)
                ),
            )
            for in_channels, out_channels in zip([widths[0], *widths], widths, strict=False)
        )
        self.upsample = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for width in widths[:-1]
        )
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.num_channels, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(latents.to(self.conv_in.weight.dtype)))
        for blocks, upsample in zip(self.up[:-1], self.upsample, strict=True):
            x = upsample(F.interpolate(blocks(x), scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(self.up[-1](x))))


class MaskGitVQGANModel(CheckedLoadingMixin, PreTrainedModel):
    """A 2D VQGAN (MaskGIT, arXiv 2202.04200): images `(B, 3, H, W)` in [0, 1] to a grid of codes
    and back."""

    config: MaskGitVQGANConfig
    config_class = MaskGitVQGANConfig
    base_model_prefix = "vqgan"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False

    def __init__(self, config: MaskGitVQGANConfig):
        super().__init__(config)
        self.encoder = MaskGitVQGANEncoder(config)
        self.quantizer = VectorQuantizer(
            config.codebook_size, config.latent_channels, config.commitment_cost, normalize=False
        )
        self.decoder = MaskGitVQGANDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, VectorQuantizer):
            module.init_weights()

    def encode(self, pixel_values: torch.Tensor) -> TokenizerEncoderOutput:
        """Encodes float images `(B, 3, H, W)` in [0, 1].

        Returns:
            Latents and `unquantized` `(B, C, h, w)`, codes `(B, h * w)` in raster order, and the
            quantizer's loss.
        """
        check_pixel_values(pixel_values, self.config.num_channels, self.config.image_size)
        unquantized = self.encoder(pixel_values)  # (B, C, h, w)
        quantized = self.quantizer(unquantized.flatten(2).transpose(1, 2))  # (B, h * w, C)
        return TokenizerEncoderOutput(
            latents=quantized.latents.transpose(1, 2).unflatten(-1, unquantized.shape[2:]),
            codes=quantized.codes,
            unquantized=unquantized,
            quantizer_loss=quantized.quantizer_loss,
        )

    def decode(self, latents: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes latents `(B, C, h, w)` to images `(B, 3, H, W)`."""
        return TokenizerDecoderOutput(reconstruction=self.decoder(latents))

    def decode_codes(self, codes: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes codes `(B, h * w)`, in raster order, to images `(B, 3, H, W)`.

        Raises:
            TypeError, ValueError: If the codes are not integers, are too many or too few, or are
                outside the codebook (not checked in training or compiled code).
        """
        check_ids(codes, "codes", ("batch", self.config.num_tokens))
        if not (self.training or torch.compiler.is_compiling()):  # synchronizes with the device
            check_id_range(codes, "codes", self.config.codebook_size)
        return self.decode(self.code_latents(codes))

    def code_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the latents `(B, C, h, w)` of codes `(B, h * w)` for `decode`, without checks."""
        side = self.config.image_size // self.config.patch_size
        return self.quantizer.lookup(codes).transpose(1, 2).unflatten(-1, (side, side))

    def forward(self, pixel_values: torch.Tensor, return_loss: bool = True) -> TokenizerOutput:
        """Reconstructs float images `(B, 3, H, W)` in [0, 1]; the loss is the mean squared error
        plus the quantizer's loss."""
        encoded = self.encode(pixel_values)
        reconstruction = self.decode(encoded.latents).reconstruction  # (B, 3, H, W)
        loss = (
            F.mse_loss(reconstruction, pixel_values) + encoded.quantizer_loss
            if return_loss
            else None
        )
        return TokenizerOutput(loss=loss, reconstruction=reconstruction, **encoded)


__all__ = ["MaskGitVQGANModel"]
