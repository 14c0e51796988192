"""The pre-norm transformer block of the ViT encoders, decoders and generators."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(-1)  # (B, heads, N, N)
    return (weights @ value).transpose(1, 2), weights  # (B, N, heads, D)


# Cosines and sines of rotary positions, `(n, D)` each.
Rotation = tuple[torch.Tensor, torch.Tensor]


def rotate(x: torch.Tensor, rope: Rotation) -> torch.Tensor:
    """Rotates the last `n` tokens of `x` `(B, heads, N, D)` by cosines and sines `(n, D)`, in their
    dtype."""
    cos, sin = rope
    rotated = x.to(cos.dtype)
    # CLS and register tokens come first and have no position
    prefix, tokens = rotated.split([x.shape[2] - len(cos), len(cos)], dim=2)
    first, second = tokens.chunk(2, dim=-1)
    tokens = tokens * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([prefix, tokens], dim=2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over the whole sequence; `config._attn_implementation` selects the
    kernel.

    With `qk_norm`, queries and keys are RMS-normalized per head; `rope` then rotates them.
    """

    is_causal = False
    rotate = staticmethod(rotate)

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        qkv_bias: bool,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (hidden_size // num_heads) ** -0.5
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)
        head_dim = hidden_size // num_heads
        self.query_norm = nn.RMSNorm(head_dim, eps=norm_eps) if qk_norm else None
        self.key_norm = nn.RMSNorm(head_dim, eps=norm_eps) if qk_norm else None

    def forward(
        self, x: torch.Tensor, rope: Rotation | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, D)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, D) each
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rope is not None:
            query, key = self.rotate(query, rope), self.rotate(key, rope)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        x, weights = attend(self, query, key, value, None, scaling=self.scaling)  # (B, N, heads, D)
        return self.proj(x.flatten(2)), weights  # (B, N, C)


class TransformerBlock(GradientCheckpointingLayer):
    """Pre-norm block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    With `skip`, the input is first merged with the output of an earlier block (U-ViT, arXiv
    2209.12152).
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        qkv_bias: bool = True,
        skip: bool = False,
    ):
        super().__init__()
        self.skip_proj = nn.Linear(2 * hidden_size, hidden_size) if skip else None
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = Attention(config, hidden_size, num_heads, qkv_bias)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp_in = nn.Linear(hidden_size, intermediate_size)
        self.mlp_out = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if self.skip_proj is not None:
            x = self.skip_proj(torch.cat([x, skip], dim=-1))  # (B, N, C)
        x = x + self.attention(self.attention_norm(x))[0]
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
