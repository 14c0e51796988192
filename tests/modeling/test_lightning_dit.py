"""LightningDiT: the reference's velocities, its checkpoints, and latents of one and two dimensions."""

import json
import math
from pathlib import Path

import pytest
import torch
from fixtures.parity.fill import fill, normal
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from titok_hf import LightningDiTConfig, LightningDiTModel
from titok_hf.conversion import convert, convert_to_official, load_official
from titok_hf.conversion.lightning_dit import OfficialLightningDiT
from titok_hf.modeling.lightning_dit.configuration_lightning_dit import SIZES
from titok_hf.modeling.lightning_dit.modeling_lightning_dit import positions

CASES = Path(__file__).parents[1] / "fixtures" / "parity" / "cases"
SMALL = {
    "in_channels": 3,
    "sample_size": 6,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 5,
}


def case(name):
    """The reference's tensors of a case and its outputs."""
    content = json.loads((CASES / f"{name}.json").read_text())
    state = {
        key: torch.from_numpy(fill(key, shape, content["salt"]))
        for key, shape in content["shapes"].items()
        if key != "pos_embed" and not key.startswith("feat_rope")
    }
    return content, state, load_file(CASES / f"{name}.safetensors")


def load_case(name):
    content, state, outputs = case(name)
    official = OfficialLightningDiT()
    config = LightningDiTConfig(**official.config_from_shapes(content["shapes"]))
    model = LightningDiTModel(config).eval()
    model.load_state_dict(official.to_ours(state, config))
    return model, content, outputs


def make(seed=0, **fields):
    """A model whose weights are not those of the start, which predicts zero."""
    torch.manual_seed(seed)
    model = LightningDiTModel(LightningDiTConfig(**SMALL | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(model, batch=3):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, *model.config.latent_shape, generator=generator)
    return latents, torch.rand(batch, generator=generator), torch.arange(batch)


@pytest.mark.parametrize(
    "name",
    [
        "lightningdit_tiny",
        "lightningdit_tiny_qknorm",
        pytest.param("lightningdit_b1", marks=pytest.mark.slow),
    ],
)
class TestParity:
    def test_velocity(self, name):
        model, content, outputs = load_case(name)
        latents = torch.from_numpy(normal("latents", [2, *model.config.latent_shape]))
        times, labels = torch.tensor(content["timesteps"]), torch.tensor(content["labels"])
        with torch.no_grad():
            velocity = model(latents, times, labels).velocity
        scale = float(outputs["velocity"].abs().max())
        torch.testing.assert_close(velocity, outputs["velocity"], atol=1e-5 * scale, rtol=0)

    def test_guided_velocity_of_three_channels(self, name):
        model, _, outputs = load_case(name)
        config = model.config
        latents = torch.from_numpy(normal("latents", [2, *config.latent_shape])).repeat(2, 1, 1, 1)
        labels = torch.tensor([3, 7, config.null_label, config.null_label])
        with torch.no_grad():
            velocity = model(latents, torch.full((4,), 0.25), labels).velocity
        conditional, unconditional = velocity.chunk(2)
        guided = conditional.clone()
        of_three = unconditional[:, :3] + 2.0 * (conditional - unconditional)[:, :3]
        guided[:, :3] = of_three
        expected = outputs["cfg_velocity"][:2]
        scale = float(expected.abs().max())
        torch.testing.assert_close(guided, expected, atol=1e-5 * scale, rtol=0)

    def test_positions(self, name):
        model, _, outputs = load_case(name)
        found = positions(model.config, torch.device("cpu"))
        torch.testing.assert_close(found, outputs["pos_embed"][0], atol=1e-7, rtol=0)


class TestCheckpoints:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        """A training checkpoint as the reference's `train.py` writes it."""
        _, state, _ = case("lightningdit_tiny")
        model, _, _ = load_case("lightningdit_tiny")
        state |= OfficialLightningDiT().constants(model.config)
        other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
        path = tmp_path / "lightningdit.pt"
        torch.save({"model": other, "ema": prefixed, "config": {"train": {"max_steps": 2}}}, path)
        return path

    def test_the_averaged_weights_load(self, checkpoint):
        expected, _, _ = load_case("lightningdit_tiny")
        loaded = load_official(checkpoint).model
        found, wanted = loaded.config.to_dict(), expected.config.to_dict()
        assert all(
            found[name] == wanted[name] for name in wanted if name not in ("dtype", "_name_or_path")
        )
        for name, tensor in expected.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)

    def test_it_converts_and_back(self, checkpoint, tmp_path):
        convert(str(checkpoint), tmp_path / "ours")
        model = LightningDiTModel.from_pretrained(tmp_path / "ours")
        convert_to_official(tmp_path / "ours", tmp_path / "official")
        again = load_official(tmp_path / "official" / "lightningdit.pt").model
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)

    def test_positions_of_another_model_are_refused(self, checkpoint, tmp_path):
        state = torch.load(checkpoint)["ema"]
        state["module.pos_embed"] = state["module.pos_embed"] + 0.1
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="The checkpoint's pos_embed must be"):
            load_official(tmp_path / "other.pt")

    def test_a_missing_weight_is_named(self, checkpoint, tmp_path):
        state = torch.load(checkpoint)["ema"]
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        del state["blocks.1.mlp.w3.bias"]
        save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.w3\.bias"):
            load_official(tmp_path / "other.safetensors")

    def test_1d_has_no_official_format(self):
        with pytest.raises(ValueError, match="has 2D latents; this one has 1D"):
            OfficialLightningDiT().official_config(LightningDiTConfig(dimensions=1))


