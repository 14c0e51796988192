"""Outputs shared by all visual tokenizers."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class TokenizerEncoderOutput(ModelOutput):
    """Result of `encode`.

    Args:
        latents (`torch.FloatTensor`):
            Input of `decode`: code vectors of a discrete tokenizer, or a sample or the mode of a
            continuous one's posterior. `(B, N, C)` for 1D tokenizers, `(B, C, h, w)` for 2D ones.
        codes (`torch.LongTensor` of shape `(B, N)`, *optional*):
            Codebook indices in `[0, codebook_size)`; discrete tokenizers only.
        unquantized (`torch.FloatTensor`, *optional*):
            The encoder's output before quantization, shaped like `latents`; discrete tokenizers
            only.
        quantizer_loss (`torch.FloatTensor` of shape `()`):
            Codebook plus commitment loss of a vector quantizer; KL divergence from the standard
            normal, summed over the tokens of an image and averaged over images, of a diagonal
            Gaussian.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    unquantized: torch.FloatTensor | None = None
    quantizer_loss: torch.FloatTensor | None = None


@dataclass
class TokenizerDecoderOutput(ModelOutput):
    """Result of `decode` and `decode_codes`.

    Args:
        reconstruction (`torch.FloatTensor` of shape `(B, 3, H, W)`, *optional*):
            Images in the tokenizer's input range, not clamped. Absent if the tokenizer ends in
            proxy-code logits.
        proxy_logits (`torch.FloatTensor` of shape `(B, h * w, proxy_codebook_size)`, *optional*):
            Logits of the proxy codes, in raster order; two-stage TiTok only.
    """

    reconstruction: torch.FloatTensor | None = None
    proxy_logits: torch.FloatTensor | None = None


@dataclass
class TokenizerOutput(ModelOutput):
    """Result of `forward`: encoding, decoding, and a loss if there is a target.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Reconstruction error (squared; absolute for VTP), or cross-entropy of the proxy codes if
            they are given, plus `quantizer_loss`.
        reconstruction, proxy_logits: See `TokenizerDecoderOutput`.
        latents, codes, unquantized, quantizer_loss: See `TokenizerEncoderOutput`.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    proxy_logits: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    unquantized: torch.FloatTensor | None = None
    quantizer_loss: torch.FloatTensor | None = None
