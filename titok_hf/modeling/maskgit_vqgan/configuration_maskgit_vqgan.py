"""MaskGIT-VQGAN configuration."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..loading import CheckedConfigMixin


@strict
class MaskGitVQGANConfig(CheckedConfigMixin, PreTrainedConfig):
    """Configuration of a `MaskGitVQGANModel`. The defaults are the ImageNet tokenizer of MaskGIT
    (arXiv 2202.04200).

    Args:
        image_size: Side of the square images, in pixels.
        num_channels: Channels of the images.
        hidden_channels: Channels at full resolution.
        channel_multipliers: Channels of each resolution, in multiples of `hidden_channels`. Each
            resolution but the last halves the image, so the codes form a grid of side `image_size /
            2 ** (len(channel_multipliers) - 1)`.
        num_res_blocks: Number of residual blocks per resolution, and in the middle.
        norm_num_groups: Number of groups of the group norms; must divide every number of channels.
        latent_channels: Number of channels of the latents and of the code vectors.
        codebook_size: Number of codes.
        commitment_cost: Weight of the commitment loss.
        shortcut_of_output: Compatibility with the official weights: where a residual block changes
            the number of channels, its shortcut is computed from the block's own output instead of
            its input.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If a field has another type, or the sizes
            contradict each other.
    """

    model_type = "maskgit_vqgan"

    image_size: int = 256
    num_channels: int = 3
    hidden_channels: int = 128
    channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 256
    codebook_size: int = 1024
    commitment_cost: float | int = 0.25
    shortcut_of_output: bool = False

    @property
    def patch_size(self) -> int:
        """Side of the square that one code stands for, in pixels."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def num_tokens(self) -> int:
        """Number of codes per image."""
        return (self.image_size // self.patch_size) ** 2

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if min(self.channel_multipliers, default=0) < 1:
            raise ValueError(
                "`channel_multipliers` must be one or more integers of at least 1, got "
                f"{self.channel_multipliers}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of {self.patch_size}, as "
                f"{len(self.channel_multipliers)} `channel_multipliers` downsample by that much, "
                f"got {self.image_size}."
            )
        for multiplier in self.channel_multipliers:
            if (self.hidden_channels * multiplier) % self.norm_num_groups:
                raise ValueError(
                    f"`norm_num_groups` must divide the {self.hidden_channels * multiplier} "
                    f"channels of every resolution, got {self.norm_num_groups}."
                )


__all__ = ["MaskGitVQGANConfig"]
