"""The losses of VTP's pre-training, against DINOv2's, OpenCLIP's and VTP's own outputs, and by their
properties."""

import json
import math
from pathlib import Path

import pytest
import torch
from fixtures.parity.fill import fill, normal
from safetensors.torch import load_file
from torch.nn import functional as F

from titok_hf import VTPConfig, VTPModel
from titok_hf.conversion.vtp import OfficialVTP
from titok_hf.training.contrast import contrastive_loss, sigmoid_loss
from titok_hf.training.self_supervision import (
    Centering,
    DINOHead,
    cross_entropies,
    dino_losses,
    ibot_loss,
    koleo_loss,
    sinkhorn_targets,
)

from .distributed_losses import BATCH, losses_and_gradients

CASES = Path(__file__).parents[1] / "fixtures" / "parity" / "cases"
TEACHER = 0.07


def logits(name, *shape):
    return 0.3 * torch.from_numpy(normal(name, [*shape]))


def close(found, expected, tolerance=1e-5):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


class TestReference:
    """DINOv2's losses on 4 images, 2 global and 6 local crops, 32 prototypes and 16 patches."""

    @pytest.fixture
    def case(self):
        return load_file(CASES / "self_supervised_losses.safetensors")

    @pytest.fixture
    def swapped(self):
        """The teacher's logits, the second crop first."""
        return logits("teacher_global_logits", 8, 32).roll(4, 0)

    def test_targets(self, case, swapped):
        close(sinkhorn_targets(swapped, TEACHER), case["sinkhorn_targets"])
        centering = Centering(32)
        close(centering(swapped, TEACHER), case["centered_targets_at_first"])
        centering.update(swapped)
        close(centering.center, case["center_after_one_update"])

    @pytest.mark.parametrize("kind", ["sinkhorn", "centered"])
    def test_dino(self, case, swapped, kind):
        targets = (
            sinkhorn_targets(swapped, TEACHER)
            if kind == "sinkhorn"
            else Centering(32)(swapped, TEACHER)
        )
        of_local, of_global = dino_losses(
            targets.unflatten(0, (2, 4)).flip(0),
            logits("student_global_logits", 8, 32).unflatten(0, (2, 4)),
            logits("student_local_logits", 24, 32).unflatten(0, (6, 4)),
        )
        close(of_local, case[f"dino_local_{kind}"])
        close(of_global, case[f"dino_global_{kind}"])

    def test_ibot(self, case):
        masks = case["masks"].bool()  # (8, 16)
        teacher, student = (
            logits(f"{name}_patch_logits", 8, 16, 32)[masks] for name in ("teacher", "student")
        )
        targets = sinkhorn_targets(teacher, TEACHER)
        close(targets, case["ibot_sinkhorn_targets"])
        weights = (1 / masks.sum(1, keepdim=True)).expand_as(masks)[masks]
        close(ibot_loss(targets, student, weights, num_crops=8), case["ibot"])

    def test_koleo(self, case):
        tokens = torch.from_numpy(normal("student_cls_tokens", [8, 24]))
        close(sum(koleo_loss(crop) for crop in tokens.chunk(2)), case["koleo"])

    def test_contrast(self):
        case = load_file(CASES / "contrastive_losses.safetensors")
        images, texts = (
            F.normalize(torch.from_numpy(normal(name, [6, 20])), dim=-1)
            for name in ("image_features", "text_features")
        )
        scale = torch.tensor(14.2857)
        close(contrastive_loss(images, texts, scale), case["clip"])
        close(sigmoid_loss(images, texts, scale, torch.tensor(-10.0)), case["siglip"])


