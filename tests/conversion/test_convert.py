"""Converting files and folders, there and back."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from titok_hf import (
    MaskGitModel,
    MaskGitScheduler,
    MaskGitUViTModel,
    MaskGitVQGANConfig,
    MaskGitVQGANModel,
    TiTokImageProcessor,
    TiTokModel,
    TiTokPipeline,
)
from titok_hf.conversion import convert, convert_to_official, load_official
from titok_hf.conversion.checkpoint import write_tensors
from titok_hf.conversion.imagenet import imagenet_labels
from titok_hf.conversion.maskgit import official_sampling, sampling_to_official
from titok_hf.hub.provenance import provenance_of


def assert_same_tensors(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


@pytest.fixture
def any_model(request, make_tokenizer, make_generator):
    makers = {
        "tokenizer": make_tokenizer,
        "continuous tokenizer": lambda: make_tokenizer(quantizer="kl", latent_dim=4),
        "two-stage tokenizer": lambda: make_tokenizer("proxy_codes"),
        "fine-tuned tokenizer": lambda: make_tokenizer("vqgan_decoder"),
        "generator": make_generator,
        "U-ViT": lambda: make_generator(MaskGitUViTModel),
    }
    return makers[request.param]()


every_model = pytest.mark.parametrize(
    "any_model",
    [
        "tokenizer",
        "continuous tokenizer",
        "two-stage tokenizer",
        "fine-tuned tokenizer",
        "generator",
        "U-ViT",
    ],
    indirect=True,
)


@every_model
@pytest.mark.parametrize("file", ["model.safetensors", "weights.bin"])
def test_sizes_of_the_tensors_tell_what_it_is(any_model, write_official, assert_same_weights, file):
    folder = write_official(any_model, file=file, config=False)
    loaded = load_official(folder / file).model
    assert_same_weights(loaded, any_model)
    with_config = load_official(write_official(any_model, "with_config")).model.config.to_dict()
    without = loaded.config.to_dict()
    for config in (with_config, without):
        for name in ("hidden_dropout", "attention_dropout"):  # not to be seen in the tensors
            config.pop(name, None)
    assert without == with_config


def test_vqgan_is_recognized(tmp_path, assert_same_weights):
    config = MaskGitVQGANConfig(
        hidden_channels=32,
        channel_multipliers=(1, 2, 4),
        num_res_blocks=1,
        latent_channels=8,
        codebook_size=16,
        shortcut_of_output=True,
    )
    vqgan = MaskGitVQGANModel(config)
    write_tensors(config.official_format().to_official(vqgan), tmp_path / "vqgan.bin")
    converted = convert(tmp_path / "vqgan.bin", tmp_path / "ours")

    assert_same_weights(converted, vqgan)
    assert_same_weights(MaskGitVQGANModel.from_pretrained(tmp_path / "ours"), vqgan)
    convert_to_official(tmp_path / "ours", tmp_path / "back")
    back = torch.load(tmp_path / "back" / "maskgit-vqgan-imagenet-f16-256.bin", weights_only=True)
    assert_same_tensors(back, torch.load(tmp_path / "vqgan.bin", weights_only=True))


@every_model
def test_there_and_back_is_bit_for_bit(any_model, write_official, assert_same_weights, tmp_path):
    folder = write_official(any_model)
    converted = convert(folder, tmp_path / "ours")
    loaded = type(any_model).from_pretrained(tmp_path / "ours")
    assert_same_weights(converted, any_model)
    assert_same_weights(loaded, any_model)
    assert loaded.config.to_diff_dict() == converted.config.to_diff_dict()

    convert_to_official(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(
        load_file(tmp_path / "back" / "model.safetensors"), load_file(folder / "model.safetensors")
    )
    assert_same_weights(type(any_model).from_pretrained(tmp_path / "back"), any_model)


def test_tokenizer_comes_with_its_processor_and_a_card(make_tokenizer, write_official, tmp_path):
    convert(write_official(make_tokenizer()), tmp_path / "ours")
    assert TiTokImageProcessor.from_pretrained(tmp_path / "ours").crop_size["height"] == 32
    assert "TiTok tokenizer" in (tmp_path / "ours" / "README.md").read_text()


def test_dtype_is_chosen(make_tokenizer, write_official, tmp_path, assert_same_weights):
    tokenizer = make_tokenizer()
    convert(write_official(tokenizer), tmp_path / "ours", dtype=torch.bfloat16)
    assert_same_weights(TiTokModel.from_pretrained(tmp_path / "ours"), tokenizer.bfloat16())


def test_yaml_of_the_reference_serves_as_config(make_generator, write_official, tmp_path):
    generator = make_generator(num_attention_heads=4)  # not to be seen in the tensors
    folder = write_official(generator)
    official = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    official["model"]["vq_model"]["num_latent_tokens"] = 8
    official["model"]["generator"]["image_seq_len"] = "${model.vq_model.num_latent_tokens}"
    official["losses"] = {"label_smoothing": 0.2, "loss_weight_unmasked_token": 0.3}
    (tmp_path / "maskgit.yaml").write_text(yaml.safe_dump(official))

    config = load_official(folder, tmp_path / "maskgit.yaml").model.config
    assert (config.num_attention_heads, config.num_tokens) == (4, 8)
    assert (config.label_smoothing, config.unmasked_weight) == (0.2, 0.3)


@pytest.fixture
def pair(make_tokenizer, make_generator, write_official):
    return write_official(make_tokenizer(), "tokenizer"), write_official(
        make_generator(), "generator"
    )


def test_pair_becomes_a_pipeline_that_samples_as_the_reference(pair, tmp_path):
    converted = convert(pair[0], tmp_path / "pipeline", generator=pair[1])
    loaded = TiTokPipeline.from_pretrained(tmp_path / "pipeline")

    for pipeline in (converted, loaded):
        assert pipeline.config.num_inference_steps == 3
        assert (pipeline.config.guidance_schedule, pipeline.config.guidance_scale) == (
            "linear",
            5.5,
        )
        scheduler = pipeline.scheduler.config
        assert (scheduler.token_temperature, scheduler.choice_temperature) == (2.0, 2.0)
        assert scheduler.anneal_token_temperature and scheduler.softmax_temperature_annealing
        assert (scheduler.confidence, scheduler.mask_schedule) == ("logit", "arccos")
        assert pipeline.label_ids(["goldfish", "tench, Tinca tinca", 999]) == [1, 0, 999]
        pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline("goldfish", generator=torch.Generator().manual_seed(0), output_type="pt").images
        for pipeline in (converted, loaded)
    ]
    assert torch.equal(*images)
    assert TiTokImageProcessor.from_pretrained(tmp_path / "pipeline" / "tokenizer").size == {
        "shortest_edge": 32
    }
    assert "class 0: tench, Tinca tinca" in (tmp_path / "pipeline" / "README.md").read_text()


def test_pipeline_goes_back_as_two_folders(pair, tmp_path):
    convert(pair[0], tmp_path / "pipeline", generator=pair[1])
    convert_to_official(tmp_path / "pipeline", tmp_path / "back")

    for part, folder in zip(("tokenizer", "generator"), pair, strict=True):
        back = tmp_path / "back" / part
        assert_same_tensors(
            load_file(back / "model.safetensors"), load_file(folder / "model.safetensors")
        )
        assert json.loads((back / "config.json").read_text()) == json.loads(
            (folder / "config.json").read_text()
        )


@pytest.mark.parametrize(
    ("model_type", "num_tokens", "steps", "temperature", "schedule", "scale"),
    [
        ("ViT", 32, 8, 9.5, "linear", 5.5),
        ("ViT", 64, 8, 11.0, "linear", 4.0),
        ("UViT", 128, 64, 2.8, "power-cosine", 6.9),
    ],
)
def test_released_generators_have_their_recipes(
    model_type, num_tokens, steps, temperature, schedule, scale
):
    """Source: configs/infer/TiTok of the reference, where the scales are 4.5, 3.0 and 6.9."""
    generator = {"model_type": model_type, "image_seq_len": num_tokens}
    scheduler, sampling = official_sampling({"model": {"generator": generator}})

    assert scheduler["token_temperature"] == scheduler["choice_temperature"] == temperature
    assert sampling == {
        "num_inference_steps": steps,
        "guidance_scale": scale,
        "guidance_schedule": schedule,
    }
    back = sampling_to_official(dict(MaskGitScheduler(64, **scheduler).config), sampling)
    assert official_sampling({"model": {"generator": back}}) == (scheduler, sampling)


def test_unknown_sampling_is_asked_for(make_tokenizer, make_generator, write_official, tmp_path):
    generator = write_official(make_generator(), "generator", config=False)
    with pytest.raises(
        ValueError,
        match="released generators ViT-32, ViT-64, UViT-128, not for a ViT-8: give its off",
    ):
        convert(write_official(make_tokenizer()), tmp_path / "pipeline", generator=generator)


def test_mask_schedule_of_older_configurations_is_taken_over(
    make_tokenizer, make_generator, write_official, tmp_path
):
    def edit(tensors, config):
        config["model"]["generator"]["mask_schedule_strategy"] = "cosine"

    generator = write_official(make_generator(), "generator", edit=edit)
    pipeline = convert(write_official(make_tokenizer()), tmp_path / "pipeline", generator=generator)
    assert pipeline.scheduler.config.mask_schedule == "cosine"
    convert_to_official(tmp_path / "pipeline", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "generator" / "config.json").read_text())
    assert back["model"]["generator"]["mask_schedule_strategy"] == "cosine"


def test_unknown_guidance_is_refused_before_anything_is_written(
    pair, write_official, make_generator, tmp_path
):
    def edit(tensors, config):
        config["model"]["generator"]["guidance_decay"] = "cosine"

    generator = write_official(make_generator(), "other", edit=edit)
    with pytest.raises(
        ValueError, match="`guidance_schedule` must be one of constant, linear, power-cosine"
    ):
        convert(pair[0], tmp_path / "pipeline", generator=generator)
    assert not (tmp_path / "pipeline").exists()


def test_loss_of_a_generator_goes_there_and_back(make_generator, tmp_path):
    make_generator(label_smoothing=0.2, unmasked_weight=0.5).save_pretrained(tmp_path / "ours")
    convert_to_official(tmp_path / "ours", tmp_path / "official")
    config = MaskGitModel.from_pretrained(tmp_path / "official").config
    assert (config.label_smoothing, config.unmasked_weight) == (0.2, 0.5)


def test_sampling_in_part_is_refused():
    generator = {"model_type": "ViT", "image_seq_len": 8, "num_steps": 8, "guidance_scale": 1.0}
    with pytest.raises(ValueError, match="lacks randomize_temperature, guidance_decay"):
        official_sampling({"model": {"generator": generator}})


def test_parts_that_do_not_fit_leave_nothing(make_tokenizer, write_official, pair, tmp_path):
    other = write_official(make_tokenizer(codebook_size=32), "other")
    with pytest.raises(ValueError, match="must have the same `codebook_size`, got 32 and 64"):
        convert(other, tmp_path / "pipeline", generator=pair[1])
    with pytest.raises(
        ValueError, match="A generator is expected beside the tokenizer, got a TiTokModel"
    ):
        convert(pair[0], tmp_path / "pipeline", generator=pair[0])
    with pytest.raises(
        TypeError, match="masked generator are expected, got a MaskGitModel and a MaskGitModel"
    ):
        convert(pair[1], tmp_path / "pipeline", generator=pair[1])
    assert not list(tmp_path.glob("pipeline*"))


def test_what_is_there_is_kept(pair, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match="ours exists already: choose another name, or delete it"
    ):
        convert(pair[0], tmp_path / "ours")
    assert (tmp_path / "ours" / "notes.txt").read_text() == "mine"


def test_our_own_format_is_not_converted(make_tokenizer, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "ours")
    with pytest.raises(
        ValueError, match="in the format of titok_hf already: `from_pretrained` loads it"
    ):
        convert(tmp_path / "ours", tmp_path / "again")


def test_other_checkpoints_are_not_recognized(tmp_path):
    write_tensors({"bert.pooler.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"none of the official .* \(TiTokModel, .*has tensors such as bert\.pooler",
    ):
        convert(tmp_path / "model.safetensors", tmp_path / "ours")


@pytest.mark.parametrize("source", ["nowhere", "no/such/folder", "tokenizer.bin"])
def test_missing_source_is_an_error(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="neither a file or folder here, nor a Hub repository"
    ):
        convert(source, tmp_path / "ours")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"interleaved_latents": True}, "two-stage encoders read their output transposed"),
        ({"decoder_num_hidden_layers": 1}, r"knows ViTs of .* the decoder has \(32, 1, 2\)"),
        ({"mlp_ratio": 2}, "MLPs of 4 times the width; the encoder has .* 2"),
        ({"representation": "patch_tokens", "num_latent_tokens": 4}, "knows latent tokens only"),
    ],
)
def test_models_without_a_word_in_the_official_format_are_refused(
    make_tokenizer, tmp_path, fields, sentence
):
    make_tokenizer(**fields).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=sentence):
        convert_to_official(tmp_path / "ours", tmp_path / "official")
    assert not (tmp_path / "official").exists()


def test_new_two_stage_models_have_no_official_form(titok, vqgan, tmp_path):
    titok.save_pretrained(tmp_path / "titok")
    vqgan.save_pretrained(tmp_path / "vqgan")
    with pytest.raises(ValueError, match="only a model with `shortcut_of_output=True`"):
        convert_to_official(tmp_path / "vqgan", tmp_path / "official")
    with pytest.raises(ValueError, match="MLPs of 4 times the width; the encoder has"):
        convert_to_official(tmp_path / "titok", tmp_path / "official")


def test_two_stage_models_have_the_released_vqgan_there(make_tokenizer, tmp_path):
    vqgan = {"image_size": 32, "hidden_channels": 32, "shortcut_of_output": True}
    make_tokenizer("vqgan_decoder", vqgan_config=vqgan).save_pretrained(tmp_path / "ours")
    with pytest.raises(
        ValueError, match=r"a two-stage tokenizer has the released VQGAN, .*'hidden_channels': 128"
    ):
        convert_to_official(tmp_path / "ours", tmp_path / "official")


def test_samplers_without_a_word_there_are_refused(
    pipeline, make_tokenizer, make_generator, tmp_path
):
    TiTokPipeline(make_tokenizer(), make_generator(), MaskGitScheduler(64)).save_pretrained(
        tmp_path / "ours"
    )
    with pytest.raises(
        ValueError, match=r"reference cannot sample like .*`choice_temperature=4.5`"
    ):
        convert_to_official(tmp_path / "ours", tmp_path / "official")


def test_models_of_others_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is not a model of titok_hf"):
        convert_to_official(tmp_path, tmp_path / "official")


def test_sources_on_the_hub(
    hub, make_tokenizer, make_generator, write_official, tmp_path, assert_same_weights
):
    tokenizer, generator = make_tokenizer(), make_generator()
    for model, repo_id in ((tokenizer, "lab/tokenizer"), (generator, "lab/generator")):
        folder = write_official(model, repo_id.split("/")[1])
        hub.add(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()})
    write_tensors(
        generator.config.official_format().to_official(generator), tmp_path / "generator.bin"
    )
    hub.add("lab/files", {"generator.bin": (tmp_path / "generator.bin").read_bytes()})

    pipeline = convert("lab/tokenizer", tmp_path / "pipeline", generator="lab/generator")
    assert_same_weights(pipeline.tokenizer, tokenizer)
    assert_same_weights(pipeline.transformer, generator)
    assert provenance_of(pipeline)["base_model"] == ["lab/tokenizer", "lab/generator"]
    assert (
        "base_model:\n- lab/tokenizer\n- lab/generator"
        in (tmp_path / "pipeline" / "README.md").read_text()
    )
    assert_same_weights(convert("lab/files/generator.bin", tmp_path / "from_file"), generator)
    with pytest.raises(
        FileNotFoundError, match="no repository lab/nothing on the Hub, or it is private"
    ):
        convert("lab/nothing", tmp_path / "nothing")
    with pytest.raises(
        FileNotFoundError, match=r"A file is missing in the repository lab/files: none.bin"
    ):
        convert("lab/files/none.bin", tmp_path / "nothing")


def test_imagenet_has_a_thousand_names():
    names = imagenet_labels()
    assert len(names) == 1000
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert [index for index, name in enumerate(names) if names.count(name) > 1] == [
        134,
        517,
    ]  # both are "crane"
