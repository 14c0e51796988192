"""`push_to_hub` of everything: what arrives, where, and what does not."""

import pytest
from huggingface_hub import HfApi, ModelCard

from titok_hf import TiTokModel, TiTokPipeline

pytestmark = pytest.mark.slow

MODEL_FILES = {"README.md", "config.json", "model.safetensors"}
FILES = {
    "titok": MODEL_FILES,
    "vqgan": MODEL_FILES,
    "generator": MODEL_FILES,
    "uvit": MODEL_FILES,
    "processor": {"README.md", "preprocessor_config.json"},
    "scheduler": {"README.md", "scheduler_config.json"},
    "pipeline": {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "transformer/component.py",
        "transformer/config.json",
        "transformer/model.safetensors",
        "scheduler/component.py",
        "scheduler/scheduler_config.json",
        "tokenizer/component.py",
        "tokenizer/config.json",
        "tokenizer/model.safetensors",
    },
}


def titles(repo_id, revision=None):
    return [commit.title for commit in HfApi().list_repo_commits(repo_id, revision=revision)]


def weight_files(hub, repo_id):
    return {path for path in hub.files(repo_id) if path.rsplit("/", 1)[-1].startswith("model")}


@pytest.mark.parametrize("kind", FILES)
def test_a_push_is_one_commit(hub, request, kind):
    thing = request.getfixturevalue(kind)
    commit = thing.push_to_hub("user/one")
    assert set(hub.files("user/one")) == {".gitattributes", *FILES[kind]}
    assert titles("user/one") == [f"Upload {type(thing).__name__}", "initial commit"]
    assert HfApi().model_info("user/one").sha == commit.oid


def test_the_account_is_the_default_owner(hub, titok):
    titok.push_to_hub("short", commit_message="First version")
    assert titles("user/short")[0] == "First version"
    assert 'from_pretrained("user/short")' in hub.files("user/short")["README.md"].decode()


def test_a_description_and_tags_come_along(hub, thing, tmp_path):
    more = {"commit_description": "It was trained for longer.", "tags": ["mine"]}
    thing.push_to_hub("user/described", **more)
    thing.save_pretrained(tmp_path / "saved", push_to_hub=True, **more)
    for name in ("user/described", "user/saved"):
        assert HfApi().list_repo_commits(name)[0].message == more["commit_description"]
        tags = ModelCard(hub.files(name)["README.md"].decode()).data.tags
        assert tags[-1] == "mine" and len(tags) > 1


def test_a_processor_tells_the_files_that_it_wrote(processor, tmp_path):
    assert processor.save_pretrained(tmp_path) == [str(tmp_path / "preprocessor_config.json")]


def test_the_same_again_makes_no_commit(hub, heavy_thing):
    first = heavy_thing.push_to_hub("user/same")
    assert heavy_thing.push_to_hub("user/same").oid == first.oid
    assert len(titles("user/same")) == 2


def test_saving_publishes_too(hub, thing, assert_same, tmp_path):
    thing.save_pretrained(tmp_path / "named", push_to_hub=True)
    for source in (tmp_path / "named", "user/named"):
        assert_same(type(thing).from_pretrained(source), thing)

    where = {"repo_id": "user/other", "private": True, "revision": "v2", "token": "hf_user"}
    thing.save_pretrained(tmp_path / "named", push_to_hub=True, commit_message="Better", **where)
    assert hub.repositories["model", "user/other"].private
    assert titles("user/other", "v2") == ["Better", "initial commit"]


def test_saving_in_shards_publishes_the_shards(hub, heavy_thing, tmp_path):
    heavy_thing.save_pretrained(tmp_path / "sharded", push_to_hub=True, max_shard_size="100KB")
    files = {str(file.relative_to(tmp_path / "sharded")) for file in tmp_path.rglob("model*")}
    assert weight_files(hub, "user/sharded") == files and any("-of-" in file for file in files)


def test_a_push_keeps_what_others_put_there(hub, heavy_thing):
    others = {
        "notes.md": b"mine",
        "samples/grid.png": b"\0",
        "other/config.json": b"{}",
        "other/model.safetensors": b"\0",
    }
    hub.add("user/shared", others)
    heavy_thing.push_to_hub("user/shared")
    assert others.items() <= hub.files("user/shared").items()


@pytest.mark.parametrize("shard_sizes", [("1GB", "100KB"), ("100KB", "1GB"), ("20KB", "100KB")])
def test_weights_in_other_shards_replace_those_before(
    hub, heavy_thing, change, assert_same, tmp_path, shard_sizes
):
    for max_shard_size in shard_sizes:
        change(heavy_thing)
        heavy_thing.push_to_hub("user/shards", max_shard_size=max_shard_size)
    heavy_thing.save_pretrained(tmp_path, max_shard_size=shard_sizes[-1])
    assert weight_files(hub, "user/shards") == {
        str(file.relative_to(tmp_path)) for file in tmp_path.rglob("model*")
    }
    assert any("-of-" in path for path in hub.files("user/shards")) == (shard_sizes[-1] == "100KB")
    assert_same(type(heavy_thing).from_pretrained("user/shards"), heavy_thing)
    assert_same(type(heavy_thing).from_pretrained("user/shards", use_safetensors=True), heavy_thing)