class TestReferenceOfVTP:
    """VTP's student and teacher passes; its RoPE is in bfloat16."""

    @pytest.fixture
    def case(self):
        shapes = json.loads((CASES / "vtp_self_supervised.json").read_text())["shapes"]
        outputs = load_file(CASES / "vtp_self_supervised.safetensors")
        return {
            name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()
        }, outputs

    def networks(self, weights, of):
        """The encoder and the head of the student (`""`) or of the teacher (`"teacher_"`)."""
        config = VTPConfig(
            image_size=64,
            vision_hidden_size=64,
            vision_num_hidden_layers=2,
            vision_num_attention_heads=4,
            latent_dim=16,
            has_decoder=False,
            has_text=False,
        )
        official = {
            name.removeprefix(of): tensor
            for name, tensor in weights.items()
            if name.startswith(f"{of}trunk.") and not name.endswith("periods")
        }
        model = VTPModel(config).eval()
        model.load_state_dict(OfficialVTP().to_ours(official, config))
        head = DINOHead(64, num_prototypes=40, mlp_size=48, bottleneck_size=24)
        of_head = {
            name.removeprefix(f"{of}dino_head."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"{of}dino_head.")
        }
        prototypes = "prototypes.parametrizations.weight.original"
        for ours, theirs in (("0", "weight_g"), ("1", "weight_v")):
            of_head[prototypes + ours] = of_head.pop(f"last_layer.{theirs}")
        head.load_state_dict(of_head)
        return model.vision_encoder, head

    @torch.no_grad()
    def test_passes_of_student_and_teacher(self, case):
        weights, expected = case
        global_crops = torch.from_numpy(normal("global_crops", [6, 3, 64, 64]))
        local_crops = torch.from_numpy(normal("local_crops", [12, 3, 32, 32]))
        masks = expected["masks"].bool()

        encoder, head = self.networks(weights, "")
        student = encoder(global_crops, masks)
        close(student.cls_token, expected["student_global_cls_tokens"], 1e-3)
        close(head(student.cls_token), expected["student_global_cls_tokens_after_head"], 1e-3)
        close(
            head(student.patch_tokens[masks]),
            expected["student_global_masked_patch_tokens_after_head"],
            1e-3,
        )
        local_logits = head(encoder(local_crops).cls_token)
        close(local_logits, expected["student_local_cls_tokens_after_head"], 1e-3)

        encoder, head = self.networks(weights, "teacher_")
        teacher = encoder(global_crops)
        swapped = teacher.cls_token.roll(3, 0)
        close(head(swapped), expected["teacher_cls_tokens_after_head"], 1e-3)
        patches = head(teacher.patch_tokens[masks])
        close(patches, expected["masked_teacher_patch_tokens_after_head"], 1e-3)


