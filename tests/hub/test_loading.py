"""Tests of loading what was published: whole, in the right revision, with access, or with a clear
error."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import save
from transformers import AutoImageProcessor, AutoModel

from titok_hf import (
    MaskGitModel,
    MaskGitScheduler,
    MaskGitUViTModel,
    MaskGitVQGANModel,
    TiTokImageProcessor,
    TiTokModel,
    TiTokPipeline,
)

CLASSES = [TiTokModel, MaskGitVQGANModel, MaskGitModel, MaskGitUViTModel]


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline([3, 7], generator=torch.Generator().manual_seed(0), output_type="pt").images


def names_of(*words):
    """A pattern for a message in which all of these are."""
    return "(?s)" + "".join(f"(?=.*{word})" for word in words)


@pytest.fixture(params=["own class", "AutoModel"])
def loader(request, model):
    return type(model) if request.param == "own class" else AutoModel


def test_a_model_comes_back(hub, model, loader, assert_same):
    model.push_to_hub("user/model")
    assert_same(loader.from_pretrained("user/model"), model)


def test_a_model_comes_back_from_a_subfolder(hub, model, loader, assert_same):
    model.push_to_hub("user/folders", subfolder="a/b")
    assert_same(loader.from_pretrained("user/folders", subfolder="a/b"), model)


@pytest.mark.parametrize("loader", [TiTokImageProcessor, AutoImageProcessor])
def test_a_processor_comes_back(hub, processor, titok, assert_same, loader):
    processor.push_to_hub("user/processor")
    assert_same(loader.from_pretrained("user/processor"), processor)
    titok.push_to_hub("user/processor")
    assert_same(loader.from_pretrained("user/processor"), processor)


def test_a_tokenizer_alone_has_a_processor(hub, processor, titok, assert_same):
    titok.push_to_hub("user/alone", subfolder="titok", revision="v2")
    loaded = TiTokImageProcessor.from_pretrained("user/alone", subfolder="titok", revision="v2")
    assert_same(loaded, processor)


def test_a_scheduler_comes_back(hub, assert_same):
    scheduler = MaskGitScheduler(64, mask_schedule="cosine", token_temperature=2.5)
    scheduler.push_to_hub("user/scheduler", subfolder="scheduler")
    assert_same(
        MaskGitScheduler.from_pretrained("user/scheduler", subfolder="scheduler"), scheduler
    )
    scheduler.push_to_hub("user/scheduler")
    assert_same(MaskGitScheduler.from_pretrained("user/scheduler"), scheduler)


@pytest.mark.parametrize(
    ("loader", "arguments"),
    [(TiTokPipeline, {}), (DiffusionPipeline, {"trust_remote_code": True})],
    ids=["own class", "DiffusionPipeline"],
)
@pytest.mark.parametrize("kind", [MaskGitModel, MaskGitUViTModel], ids=["vit", "uvit"])
def test_a_pipeline_comes_back(hub, pipeline, uvit, assert_same, loader, arguments, kind):
    if kind is MaskGitUViTModel:
        pipeline = TiTokPipeline(pipeline.tokenizer, uvit, pipeline.scheduler)
    pipeline.push_to_hub("user/pipeline")
    loaded = loader.from_pretrained("user/pipeline", **arguments)
    assert_same(loaded, pipeline)
    assert torch.equal(draw(loaded), draw(pipeline))


def test_a_pipeline_with_a_vqgan_comes_back(hub, vqgan, generator_config, assert_same):
    generator_config.num_tokens = 16
    pipeline = TiTokPipeline(vqgan, MaskGitModel(generator_config).eval(), MaskGitScheduler(64))
    pipeline.push_to_hub("user/vqgan-pipeline")
    for loader, arguments in (
        (TiTokPipeline, {}),
        (DiffusionPipeline, {"trust_remote_code": True}),
    ):
        assert_same(loader.from_pretrained("user/vqgan-pipeline", **arguments), pipeline)


def test_a_pipeline_comes_back_from_a_subfolder(hub, pipeline, titok, assert_same):
    titok.push_to_hub("user/zoo")
    pipeline.push_to_hub("user/zoo", subfolder="pipelines/digits")
    assert_same(TiTokPipeline.from_pretrained("user/zoo", subfolder="pipelines/digits"), pipeline)
    parts = {f"pipelines/digits/{name}/model.safetensors" for name in ("tokenizer", "transformer")}
    assert set(downloaded_weights(hub, "user/zoo")) == parts
    assert_same(TiTokModel.from_pretrained("user/zoo"), titok)
    with pytest.raises(ValueError, match=r"user/zoo.* no pipeline"):
        TiTokPipeline.from_pretrained("user/zoo")


def test_diffusers_asks_before_it_runs_code(hub, pipeline):
    pipeline.push_to_hub("user/code")
    with pytest.raises(
        ValueError, match=names_of("user/code", "custom code", "trust_remote_code=True")
    ):
        DiffusionPipeline.from_pretrained("user/code")


def test_parts_are_replaced_while_loading(hub, pipeline, change, assert_same):
    pipeline.push_to_hub("user/parts")
    other = MaskGitModel(pipeline.transformer.config).eval()
    assert_same(TiTokPipeline.from_pretrained("user/parts", transformer=other).transformer, other)


def test_revisions(hub, heavy_thing, change, assert_same):
    repo_id = f"user/versions-{type(heavy_thing).__name__}"
    load = type(heavy_thing).from_pretrained
    first = heavy_thing.push_to_hub(repo_id).oid
    HfApi().create_tag(repo_id, tag="v1")
    old = load(repo_id)
    assert_same(old, heavy_thing)

    change(heavy_thing)
    second = heavy_thing.push_to_hub(repo_id).oid
    change(new := load(repo_id))
    new.push_to_hub(repo_id, revision="v2")
    for revision, expected in (
        (first, old),
        ("v1", old),
        (second, heavy_thing),
        ("main", heavy_thing),
        (None, heavy_thing),
        ("v2", new),
    ):
        assert_same(load(repo_id, revision=revision), expected)


def test_revisions_of_small_parts(hub, processor, scheduler, assert_same):
    for thing in (processor, scheduler):
        repo_id = f"user/versions-{type(thing).__name__}"
        thing.push_to_hub(repo_id, revision="v2")
        assert_same(type(thing).from_pretrained(repo_id, revision="v2"), thing)
        with pytest.raises(OSError, match=repo_id):
            type(thing).from_pretrained(repo_id)


def test_a_private_thing_is_its_owners(hub, thing, assert_same, tmp_path):
    repo_id = f"user/private-{type(thing).__name__}"
    thing.push_to_hub(repo_id, private=True)
    assert_same(type(thing).from_pretrained(repo_id, token="hf_user"), thing)
    for token in ("hf_stranger", False):
        with pytest.raises(OSError, match=names_of(repo_id, "private", "token")):
            type(thing).from_pretrained(repo_id, token=token, cache_dir=tmp_path)


@pytest.mark.parametrize("kind", ["titok", "pipeline"])
def test_a_wrong_token_is_refused(hub, request, tmp_path, kind):
    thing = request.getfixturevalue(kind)
    thing.push_to_hub("user/refusing")
    with pytest.raises(OSError, match=names_of("user/refusing", "401")) as raised:
        type(thing).from_pretrained("user/refusing", token="hf_wrong", cache_dir=tmp_path)
    assert "may write" not in str(raised.value)


@pytest.mark.slow
def test_offline(hub, pipeline, titok, tmp_path):
    """Another process loads from the cache what this one has loaded, without a request."""
    pipeline.push_to_hub("user/offline-pipeline")
    titok.push_to_hub("user/offline-tokenizer")
    images = draw(TiTokPipeline.from_pretrained("user/offline-pipeline"))
    weights = TiTokModel.from_pretrained("user/offline-tokenizer").state_dict()
    titok.push_to_hub("user/not-cached")
    requests = len(hub.log)

    script = """
        import json, sys, torch
        from titok_hf import TiTokModel, TiTokPipeline

        pipeline = TiTokPipeline.from_pretrained("user/offline-pipeline")
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline([3, 7], generator=torch.Generator().manual_seed(0), output_type="pt").images
        tokenizer = TiTokModel.from_pretrained("user/offline-tokenizer")
        torch.save({"images": images, "weights": tokenizer.state_dict()}, sys.argv[1])
        errors = []
        for request in (
            lambda: TiTokPipeline.from_pretrained("user/not-cached"),
            lambda: TiTokModel.from_pretrained("user/not-cached"),
            lambda: tokenizer.push_to_hub("user/not-cached"),
        ):
            try:
                request()
            except OSError as error:
                errors.append(str(error))
        print(json.dumps(errors))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "loaded.pt"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    loaded = torch.load(tmp_path / "loaded.pt")
    assert torch.equal(loaded["images"], images)
    assert all(torch.equal(loaded["weights"][name], tensor) for name, tensor in weights.items())
    assert len(hub.log) == requests
    errors = json.loads(run.stdout.splitlines()[-1])
    assert len(errors) == 3
    for error in errors:
        assert "user/not-cached" in error and "HF_HUB_OFFLINE" in error and "\n" not in error


