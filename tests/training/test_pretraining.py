"""The objective of VTP's pre-training: which loss reaches which weights, the teacher, schedules, and
the values at the start."""

import copy
import itertools
import math
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from titok_hf.training.noise import branch_scales
from titok_hf.training.pretraining import LARGEST_LOGIT_SCALE

from .distributed_pretraining import VARIANTS, gradients
from .tiny_pretraining import LOCAL_CROPS, NUM_PROTOTYPES, batches, make_model, make_pretraining

OFF = {"reconstruction_weight": 0.0, "ssl_weight": 0.0, "clip_weight": 0.0}
COMBINATIONS = [
    dict(zip(OFF, weights, strict=True))
    for weights in itertools.product((0.0, 0.5), repeat=3)
    if any(weights)
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def reached(objective, batch):
    """The names of the weights that get a gradient other than 0."""
    objective.zero_grad()
    objective(**batch).loss.backward()
    return {
        name
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


class TestSwitches:
    @pytest.mark.parametrize("weights", COMBINATIONS)
    def test_every_trained_weight_gets_a_gradient_in_every_combination(self, weights):
        objective = make_pretraining(**weights)
        batch = next(batches(objective))
        objective(**batch).loss.backward()
        trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        assert [name for name, parameter in trained.items() if parameter.grad is None] == []

    @pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
    def test_the_logit_bias_is_trained_by_the_sigmoid_loss(self, contrast):
        objective = make_pretraining(contrast=contrast)
        names = reached(objective, next(batches(objective)))
        assert ("model.logit_bias" in names) == (contrast == "sigmoid")
        assert "model.logit_scale" in names

    def test_a_weight_of_0_costs_no_module_and_no_data(self):
        for name, parts, keys in (
            ("reconstruction_weight", ("pixel_decoder", "perceptual"), ("reconstruction_rows",)),
            ("ssl_weight", ("head", "teacher"), ("global_crops", "local_crops", "patch_mask")),
            ("clip_weight", ("text_encoder", "image_projection"), ("input_ids", "captions_cut")),
        ):
            objective = make_pretraining(**{name: 0.0})
            modules = {path for path, _ in objective.named_modules()}
            assert not {part for part in parts for path in modules if path.endswith(part)}
            batch = next(batches(objective))
            assert not {*keys} & batch.keys()
        only = make_pretraining(**OFF | {"reconstruction_weight": 1.0})
        assert len(next(batches(only))["pixel_values"]) == 4  # the subset alone

    def test_which_loss_reaches_what(self):
        every = make_pretraining(koleo_weight=0.1)
        of = {}
        for name in OFF:
            objective = make_pretraining(**OFF | {name: 1.0})
            batch = next(batches(objective))
            of[name] = reached(objective, batch)
        names = [name for name, _ in every.named_parameters()]
        bottleneck, decoder, heads, texts = (
            {name for name in names if name.startswith(prefix)}
            for prefix in (
                "model.vision_encoder.bottleneck",
                "model.pixel_decoder",
                "head",
                "model.text",
            )
        )
        reconstruction, ssl, clip = of.values()
        assert bottleneck <= reconstruction and not reconstruction & (heads | texts)
        assert heads & ssl and not ssl & (bottleneck | decoder | texts)
        assert clip & texts and not clip & (bottleneck | decoder | heads)
        assert "model.vision_encoder.mask_token" in ssl - reconstruction - clip
        for names in of.values():
            assert "model.vision_encoder.blocks.0.attention.qkv.weight" in names

    def test_the_losses_add_up(self):
        weights = {"reconstruction_weight": 0.3, "ssl_weight": 0.7, "clip_weight": 1.5}
        objective = make_pretraining(perceptual_weight=0.4, koleo_weight=0.2, **weights)
        output = objective(**next(batches(objective)))
        logged = {name: value.item() for name, value in output.logged_losses.items()}
        ssl = sum(logged[name] for name in ("dino_local_loss", "dino_global_loss", "ibot_loss"))
        expected = 0.3 * (logged["l1_loss"] + 0.4 * logged["perceptual_loss"])
        expected += 0.7 * (ssl + 0.2 * logged["koleo_loss"]) + 1.5 * logged["clip_loss"]
        assert output.loss.item() == pytest.approx(expected, rel=1e-5)


class TestValues:
    def test_equal_logits_cost_the_logarithm_of_their_number(self):
        objective = make_pretraining()
        for head in (objective.head, objective.teacher.head):
            torch.nn.init.zeros_(head.mlp[-1].weight)  # a unit vector of zeros is zeros
            torch.nn.init.zeros_(head.mlp[-1].bias)
        torch.nn.init.zeros_(objective.model.image_projection.weight)
        with torch.no_grad():
            logged = objective(**next(batches(objective))).logged_losses
        pairs = 2 + 2 * LOCAL_CROPS
        expected = math.log(NUM_PROTOTYPES)
        assert logged["dino_local_loss"] == pytest.approx(expected * 2 * LOCAL_CROPS / pairs)
        assert logged["dino_global_loss"] == pytest.approx(expected * 2 / pairs)
        # half of the global crops are masked
        assert logged["ibot_loss"] == pytest.approx(expected / 2)
        assert logged["clip_loss"] == pytest.approx(math.log(8))
        assert logged["teacher_entropy"] == pytest.approx(1.0)

    def test_reconstruction_is_of_the_drawn_rows_in_the_stated_scale(self):
        objective = make_pretraining(ssl_weight=0.0)
        batch = next(batches(objective))
        logged = objective(**batch).logged_losses
        images = batch["pixel_values"][batch["reconstruction_rows"]]
        expected = objective.reconstruct(images)
        torch.testing.assert_close(logged["l1_loss"], F.l1_loss(expected, images))
        objective.pixel_scale = "unit"
        unit = objective(**batch).logged_losses
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        torch.testing.assert_close(unit["l1_loss"], ((expected - images) * std).abs().mean())
        # the perceptual loss does not depend on it: its images are always in [0, 1]
        assert unit["perceptual_loss"] == logged["perceptual_loss"]

    def test_contrast_is_that_of_the_model(self):
        objective = make_pretraining(ssl_weight=0.0)
        batch = next(batches(objective))
        expected = objective.model(batch["pixel_values"], batch["input_ids"]).loss
        torch.testing.assert_close(objective(**batch).logged_losses["clip_loss"], expected)

    def test_under_bfloat16_the_losses_are_in_float32(self):
        objective = make_pretraining()
        with torch.autocast("cpu", torch.bfloat16):
            output = objective(**next(batches(objective)))
        assert {value.dtype for value in output.logged_losses.values()} == {torch.float32}
        assert output.loss.isfinite()

    def test_evaluation_needs_no_crops(self):
        objective = make_pretraining().eval()
        batch = next(batches(objective))
        batch = {name: batch[name] for name in ("pixel_values", "input_ids")}
        logged = objective(**batch).logged_losses
        assert {"l1_loss", "clip_loss"} <= logged.keys() and "ibot_loss" not in logged


class TestTeacher:
    def test_it_begins_as_the_student(self):
        objective = make_pretraining()
        for of_teacher, of_student in (
            (objective.teacher.vision_encoder, objective.model.vision_encoder),
            (objective.teacher.head, objective.head),
        ):
            assert all(
                torch.equal(*pair)
                for pair in zip(of_teacher.parameters(), of_student.parameters(), strict=True)
            )
        assert not any(p.requires_grad for p in objective.teacher.parameters())
        objective.train()
        assert not objective.teacher.training

    def test_it_follows_by_its_momentum(self):
        objective = make_pretraining(teacher_momentum=0.9, final_teacher_momentum=0.9)
        before = copy.deepcopy(objective.teacher)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(torch.randn_like(parameter))
        before.load_state_dict(objective.teacher.state_dict())
        objective.after_optimizer_step(1)
        for old, new, student in zip(
            before.parameters(),
            objective.teacher.parameters(),
            [*objective.model.vision_encoder.parameters(), *objective.head.parameters()],
            strict=True,
        ):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * student)

    def test_momentum_and_temperature_follow_their_schedules(self, monkeypatch):
        objective = make_pretraining(
            teacher_momentum=0.9, final_teacher_momentum=1.0, teacher_temperature_steps=10
        )
        objective.num_steps = 100
        seen = []
        monkeypatch.setattr(
            type(objective.teacher), "follow", lambda *arguments: seen.append(arguments[-1])
        )
        for step in (0, 50, 100):
            objective.after_optimizer_step(step)
        assert seen == pytest.approx([0.9, 0.95, 1.0])
        assert [objective.temperature(step) for step in (0, 5, 10, 99)] == pytest.approx(
            [0.04, 0.055, 0.07, 0.07]
        )

    def test_the_prototypes_are_frozen_at_first(self):
        objective = make_pretraining(frozen_prototype_steps=2)
        batch = next(batches(objective))
        for step, there in ((1, False), (2, True)):
            objective(**batch, step=step).loss.backward()
            objective.before_optimizer_step(step)
            weight = objective.head.prototypes.parametrizations.weight.original1
            assert (weight.grad is not None) == there
            assert objective.head.mlp[0].weight.grad is not None

    def test_the_lengths_of_the_prototypes_stay_1(self):
        objective = make_pretraining()
        objective(**next(batches(objective))).loss.backward()
        torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=0.1).step()
        lengths = objective.head.prototypes.weight.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(NUM_PROTOTYPES))

    def test_centering_moves_only_in_training(self):
        objective = make_pretraining(centering="mean")
        batch = next(batches(objective))
        objective.eval()(**batch)
        assert not objective.centerings["dino"].center.any()
        objective.train()(**batch)
        assert (
            objective.centerings["dino"].center.any() and objective.centerings["ibot"].center.any()
        )

    def test_without_masks_all_stays_finite(self):
        objective = make_pretraining(centering="mean")
        batch = next(batches(objective))
        batch["patch_mask"] = torch.zeros_like(batch["patch_mask"])
        for name in ("masked_indices", "mask_weights"):
            batch[name] = batch[name][:0]
        output = objective(**batch)
        assert output.loss.isfinite() and output.logged_losses["ibot_loss"] == 0
        assert all(buffer.isfinite().all() for buffer in objective.buffers())

    def test_the_logit_scale_is_clamped(self):
        objective = make_pretraining()
        for value, expected in ((9.0, LARGEST_LOGIT_SCALE), (-1.0, 0.0), (2.0, 2.0)):
            torch.nn.init.constant_(objective.model.logit_scale, value)
            objective.after_optimizer_step(1)
            assert objective.model.logit_scale.item() == pytest.approx(expected)


