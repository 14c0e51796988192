"""The stages, what each of them logs, and comparisons of logs and weights."""

import torch

CODEBOOK = {"codebook_usage", "codebook_perplexity"}
GAN = {
    "adversarial_loss",
    "discriminator_loss",
    "real_logit",
    "fake_logit",
    "lecam_loss",
    "grad_norm_discriminator",
    "learning_rate_discriminator",
}
# What falls, and what else is logged.
STAGES = {
    "vqgan": ("reconstruction_loss", {"quantizer_loss", *CODEBOOK}),
    "classifier": ("loss", {"accuracy"}),
    "warmup": ("proxy_code_loss", {"proxy_code_accuracy", "quantizer_loss", *CODEBOOK}),
    "decoder_finetuning": ("reconstruction_loss", {"perceptual_loss", *GAN}),
    "single_stage": ("reconstruction_loss", {"quantizer_loss", *CODEBOOK}),
    "generator": ("loss", {"masked_token_accuracy"}),
}
SPEED = {"images_per_second", "peak_share"}


def steps_of(trainer):
    """The entries of the log that belong to steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def without_speed(entries):
    """Entries of the log without what is never the same twice."""
    return [
        {name: value for name, value in entry.items() if name not in SPEED} for entry in entries
    ]


def differing(first, second):
    """Names of the tensors of two state dicts that are not bit-equal."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