@pytest.mark.parametrize("loader", [*CLASSES, TiTokPipeline, MaskGitScheduler])
def test_what_is_not_in_the_cache(hub, pipeline, loader, tmp_path):
    pipeline.push_to_hub("user/elsewhere")
    with pytest.raises(OSError, match=names_of("user/elsewhere", "cache")):
        loader.from_pretrained("user/elsewhere", cache_dir=tmp_path, local_files_only=True)


def test_a_processor_that_is_not_in_the_cache(hub, processor, tmp_path):
    processor.push_to_hub("user/elsewhere")
    with pytest.raises(OSError, match="user/elsewhere"):
        TiTokImageProcessor.from_pretrained(
            "user/elsewhere", cache_dir=tmp_path, local_files_only=True
        )


def test_a_hub_out_of_reach(hub, pipeline, tmp_path, assert_same):
    pipeline.push_to_hub("user/far")
    TiTokPipeline.from_pretrained("user/far", cache_dir=tmp_path / "cache")
    hub.stop()
    try:
        assert_same(
            TiTokPipeline.from_pretrained("user/far", cache_dir=tmp_path / "cache"), pipeline
        )
        for loader in (TiTokPipeline, TiTokModel):
            with pytest.raises(OSError, match=names_of("user/far", "(reach|connect)")):
                loader.from_pretrained("user/far", cache_dir=tmp_path / "empty")
    finally:
        hub.start()


