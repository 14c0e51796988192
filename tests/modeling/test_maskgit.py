import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from titok_hf import MaskGitConfig, MaskGitModel, MaskGitUViTConfig, MaskGitUViTModel

MASK = 64
NULL_LABEL = 10


@pytest.fixture
def codes():
    codes = torch.randint(64, (3, 8))
    codes[:, ::2] = MASK
    return codes


@pytest.fixture
def class_labels():
    return torch.tensor([3, 0, 9])


@pytest.fixture
def target_codes():
    return torch.randint(64, (3, 8))


def without_dropout(model, **fields):
    fields = {"hidden_dropout": 0.0, "attention_dropout": 0.0, **fields}
    return type(model)(type(model.config)(**{**model.config.to_dict(), **fields}))


def expected_loss(logits, target_codes, masked, label_smoothing, unmasked_weight):
    total = weights = 0.0
    for image in range(len(logits)):
        for token, row in enumerate(logits[image].double().tolist()):
            normalizer = math.log(sum(math.exp(logit) for logit in row))
            log_probabilities = [logit - normalizer for logit in row]
            target = log_probabilities[target_codes[image, token]]
            smooth = sum(log_probabilities) / len(log_probabilities)
            weight = 1.0 if masked[image, token] else unmasked_weight
            total -= weight * ((1 - label_smoothing) * target + label_smoothing * smooth)
            weights += weight
    return total / weights


def test_logits_are_of_all_codes_at_every_token(any_generator, codes, class_labels):
    output = any_generator(codes, class_labels)

    assert output.logits.shape == (3, 8, 64)
    assert output.logits.isfinite().all()
    assert output.loss is None


def test_label_comes_first_and_leaves_no_logits(any_generator, codes, class_labels):
    ids = torch.cat([(64 + 1 + class_labels)[:, None], codes], dim=1)
    expected = any_generator.lm_head(any_generator.backbone(ids)[:, 1:])

    torch.testing.assert_close(any_generator(codes, class_labels).logits, expected)


def test_ids_of_mask_and_no_class_follow_codes_and_labels(any_generator):
    assert (any_generator.config.mask_token_id, any_generator.config.null_label) == (
        MASK,
        NULL_LABEL,
    )


def test_images_do_not_depend_on_their_batch(any_generator, codes, class_labels):
    together, alone = (
        any_generator(codes, class_labels).logits,
        any_generator(codes[1:2], class_labels[1:2]).logits,
    )
    torch.testing.assert_close(together[1:2], alone)


def test_evaluation_is_deterministic_and_keeps_the_labels(any_generator, codes, class_labels):
    any_generator.config.label_dropout = 1.0
    assert torch.equal(
        any_generator(codes, class_labels).logits, any_generator(codes, class_labels).logits
    )


def test_every_label_and_every_code_counts(any_generator):
    masked = torch.full((11, 8), MASK)
    of_labels = any_generator(masked, torch.arange(11)).logits
    assert len(of_labels.flatten(1).round(decimals=4).unique(dim=0)) == 11

    codes = masked[:9].clone()
    codes[torch.arange(8), torch.arange(8)] = 5
    of_codes = any_generator(codes, torch.zeros(9, dtype=torch.int64)).logits
    assert len(of_codes.flatten(1).round(decimals=4).unique(dim=0)) == 9


def test_positions_tell_masked_tokens_apart(any_generator):
    logits = any_generator(torch.full((1, 8), MASK), torch.tensor([2])).logits[0]
    assert len(logits.round(decimals=4).unique(dim=0)) == 8


def test_ids_of_either_integer_type_give_the_same_result(
    any_generator, codes, class_labels, target_codes
):
    expected = any_generator(codes, class_labels, target_codes)
    output = any_generator(codes.int(), class_labels.int(), target_codes.int())

    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.1, 1.0])
def test_loss_is_a_weighted_mean_of_smoothed_cross_entropies(
    any_generator, codes, class_labels, target_codes, label_smoothing, unmasked_weight
):
    any_generator.config.label_smoothing = label_smoothing
    any_generator.config.unmasked_weight = unmasked_weight
    output = any_generator(codes, class_labels, target_codes)

    expected = expected_loss(
        output.logits, target_codes, codes == MASK, label_smoothing, unmasked_weight
    )
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_loss_of_masked_tokens_alone_is_zero_where_none_is_masked(
    generator, class_labels, target_codes
):
    generator.config.unmasked_weight = 0.0
    assert generator(target_codes, class_labels, target_codes).loss == 0