class TestStochasticDepth:
    RATES = {"clip_drop_rate": 0.5, "ssl_drop_rate": 0.25, "reconstruction_drop_rate": 0.1}

    def test_a_dropped_branch_is_left_out_and_the_expectation_stays(self):
        draws = torch.rand(4000, 3 * 2 * 2)  # three passes of two layers with two branches
        scales = branch_scales(draws, 0.25, num_layers=2)
        assert scales.shape == (2, 2, 3 * 4000)
        assert scales.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        torch.testing.assert_close(scales.mean(-1), torch.ones(2, 2), atol=0.03, rtol=0)

    def test_of_all_branches_only_the_embedding_is_left(self):
        model = make_model().eval()
        images = torch.randn(2, 3, 32, 32)
        scales = torch.tensor([0.0, 1.0]).expand(2, 2, 2)
        dropped = model.get_vision_features(images, branch_scales=scales).cls_token
        expected = model.vision_encoder.norm(model.vision_encoder.cls_token)[0, 0]
        torch.testing.assert_close(dropped[0], expected)
        torch.testing.assert_close(dropped[1], model.get_vision_features(images).cls_token[1])

    def test_the_draws_of_a_sample_decide_wherever_it_is_in_the_batch(self):
        objective = make_pretraining(
            koleo_weight=0.0, **OFF | {"clip_weight": 1.0}, clip_drop_rate=0.5
        )
        batch = next(batches(objective))
        order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
        shuffled = {name: values[order] for name, values in batch.items()}
        torch.testing.assert_close(objective(**batch).loss, objective(**shuffled).loss)
        other = batch | {"draws": torch.rand_like(batch["draws"])}
        assert objective(**other).loss != objective(**batch).loss

    def test_equal_rates_share_a_forward_pass(self):
        for rates, passes in (
            ({}, 1),
            ({"clip_drop_rate": 0.2, "reconstruction_drop_rate": 0.2}, 1),
            ({"clip_drop_rate": 0.2}, 2),
        ):
            objective = make_pretraining(ssl_weight=0.0, **rates)
            seen = []
            objective.model.vision_encoder.register_forward_hook(
                lambda *arguments, seen=seen: seen.append(1)
            )
            objective(**next(batches(objective)))
            assert len(seen) == passes

    def test_every_rate_needs_its_draws(self):
        assert make_pretraining().num_draws == 0
        branches = 2 * 2
        assert make_pretraining(**self.RATES).num_draws == branches * (1 + 1 + 2 + LOCAL_CROPS)
        objective = make_pretraining(**self.RATES)
        objective(**next(batches(objective))).loss.backward()


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_have_the_gradients_of_one(two_processes, variant):
    """Before an optimizer, which hides a wrong scale, in float64."""
    file = two_processes / "distributed_pretraining" / f"{variant}.safetensors"
    found, expected = load_file(file), gradients(variant)
    assert found.keys() == expected.keys()
    modules = defaultdict(list)
    for name in expected:
        modules[".".join(name.split(".")[:2])].append(name)
    for name, value in expected.items():
        # the gradient of key biases is 0 but for rounding
        of_module = modules[".".join(name.split(".")[:2])]
        scale = max(float(expected[other].abs().max()) for other in of_module)
        torch.testing.assert_close(found[name], value, atol=1e-9 * scale, rtol=0, msg=name)