CUTS = {
    "titok": ["config.json", "model.safetensors"],
    "vqgan": ["model.safetensors"],
    "generator": ["model.safetensors"],
    "uvit": ["model.safetensors"],
    "processor": ["preprocessor_config.json"],
    "scheduler": ["scheduler_config.json"],
    "pipeline": [
        "model_index.json",
        "tokenizer/config.json",
        "tokenizer/model.safetensors",
        "transformer/model.safetensors",
        "scheduler/scheduler_config.json",
        "/tree/",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind, paths in CUTS.items() for path in paths]
)
def test_a_cut_download(hub, request, tmp_path, assert_same, kind, path):
    """Nothing half-written is ever loaded, and the same call brings the rest."""
    thing = request.getfixturevalue(kind)
    load, repo_id = type(thing).from_pretrained, f"user/cut-{kind}"
    thing.push_to_hub(repo_id)
    hub.break_connection("GET", path, after_bytes=20, times=None, abort=True)
    with pytest.raises(OSError, match=names_of("(?i:connect)", repo_id)):
        load(repo_id, cache_dir=tmp_path)
    with pytest.raises(OSError, match=repo_id):
        load(repo_id, cache_dir=tmp_path, local_files_only=True)

    hub.faults.clear()
    assert_same(load(repo_id, cache_dir=tmp_path), thing)
    assert_same(load(repo_id, cache_dir=tmp_path, local_files_only=True), thing)


