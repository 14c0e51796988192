"""`from_pretrained` of folders in the official format, and all that it refuses."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from titok_hf import (
    MaskGitConfig,
    MaskGitModel,
    MaskGitUViTModel,
    MaskGitVQGANConfig,
    MaskGitVQGANModel,
    TiTokConfig,
    TiTokImageProcessor,
    TiTokModel,
    TiTokPipeline,
)
from titok_hf.conversion.checkpoint import write_tensors
from titok_hf.modeling.vtp import VTPConfig

TOKENIZERS = [("pixels", "vq"), ("pixels", "kl"), ("proxy_codes", "vq")]
GENERATORS = [MaskGitModel, MaskGitUViTModel]


def drop(*names):
    return lambda tensors, config: [tensors.pop(name) for name in names]


def put(**fields):
    """Changes fields of the official section of the model."""

    def edit(tensors, config):
        section = config["model"].get("generator") or config["model"]["vq_model"]
        section |= fields

    return edit


@pytest.mark.parametrize(("head", "quantizer"), TOKENIZERS)
def test_tokenizer_loads_as_it_is(
    make_tokenizer, write_official, assert_same_weights, head, quantizer
):
    tokenizer = make_tokenizer(head, quantizer=quantizer)
    loaded = TiTokModel.from_pretrained(write_official(tokenizer))

    assert not loaded.training
    assert_same_weights(loaded, tokenizer)
    pixel_values = torch.rand(2, 3, 32, 32)
    expected, got = tokenizer(pixel_values), loaded(pixel_values)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


def test_fine_tuned_tokenizer_loads_as_it_is(make_tokenizer, write_official, assert_same_weights):
    tokenizer = make_tokenizer("vqgan_decoder")
    assert_same_weights(TiTokModel.from_pretrained(write_official(tokenizer)), tokenizer)


@pytest.mark.parametrize("model_class", GENERATORS)
def test_generator_loads_as_it_is(make_generator, write_official, assert_same_weights, model_class):
    generator = make_generator(model_class)
    loaded = model_class.from_pretrained(write_official(generator))

    assert_same_weights(loaded, generator)
    codes, labels = torch.full((2, 8), 64), torch.tensor([3, 1000])
    assert torch.equal(loaded(codes, labels).logits, generator(codes, labels).logits)
    assert loaded.config.id2label[1] == "goldfish, Carassius auratus"
    assert len(loaded.config.id2label) == loaded.config.num_labels == 1000


def test_vqgan_loads_from_its_bare_file(tmp_path, assert_same_weights):
    vqgan = MaskGitVQGANModel(MaskGitVQGANConfig(shortcut_of_output=True))
    file = tmp_path / "maskgit-vqgan-imagenet-f16-256.bin"
    write_tensors(vqgan.config.official_format().to_official(vqgan), file)

    assert_same_weights(MaskGitVQGANModel.from_pretrained(tmp_path), vqgan)
    assert MaskGitVQGANConfig.from_pretrained(tmp_path).shortcut_of_output


@pytest.mark.parametrize("file", ["pytorch_model.bin", "titok.safetensors"])
def test_weights_may_have_another_name(make_tokenizer, write_official, assert_same_weights, file):
    tokenizer = make_tokenizer()
    assert_same_weights(TiTokModel.from_pretrained(write_official(tokenizer, file=file)), tokenizer)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        ("bfloat16", torch.bfloat16),
        ("auto", torch.float32),
        (None, torch.float32),
    ],
)
def test_dtype_is_chosen_on_loading(
    make_tokenizer, write_official, assert_same_weights, dtype, expected
):
    tokenizer = make_tokenizer()
    loaded = TiTokModel.from_pretrained(write_official(tokenizer), dtype=dtype)
    assert_same_weights(loaded, tokenizer.to(expected))


def test_references_that_the_reference_leaves_in_its_config_are_resolved(
    make_generator, write_official
):
    def edit(tensors, config):
        config["model"]["vq_model"]["num_latent_tokens"] = 8
        config["model"]["generator"]["image_seq_len"] = "${model.vq_model.num_latent_tokens}"
        config["model"]["generator"]["class_label_dropout"] = "2e-1"
        config["experiment"] = {"output_dir": "${oc.env:RUNS}"}

    config = MaskGitModel.from_pretrained(write_official(make_generator(), edit=edit)).config
    assert (config.num_tokens, config.label_dropout) == (8, 0.2)


def test_configuration_may_be_given(make_tokenizer, write_official, assert_same_weights):
    tokenizer = make_tokenizer()
    folder = write_official(tokenizer)
    config = TiTokConfig.from_pretrained(folder, initializer_range=0.5)
    for given in (config, folder, str(folder)):
        loaded = TiTokModel.from_pretrained(folder, config=given)
        assert_same_weights(loaded, tokenizer)
    assert TiTokModel.from_pretrained(folder, config=config).config.initializer_range == 0.5


def test_weights_saved_from_within_distributed_training_load(
    make_tokenizer, write_official, assert_same_weights
):
    def edit(tensors, config):
        for name in list(tensors):
            tensors["module." + name] = tensors.pop(name)

    tokenizer = make_tokenizer()
    assert_same_weights(TiTokModel.from_pretrained(write_official(tokenizer, edit=edit)), tokenizer)


def test_fields_may_be_changed_on_loading(make_generator, write_official):
    folder = write_official(make_generator())
    assert MaskGitModel.from_pretrained(folder, label_dropout=0.0).config.label_dropout == 0
    assert (
        MaskGitModel.from_pretrained(
            folder, attn_implementation="eager"
        ).config._attn_implementation
        == "eager"
    )


def test_subfolder_is_found(make_tokenizer, write_official, assert_same_weights, tmp_path):
    tokenizer = make_tokenizer()
    write_official(tokenizer, name="tokenizer")
    assert_same_weights(TiTokModel.from_pretrained(tmp_path, subfolder="tokenizer"), tokenizer)


def test_loaded_model_may_be_saved_over_its_source(
    make_tokenizer, write_official, assert_same_weights
):
    tokenizer = make_tokenizer()
    folder = write_official(tokenizer)
    TiTokModel.from_pretrained(folder).save_pretrained(folder)

    assert_same_weights(TiTokModel.from_pretrained(folder), tokenizer)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "titok"


def test_image_processor_comes_from_the_tokenizer(make_tokenizer, write_official):
    processor = TiTokImageProcessor.from_pretrained(write_official(make_tokenizer()))
    assert processor.crop_size == {"height": 32, "width": 32}
    assert processor.size == {"shortest_edge": 32}


def test_without_a_tokenizer_there_is_no_image_processor(tmp_path):
    with pytest.raises(OSError, match=r"preprocessor_config.json"):
        TiTokImageProcessor.from_pretrained(tmp_path)


def test_quirks_are_on_for_two_stage_weights_only(make_tokenizer, write_official):
    legacy = TiTokModel.from_pretrained(write_official(make_tokenizer("proxy_codes"), "two")).config
    single = TiTokModel.from_pretrained(write_official(make_tokenizer(), "one")).config

    assert legacy.interleaved_latents and legacy.vqgan_config.shortcut_of_output
    assert not single.interleaved_latents
    assert (
        not TiTokConfig().interleaved_latents and not TiTokConfig().vqgan_config.shortcut_of_output
    )


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            drop("latent_tokens", "encoder.ln_pre.bias"),
            "2 weights are missing, encoder.ln_pre.bias, latent_tokens among them",
        ),
        (
            lambda tensors, config: tensors.update({"stray.weight": torch.zeros(1)}),
            r"1 weights are unexpected, stray\.weight among them\.$",
        ),
        (
            put(codebook_size=128),
            r"quantize\.embedding\.weight among them: \(64, 6\) instead of \(128, 6\)\. "
            "It was made for a codebook of 64 codes; the configuration has 128",
        ),
        (put(num_latent_tokens=16), "It was made for 8 tokens; the configuration has 16"),
        (
            lambda tensors, config: tensors.update(
                {"decoder.text_guidance_proj.weight": torch.zeros(1)}
            ),
            "a text-aware TA-TiTok, which is not supported",
        ),
        (
            put(is_legacy=True),
            r"missing, decoder\.ffn\.2\.bias, decoder\.ffn\.2\.weight among them; 2 weights are unexpected, "
            r"decoder\.conv_out\.bias",
        ),
        (
            put(clustering_vq=True, rope=True),
            "section `model.vq_model` .* not known here: clustering_vq, rope",
        ),
        (
            put(vit_enc_model_size="huge"),
            "`vit_enc_model_size` must be one of small, base, large, tiny, got 'huge'",
        ),
        (
            lambda tensors, config: config["model"]["vq_model"].pop("token_size"),
            "The section `model.vq_model` of the official configuration lacks `token_size`",
        ),
        (
            put(token_size="${model.none}"),
            r"refers in `token_size` to \${model.none}, which does not exist",
        ),
        (
            lambda tensors, config: config.pop("dataset"),
            "a section `dataset.preprocessing`; this one has",
        ),
        (lambda tensors, config: config["model"].pop("vq_model"), "a section `model.vq_model`"),
    ],
)
def test_misfits_of_a_tokenizer_are_refused(make_tokenizer, write_official, edit, sentence):
    folder = write_official(make_tokenizer(), edit=edit)
    with pytest.raises(ValueError, match=sentence):
        TiTokModel.from_pretrained(folder)


def test_tokenizer_before_fine_tuning_is_not_taken_for_a_fine_tuned_one(
    make_tokenizer, write_official
):
    folder = write_official(make_tokenizer("proxy_codes"), edit=put(finetune_decoder=True))
    with pytest.raises(
        ValueError, match=r"weights are missing, pixel_decoder.*from before decoder fine-tuning"
    ):
        TiTokModel.from_pretrained(folder)


def test_fine_tuned_tokenizer_is_not_taken_for_one_before(make_tokenizer, write_official):
    folder = write_official(make_tokenizer("vqgan_decoder"), edit=put(finetune_decoder=False))
    with pytest.raises(
        ValueError,
        match=r"are unexpected, pixel_decoder.*after decoder fine-tuning, configured as one from",
    ):
        TiTokModel.from_pretrained(folder)


@pytest.mark.parametrize("model_class", GENERATORS)
def test_generator_for_another_codebook_is_refused(make_generator, write_official, model_class):
    def edit(tensors, config):
        config["model"]["vq_model"]["codebook_size"] = 128

    folder = write_official(make_generator(model_class), edit=edit)
    with pytest.raises(
        ValueError, match="made for a codebook of 64 codes; the configuration has 128"
    ):
        model_class.from_pretrained(folder)


def test_generator_of_the_other_type_is_refused(make_generator, write_official):
    with pytest.raises(
        ValueError,
        match=r"MaskGitUViTModel is the reference's .* 'UViT'; this one is of type 'ViT'",
    ):
        MaskGitUViTModel.from_pretrained(write_official(make_generator()))


def test_tokenizer_given_as_generator_is_refused(make_tokenizer, make_generator, write_official):
    """Official configurations have the sections of both."""
    generator_config = (
        make_generator().config.official_format().official_config(make_generator().config)
    )

    def edit(tensors, config):
        config["model"]["generator"] = generator_config["model"]["generator"]

    folder = write_official(make_tokenizer(), edit=edit)
    with pytest.raises(
        ValueError, match=r"does not fit MaskGitModel .* These are the weights of a TiTokModel"
    ):
        MaskGitModel.from_pretrained(folder)


@pytest.fixture(params=["official", "ours"])
def folder(request, make_generator, write_official, tmp_path):
    """A generator's folder in either format."""
    if request.param == "official":
        return write_official(make_generator())
    make_generator().save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def test_truncated_safetensors_are_refused(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(
        ValueError, match=r"truncated or corrupt .*Copy it again, or download it again"
    ):
        MaskGitModel.from_pretrained(folder)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_that_runs_code_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harmful(tmp_path / "harm")}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"would run code, and was not loaded\. .*safetensors\.torch\.save_file"
    ):
        MaskGitModel.from_pretrained(folder)
    assert not (tmp_path / "harm").exists()


