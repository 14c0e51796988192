"""The loss of each stage is its formula, and reaches the networks that the stage trains alone."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from titok_hf.training import ClassifierObjective, PatchDiscriminator


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def partial_gradients(loss, module):
    """Gradients of a part of a loss; `None` where there is none."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


class TestWarmup:
    def test_the_loss_is_cross_entropy_of_the_vqgans_codes_plus_the_quantizers(
        self, make_objective, pixel_values
    ):
        objective = make_objective("warmup")
        output = objective(pixel_values)
        codes = objective.vqgan.encode(pixel_values).codes  # (B, P)
        encoded = objective.model.encode(pixel_values)
        log_probabilities = objective.model.decode(encoded.latents).proxy_logits.log_softmax(-1)
        cross_entropy = -log_probabilities.gather(-1, codes[..., None]).mean()
        torch.testing.assert_close(output.loss, cross_entropy + encoded.quantizer_loss)
        torch.testing.assert_close(output.logged_losses["proxy_code_loss"], cross_entropy)
        torch.testing.assert_close(output.logged_losses["quantizer_loss"], encoded.quantizer_loss)
        accuracy = (log_probabilities.argmax(-1) == codes).float().mean()
        assert output.logged_losses["proxy_code_accuracy"] == accuracy

    def test_the_vqgan_gets_no_gradient(self, make_objective, pixel_values):
        objective = make_objective("warmup").train()
        objective(pixel_values).loss.backward()
        assert all(gradient is None for gradient in gradients(objective.vqgan).values())
        assert not any(parameter.requires_grad for parameter in objective.vqgan.parameters())

    def test_encoder_codebook_and_decoder_get_one(self, make_objective, pixel_values):
        objective = make_objective("warmup").train()
        objective(pixel_values).loss.backward()
        found = gradients(objective.model)
        for name in (
            "encoder.latent_tokens",
            "encoder.patch_embedding.weight",
            "quantizer.codebook.weight",
        ):
            assert found[name].abs().sum() > 0, name
        assert found["head.proj_out.weight"].abs().sum() > 0