def test_a_cut_download_of_weights_by_automodel(hub, titok, tmp_path):
    titok.push_to_hub("user/cut-auto")
    hub.break_connection("GET", "model.safetensors", after_bytes=1000, times=None, abort=True)
    with pytest.raises(OSError, match=names_of("(?i:connect)", "user/cut-auto")):
        AutoModel.from_pretrained("user/cut-auto", cache_dir=tmp_path)


def test_a_cut_that_the_client_repairs(hub, heavy_thing, tmp_path, assert_same):
    heavy_thing.push_to_hub("user/repaired")
    hub.break_connection("GET", "model.safetensors", after_bytes=1000)
    assert_same(type(heavy_thing).from_pretrained("user/repaired", cache_dir=tmp_path), heavy_thing)


def test_a_hub_that_fails(hub, thing, tmp_path):
    repo_id = f"user/failing-{type(thing).__name__}"
    thing.push_to_hub(repo_id)
    hub.fail("GET", "/resolve/", 500, times=None)
    with pytest.raises(OSError, match=names_of(repo_id, "500")):
        type(thing).from_pretrained(repo_id, cache_dir=tmp_path)


@pytest.mark.parametrize("loader", [*CLASSES, TiTokPipeline, TiTokImageProcessor, MaskGitScheduler])
def test_a_missing_repository(hub, loader):
    with pytest.raises(OSError, match=names_of("user/nowhere", "private", "token")):
        loader.from_pretrained("user/nowhere")


@pytest.mark.parametrize("kind", CUTS)
def test_a_missing_revision(hub, request, kind):
    thing = request.getfixturevalue(kind)
    thing.push_to_hub("user/revisions")
    with pytest.raises(OSError, match=names_of("user/revisions", "v9")):
        type(thing).from_pretrained("user/revisions", revision="v9")


def downloaded_weights(hub, repo_id):
    requests = [line for line in hub.log if line.startswith(f"GET /{repo_id}/resolve/")]
    return [line.split("/", 5)[-1] for line in requests if line.endswith(".safetensors")]


def push_without(hub, thing, path, repo_id):
    thing.push_to_hub("user/whole")
    hub.add(
        repo_id,
        {name: content for name, content in hub.files("user/whole").items() if name != path},
    )


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_a_model_without_a_file(hub, model, path):
    repo_id = f"user/model-without-{path.replace('.', '-')}"
    push_without(hub, model, path, repo_id)
    # without a configuration, a VQGAN is looked for in the official file
    with pytest.raises(
        OSError, match=names_of(repo_id, f"({path}|maskgit-vqgan-imagenet-f16-256.bin)")
    ):
        type(model).from_pretrained(repo_id)