def test_training_replaces_labels_by_no_class(any_generator, codes, class_labels):
    model = without_dropout(any_generator, label_dropout=1.0)
    trained = model.train()(codes, class_labels).logits
    unconditional = model.eval()(codes, torch.full((3,), NULL_LABEL)).logits

    torch.testing.assert_close(trained, unconditional)
    assert not torch.allclose(trained, model(codes, class_labels).logits)


def test_training_replaces_the_configured_share_of_labels(any_generator):
    model = without_dropout(any_generator, label_dropout=0.25)
    codes, labels = torch.full((2000, 8), MASK), torch.full((2000,), 3)
    logits = model.train()(codes, labels).logits
    conditional = model.eval()(codes[:1], labels[:1]).logits

    replaced = (logits - conditional).abs().amax((1, 2)) > 1e-3
    assert replaced.float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("training", [True, False])
def test_the_given_labels_are_dropped_whatever_the_mode(
    any_generator, codes, class_labels, training
):
    model = without_dropout(any_generator, label_dropout=0.5).eval()
    drop = torch.tensor([True, False, True])
    expected = model(codes, torch.where(drop, NULL_LABEL, class_labels)).logits
    assert not torch.allclose(expected, model(codes, class_labels).logits)

    model.train(training)
    state = torch.get_rng_state()
    torch.testing.assert_close(model(codes, class_labels, drop_labels=drop).logits, expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_without_dropout_is_evaluation(any_generator, codes, class_labels):
    model = without_dropout(any_generator, label_dropout=0.0)
    torch.testing.assert_close(
        model.train()(codes, class_labels).logits, model.eval()(codes, class_labels).logits
    )


@pytest.mark.parametrize("field", ["hidden_dropout", "attention_dropout"])
def test_training_drops_hidden_states_and_attention(generator, codes, class_labels, field):
    model = without_dropout(generator, label_dropout=0.0, **{field: 0.5}).train()
    assert not torch.allclose(model(codes, class_labels).logits, model(codes, class_labels).logits)


def test_folder_keeps_every_bit(
    any_generator, codes, class_labels, save_and_load, assert_same_tensors
):
    loaded = save_and_load(any_generator)

    assert type(loaded) is type(any_generator) and not loaded.training
    assert_same_tensors(any_generator, loaded)
    assert torch.equal(
        any_generator(codes, class_labels).logits, loaded(codes, class_labels).logits
    )


def test_folder_loads_as_bfloat16(
    any_generator, codes, class_labels, save_and_load, assert_same_tensors
):
    loaded = save_and_load(any_generator, dtype=torch.bfloat16)

    assert_same_tensors(any_generator.bfloat16(), loaded)
    logits = loaded(codes, class_labels).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_folder_keeps_buffers_that_are_not_saved(generator, save_and_load):
    loaded = save_and_load(generator)

    buffers = dict(loaded.named_buffers())
    assert buffers.keys() - loaded.state_dict().keys()
    assert torch.equal(buffers["bert.embeddings.position_ids"], torch.arange(9)[None])


def test_config_survives_a_folder(any_generator, tmp_path):
    any_generator.config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)

    assert type(loaded) is type(any_generator.config)
    assert (loaded.num_labels, loaded.id2label[7], loaded.label2id["seven"]) == (10, "seven", 7)
    assert (loaded.mask_token_id, loaded.null_label) == (MASK, NULL_LABEL)


def test_same_seed_makes_the_same_model(any_generator, assert_same_tensors):
    torch.manual_seed(5)
    first = type(any_generator)(any_generator.config)
    torch.manual_seed(5)

    assert_same_tensors(first, type(any_generator)(any_generator.config))


@pytest.mark.parametrize("initializer_range", [0.02, 0.2])
def test_weights_start_with_the_configured_deviation(any_generator, initializer_range):
    model = without_dropout(any_generator, initializer_range=initializer_range)
    matrices = {
        name: weight
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and len(weight) >= 32
    }

    assert len(matrices) >= 10
    for name, weight in matrices.items():
        assert weight.std().item() == pytest.approx(initializer_range, rel=0.1), name