class TestDecoderFinetuning:
    def test_only_the_decoder_gets_a_gradient(self, make_adversarial_objective, pixel_values):
        objective = make_adversarial_objective().train()
        objective(pixel_values).loss.backward()
        frozen = {n for n, gradient in gradients(objective.model).items() if gradient is None}
        assert frozen == {
            n
            for n, _ in objective.model.named_parameters()
            if n.startswith(("encoder.", "quantizer."))
        }
        assert "encoder.latent_tokens" in frozen and "quantizer.codebook.weight" in frozen
        for part in (
            "decoder.mask_token",
            "decoder.latent_embedding.weight",
            "head.proj_in.weight",
        ):
            assert gradients(objective.model)[part].abs().sum() > 0
        for part in ("pixel_codebook.weight", "pixel_decoder.conv_out.weight"):
            assert gradients(objective.model)[part].abs().sum() > 0

    def test_encoder_and_codebook_are_not_watched(self, make_objective, pixel_values):
        objective = make_objective("decoder_finetuning").train()
        assert objective.codebook_revival is None
        assert objective(pixel_values).logged_losses.keys() == {"reconstruction_loss"}

    def test_the_loss_is_the_weighted_sum(self, make_adversarial_objective, pixel_values):
        objective = make_adversarial_objective(reconstruction_weight=0.7).eval()
        objective.real_average, objective.fake_average = torch.tensor(0.3), torch.tensor(-0.2)
        output = objective(pixel_values)

        images = objective.model(pixel_values).reconstruction
        judge = objective.discriminator
        real, fake = judge(pixel_values), judge(images)
        squared_error = (images - pixel_values).square().mean()
        perceptual = objective.perceptual(images, pixel_values)
        hinge = ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()) / 2
        lecam = (real.mean() + 0.2).clamp_min(0) ** 2 + (0.3 - fake.mean()).clamp_min(0) ** 2
        expected = 0.7 * squared_error + 0.1 * perceptual - 0.2 * fake.mean() + hinge + 0.05 * lecam
        torch.testing.assert_close(output.loss, expected)
        parts = {
            "reconstruction_loss": squared_error,
            "perceptual_loss": perceptual,
            "adversarial_loss": -fake.mean(),
            "discriminator_loss": hinge,
            "real_logit": real.mean(),
            "fake_logit": fake.mean(),
            "lecam_loss": lecam,
        }
        assert output.logged_losses.keys() == parts.keys()
        for name, part in parts.items():
            torch.testing.assert_close(output.logged_losses[name], part)

    def test_generator_and_discriminator_do_not_train_each_other(
        self, make_adversarial_objective, pixel_values
    ):
        objective = make_adversarial_objective().train()
        parts = objective(pixel_values).logged_losses
        of_generator, of_discriminator = parts["adversarial_loss"], parts["discriminator_loss"]
        assert all(g is None for g in partial_gradients(of_generator, objective.discriminator))
        assert all(g is None for g in partial_gradients(of_discriminator, objective.model))
        for loss, network in (
            (of_generator, objective.model.pixel_decoder),
            (of_discriminator, objective.discriminator),
        ):
            assert sum(float(g.abs().sum()) for g in partial_gradients(loss, network)) > 0

    def test_one_backward_pass_gives_each_network_the_gradient_of_its_own_loss(
        self, make_adversarial_objective, pixel_values
    ):
        objective = make_adversarial_objective(lecam_weight=0.0, perceptual_weight=0.0).train()
        output = objective(pixel_values)
        output.loss.backward(retain_graph=True)
        parts = output.logged_losses
        of_discriminator = partial_gradients(parts["discriminator_loss"], objective.discriminator)
        for gradient, parameter in zip(
            of_discriminator, objective.discriminator.parameters(), strict=True
        ):
            torch.testing.assert_close(parameter.grad, gradient)
        of_tokenizer = partial_gradients(
            parts["reconstruction_loss"] + 0.2 * parts["adversarial_loss"], objective.model
        )
        trained = [
            parameter for parameter in objective.model.parameters() if parameter.requires_grad
        ]
        for gradient, parameter in zip(of_tokenizer, trained, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)

    def test_before_its_start_the_discriminator_contributes_exactly_nothing(
        self, make_adversarial_objective, pixel_values
    ):
        with_discriminator = make_adversarial_objective(discriminator_start=3).train()
        without = make_adversarial_objective(discriminator=None, adversarial_weight=0.0).train()
        without.model.load_state_dict(with_discriminator.model.state_dict())
        without.perceptual.load_state_dict(with_discriminator.perceptual.state_dict())
        for step in range(3):
            losses = [
                objective(pixel_values, step=step).loss
                for objective in (with_discriminator, without)
            ]
            assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        for name, gradient in gradients(without.model).items():
            same = gradients(with_discriminator.model)[name]
            assert same is None if gradient is None else torch.equal(same, gradient)
        # a gradient of zeros and not none, which distributed training waits for
        assert all(
            not gradient.any() for gradient in gradients(with_discriminator.discriminator).values()
        )
        with_discriminator.after_optimizer_step(3)
        assert float(with_discriminator.real_average) == float(with_discriminator.fake_average) == 0

        with_discriminator.zero_grad()
        output = with_discriminator(pixel_values, step=3)
        assert output.loss != losses[0]
        output.loss.backward()
        assert all(
            gradient.any() for gradient in gradients(with_discriminator.discriminator).values()
        )
        with_discriminator.after_optimizer_step(4)
        assert float(with_discriminator.real_average) != 0

    def test_lecam_averages_follow_the_mean_logits_in_training_alone(
        self, make_adversarial_objective, pixel_values
    ):
        """They move once an optimizer step, to the mean of its batches."""
        objective = make_adversarial_objective(lecam_decay=0.75).train()
        batches = [pixel_values, pixel_values.flip(-1), 1 - pixel_values, pixel_values / 2]
        real, fake = 0.0, 0.0
        for step, accumulated in enumerate((batches[:1], batches[1:], batches[:2])):
            parts = [objective(batch, step=step).logged_losses for batch in accumulated]
            assert float(objective.real_average) == pytest.approx(real, rel=1e-5)
            objective.after_optimizer_step(step + 1)
            real = 0.75 * real + 0.25 * sum(part["real_logit"].item() for part in parts) / len(
                parts
            )
            fake = 0.75 * fake + 0.25 * sum(part["fake_logit"].item() for part in parts) / len(
                parts
            )
        objective.eval()(pixel_values, step=3)
        objective.after_optimizer_step(4)
        assert float(objective.real_average) == pytest.approx(real, rel=1e-5)
        assert float(objective.fake_average) == pytest.approx(fake, rel=1e-5)
        assert not objective.real_average.requires_grad
        assert {"real_average", "fake_average"} <= objective.state_dict().keys()

    def test_tokenizer_and_discriminator_are_two_networks(self, make_adversarial_objective):
        objective = make_adversarial_objective()
        assert dict(objective.networks()) == {
            "model": objective.model,
            "discriminator": objective.discriminator,
        }