class TestAccumulation:
    """Accumulated batches against a large one."""

    def gradients(self, accumulation, **weights):
        torch.manual_seed(0)
        objective = make_pretraining(**weights).double()
        parts = batches(objective, 8 // accumulation, accumulation=accumulation)
        for _ in range(accumulation):
            (objective(**next(parts)).loss / accumulation).backward()
        return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])

    def test_reconstruction_is_the_same(self):
        weights = OFF | {"reconstruction_weight": 1.0}
        torch.testing.assert_close(self.gradients(2, **weights), self.gradients(1, **weights))

    @pytest.mark.parametrize("loss", ["clip_weight", "ssl_weight"])
    def test_what_sees_the_batch_is_not(self, loss):
        weights = OFF | {loss: 1.0}
        parts, whole = self.gradients(2, **weights), self.gradients(1, **weights)
        assert (parts - whole).norm() > 0.05 * whole.norm()


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "arguments", "message"),
        [
            ({}, {"pixel_scale": "bytes"}, "`pixel_scale` must be one of .*'bytes'"),
            ({}, {"contrast": "siglip"}, "`contrast` must be one of"),
            ({}, {"centering": "none"}, "`centering` must be one of"),
            ({"has_decoder": False}, {}, "`reconstruction_weight` is 0.1, so .*has_decoder=True"),
            ({"has_text": True}, {"clip_weight": 0.0}, "`clip_weight` is 0.0, so .*has_text=False"),
            ({"logit_bias": True}, {}, "`logit_bias` of the model and `contrast='sigmoid'`"),
            ({}, {"head": None}, "`head` must be given if `ssl_weight`"),
            ({}, {"perceptual": None}, "`perceptual` must be given if `perceptual_weight`"),
        ],
    )
    def test_one_sentence_says_what_is_wrong(self, fields, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_pretraining(fields, **arguments)