def test_two_candidates_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"more than one checkpoint: model.safetensors(, | and )pytorch_model.bin"
    ):
        MaskGitModel.from_pretrained(folder)


def test_folder_without_weights_is_an_error(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named|holds no weights"):
        MaskGitModel.from_pretrained(folder)


def test_config_that_is_no_json_is_an_error(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match="not a valid JSON file"):
        MaskGitModel.from_pretrained(folder)


@pytest.fixture
def ours(make_generator, tmp_path):
    make_generator().save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    "config_class", [TiTokConfig, MaskGitConfig, MaskGitVQGANConfig, VTPConfig]
)
def test_configs_go_through_dicts(config_class):
    config = config_class()
    assert config_class.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "loader", [TiTokModel, TiTokConfig, MaskGitModel, MaskGitVQGANModel, TiTokPipeline]
)
@pytest.mark.parametrize("path", ["/no/such/folder", "./nope"])
def test_missing_folder_is_called_a_folder(loader, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"There is no folder {path}"):
        loader.from_pretrained(path)


@pytest.mark.parametrize("loader", [MaskGitModel, MaskGitConfig, AutoModel, AutoConfig])
def test_config_of_a_newer_version_is_refused(ours, loader):
    edit_config(ours, rope_theta=100.0, titok_hf_version="7.0.0")
    with pytest.raises(
        ValueError, match=r"not known here: rope_theta\. It was written by titok_hf 7\.0\.0 and tr"
    ):
        loader.from_pretrained(ours)


