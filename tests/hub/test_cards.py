"""Cards: their snippets run, their metadata is read back, and edited ones stay."""

import contextlib
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from titok_hf import MaskGitModel, TiTokModel, TiTokPipeline
from titok_hf.hub.cards import GENERATED
from titok_hf.hub.provenance import provenance_of

GENERATED_KINDS = ("titok", "vqgan", "generator", "uvit", "pipeline")
RESULT = {
    "task": "image-reconstruction",
    "dataset": "user/pictures",
    "split": "test",
    "metric": "rFID",
    "value": 12.5,
    "protocol": "10 images: none resized",
    "source": "https://example.org/figures",
}
PROVENANCE = {
    "license": "cc-by-4.0",
    "base_model": ["user/before"],
    "datasets": ["user/pictures"],
    "training_data": "Ten pictures.",
    "recipe": {"stages": {"warmup": {"learning_rate": 0.001}}},
    "results": [
        RESULT,
        {
            "task": "image-reconstruction",
            "dataset": "user/pictures",
            "metric": "PSNR",
            "value": 21,
            "protocol": "the same",
        },
    ],
}


def card_of(hub, repo_id="user/card", revision="main"):
    return hub.files(repo_id, revision)["README.md"].decode()


def snippet(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def headings(card):
    return re.findall(r"^## (.*)$", card, re.MULTILINE)


@pytest.fixture
def edited():
    """Edits the card of a repository as a person does who means to keep that: `edited(hub,
    "user/card")`."""

    def edit(hub, repo_id, **where):
        card = hub.files(repo_id, **where)["README.md"].decode()
        hub.add(
            repo_id,
            {"README.md": card.replace(GENERATED, "Look at these digits: ä.").encode()},
            **where,
        )
        return hub.files(repo_id, **where)["README.md"]

    return edit


@pytest.fixture
def run_snippet(tmp_path, monkeypatch):
    """Runs a card's snippet where there is an `image.png`, and returns its variables."""

    def run(card):
        monkeypatch.chdir(tmp_path)
        Image.linear_gradient("L").resize((48, 40)).save("image.png")
        variables = {}
        exec(compile(snippet(card), "card", "exec"), variables)
        return variables

    return run


@pytest.mark.parametrize("quantizer", ["vq", "kl"])
@pytest.mark.parametrize("head", ["proxy_codes", "vqgan_decoder", "pixels"])
def test_snippet_of_a_tokenizer(hub, make_titok_config, run_snippet, head, quantizer):
    TiTokModel(make_titok_config(head, quantizer=quantizer)).push_to_hub("user/card")
    variables = run_snippet(card_of(hub))
    name = "codes" if quantizer == "vq" else "latents"
    shape = re.search(rf"{name} = .*# \((.*)\)", card_of(hub))[1]
    assert ", ".join(map(str, variables[name].shape)) == shape
    if head == "proxy_codes":
        assert variables["logits"].shape == (1, 16, 64)
    else:
        assert variables["image"].size == (32, 32)


def test_snippet_of_a_branch(hub, titok, run_snippet):
    titok.push_to_hub("user/card", revision="v2")
    card = card_of(hub, revision="v2")
    assert 'from_pretrained("user/card", revision="v2")' in card
    assert run_snippet(card)["image"].size == (32, 32)


def test_snippet_of_a_vqgan(hub, vqgan, run_snippet):
    vqgan.push_to_hub("user/card")
    variables = run_snippet(card_of(hub))
    assert variables["codes"].shape == (1, 16) and "# (1, 16)" in card_of(hub)
    assert variables["image"].size == (32, 32)


def test_snippet_of_a_generator(hub, any_generator, run_snippet):
    any_generator.push_to_hub("user/card")
    assert run_snippet(card_of(hub))["logits"].shape == (1, 8, 64)
    assert "# (1, 8, 64)" in card_of(hub)


def test_snippet_of_a_processor(hub, processor, run_snippet):
    processor.push_to_hub("user/card")
    variables = run_snippet(card_of(hub))
    assert variables["pixel_values"].shape == (1, 3, 32, 32)
    assert variables["image"].size == (32, 32)


def test_snippet_of_a_scheduler(hub, scheduler, run_snippet):
    scheduler.push_to_hub("user/card")
    assert len(run_snippet(card_of(hub))["scheduler"].timesteps) == 8


def test_snippet_of_a_pipeline(hub, pipeline, run_snippet):
    pipeline.push_to_hub("user/card")
    assert run_snippet(card_of(hub))["image"].size == (32, 32)
    assert "# class 0: zero" in card_of(hub)


def test_snippet_of_a_folder(heavy_thing, tmp_path, run_snippet):
    heavy_thing.save_pretrained(tmp_path / "thing")
    assert run_snippet(heavy_thing.model_card(str(tmp_path / "thing")).content)["image"].size == (
        32,
        32,
    )


LIBRARIES = {
    "titok": ("transformers", "image-feature-extraction", []),
    "vqgan": ("transformers", "image-feature-extraction", []),
    "generator": ("transformers", "unconditional-image-generation", ["maskgit"]),
    "uvit": ("transformers", "unconditional-image-generation", ["maskgit"]),
    "processor": ("transformers", "image-feature-extraction", []),
    "scheduler": ("diffusers", "unconditional-image-generation", ["maskgit"]),
    "pipeline": ("diffusers", "unconditional-image-generation", ["maskgit"]),
}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_card_without_provenance_says_only_what_it_knows(hub, request, kind):
    request.getfixturevalue(kind).push_to_hub("user/card")
    library, task, tags = LIBRARIES[kind]
    assert ModelCard.load("user/card").data.to_dict() == {
        "library_name": library,
        "pipeline_tag": task,
        "tags": ["titok", "image-tokenizer", *tags],
    }
    assert headings(card_of(hub)) == ["Use", "Citation"]
    assert card_of(hub).startswith("---\n") and "None" not in card_of(hub)


@pytest.mark.parametrize("provenance", [{}, {"results": []}, {"recipe": {}}])
def test_empty_provenance_is_none(heavy_thing, provenance):
    plain = heavy_thing.model_card("user/card").content
    model = heavy_thing.tokenizer if hasattr(heavy_thing, "tokenizer") else heavy_thing
    model.provenance = provenance
    assert heavy_thing.model_card("user/card").content == plain


def test_provenance_is_in_the_card(hub, model):
    model.provenance = PROVENANCE
    model.push_to_hub("user/card")
    data = ModelCard.load("user/card").data
    assert (data.license, data.base_model, data.datasets) == (
        "cc-by-4.0",
        ["user/before"],
        ["user/pictures"],
    )
    assert data.model_name == "card"
    first, second = data.eval_results
    assert (first.task_type, first.dataset_type, first.dataset_name, first.dataset_split) == (
        "image-reconstruction",
        "user/pictures",
        "user/pictures",
        "test",
    )
    assert (first.metric_type, first.metric_value, first.metric_args) == (
        "rFID",
        12.5,
        {"protocol": RESULT["protocol"]},
    )
    assert first.source_url == "https://example.org/figures"
    assert (second.metric_type, second.metric_value, second.dataset_split, second.source_url) == (
        "PSNR",
        21,
        None,
        None,
    )

    card = card_of(hub)
    assert headings(card) == ["Use", "Training", "Results", "Citation"]
    assert "`user/before`" in card and "Ten pictures." in card
    assert (
        yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1]) == PROVENANCE["recipe"]
    )
    assert "| rFID | 12.5 | user/pictures | test | 10 images: none resized |" in card
    assert re.search(r"\| PSNR \| 21 \| user/pictures \| +\| the same \|", card)


