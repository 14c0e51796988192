"""A tokenizer of one's own, with the package's evaluation, token data sets and generators.

    python examples/custom_tokenizer.py own

trains a small autoencoder of patches with finite scalar quantization (FSQ, arXiv 2309.15505) on the digits, measures
its reconstructions, writes the digits as codes, trains a generator on the codes and samples it. The package asks a
tokenizer for `encode` and `decode` and for `config.image_size`. If it is discrete, it also asks for codes from
`encode`, for `decode_codes` and `code_latents`, and for `config.num_tokens` and `config.codebook_size`.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from titok_hf import (
    MaskGitScheduler,
    MaskGitUViTConfig,
    MaskGitUViTModel,
    TiTokImageProcessor,
    TiTokPipeline,
)
from titok_hf.data import ImageCollator, open_images, tokenize_to_folder
from titok_hf.data.grids import generation_grid
from titok_hf.evaluation import Evaluation, evaluate_generation, evaluate_reconstruction
from titok_hf.modeling.auto import TOKENIZERS
from titok_hf.modeling.outputs import TokenizerDecoderOutput, TokenizerEncoderOutput
from titok_hf.training import MaskedTokenObjective, TiTokTrainer, TiTokTrainingArguments


class PatchFSQConfig(PreTrainedConfig):
    """Configuration of a `PatchFSQModel`: a code has `latent_dim` digits of `num_levels` values."""

    model_type = "patch_fsq"

    image_size: int = 32
    patch_size: int = 8
    hidden_size: int = 128
    latent_dim: int = 4
    num_levels: int = 4

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def codebook_size(self) -> int:
        return self.num_levels**self.latent_dim


class PatchFSQModel(PreTrainedModel):
    """Maps images `(B, 3, H, W)` in [0, 1] to a code per patch, and back."""

    config_class = PatchFSQConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PatchFSQConfig):
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, patch, stride=patch),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, config.latent_dim, 1),
            nn.Tanh(),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.latent_dim, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 3 * patch**2, 1),
            nn.PixelShuffle(patch),
        )
        self.post_init()

    def place_values(self) -> torch.Tensor:
        """Returns the factor of each digit in a code, `(C, 1)`."""
        digits = torch.arange(self.config.latent_dim, device=self.device)
        return (self.config.num_levels**digits)[:, None]

    def encode(self, pixel_values: torch.Tensor) -> TokenizerEncoderOutput:
        """Encodes images to latents `(B, C, h, w)` and codes `(B, h * w)`."""
        unquantized = self.encoder(pixel_values)  # (B, C, h, w) in [-1, 1]
        largest = self.config.num_levels - 1
        digits = ((unquantized + 1) / 2 * largest).round()
        quantized = digits / largest * 2 - 1
        return TokenizerEncoderOutput(
            latents=unquantized + (quantized - unquantized).detach(),  # with a gradient
            codes=(digits.long().flatten(2) * self.place_values()).sum(1),
        )

    def decode(self, latents: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes latents `(B, C, h, w)` to images."""
        return TokenizerDecoderOutput(reconstruction=self.decoder(latents))

    def code_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the latents `(B, C, h, w)` of codes `(B, h * w)`."""
        digits = codes[:, None] // self.place_values() % self.config.num_levels  # (B, C, h * w)
        side = self.config.image_size // self.config.patch_size
        latents = digits / (self.config.num_levels - 1) * 2 - 1
        return latents.unflatten(2, (side, side))

    def decode_codes(self, codes: torch.Tensor) -> TokenizerDecoderOutput:
        """Decodes codes `(B, h * w)` to images."""
        return self.decode(self.code_latents(codes))


# For `AutoModel`, and for all functions of the package that load a tokenizer
AutoConfig.register(PatchFSQConfig.model_type, PatchFSQConfig, exist_ok=True)
AutoModel.register(PatchFSQConfig, PatchFSQModel, exist_ok=True)
TOKENIZERS[PatchFSQConfig.model_type] = (PatchFSQModel, TiTokImageProcessor)


def train_tokenizer(tokenizer: PatchFSQModel, images: torch.Tensor, num_steps: int) -> None:
    """Trains a tokenizer to reconstruct images `(B, 3, H, W)`."""
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        batch = images[torch.randint(len(images), (64,))]
        reconstruction = tokenizer.decode(tokenizer.encode(batch).latents).reconstruction
        F.mse_loss(reconstruction, batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def report(result: Evaluation, folder: Path) -> None:
    """Prints the metrics of an evaluation, and writes it with all its settings."""
    result.save(folder / f"{result.task}.json")
    for name, estimate in result.metrics.items():
        print(f"{result.task}: {name} {estimate.value:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for tokenizer, codes and pipeline")
    parser.add_argument("--tokenizer-steps", type=int, default=1000)
    parser.add_argument("--generator-steps", type=int, default=1000)
    parser.add_argument("--num-samples", type=int, default=1000, help="generated and measured")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    folder = arguments.output / "tokenizer"

    # The tokenizer, in a folder that `from_pretrained` loads
    tokenizer = PatchFSQModel(PatchFSQConfig())
    processor = TiTokImageProcessor.from_image_size(tokenizer.config.image_size)
    digits = open_images("digits").dataset("train")
    pixel_values = processor(digits["image"][:], return_tensors="pt")["pixel_values"]
    train_tokenizer(tokenizer, pixel_values, arguments.tokenizer_steps)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer = AutoModel.from_pretrained(folder)

    # What `titok evaluate reconstruction` and `titok tokenize` do
    report(evaluate_reconstruction(folder, "digits", "demo", split="test"), arguments.output)
    tokenize_to_folder("digits", folder, arguments.output / "tokens")

    # A generator of the codes
    codes = open_images(str(arguments.output / "tokens"))["train"]
    config = MaskGitUViTConfig(
        codebook_size=tokenizer.config.codebook_size,
        num_tokens=tokenizer.config.num_tokens,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        initializer_range=0.05,
        id2label=dict(enumerate(codes.class_names)),
    )
    scheduler = MaskGitScheduler(mask_token_id=config.mask_token_id, choice_temperature=20.0)
    trainer = TiTokTrainer(
        MaskedTokenObjective(MaskGitUViTModel(config), tokenizer, scheduler, ema_decay=0.995),
        TiTokTrainingArguments(
            str(arguments.output / "work"),
            max_steps=arguments.generator_steps,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            logging_steps=100,
            save_strategy="no",
            report_to="none",
        ),
        ImageCollator(processor, label_column="label"),
        train_dataset=codes,
    )
    trainer.train()

    # A pipeline, which is saved, loaded, measured and drawn like any other
    TiTokPipeline(
        tokenizer, trainer.result(), scheduler, num_inference_steps=16, guidance_scale=1.2
    ).save_pretrained(arguments.output / "pipeline")
    result = evaluate_generation(
        arguments.output / "pipeline",
        "demo",
        reference="digits",
        num_samples=arguments.num_samples,
    )
    report(result, arguments.output)
    pipeline = TiTokPipeline.from_pretrained(arguments.output / "pipeline")
    images = pipeline(codes.class_names, num_images_per_label=12).images
    generation_grid(images, codes.class_names).save(arguments.output / "samples.png")


if __name__ == "__main__":
    from custom_tokenizer import main  # a saved pipeline names the module of its tokenizer

    main()