def test_a_wrong_field_of_this_version_asks_for_no_other_version(ours):
    edit_config(ours, codebook_sise=64)
    with pytest.raises(ValueError, match=r"not known here: codebook_sise\. Correct or delete them"):
        MaskGitConfig.from_pretrained(ours)


def test_misshapen_weights_of_ours_are_refused(ours):
    edit_config(ours, codebook_size=128)
    with pytest.raises(
        ValueError, match=r"misshapen.*made for a codebook of 64 codes; the configuration has 128"
    ):
        MaskGitModel.from_pretrained(ours)


def test_misshapen_weights_are_refused_even_if_asked_to_ignore_them(ours):
    edit_config(ours, codebook_size=128)
    with pytest.raises(ValueError, match="misshapen"):
        MaskGitModel.from_pretrained(ours, ignore_mismatched_sizes=True)


def test_two_candidates_of_ours_are_told_apart_on_request(
    ours, assert_same_weights, make_generator
):
    weights = load_file(ours / "model.safetensors")
    torch.save(
        {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        ours / "pytorch_model.bin",
    )
    loaded = MaskGitModel.from_pretrained(ours, use_safetensors=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def test_sharded_checkpoint_loads(make_generator, tmp_path, assert_same_weights, write_official):
    generator = make_generator()
    generator.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert_same_weights(MaskGitModel.from_pretrained(tmp_path / "ours"), generator)

    folder = write_official(generator)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"model-{i % 2}.safetensors"
    for shard in set(weight_map.values()):
        save_file(
            {name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_weights(MaskGitModel.from_pretrained(folder), generator)


def test_configs_load_alone(make_tokenizer, make_generator, write_official, tmp_path):
    tokenizer, generator = make_tokenizer(), make_generator()
    folder = write_official(tokenizer, "tokenizer")
    assert TiTokConfig.from_pretrained(folder).num_latent_tokens == 8
    folder = write_official(generator, "generator")
    assert MaskGitConfig.from_pretrained(folder).num_tokens == 8
    shutil.rmtree(folder)
    with pytest.raises(OSError):
        MaskGitConfig.from_pretrained(folder)