def test_parts_of_provenance_make_their_sections_alone(hub, titok):
    for key, sections in (("license", []), ("datasets", ["Training"]), ("results", ["Results"])):
        titok.provenance = {key: PROVENANCE[key]}
        titok.push_to_hub("user/card")
        assert headings(card_of(hub)) == ["Use", *sections, "Citation"]


def test_provenance_survives(hub, model, tmp_path):
    model.provenance = PROVENANCE
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.provenance == PROVENANCE
    loaded.push_to_hub("user/survivor")
    assert type(model).from_pretrained("user/survivor").provenance == PROVENANCE
    assert loaded.model_card("user/survivor").content == card_of(hub, "user/survivor")


@pytest.fixture
def provenances():
    shared = {"datasets": ["user/pictures"], "license": "mit"}
    return {
        "tokenizer": {
            **shared,
            "base_model": ["user/tokenizer"],
            "results": [RESULT],
            "training_data": "Of one.",
        },
        "transformer": {
            "datasets": ["user/pictures", "user/more"],
            "base_model": ["user/generator"],
            "license": "cc-by-4.0",
            "results": [{**RESULT, "metric": "gFID"}],
            "training_data": "Of the other.",
        },
    }


def test_a_pipeline_has_the_provenance_of_both_parts(hub, pipeline, provenances):
    for name, provenance in provenances.items():
        getattr(pipeline, name).provenance = provenance
    merged = {
        "datasets": ["user/pictures", "user/more"],
        "license": "cc-by-4.0",
        "base_model": ["user/tokenizer", "user/generator"],
        "results": [RESULT, {**RESULT, "metric": "gFID"}],
        "training_data": "Of the other.",
    }
    assert provenance_of(pipeline) == merged
    pipeline.push_to_hub("user/card")
    data = ModelCard.load("user/card").data
    assert (data.license, data.base_model, data.datasets) == tuple(
        merged[key] for key in ("license", "base_model", "datasets")
    )
    assert [result.metric_type for result in data.eval_results] == ["rFID", "gFID"]
    assert provenance_of(TiTokPipeline.from_pretrained("user/card")) == merged
    assert (pipeline.tokenizer.provenance, pipeline.transformer.provenance) == tuple(
        provenances.values()
    )