@pytest.mark.parametrize(
    "path",
    [
        "transformer/model.safetensors",
        "transformer/config.json",
        "tokenizer/model.safetensors",
        "tokenizer/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_pipeline_without_a_file(hub, pipeline, path):
    repo_id = f"user/pipeline-without-{path.replace('/', '-').replace('.', '-')}"
    push_without(hub, pipeline, path, repo_id)
    with pytest.raises(OSError, match=names_of(repo_id, *path.split("/"))):
        TiTokPipeline.from_pretrained(repo_id)


def test_a_pipeline_without_an_index(hub, pipeline):
    push_without(hub, pipeline, "model_index.json", "user/without-index")
    with pytest.raises(
        ValueError, match=names_of("user/without-index", "model_index.json", "`titok convert`")
    ):
        TiTokPipeline.from_pretrained("user/without-index")
    assert not downloaded_weights(hub, "user/without-index")


@pytest.mark.parametrize("kind", ["titok", "processor", "scheduler"])
def test_a_subfolder_that_is_not_there(hub, request, kind):
    thing = request.getfixturevalue(kind)
    thing.push_to_hub("user/flat")
    with pytest.raises(OSError, match="user/flat"):
        type(thing).from_pretrained("user/flat", subfolder="deep")


def test_a_model_in_place_of_another(hub, titok, pipeline):
    titok.push_to_hub("user/tokenizer")
    with pytest.raises(ValueError, match="expects a model of type 'maskgit', got one of 'titok'"):
        MaskGitModel.from_pretrained("user/tokenizer")
    with pytest.raises(ValueError, match=r"user/tokenizer .*`titok convert`"):
        TiTokPipeline.from_pretrained("user/tokenizer")
    pipeline.push_to_hub("user/pipeline")
    with pytest.raises(OSError, match=names_of("user/pipeline", "config.json")):
        TiTokModel.from_pretrained("user/pipeline")


OFFICIAL = {
    "generator": ("ViT", "yucornetto/generator_titok_l32_imagenet", 2.77),
    "uvit": ("UViT", "yucornetto/generator_titok_s128_imagenet", 1.97),
}


@pytest.fixture(params=OFFICIAL)
def official(request):
    """A generator, its files in the official format, and a repository that was published so, with
    its figure."""
    generator = request.getfixturevalue(request.param)
    model_type, repo_id, figure = OFFICIAL[request.param]
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    labels = {"class_label_dropout": 0.1, "image_seq_len": 8, "condition_num_classes": 10}
    config = {
        "model": {
            "vq_model": {"codebook_size": 64},
            "generator": {"model_type": model_type, **sizes, **labels},
        }
    }
    weights = generator.config.official_format().to_official(generator)
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save({name: tensor.clone() for name, tensor in weights.items()}),
    }
    return generator, files, repo_id, figure


def test_an_official_repository(hub, official, assert_same):
    generator, files, repo_id, figure = official
    hub.add(repo_id, files)
    loaded = type(generator).from_pretrained(repo_id)
    assert_same(loaded, generator)
    provenance = loaded.provenance
    assert (provenance["base_model"], provenance["license"]) == ([repo_id], "apache-2.0")
    assert [(result["metric"], result["value"]) for result in provenance["results"]] == [
        ("gFID", figure)
    ]

    loaded.push_to_hub("user/converted")
    card = ModelCard.load("user/converted").data
    assert (card.base_model, card.license, card.datasets) == (
        [repo_id],
        "apache-2.0",
        ["ILSVRC/imagenet-1k"],
    )
    assert [(result.metric_type, result.metric_value) for result in card.eval_results] == [
        ("gFID", figure)
    ]
    assert "as published" in card.eval_results[0].metric_args["protocol"]
    again = AutoModel.from_pretrained("user/converted")
    assert_same(again, generator)
    assert again.provenance == provenance


def test_a_fork_of_an_official_repository_has_no_figures(hub, official, assert_same):
    generator, files, _, _ = official
    hub.add(
        "user/fork", {f"deep/{name}": content for name, content in files.items()}, revision="v2"
    )
    loaded = type(generator).from_pretrained("user/fork", subfolder="deep", revision="v2")
    assert_same(loaded, generator)
    assert loaded.provenance == {"base_model": ["user/fork"]}


def test_a_cut_download_of_an_official_repository(hub, official, tmp_path, assert_same):
    generator, files, _, _ = official
    load, repo_id = type(generator).from_pretrained, f"user/official-{generator.config.model_type}"
    hub.add(repo_id, files)
    hub.break_connection("GET", "model.safetensors", after_bytes=1000, times=None, abort=True)
    with pytest.raises(ConnectionError, match=repo_id):
        load(repo_id, cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{repo_id} is not in the cache, or only in part"):
        load(repo_id, cache_dir=tmp_path, local_files_only=True)
    hub.faults.clear()
    assert_same(load(repo_id, cache_dir=tmp_path), generator)
    assert_same(load(repo_id, cache_dir=tmp_path, local_files_only=True), generator)


def test_an_official_repository_without_weights(hub, official):
    generator, files, _, _ = official
    repo_id = f"user/weightless-{generator.config.model_type}"
    hub.add(repo_id, {"config.json": files["config.json"]})
    with pytest.raises(OSError, match=names_of(repo_id, "weights")):
        type(generator).from_pretrained(repo_id)