class TestSingleStage:
    @pytest.mark.parametrize("stage", ["vqgan", "single_stage"])
    @pytest.mark.parametrize("distance", ["l1", "l2"])
    def test_the_loss_is_the_error_plus_the_weighted_quantizers(
        self, make_objective, pixel_values, stage, distance
    ):
        objective = make_objective(stage, quantizer_weight=0.3, distance=distance)
        encoded = objective.model.encode(pixel_values)
        error = (objective.model.decode(encoded.latents).reconstruction - pixel_values).abs()
        expected = (error if distance == "l1" else error.square()).mean()
        output = objective(pixel_values)
        torch.testing.assert_close(output.logged_losses["reconstruction_loss"], expected)
        torch.testing.assert_close(output.loss, expected + 0.3 * encoded.quantizer_loss)

    @pytest.mark.parametrize("stage", ["vqgan", "single_stage"])
    def test_the_reconstruction_trains_the_encoder_through_the_quantizer(
        self, make_objective, pixel_values, stage
    ):
        objective = make_objective(stage, quantizer_weight=0.0).train()
        objective(pixel_values).loss.backward()
        assert any(
            parameter.grad.abs().sum() > 0 for parameter in objective.model.encoder.parameters()
        )
        assert not objective.model.quantizer.codebook.weight.grad.any()


