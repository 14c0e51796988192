"""TiTok: an image as a short 1D sequence of tokens (arXiv 2406.07550)."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init

from ...hub.provenance import inherit_provenance
from ..checks import check_id_range, check_ids, check_pixel_values
from ..loading import CheckedLoadingMixin
from ..maskgit_vqgan.modeling_maskgit_vqgan import MaskGitVQGANDecoder, MaskGitVQGANModel
from ..outputs import TokenizerDecoderOutput, TokenizerEncoderOutput, TokenizerOutput
from ..quantization import DiagonalGaussian, VectorQuantizer, all_vectors
from ..transformer import TransformerBlock
from .configuration_titok import TiTokConfig


class TiTokEncoder(nn.Module):
    """ViT over `[CLS, patches, latent tokens]`; its outputs at the latent tokens encode the image.

    With `representation="patch_tokens"` there are no latent tokens, and the patches replace them: K
    = P.
    """

    def __init__(self, config: TiTokConfig):
        super().__init__()
        width = config.encoder_hidden_size
        num_patches = (config.image_size // config.encoder_patch_size) ** 2
        self.interleaved_latents = config.interleaved_latents
        self.num_latent_tokens = config.num_latent_tokens
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, config.encoder_patch_size, stride=config.encoder_patch_size
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + num_patches, width))
        self.latent_tokens = None
        if config.representation == "latent_tokens":
            self.latent_tokens = nn.Parameter(torch.empty(1, config.num_latent_tokens, width))
            self.latent_position_embedding = nn.Parameter(
                torch.empty(1, config.num_latent_tokens, width)
            )
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config, width, config.encoder_num_attention_heads, config.mlp_ratio * width
            )
            for _ in range(config.encoder_num_hidden_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj = nn.Linear(
            width, config.latent_dim if config.quantizer == "vq" else 2 * config.latent_dim
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        batch_size = len(pixel_values)
        # CLS token and patches
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (B, P, W)
        x = (
            torch.cat([self.cls_token.expand(batch_size, -1, -1), patches], dim=1)
            + self.position_embedding
        )
        # latent tokens
        if self.latent_tokens is not None:
            latents = (self.latent_tokens + self.latent_position_embedding).expand(
                batch_size, -1, -1
            )  # (B, K, W)
            x = torch.cat([x, latents], dim=1)  # (B, 1 + P + K, W)
        # transformer
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        # outputs at the last K tokens
        latents = self.norm_out(x[:, -self.num_latent_tokens :])  # (B, K, W)
        if self.interleaved_latents:  # the official code reshapes without a transpose
            latents = latents.reshape(batch_size, -1, self.num_latent_tokens).transpose(
                1, 2
            )  # (B, K, W)
        return self.proj(latents)  # (B, K, C), for "kl" (B, K, 2C)


class TiTokDecoder(nn.Module):
    """ViT over `[CLS, mask tokens, latent tokens]`; its outputs at the mask tokens are the image's
    patches."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.num_patches = (config.image_size // config.decoder_patch_size) ** 2
        self.latent_embedding = nn.Linear(config.latent_dim, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + self.num_patches, width))
        self.latent_position_embedding = nn.Parameter(
            torch.empty(1, config.num_latent_tokens, width)
        )
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config, width, config.decoder_num_attention_heads, config.mlp_ratio * width
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        # CLS token and one mask token per patch
        masks = torch.cat(
            [self.cls_token, self.mask_token.expand(-1, self.num_patches, -1)], dim=1
        )  # (1, 1 + P, W)
        masks = (masks + self.position_embedding).expand(len(latents), -1, -1)  # (B, 1 + P, W)
        # latent tokens
        latents = latents.to(self.latent_embedding.weight.dtype)
        latents = self.latent_embedding(latents) + self.latent_position_embedding  # (B, K, W)
        # transformer
        x = self.norm_in(torch.cat([masks, latents], dim=1))  # (B, 1 + P + K, W)
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x[:, 1 : 1 + self.num_patches])  # (B, P, W)