class TestSizes:
    @pytest.mark.parametrize(
        ("size", "millions"), [("b/1", 130), ("xl/1", 675), ("1p0b/1", 1_000), ("1p6b/1", 1_600)]
    )
    def test_parameters_are_those_of_the_paper(self, size, millions):
        with torch.device("meta"):
            model = LightningDiTModel(LightningDiTConfig.from_size(size))
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert count == pytest.approx(millions, rel=0.08)

    def test_an_unknown_size_is_refused(self):
        with pytest.raises(ValueError, match="`size` must be one of b/1, l/2"):
            LightningDiTConfig.from_size("xl")
        assert set(SIZES) == {"b/1", "l/2", "xl/1", "1p0b/1", "1p6b/1"}


@pytest.mark.parametrize("dimensions", [1, 2])
class TestNetwork:
    def test_it_begins_as_zero(self, dimensions):
        model = LightningDiTModel(LightningDiTConfig(**SMALL, dimensions=dimensions)).eval()
        assert not model(*inputs(model)).velocity.any()

    def test_every_image_is_for_itself(self, dimensions):
        model = make(dimensions=dimensions)
        latents, times, labels = inputs(model)
        with torch.no_grad():
            whole = model(latents, times, labels).velocity
            alone = model(latents[1:2], times[1:2], labels[1:2]).velocity
        assert whole.shape == latents.shape
        torch.testing.assert_close(alone[0], whole[1])

    @pytest.mark.parametrize("changed", ["latents", "times", "labels"])
    def test_everything_counts(self, dimensions, changed):
        model = make(dimensions=dimensions)
        given = dict(zip(("latents", "times", "labels"), inputs(model), strict=True))
        with torch.no_grad():
            before = model(*given.values()).velocity
            given[changed] = given[changed].flip(0)
            assert (model(*given.values()).velocity - before)[0].abs().max() > 1e-3

    def test_positions_count(self, dimensions):
        """Latents in another order have other velocities than those in another order."""
        model = make(dimensions=dimensions)
        latents, times, labels = inputs(model)
        axis = 1 if dimensions == 1 else 2
        with torch.no_grad():
            straight = model(latents, times, labels).velocity
            turned = model(latents.flip(axis), times, labels).velocity.flip(axis)
        assert (straight - turned).abs().max() > 1e-2

    def test_kernels_and_checkpointing_agree(self, dimensions):
        model = make(dimensions=dimensions, qk_norm=True).train()
        arguments = (*inputs(model), torch.zeros(3, dtype=torch.bool))
        gradients = {}
        for kind in ("sdpa", "eager", "checkpointing"):
            model.zero_grad()
            model.set_attn_implementation("eager" if kind == "eager" else "sdpa")
            if kind == "checkpointing":
                model.gradient_checkpointing_enable()
            model(*arguments).velocity.square().mean().backward()
            gradients[kind] = {name: p.grad.clone() for name, p in model.named_parameters()}
        for name, gradient in gradients["sdpa"].items():
            for kind in ("eager", "checkpointing"):
                torch.testing.assert_close(gradients[kind][name], gradient, atol=1e-5, rtol=1e-4)

    def test_it_saves_and_loads(self, dimensions, tmp_path):
        model = make(dimensions=dimensions, latent_mean=[0.0, 0.1, 0.2], latent_std=[1.0, 2.0, 3.0])
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert isinstance(loaded, LightningDiTModel)
        assert AutoConfig.from_pretrained(tmp_path).latent_std == [1.0, 2.0, 3.0]
        with torch.no_grad():
            assert torch.equal(loaded(*inputs(model)).velocity, model(*inputs(model)).velocity)

    def test_in_bfloat16_it_is_near(self, dimensions):
        model = make(dimensions=dimensions, qk_norm=True)
        with torch.no_grad():
            expected = model(*inputs(model)).velocity
            found = model.to(torch.bfloat16)(*inputs(model)).velocity
        assert found.dtype == torch.bfloat16
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_labels_are_dropped_in_training_alone():
    model = make(label_dropout=1.0)
    latents, times, labels = inputs(model)
    null = torch.full_like(labels, model.config.null_label)
    with torch.no_grad():
        kept, dropped = (model(latents, times, each).velocity for each in (labels, null))
        assert not torch.equal(kept, dropped)
        assert torch.equal(model.train()(latents, times, labels).velocity, dropped)
        model.eval()
        drop = torch.tensor([True, False, True])
        mixed = model(latents, times, labels, drop_labels=drop).velocity
    torch.testing.assert_close(mixed[1], kept[1])
    torch.testing.assert_close(mixed[0], dropped[0])


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"dimensions": 1, "patch_size": 2}, "`patch_size` of 1D latents must be 1"),
            ({"patch_size": 4}, "`patch_size` must divide the side 6"),
            ({"hidden_size": 30}, "`hidden_size` must be a multiple of 4 times the 2"),
            ({"label_dropout": 2.0}, r"`label_dropout` must be in \[0, 1\]"),
            ({"latent_mean": [0.0]}, "`latent_mean` must have a value for each of the 3"),
            ({"latent_mean": [0.0] * 3}, "go together"),
            (
                {"latent_mean": [0.0] * 3, "latent_std": [1.0, math.nan, 1.0]},
                "`latent_std` must be finite",
            ),
            (
                {"latent_mean": [0.0, 0.0, math.inf], "latent_std": [1.0] * 3},
                "`latent_mean` must be finite",
            ),
            ({"num_labels": -1}, "`num_labels` must be at least 1"),
            ({"latent_mean": [0.0] * 3, "latent_std": [0.0] * 3}, "`latent_std` must be positive"),
        ],
    )
    def test_configurations(self, fields, message):
        with pytest.raises(Exception, match=message):
            LightningDiTConfig(**SMALL | fields)

    def test_tensors(self):
        model = make()
        latents, times, labels = inputs(model)
        with pytest.raises(
            ValueError, match=r"`latents` must be float of shape \(batch, 3, 6, 6\)"
        ):
            model(latents[:, :2], times, labels)
        with pytest.raises(ValueError, match=r"`timesteps` must be float times of shape \(3,\)"):
            model(latents, times[:2], labels)
        with pytest.raises(ValueError, match=r"`class_labels` must have shape \(3\)"):
            model(latents, times, labels[:2])


def test_the_snippet_of_the_card_runs(tmp_path):
    model = make(num_labels=10, dimensions=1)
    model.save_pretrained(tmp_path / "dit")
    card = model.model_card(str(tmp_path / "dit")).content
    snippet = card.split("```python\n")[1].split("```")[0]
    namespace = {}
    exec(snippet, namespace)
    assert namespace["velocity"].shape == (1, *model.config.latent_shape)