class TestAdaptiveWeight:
    """The adversarial loss pulls on the last layer as the reconstruction does (Taming Transformers,
    equation 7)."""

    LAST_LAYERS = {
        "vqgan": "decoder.conv_out.weight",
        "single_stage": "head.conv.weight",
        "decoder_finetuning": "pixel_decoder.conv_out.weight",
    }

    @pytest.fixture
    def make(self, make_objective, perceptual):
        def make(stage, **arguments):
            judge = PatchDiscriminator(hidden_channels=8, num_stages=2)
            parts = {
                "perceptual": perceptual,
                "perceptual_weight": 0.5,
                "distance": "l1",
                "discriminator": judge,
            }
            return make_objective(stage, adaptive_weight=True, **(parts | arguments))

        return make

    @pytest.mark.parametrize("stage", LAST_LAYERS)
    def test_it_is_the_ratio_of_the_gradients(self, make, pixel_values, stage):
        objective = make(stage, adversarial_weight=0.3).train()
        output = objective(pixel_values)
        parts = output.logged_losses
        reconstruction_loss = parts["reconstruction_loss"] + 0.5 * parts["perceptual_loss"]
        last_layer = objective.model.get_parameter(self.LAST_LAYERS[stage])
        reconstruction, adversarial = (
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].square().sum().sqrt()
            for loss in (reconstruction_loss, parts["adversarial_loss"])
        )
        expected = reconstruction / (adversarial + 1e-4)
        torch.testing.assert_close(parts["adaptive_weight"], expected)
        assert not parts["adaptive_weight"].requires_grad

        output.loss.backward(retain_graph=True)
        loss = reconstruction_loss + 0.3 * expected * parts["adversarial_loss"]
        if "quantizer_loss" in parts:
            loss = loss + parts["quantizer_loss"]
        trained = [
            parameter for parameter in objective.model.parameters() if parameter.requires_grad
        ]
        of_tokenizer = torch.autograd.grad(loss, trained, retain_graph=True)
        for gradient, parameter in zip(of_tokenizer, trained, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        of_discriminator = partial_gradients(parts["discriminator_loss"], objective.discriminator)
        for gradient, parameter in zip(
            of_discriminator, objective.discriminator.parameters(), strict=True
        ):
            torch.testing.assert_close(parameter.grad, gradient)

    def test_it_is_at_most_ten_thousand(self, make, pixel_values):
        objective = make("single_stage", reconstruction_weight=1e9).train()
        assert float(objective(pixel_values).logged_losses["adaptive_weight"]) == 1e4

    def test_an_evaluation_has_none(self, make, pixel_values):
        objective = make("single_stage").eval()
        with torch.no_grad():
            assert "adaptive_weight" not in objective(pixel_values).logged_losses

    def test_before_the_discriminators_start_it_changes_nothing(self, make, pixel_values):
        first, second = (
            make("single_stage", adversarial_weight=w, discriminator_start=1) for w in (0.0, 5.0)
        )
        assert torch.equal(first(pixel_values).loss, second(pixel_values).loss)
        assert first(pixel_values, step=1).loss != second(pixel_values, step=1).loss


class TestGenerator:
    def test_the_loss_is_the_models_on_masked_codes(self, make_objective, digit_batch):
        objective = make_objective("generator").eval()
        assert objective.num_draws == 2 + 8
        draws = torch.rand(8, 10)
        output = objective(**digit_batch, draws=draws)

        codes = objective.tokenizer.encode(digit_batch["pixel_values"]).codes
        masked_codes = codes.clone()
        for i in range(8):  # the tokens with the lowest numbers, as many as the schedule says
            count = max(1, round(2 / math.pi * math.acos(draws[i, 0]) * 8))
            masked_codes[i, draws[i, 2:].sort().indices[:count]] = (
                objective.model.config.mask_token_id
            )
        masked = masked_codes == objective.model.config.mask_token_id
        assert 0 < masked.float().mean() < 1
        expected = objective.model(masked_codes, digit_batch["class_labels"], target_codes=codes)
        assert torch.equal(output.loss, expected.loss)
        correct = (expected.logits.argmax(-1) == codes)[masked].float()
        assert float(output.logged_losses["masked_token_accuracy"]) == pytest.approx(
            float(correct.mean())
        )

    def test_codes_count_as_the_images_they_come_of(self, make_objective, digit_batch):
        objective = make_objective("generator").eval()
        draws, codes = (
            torch.rand(8, 10),
            objective.tokenizer.encode(digit_batch["pixel_values"]).codes,
        )
        labels = digit_batch["class_labels"]
        from_images = objective(labels, digit_batch["pixel_values"], draws=draws).loss
        assert torch.equal(objective(labels, codes=codes, draws=draws).loss, from_images)

    def test_labels_are_dropped_where_the_draw_is_below_the_share(
        self, make_objective, generator_config, digit_batch
    ):
        generator_config.hidden_dropout = generator_config.attention_dropout = 0.0
        generator_config.label_dropout = 0.3
        objective = make_objective("generator").train()
        draws = torch.rand(8, 10)
        draws[:, 1] = torch.tensor([0.0, 0.29, 0.31, 0.5, 0.2, 0.99, 0.3, 0.1])
        given = digit_batch["class_labels"]
        dropped = torch.where(draws[:, 1] < 0.3, objective.model.config.null_label, given)
        assert (dropped != given).sum() == 4
        in_training = objective(**digit_batch, draws=draws).loss
        objective.eval()
        in_evaluation = objective(**(digit_batch | {"class_labels": dropped}), draws=draws).loss
        torch.testing.assert_close(in_training, in_evaluation)
        assert not torch.isclose(
            in_evaluation, objective(**digit_batch, draws=draws).loss
        )  # no label is dropped

    @pytest.mark.parametrize("unmasked_weight", [0.0, 0.1, 1.0])
    def test_batches_count_by_the_weights_of_their_tokens(
        self, make_objective, generator_config, digit_batch, unmasked_weight
    ):
        generator_config.unmasked_weight = unmasked_weight
        objective = make_objective("generator").eval()
        draws = torch.rand(8, 10)
        batches = [
            {name: tensor[rows] for name, tensor in (digit_batch | {"draws": draws}).items()}
            for rows in (slice(0, 3), slice(3, 4), slice(4, 8))
        ]
        weights = objective.batch_weights(batches)
        for weight, batch in zip(weights, batches, strict=True):
            counts = [
                max(1, round(2 / math.pi * math.acos(u) * 8)) for u in batch["draws"][:, 0].tolist()
            ]
            assert float(weight) == pytest.approx(
                sum(n + unmasked_weight * (8 - n) for n in counts)
            )
        losses = torch.stack([objective(**batch).loss for batch in batches])
        whole = objective(**digit_batch, draws=draws).loss
        torch.testing.assert_close((weights * losses).sum() / weights.sum(), whole)

    def test_other_objectives_have_no_weights(self, make_objective, digit_batch):
        assert make_objective("warmup").batch_weights([digit_batch]) is None

    def test_the_tokenizer_gets_no_gradient_and_does_not_change(self, make_objective, digit_batch):
        objective = make_objective("generator").train()
        before = copy.deepcopy(objective.tokenizer.state_dict())
        objective(**digit_batch).loss.backward()
        torch.optim.AdamW(
            [p for p in objective.parameters() if p.grad is not None], weight_decay=0.1
        ).step()
        assert all(gradient is None for gradient in gradients(objective.tokenizer).values())
        assert not any(parameter.requires_grad for parameter in objective.tokenizer.parameters())
        assert all(
            torch.equal(tensor, before[name])
            for name, tensor in objective.tokenizer.state_dict().items()
        )

    def test_masks_are_drawn_anew(self, make_objective, digit_batch):
        objective = make_objective("generator").eval()
        assert len({objective(**digit_batch).loss.item() for _ in range(3)}) == 3


class TestClassifier:
    def test_the_loss_is_cross_entropy_of_normalized_images(self, make_objective, digit_batch):
        objective = make_objective("classifier").eval()
        output = objective(**digit_batch)
        assert (ClassifierObjective.MEAN, ClassifierObjective.STD) == ((0.5,) * 3, (0.5,) * 3)
        logits = objective.model(2 * digit_batch["pixel_values"] - 1).logits
        torch.testing.assert_close(
            output.loss, F.cross_entropy(logits, digit_batch["class_labels"])
        )
        accuracy = (logits.argmax(-1) == digit_batch["class_labels"]).float().mean()
        assert output.logged_losses["accuracy"] == accuracy


def test_mixed_precision_leaves_the_codes(make_objective):
    """Images give what their codes give, though the tokenizer would choose some others in bfloat16."""
    objective = make_objective("generator").eval()
    pixel_values, labels = torch.rand(256, 3, 32, 32), torch.zeros(256, dtype=torch.long)
    codes = objective.tokenizer.encode(pixel_values).codes
    draws = torch.rand(len(codes), objective.num_draws)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(objective.tokenizer.encode(pixel_values).codes, codes)
        of_images, of_codes = (
            objective(labels, draws=draws, **batch).loss
            for batch in ({"pixel_values": pixel_values}, {"codes": codes})
        )
    assert torch.equal(of_images, of_codes)


def test_mixed_precision_leaves_the_proxy_codes(make_objective):
    objective = make_objective("warmup").eval()
    pixel_values = torch.rand(64, 3, 32, 32)
    codes = objective.vqgan.encode(pixel_values).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(objective.vqgan.encode(pixel_values).codes, codes)
        expected = objective.model(pixel_values, codes).loss
        assert torch.equal(objective(pixel_values).loss, expected)