@pytest.mark.parametrize("name", ["tokenizer", "transformer"])
def test_a_pipeline_has_the_provenance_of_one_part(pipeline, provenances, name):
    getattr(pipeline, name).provenance = provenances[name]
    assert provenance_of(pipeline) == provenances[name]


def test_one_base_model_by_its_name(hub, heavy_thing):
    model = heavy_thing.tokenizer if hasattr(heavy_thing, "tokenizer") else heavy_thing
    model.provenance = {"base_model": "user/before"}
    heavy_thing.push_to_hub("user/card")
    assert "Weights: `user/before`." in card_of(hub)
    assert ModelCard.load("user/card").data.base_model in ("user/before", ["user/before"])


@pytest.mark.parametrize("kind", GENERATED_KINDS)
def test_a_generated_card_is_replaced(hub, request, kind):
    thing = request.getfixturevalue(kind)
    thing.push_to_hub("user/card")
    generator = thing.transformer if kind == "pipeline" else thing
    generator.provenance = PROVENANCE
    thing.push_to_hub("user/card")
    assert "Ten pictures." in card_of(hub)


@pytest.mark.parametrize("kind", LIBRARIES)
def test_an_edited_card_stays(hub, request, edited, kind):
    thing = request.getfixturevalue(kind)
    thing.push_to_hub("user/card")
    card = edited(hub, "user/card")
    thing.push_to_hub("user/card", commit_message="Again")
    assert hub.files("user/card")["README.md"] == card


def test_an_edited_card_stays_on_its_branch(hub, titok, edited):
    titok.push_to_hub("user/card")
    titok.push_to_hub("user/card", revision="v2")
    card = edited(hub, "user/card", revision="v2")
    titok.provenance = PROVENANCE
    for revision in (None, "v2"):
        titok.push_to_hub("user/card", revision=revision)
    assert hub.files("user/card", "v2")["README.md"] == card
    assert "Ten pictures." in card_of(hub)


@pytest.mark.parametrize("seen", [False, True], ids=["never seen", "generated when last seen"])
@pytest.mark.parametrize("kind", ["titok", "pipeline", "processor", "scheduler"])
def test_an_edited_card_stays_when_the_hub_stumbles(hub, request, edited, kind, seen):
    thing = request.getfixturevalue(kind)
    repo_id = f"user/stumbles-{kind}-{seen}"
    thing.push_to_hub(repo_id)
    if seen:
        thing.push_to_hub(repo_id)
    card = edited(hub, repo_id)
    for method in ("HEAD", "GET"):
        hub.fail(method, "README.md", 500, times=None)
        with contextlib.suppress(OSError):
            thing.push_to_hub(repo_id, commit_message="Again")
        assert hub.files(repo_id)["README.md"] == card
        hub.faults.clear()


@pytest.mark.parametrize("kind", ["processor", "scheduler"])
def test_small_parts_leave_the_card_of_the_model(hub, request, titok, kind):
    titok.push_to_hub("user/card")
    card = card_of(hub)
    request.getfixturevalue(kind).push_to_hub("user/card")
    assert card_of(hub) == card


def test_the_model_replaces_the_card_of_its_processor(hub, titok, processor):
    processor.push_to_hub("user/card")
    titok.push_to_hub("user/card")
    assert "# TiTok tokenizer" in card_of(hub)


def test_sizes_are_told(hub, pipeline):
    pipeline.push_to_hub("user/card")
    assert "32x32 images of 10 classes in 8 steps" in card_of(
        hub
    ) and "fills in 8 tokens" in card_of(hub)
    generator = MaskGitModel.from_pretrained("user/card", subfolder="transformer")
    assert (
        "8 TiTok tokens of 64 codes, given one of 10 classes"
        in generator.model_card("user/card").content
    )
