"""Folders that are refused as a VTP, and what the error says."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from titok_hf import (
    TiTokConfig,
    TiTokModel,
    VTPConfig,
    VTPForImageReconstruction,
    VTPModel,
    VTPVisionModel,
)
from titok_hf.conversion import load_official

from .test_vtp import PERIODS


def assert_refused(folder, sentence, error=ValueError):
    """Asserts that neither loading nor conversion takes an official folder."""
    with pytest.raises(error, match=sentence):
        VTPModel.from_pretrained(folder)
    with pytest.raises(error, match=sentence):
        load_official(folder)


@pytest.mark.parametrize("name", PERIODS)
def test_other_periods_are_refused(make_vtp, write_vtp, name):
    folder = write_vtp(make_vtp(), edit=lambda tensors, config: tensors[name].mul_(2))
    assert_refused(folder, rf"The checkpoint's {name} must be \[1.0, 3.156.*, got \[2.0, 6.3125")


def test_periods_of_another_size_are_refused(make_vtp, write_vtp):
    def edit(tensors, config):
        tensors[PERIODS[0]] = torch.ones(3).bfloat16()

    assert_refused(write_vtp(make_vtp(), edit=edit), rf"The checkpoint's {PERIODS[0]} must be")


def test_periods_may_be_left_out_or_in_float32(make_vtp, write_vtp, assert_same_weights):
    def edit(tensors, config):
        del tensors[PERIODS[0]]
        tensors[PERIODS[1]] = tensors[PERIODS[1]].float()

    model = make_vtp()
    assert_same_weights(VTPModel.from_pretrained(write_vtp(model, edit=edit)), model)


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        (
            {"vision_window_size": 7},
            ValueError,
            "`vtp` .* fields that are not known here: vision_window_size",
        ),
        ({"text_embed_cls": True}, ValueError, "`text_embed_cls` of a VTP must be False, got True"),
        (
            {"text_ls_init_value": 0.1},
            ValueError,
            "`text_ls_init_value` of a VTP must be None, got 0.1",
        ),
        (
            {"text_no_causal_mask": True},
            ValueError,
            "`text_no_causal_mask` of a VTP must be False, got True",
        ),
        (
            {"text_pool_type": "last"},
            ValueError,
            "`text_pool_type` of a VTP must be 'argmax', got 'last'",
        ),
        (
            {"text_proj_type": "none"},
            ValueError,
            "`text_proj_type` of a VTP must be 'linear', got 'none'",
        ),
        (
            {"text_output_tokens": True},
            ValueError,
            "`text_output_tokens` of a VTP must be False, got True",
        ),
        (
            {"nonscalar_logit_scale": True},
            ValueError,
            "`nonscalar_logit_scale` of a VTP must be False, got True",
        ),
        ({"vision_clip_feat": "map"}, ValueError, "`vision_clip_feat` .*'map'"),
        (
            {"vision_ffn_layer": "swiglu128"},
            StrictDataclassError,
            "'vision_mlp' expected one of .*swiglu128",
        ),
        (
            {"vision_embed_dim": 36},
            StrictDataclassError,
            "`vision_hidden_size` must be a multiple of 4 times the 2",
        ),
    ],
)
def test_configurations_of_other_models_are_refused(make_vtp, write_vtp, fields, error, sentence):
    folder = write_vtp(make_vtp(), edit=lambda tensors, config: config.update(fields))
    assert_refused(folder, sentence, error)
    with pytest.raises(error, match=sentence):
        VTPConfig.from_pretrained(folder)


WEIGHTS = {
    "missing": (
        lambda tensors, config: tensors.pop("trunk.norm.weight"),
        r"does not fit VTPModel .*: 1 weights are missing, trunk\.norm\.weight among them",
    ),
    "unexpected": (
        lambda tensors, config: tensors.update({"dino_head.weight": torch.zeros(2)}),
        r"1 weights are unexpected, dino_head\.weight among them",
    ),
    "misshapen": (
        lambda tensors, config: tensors.update({"visual_proj.weight": torch.zeros(16, 8)}),
        r"1 weights are misshapen, visual_proj\.weight among them: \(16, 8\) instead of \(16, 32\)",
    ),
    "misshapen bottleneck": (
        lambda tensors, config: config.update(vision_feature_bottleneck=16),
        r"2 weights are misshapen, trunk\.feature_bottleneck\.weight among them: \(8, 32\) instead of \(16, 32\)",
    ),
    "one third of an attention": (
        lambda tensors, config: tensors.update(
            {"text_transformer.resblocks.0.attn.in_proj_weight": torch.zeros(16, 16)}
        ),
        r"resblocks\.0\.attn\.in_proj_weight among them: \(16, 16\) instead of \(48, 16\)",
    ),
    "without text": (
        lambda tensors, config: config.update(train_clip=False),
        r"weights are unexpected, ln_final\.bias, ln_final\.weight, logit_scale among them",
    ),
}


@pytest.mark.parametrize("problem", WEIGHTS)
def test_weights_that_do_not_fit_are_refused(make_vtp, write_vtp, problem):
    edit, sentence = WEIGHTS[problem]
    assert_refused(write_vtp(make_vtp(), edit=edit), sentence)


@pytest.mark.parametrize(("has_decoder", "declared"), [(True, False), (False, True)])
def test_a_decoder_that_does_not_fit_is_not_told_as_that_of_another_family(
    make_vtp, write_vtp, has_decoder, declared
):
    folder = write_vtp(
        make_vtp(has_decoder=has_decoder),
        edit=lambda tensors, config: config.update(train_reconstruction=declared),
    )
    with pytest.raises(
        ValueError, match=r"weights are (missing|unexpected), pixel_decoder\."
    ) as refused:
        VTPModel.from_pretrained(folder)
    assert "finetune_decoder" not in str(refused.value) and "head=" not in str(refused.value)


def test_models_of_the_other_family_are_refused(official, make_tokenizer, write_official):
    _, folder = official
    tokenizer = write_official(make_tokenizer(), "titok")
    with pytest.raises(ValueError, match="expects a model of type 'titok', got one of 'vtp'"):
        TiTokModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="expects a model of type 'titok', got one of 'vtp'"):
        TiTokConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"titok|TiTok|not known here"):
        VTPModel.from_pretrained(tokenizer)


@pytest.mark.parametrize("model_class", [VTPModel, VTPVisionModel, VTPForImageReconstruction])
def test_another_variant_is_not_told_as_another_family(make_vtp, tmp_path, model_class):
    make_vtp(model_class).save_pretrained(tmp_path)
    config = VTPConfig.from_pretrained(tmp_path)
    config.vision_mlp = "mlp"
    with pytest.raises(
        ValueError, match=rf"does not fit {model_class.__name__} with its configuration"
    ) as refused:
        model_class.from_pretrained(tmp_path, config=config)
    assert "These are the weights of" not in str(refused.value)
