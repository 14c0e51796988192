"""The smallest pre-training of a VTP, on digits with captions."""

from datasets import Dataset
from transformers import ConvNextConfig, ConvNextForImageClassification

from titok_hf import VTPConfig, VTPImageProcessor, VTPModel
from titok_hf.data.digits import load_digits_dataset
from titok_hf.data.loader import TrainingLoader
from titok_hf.data.multi_crop import MultiCrop
from titok_hf.data.pretraining import PretrainingCollator, Subset
from titok_hf.data.samples import IndexedSamples
from titok_hf.data.text_tokenizers import train_text_tokenizer
from titok_hf.training import PerceptualLoss
from titok_hf.training.pretraining import VTPPretrainingObjective
from titok_hf.training.self_supervision import DINOHead

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WEIGHTS = {"reconstruction_weight": 0.1, "ssl_weight": 1.0, "clip_weight": 1.0}
NUM_PROTOTYPES = 24
CONTEXT = 8
LOCAL_CROPS = 2


def captioned_digits(count: int = 36) -> Dataset:
    """Digits with two captions each."""
    digits = load_digits_dataset()["train"].select(range(count))
    texts = [[f"the digit {NAMES[label]}", NAMES[label]] for label in digits["label"]]
    return digits.add_column("text", texts)


def tokenizer():
    return train_text_tokenizer(NAMES, 300)


def make_model(**fields) -> VTPModel:
    return VTPModel(
        VTPConfig(
            **{
                "image_size": 32,
                "patch_size": 8,
                "latent_dim": 4,
                "vision_hidden_size": 16,
                "vision_num_hidden_layers": 2,
                "vision_num_attention_heads": 2,
                "decoder_hidden_size": 16,
                "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 2,
                "text_hidden_size": 16,
                "text_num_hidden_layers": 1,
                "text_num_attention_heads": 2,
                "text_intermediate_size": 32,
                "text_vocab_size": 300,
                "text_context_length": CONTEXT,
                "initializer_range": 0.2,
                **fields,
            }
        )
    )


def perceptual_loss() -> PerceptualLoss:
    config = ConvNextConfig(
        image_size=32, patch_size=4, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]
    )
    return PerceptualLoss(ConvNextForImageClassification(config), 32)


def make_pretraining(fields=None, **arguments) -> VTPPretrainingObjective:
    """The objective with all losses, or those whose weight is not 0; `fields` are the model's."""
    arguments = WEIGHTS | arguments
    parts = {}
    if arguments["ssl_weight"]:
        parts["head"] = DINOHead(16, NUM_PROTOTYPES, mlp_size=16, bottleneck_size=8)
    if arguments["reconstruction_weight"] and arguments.get("perceptual_weight", 1.0):
        parts["perceptual"] = perceptual_loss()
    model = make_model(
        **{
            "has_decoder": bool(arguments["reconstruction_weight"]),
            "has_text": bool(arguments["clip_weight"]),
            "logit_bias": arguments.get("contrast") == "sigmoid",
            **(fields or {}),
        }
    )
    return VTPPretrainingObjective(model, **{"num_local_crops": LOCAL_CROPS, **parts, **arguments})


def make_collator(
    objective: VTPPretrainingObjective, batch_size: int, global_batch_size: int, seed: int = 0
) -> PretrainingCollator:
    """The collator of an objective; half of each batch is for reconstruction and as much for
    self-supervision."""

    def subset(name, weight, kind):
        size = global_batch_size // 2
        return Subset(name, size, global_batch_size, batch_size, kind) if weight else None

    return PretrainingCollator(
        VTPImageProcessor.from_image_size(32),
        tokenizer=tokenizer() if objective.clip_weight else None,
        context_length=CONTEXT,
        reconstruction=subset("reconstruction", objective.reconstruction_weight, 0),
        self_supervision=subset("self_supervision", objective.ssl_weight, 1),
        multi_crop=MultiCrop(32, 16, LOCAL_CROPS, patch_size=8),
        seed=seed,
    )


def batches(
    objective: VTPPretrainingObjective,
    batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
):
    """Endless batches of a process."""
    collator = make_collator(objective, batch_size, batch_size * world_size * accumulation)
    text_column = "text" if objective.clip_weight else None
    loader = TrainingLoader(
        IndexedSamples(captioned_digits(), label_column=None, text_column=text_column),
        collator.collate,
        batch_size,
        rank=rank,
        world_size=world_size,
        num_draws=objective.num_draws,
    )
    return iter(loader)