@pytest.mark.parametrize("switch", ["from_pretrained", "set_attn_implementation"])
def test_eager_attention_equals_sdpa(any_generator, codes, class_labels, save_and_load, switch):
    expected = any_generator(codes, class_labels).logits
    assert any_generator.config._attn_implementation == "sdpa"
    if switch == "from_pretrained":
        eager = save_and_load(any_generator, attn_implementation="eager")
    else:
        eager = save_and_load(any_generator)
        eager.set_attn_implementation("eager")

    inner = eager.bert if isinstance(eager, MaskGitModel) else eager
    assert inner.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(codes, class_labels).logits, expected)


def test_gradient_checkpointing_recomputes_blocks_and_keeps_gradients(
    any_generator, codes, class_labels, target_codes, parameter_gradients
):
    def gradients():
        torch.manual_seed(1)
        return parameter_gradients(
            any_generator, any_generator(codes, class_labels, target_codes).loss
        )

    any_generator.train()
    bert = isinstance(any_generator, MaskGitModel)
    watched = (
        any_generator.bert.encoder.layer[0].intermediate
        if bert
        else any_generator.in_blocks[0].mlp_in
    )
    calls = []
    watched.register_forward_hook(lambda *_: calls.append(1))
    expected = gradients()
    assert len(calls) == 1

    any_generator.activation_checkpointing_enable()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    assert len(calls) == 3


def test_loss_reaches_every_parameter(
    any_generator, codes, class_labels, target_codes, parameter_gradients
):
    gradients = parameter_gradients(
        any_generator, any_generator(codes, class_labels, target_codes).loss
    )

    assert [name for name, gradient in gradients.items() if gradient is None] == []
    # attention does not change when every key is shifted alike, so the bias of the keys has no
    # gradient to speak of
    silent = [
        name
        for name, gradient in gradients.items()
        if not gradient.any() and not name.endswith("key.bias")
    ]
    assert silent == []


def test_every_code_mask_and_label_learns_a_vector(any_generator, parameter_gradients):
    model = without_dropout(any_generator)
    codes, class_labels = torch.full((11, 8), MASK), torch.arange(11)
    codes[:8] = torch.arange(64).view(8, 8)
    gradients = parameter_gradients(
        model.eval(), model(codes, class_labels, codes.clamp(max=63)).loss
    )

    embeddings = next(
        gradient for name, gradient in gradients.items() if gradient.shape == (64 + 1 + 10 + 1, 32)
    )
    assert (embeddings.abs().sum(-1) == 0).nonzero().flatten().tolist() == []


def test_model_on_the_meta_device_has_no_storage(any_generator):
    with torch.device("meta"):
        model = type(any_generator)(any_generator.config)

    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    shapes = {name: tensor.shape for name, tensor in any_generator.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("training", [True, False])
def test_no_value_is_read(any_generator, codes, class_labels, target_codes, training):
    """A tensor of the meta device has no value that could be read."""
    generator = any_generator.to("meta").train(training)
    output = generator(*(ids.to("meta") for ids in (codes, class_labels, target_codes)))
    output.loss.backward()
    assert output.logits.shape == (3, 8, 64)


def test_defaults_are_the_generator_with_177_million_parameters():
    with torch.device("meta"):
        model = MaskGitModel(MaskGitConfig())

    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(
        177, abs=0.5
    )
    assert (model.config.num_labels, model.config.mask_token_id) == (1000, 4096)


def test_uvit_joins_each_block_with_its_mirror_image(uvit_config, codes, class_labels):
    model = MaskGitUViTModel(
        MaskGitUViTConfig(**{**uvit_config.to_dict(), "num_hidden_layers": 6})
    ).eval()
    outputs, skips = [], []
    for block in model.in_blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for block in model.out_blocks:
        block.register_forward_pre_hook(lambda module, inputs: skips.append(inputs[1]))
    model(codes, class_labels)

    assert (len(model.in_blocks), len(model.out_blocks), len(skips)) == (3, 3, 3)
    assert all(
        torch.equal(skip, output) for skip, output in zip(skips, reversed(outputs), strict=True)
    )


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        (
            {"codes": torch.zeros(3, 9).long()},
            ValueError,
            r"`codes` must have shape \(batch, 8\), got \(3, 9\)",
        ),
        (
            {"codes": torch.zeros(8).long()},
            ValueError,
            r"`codes` must have shape \(batch, 8\), got \(8,\)",
        ),
        (
            {"codes": torch.zeros(3, 8)},
            TypeError,
            "`codes` must be an int64 tensor, got torch.float32",
        ),
        (
            {"class_labels": torch.tensor([1, 2])},
            ValueError,
            r"`class_labels` must have shape \(3\), got \(2,\)",
        ),
        (
            {"class_labels": torch.rand(3)},
            TypeError,
            "`class_labels` must be an int64 tensor, got torch.float32",
        ),
        (
            {"class_labels": torch.ones(3).bool()},
            TypeError,
            "`class_labels` must be an int64 tensor, got torch.bool",
        ),
        (
            {"target_codes": torch.zeros(3, 7).long()},
            ValueError,
            r"`target_codes` must have shape \(3, 8\)",
        ),
        (
            {"target_codes": torch.zeros(3, 8)},
            TypeError,
            "`target_codes` must be an int64 tensor, got torch.float32",
        ),
    ],
)
def test_ids_are_checked(any_generator, codes, class_labels, target_codes, fields, error, sentence):
    valid = {"codes": codes, "class_labels": class_labels, "target_codes": target_codes}
    with pytest.raises(error, match=sentence):
        any_generator(**{**valid, **fields})