class TestProperties:
    def test_equal_logits_cost_the_logarithm_of_their_number(self):
        targets = torch.rand(2, 3, 40).softmax(-1)
        of_local, of_global = dino_losses(targets, torch.zeros(2, 3, 40), torch.zeros(5, 3, 40))
        assert float(of_local + of_global) == pytest.approx(math.log(40))
        weights = torch.tensor([0.5, 0.5, 1.0])
        found = ibot_loss(targets[0], torch.zeros(3, 40), weights, num_crops=2)
        assert float(found) == pytest.approx(math.log(40))
        embeds = F.normalize(torch.ones(7, 5), dim=-1)
        assert float(contrastive_loss(embeds, embeds, torch.tensor(10.0))) == pytest.approx(
            math.log(7)
        )

    def test_dino_is_the_mean_over_all_pairs_but_a_crop_with_itself(self):
        targets = torch.randn(2, 4, 9).softmax(-1)
        students = torch.randn(2 + 3, 4, 9)
        pairs = [
            cross_entropies(targets[t], students[s], 0.1).mean()
            for t in range(2)
            for s in range(5)
            if s != t
        ]
        found = sum(dino_losses(targets, students[:2], students[2:]))
        assert float(found) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)

    def test_dino_needs_no_local_crops(self):
        targets, students = torch.randn(2, 4, 9).softmax(-1), torch.randn(2, 4, 9)
        of_local, of_global = dino_losses(targets, students, torch.empty(0, 4, 9))
        assert float(of_local) == 0
        expected = cross_entropies(targets.flip(0), students, 0.1).mean()
        assert float(of_global) == pytest.approx(float(expected))

    def test_ibot_with_equal_masks_is_a_plain_mean(self):
        targets, students = torch.randn(12, 9).softmax(-1), torch.randn(12, 9)
        found = ibot_loss(targets, students, torch.full((12,), 1 / 4), num_crops=3)
        assert float(found) == pytest.approx(float(cross_entropies(targets, students, 0.1).mean()))

    def test_sinkhorn_balances_prototypes(self):
        values = torch.randn(64, 8)
        unbalance = []
        for iterations in (1, 3, 200):
            targets = sinkhorn_targets(values, 0.3, iterations)
            assert torch.allclose(targets.sum(-1), torch.ones(64))
            unbalance.append(float((targets.sum(0) - 64 / 8).abs().max()))
        assert unbalance[0] > unbalance[1] > unbalance[2] and unbalance[2] < 1e-2

    def test_sinkhorn_ignores_what_is_added_to_all_logits(self):
        values = torch.randn(16, 8, dtype=torch.float64)
        expected = sinkhorn_targets(values, 0.07)
        torch.testing.assert_close(sinkhorn_targets(values + 3, 0.07), expected)
        # a shift of one sample's logits changes the totals of the prototypes
        shifted = values.clone()
        shifted[0] += 1
        assert (sinkhorn_targets(shifted, 0.07) - expected).abs().max() > 1e-4

    def test_sinkhorn_does_not_overflow(self):
        """The logits are so large that exp(logits / temperature) overflows in float32."""
        targets = sinkhorn_targets(100 * torch.randn(16, 8), 0.04)
        assert targets.isfinite().all() and torch.allclose(targets.sum(-1), torch.ones(16))

    def test_koleo_takes_the_nearest_other_feature(self):
        angles = torch.tensor([0.0, 0.1, 1.0, 2.5])
        features = 3 * torch.stack([angles.cos(), angles.sin()], dim=-1)
        distances = 2 * torch.tensor([0.05, 0.05, 0.45, 0.75]).sin()
        assert float(koleo_loss(features)) == pytest.approx(
            -float(distances.log().mean()), abs=1e-4
        )
        with pytest.raises(ValueError, match="KoLeo compares at least two images"):
            koleo_loss(features[:1])

    def test_koleo_of_equal_features_is_finite(self):
        features = torch.ones(4, 8, requires_grad=True)
        koleo_loss(features).backward()
        assert features.grad.isfinite().all()

    def test_prototypes_keep_their_length(self):
        head = DINOHead(6, num_prototypes=5, mlp_size=8, bottleneck_size=4)
        assert torch.allclose(head.prototypes.weight.norm(dim=-1), torch.ones(5))
        assert head(torch.randn(3, 6)).abs().max() <= 1 + 1e-6  # cosines
        trained = [name for name, parameter in head.named_parameters() if parameter.requires_grad]
        assert len(trained) == 7 and not any("original0" in name for name in trained)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        values = torch.randn(2, 4, 9).to(dtype)
        assert sinkhorn_targets(values[0], 0.07).dtype == torch.float32
        targets = values.float().softmax(-1)
        for loss in (
            *dino_losses(targets, values, values),
            ibot_loss(targets[0], values[0], torch.ones(4), 2),
            koleo_loss(values[0]),
            contrastive_loss(values[0], values[1], torch.tensor(2.0)),
        ):
            assert loss.dtype == torch.float32


@pytest.mark.xdist_group("distributed")
@pytest.mark.slow
def test_two_processes_are_one(two_processes):
    """Losses and gradients in float64, with other numbers of masked patches on each process."""
    found = load_file(two_processes / "distributed_losses" / "losses.safetensors")
    for name, expected in losses_and_gradients(0, BATCH).items():
        assert (found[name] - expected).abs().max() <= 1e-12 * expected.abs().max(), name