def test_a_push_to_a_branch_leaves_main_alone(hub, thing):
    thing.push_to_hub("user/branches", revision="v2")
    thing.push_to_hub("user/branches", revision="v2", commit_message="Again")
    assert set(hub.files("user/branches")) == {".gitattributes"}
    assert "README.md" in hub.files("user/branches", "v2")


def test_a_subfolder_comes_without_a_card(hub, titok, vqgan):
    vqgan.push_to_hub("user/both")
    before = hub.files("user/both")
    titok.push_to_hub("user/both", subfolder="tokenizers/titok")
    new = {path: content for path, content in hub.files("user/both").items() if path not in before}
    assert set(new) == {"tokenizers/titok/config.json", "tokenizers/titok/model.safetensors"}
    assert before.items() <= hub.files("user/both").items()


def test_a_private_repository(hub, heavy_thing):
    heavy_thing.push_to_hub("user/private", private=True)
    assert hub.repositories["model", "user/private"].private
    heavy_thing.push_to_hub("user/public", private=False)
    assert not hub.repositories["model", "user/public"].private


@pytest.mark.parametrize(
    ("token", "repo_id", "reason"),
    [
        ("hf_stranger", "user/new", "don't have the rights"),
        ("hf_stranger", "user/public", "don't have the rights"),
        ("hf_stranger", "user/private", "don't have the rights"),
        ("hf_reader", "user/public", "don't have the rights"),
        ("hf_reader", "reader/new", "token with the role write"),
        ("hf_reader", "reader/public", "token with the role write"),
        ("hf_wrong", "user/public", "401"),
        (False, "user/new", "401"),
        (False, "user/private", "401"),
    ],
)
def test_no_permission(hub, titok, token, repo_id, reason):
    for name in ("user/public", "user/private", "reader/public"):
        hub.add(name, {"a.txt": b"a"}, private="private" in name)
    before = {key: repository.find("main") for key, repository in hub.repositories.items()}
    with pytest.raises(PermissionError, match=f"{repo_id}.*{reason}"):
        titok.push_to_hub(repo_id, token=token)
    assert {key: repository.find("main") for key, repository in hub.repositories.items()} == before


def test_nobody_pushes_into_what_anybody_sees(hub, pipeline):
    hub.add("user/public", {"a.txt": b"a"})
    with pytest.raises(OSError, match=r"user/public.*hf auth login"):
        pipeline.push_to_hub("user/public", token=False)
    assert set(hub.files("user/public")) == {".gitattributes", "a.txt"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/lfs/"),
        ("POST", "/lfs/objects/batch"),
        ("POST", "/preupload/"),
        ("POST", "/commit/"),
    ],
)
def test_a_cut_upload_changes_nothing(hub, heavy_thing, change, assert_same, method, path):
    heavy_thing.push_to_hub("user/cut")
    before = hub.files("user/cut")
    change(heavy_thing)
    hub.break_connection(method, path, after_bytes=100, times=None)
    with pytest.raises(ConnectionError, match=r"broke at user/cut .*try again"):
        heavy_thing.push_to_hub("user/cut")
    assert hub.files("user/cut") == before

    hub.faults.clear()
    heavy_thing.push_to_hub("user/cut")
    assert_same(type(heavy_thing).from_pretrained("user/cut"), heavy_thing)


def test_a_cut_that_the_client_repairs(hub, heavy_thing, assert_same):
    hub.break_connection("PUT", "/lfs/", after_bytes=100)
    heavy_thing.push_to_hub("user/repaired")
    assert_same(type(heavy_thing).from_pretrained("user/repaired"), heavy_thing)


def test_a_refused_push_says_why(hub, titok):
    hub.fail("POST", "/commit/", 507, message="No space is left")
    with pytest.raises(OSError, match=r"user/full.*507.*No space is left"):
        titok.push_to_hub("user/full")
    assert set(hub.files("user/full")) == {".gitattributes"}


def test_a_hub_out_of_reach(hub, titok):
    hub.stop()
    try:
        with pytest.raises(ConnectionError, match="user/far"):
            titok.push_to_hub("user/far")
    finally:
        hub.start()


def test_what_was_loaded_is_pushed_on(hub, heavy_thing, assert_same):
    heavy_thing.push_to_hub("user/first")
    type(heavy_thing).from_pretrained("user/first").push_to_hub("user/second")
    assert_same(type(heavy_thing).from_pretrained("user/second"), heavy_thing)
    first, second = hub.files("user/first"), hub.files("user/second")
    weights = [path for path in first if path.endswith(".safetensors")]
    assert set(first) == set(second) and all(first[path] == second[path] for path in weights)


def test_a_model_in_half_precision(hub, titok, assert_same):
    titok.half().push_to_hub("user/half")
    assert_same(TiTokModel.from_pretrained("user/half", dtype="auto"), titok)


def test_the_parts_of_a_pipeline_are_models(hub, pipeline, assert_same):
    pipeline.push_to_hub("user/parts")
    for name in ("tokenizer", "transformer"):
        part = getattr(pipeline, name)
        assert_same(type(part).from_pretrained("user/parts", subfolder=name), part)


def test_sampling_defaults_come_along(hub, pipeline):
    defaults = {"num_inference_steps": 3, "guidance_scale": 2.0, "guidance_schedule": "constant"}
    TiTokPipeline(**pipeline.components, **defaults).push_to_hub("user/defaults")
    assert defaults.items() <= TiTokPipeline.from_pretrained("user/defaults").config.items()