@pytest.mark.parametrize(
    ("config_class", "fields", "sentence"),
    [
        (
            MaskGitConfig,
            {"num_attention_heads": 3},
            "`num_attention_heads` must divide `hidden_size` 32, got 3",
        ),
        (
            MaskGitUViTConfig,
            {"num_attention_heads": 3},
            "`num_attention_heads` must divide `hidden_size` 32, got 3",
        ),
        (MaskGitUViTConfig, {"num_hidden_layers": 3}, "`num_hidden_layers` must be even, got 3"),
        (
            MaskGitUViTConfig,
            {"hidden_dropout": 0.1, "attention_dropout": 0.0},
            "a U-ViT has no dropout, got 0.1 and 0",
        ),
        (MaskGitUViTConfig, {"num_tokens": 0}, "`num_tokens` must be at least 1, got 0"),
        (MaskGitConfig, {"num_tokens": -3}, "`num_tokens` must be at least 1, got -3"),
        (
            MaskGitConfig,
            {"num_attention_heads": 0},
            "`num_attention_heads` must be at least 1, got 0",
        ),
        (MaskGitConfig, {"label_dropout": 5.0}, r"`label_dropout` must be in \[0, 1\], got 5"),
        (MaskGitUViTConfig, {"label_smoothing": -1.0}, r"`label_smoothing` must be .* got -1"),
        (MaskGitConfig, {"hidden_dropout": 3}, r"`hidden_dropout` must be .* got 3"),
        (MaskGitConfig, {"id2label": {}}, "`num_labels` must be at least 1, got 0"),
        (MaskGitConfig, {"codebook_size": "64"}, "'codebook_size' expected int, got str"),
    ],
)
def test_contradictory_configs_are_refused(generator_config, config_class, fields, sentence):
    with pytest.raises(StrictDataclassError, match=sentence):
        config_class(**{**generator_config.to_dict(), **fields})


def test_whole_numbers_are_floats():
    config = MaskGitConfig(label_dropout=0, label_smoothing=1, initializer_range=1)
    assert (config.label_dropout, config.label_smoothing, config.initializer_range) == (0, 1, 1)


def test_other_classes_keep_what_is_known(any_generator, codes):
    names = ["nine", "ten", "zero"]
    other = any_generator.with_classes(names)
    assert other.config.id2label == dict(enumerate(names)) and other.config.num_labels == 3
    assert other.config.label2id == {"nine": 0, "ten": 1, "zero": 2} and not other.training
    logits = any_generator(codes, torch.tensor([9, NULL_LABEL, 0])).logits
    torch.testing.assert_close(other(codes, torch.tensor([0, 1, 2])).logits, logits)
    no_class = any_generator(codes, torch.full((3,), NULL_LABEL)).logits
    torch.testing.assert_close(other(codes, torch.full((3,), 3)).logits, no_class)
    assert any_generator.config.num_labels == 10
