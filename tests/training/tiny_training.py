"""The training of this folder's scripts: the smallest VQGAN, on 18 digits."""

from titok_hf import MaskGitVQGANConfig, MaskGitVQGANModel, TiTokImageProcessor
from titok_hf.data import ImageCollator
from titok_hf.data.digits import load_digits_dataset
from titok_hf.training import TiTokTrainingArguments


def tiny_vqgan():
    return MaskGitVQGANModel(
        MaskGitVQGANConfig(
            image_size=32,
            hidden_channels=4,
            channel_multipliers=(1, 1, 1),
            num_res_blocks=1,
            norm_num_groups=2,
            latent_channels=4,
            codebook_size=16,
        )
    )


def tiny_arguments(folder, **arguments):
    return TiTokTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **arguments,
    )


def tiny_data():
    """The trainer's data set and collator."""
    return {
        "train_dataset": load_digits_dataset()["train"].select(range(18)),
        "data_collator": ImageCollator(TiTokImageProcessor.from_image_size(32)),
    }
