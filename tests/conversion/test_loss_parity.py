"""The losses are those of the reference."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from titok_hf import (
    MaskGitConfig,
    MaskGitModel,
    TiTokModel,
)
from titok_hf.modeling.outputs import TokenizerDecoderOutput, TokenizerEncoderOutput
from titok_hf.training.discriminator import PatchDiscriminator
from titok_hf.training.losses import lecam_loss
from titok_hf.training.objectives import MaskedTokenObjective, ReconstructionObjective

from .test_parity import Case, assert_outputs


class FixedTokenizer(nn.Module):
    """Gives the same outputs whatever comes in."""

    def __init__(self, encoded, decoded=None):
        super().__init__()
        self.config = SimpleNamespace()
        self.encoded, self.decoded = encoded, decoded

    def encode(self, *_, **arguments):
        return self.encoded

    def decode(self, _latents):
        return self.decoded


def official_discriminator(case):
    discriminator = PatchDiscriminator()
    names = (
        ("conv_in", "block_in.0"),
        ("stages", "blocks"),
        ("proj", "to_logits.0"),
        ("conv_out", "to_logits.2"),
    )
    weights = case.weights()
    state_dict = {}
    for name in discriminator.state_dict():
        official = name
        for ours, theirs in names:
            official = official.replace(ours, theirs)
        state_dict[name] = weights.pop(official)
    assert not weights
    discriminator.load_state_dict(state_dict)
    return discriminator


def adversarial_outputs(case):
    pixel_values, reconstruction = (
        case.pixel_values(256),
        case.uniform("reconstruction", 2, 3, 256, 256),
    )
    tokenizer = FixedTokenizer(
        TokenizerEncoderOutput(quantizer_loss=torch.zeros(())),
        TokenizerDecoderOutput(reconstruction=reconstruction),
    )
    discriminator = official_discriminator(case)
    parts = (
        ReconstructionObjective(tokenizer, discriminator=discriminator)
        .eval()(pixel_values)
        .logged_losses
    )
    return {
        "logits_real": discriminator(pixel_values),
        "logits_fake": discriminator(reconstruction),
        "reconstruction_l1": F.l1_loss(reconstruction, pixel_values),
        "reconstruction_l2": parts["reconstruction_loss"],
        "discriminator_hinge": parts["discriminator_loss"],
        "generator_adversarial": parts["adversarial_loss"],
        "lecam": lecam_loss(
            parts["real_logit"], parts["fake_logit"], torch.tensor(0.3), torch.tensor(-0.2)
        ),
    }


def masked_token_outputs(case):
    logits, targets = case.normal("logits", 2, 16, 64), case.integers("targets", 64, 2, 16)
    masked = case.uniform("mask", 2, 16) < 0.6
    generator = MaskGitModel(
        MaskGitConfig(codebook_size=64, num_tokens=16, num_hidden_layers=1)
    ).eval()
    generator.backbone = lambda _ids: F.pad(logits, (0, 0, 1, 0))
    generator.lm_head = nn.Identity()
    objective = MaskedTokenObjective(
        generator,
        FixedTokenizer(TokenizerEncoderOutput(codes=targets)),
        SimpleNamespace(add_noise=lambda codes, _progress, noise: codes.masked_fill(masked, 64)),
    )
    output = objective.eval()(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 32, 32))
    return {
        "masked_token_loss": output.loss,
        "masked_token_accuracy": output.logged_losses["masked_token_accuracy"],
    }


def proxy_code_outputs(case, titok_config):
    logits = case.normal("proxy_logits", 2, 1024, 4, 4).flatten(2).transpose(1, 2)  # (B, P, N)
    fixed = FixedTokenizer(
        TokenizerEncoderOutput(quantizer_loss=torch.tensor(0.5)),
        TokenizerDecoderOutput(proxy_logits=logits),
    )
    tokenizer = TiTokModel(titok_config)
    tokenizer.encode, tokenizer.decode = fixed.encode, fixed.decode
    output = tokenizer(torch.zeros(2, 3, 32, 32), case.integers("proxy_codes", 1024, 2, 16))
    return {"proxy_code_loss_total": output.loss}


@torch.no_grad()
def test_losses_are_those_of_the_reference(titok_config):
    case = Case("losses")
    outputs = (
        adversarial_outputs(case)
        | masked_token_outputs(case)
        | proxy_code_outputs(case, titok_config)
    )
    assert_outputs(outputs, case.reference)