class ProxyCodeHead(nn.Module):
    """Predicts the VQGAN's code of each patch: `(B, P, W)` to logits `(B, P,
    proxy_codebook_size)`."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.proj_in = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(2 * width, config.vqgan_config.codebook_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_out(torch.tanh(self.proj_in(x)))


class PixelHead(nn.Module):
    """Predicts each patch's pixels and smooths the patch borders: `(B, P, W)` to `(B, 3, H, W)`."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        self.grid = config.image_size // config.decoder_patch_size
        self.patch_size = config.decoder_patch_size
        self.proj = nn.Linear(
            config.decoder_hidden_size, config.decoder_patch_size**2 * config.num_channels
        )
        self.conv = nn.Conv2d(config.num_channels, config.num_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x).unflatten(-1, (self.patch_size, self.patch_size, -1))  # (B, P, p, p, 3)
        x = x.unflatten(1, (self.grid, self.grid)).permute(0, 5, 1, 3, 2, 4)  # (B, 3, h, p, w, p)
        return self.conv(x.flatten(4, 5).flatten(2, 3))  # (B, 3, H, W)


class TiTokModel(CheckedLoadingMixin, PreTrainedModel):
    """A 1D tokenizer (TiTok, arXiv 2406.07550): images `(B, 3, H, W)` in [0, 1] to `(B, K)` codes
    and back."""

    config: TiTokConfig
    config_class = TiTokConfig
    base_model_prefix = "titok"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["TransformerBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TiTokConfig):
        super().__init__(config)
        self.encoder = TiTokEncoder(config)
        if config.quantizer == "vq":
            self.quantizer = VectorQuantizer(
                config.codebook_size,
                config.latent_dim,
                config.commitment_cost,
                config.normalize_codes,
            )
        self.decoder = TiTokDecoder(config)
        if config.head == "pixels":
            self.head = PixelHead(config)
        else:
            self.head = ProxyCodeHead(config)
        if config.head == "vqgan_decoder":
            self.pixel_codebook = nn.Embedding(
                config.vqgan_config.codebook_size, config.vqgan_config.latent_channels
            )
            self.pixel_decoder = MaskGitVQGANDecoder(config.vqgan_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, VectorQuantizer):
            module.init_weights()
        elif isinstance(module, TiTokEncoder | TiTokDecoder):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    def with_pixel_decoder(self, vqgan: MaskGitVQGANModel) -> "TiTokModel":
        """Returns the tokenizer at the start of decoder fine-tuning: these weights, and the VQGAN's
        codebook and decoder.

        Args:
            vqgan: The model whose codes this tokenizer was trained to predict.

        Returns:
            A new model with `head="vqgan_decoder"`; its weights are copies.

        Raises:
            ValueError: If this tokenizer does not end in proxy codes, or predicts another VQGAN's
                codes.
        """
        if self.config.head != "proxy_codes":
            raise ValueError(
                f'A tokenizer with `head="proxy_codes"` is expected, got {self.config.head!r}.'
            )
        expected, got = self.config.vqgan_config.to_diff_dict(), vqgan.config.to_diff_dict()
        for key in ("architectures", "dtype", "titok_hf_version", "transformers_version"):
            expected.pop(key, None)
            got.pop(key, None)
        if expected != got:
            raise ValueError(
                f"The tokenizer predicts the codes of a VQGAN with {expected}, got one with {got}."
            )
        config = copy.deepcopy(self.config)
        config.head = "vqgan_decoder"
        model = TiTokModel(config).to(self.dtype)
        inherit_provenance(model, self)
        model.load_state_dict(
            self.state_dict()
            | {"pixel_codebook.weight": vqgan.quantizer.codebook.weight}
            | {
                f"pixel_decoder.{name}": tensor
                for name, tensor in vqgan.decoder.state_dict().items()
            }
        )
        return model.to(self.device)

    def encode(
        self,
        pixel_values: torch.Tensor,
        sample_posterior: bool | None = None,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
    ) -> TokenizerEncoderOutput:
        """Encodes float images `(B, 3, H, W)` in [0, 1].

        Args:
            pixel_values: The images.
            sample_posterior: Whether to sample the posterior of a `"kl"` tokenizer instead of
                taking its mode; defaults to True in training mode only.
            generator: A `torch.Generator` for the noise of the sample.
            noise: Standard normal noise `(B, K, C)` of the sample; drawn if not given.

        Returns:
            Latents `(B, K, C)`, the quantizer's loss, and for `"vq"` codes `(B, K)` and
            `unquantized` `(B, K, C)`.
        """
        check_pixel_values(pixel_values, self.config.num_channels, self.config.image_size)
        encoded = self.encoder(pixel_values)  # (B, K, C), for "kl" (B, K, 2C)
        if self.config.quantizer == "vq":
            return self.quantizer(encoded)
        sample_posterior = self.training if sample_posterior is None else sample_posterior
        posterior = DiagonalGaussian.from_parameters(encoded)
        latents = posterior.sample(generator, noise) if sample_posterior else posterior.mean
        return TokenizerEncoderOutput(latents=latents, quantizer_loss=posterior.kl())

    def decode(self, latents: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes latents `(B, K, C)`.

        Returns:
            The reconstruction `(B, 3, H, W)` unless the head is `"proxy_codes"`, and the proxy-code
            logits `(B, P, N)` unless it is `"pixels"`.
        """
        expected = (self.config.num_latent_tokens, self.config.latent_dim)
        if latents.ndim != 3 or tuple(latents.shape[1:]) != expected:
            raise ValueError(
                f"`latents` must have shape (batch, {expected[0]}, {expected[1]}), got "
                f"{tuple(latents.shape)}."
            )
        hidden_states = self.head(self.decoder(latents))  # (B, 3, H, W) or (B, P, N)
        if self.config.head == "pixels":
            return TokenizerDecoderOutput(reconstruction=hidden_states)
        if self.config.head == "proxy_codes":
            return TokenizerDecoderOutput(proxy_logits=hidden_states)
        # the expected code vector of each patch, decoded by the VQGAN
        probabilities = hidden_states.float().softmax(-1).to(hidden_states.dtype)  # (B, P, N)
        side = self.config.image_size // self.config.decoder_patch_size
        codebook = all_vectors(self.pixel_codebook, probabilities.device)  # (N, C)
        vectors = (probabilities @ codebook).transpose(1, 2).unflatten(-1, (side, side))
        return TokenizerDecoderOutput(
            reconstruction=self.pixel_decoder(vectors),  # (B, 3, H, W)
            proxy_logits=hidden_states,
        )

    def decode_codes(self, codes: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes codes `(B, K)` in [0, codebook_size), same as `decode` of their latents.

        Raises:
            TypeError, ValueError: If the codes are not integers, are too many or too few, or are
                outside the codebook (not checked in training or compiled code), or if this
                tokenizer is continuous.
        """
        if self.config.quantizer != "vq":
            raise ValueError(
                '`decode_codes` needs a tokenizer with `quantizer="vq"`; this one is continuous.'
            )
        check_ids(codes, "codes", ("batch", self.config.num_latent_tokens))
        if not (self.training or torch.compiler.is_compiling()):  # synchronizes with the device
            check_id_range(codes, "codes", self.config.codebook_size)
        return self.decode(self.code_latents(codes))

    def code_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the latents `(B, K, C)` of codes `(B, K)` for `decode`, without checks."""
        return self.quantizer.lookup(codes)

    def forward(
        self,
        pixel_values: torch.Tensor,
        proxy_codes: torch.Tensor | None = None,
        sample_posterior: bool | None = None,
        noise: torch.Tensor | None = None,
        return_loss: bool = True,
    ) -> TokenizerOutput:
        """Encodes and decodes float images `(B, 3, H, W)` in [0, 1].

        Args:
            pixel_values: The images.
            proxy_codes: Codes `(B, P)` of the VQGAN for the same images, the target of a
                `"proxy_codes"` tokenizer.
            sample_posterior, noise: See `encode`.
            return_loss: Whether to compute the loss.

        Returns:
            The outputs of `encode` and `decode`, and the loss: cross-entropy if there are proxy
            codes, else the mean squared error if there is a reconstruction, plus the quantizer's
            loss.
        """
        encoded = self.encode(pixel_values, sample_posterior, noise=noise)
        decoded = self.decode(encoded.latents)
        loss = None
        if return_loss and proxy_codes is not None:
            if decoded.proxy_logits is None:
                raise ValueError(
                    "`proxy_codes` need a tokenizer that predicts them; this one has "
                    '`head="pixels"`.'
                )
            logits = decoded.proxy_logits  # (B, P, N)
            check_ids(proxy_codes, "proxy_codes", tuple(logits.shape[:2]))
            loss = (
                F.cross_entropy(logits.flatten(0, 1), proxy_codes.flatten().long())
                + encoded.quantizer_loss
            )
        elif return_loss and decoded.reconstruction is not None:
            loss = F.mse_loss(decoded.reconstruction, pixel_values) + encoded.quantizer_loss
        return TokenizerOutput(loss=loss, **encoded, **decoded)


__all__ = ["TiTokModel"]
