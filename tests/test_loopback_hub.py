"""The loopback hub answers the real clients as huggingface.co does."""

import hashlib
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import http_backoff
from loopback_hub import LoopbackHub
from loopback_repositories import GITATTRIBUTES, User

TEXT = "naïve\n".encode()
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def running_hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub, monkeypatch, tmp_path):
    # what the environment sets when the client is imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # a list that the client would fetch from HF_ENDPOINT, which may be another hub
    harnesses = tmp_path / "agent-harnesses.json"
    harnesses.write_text('{"standardEnvVars": [], "harnesses": {}}')
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(harnesses))
    # the client waits 1, 2, 4, 8 and 8 seconds before it gives up a request
    monkeypatch.setitem(http_backoff.__kwdefaults__, "base_wait_time", 0.01)
    running_hub.reset()
    yield running_hub
    assert running_hub.unknown == []


@pytest.fixture
def make_api(hub):
    return lambda token="hf_user": HfApi(endpoint=hub.url, token=token)


@pytest.fixture
def api(make_api):
    return make_api()


@pytest.fixture
def repo(api):
    return api.create_repo("user/model").repo_id


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub folder").mkdir(parents=True)
    (folder / "sub folder" / "notes é.txt").write_bytes(TEXT)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "empty.bin").touch()
    return folder


@pytest.fixture
def download(hub, tmp_path):
    def download(filename="model.safetensors", token="hf_user", **options):
        options = {
            "repo_id": "user/model",
            "endpoint": hub.url,
            "cache_dir": tmp_path / "cache",
            **options,
        }
        return Path(hf_hub_download(filename=filename, token=token, **options)).read_bytes()

    return download


def test_users(hub, make_api):
    hub.tokens["other"] = User("someone", "read")
    assert make_api("hf_user").whoami()["name"] == "user"
    assert make_api("other").whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        make_api("hf_wrong").whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
        make_api(False).create_repo("user/model")
    hub.add("user/model", {"a.txt": TEXT})
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as failure:
        make_api("hf_wrong").model_info("user/model")
    assert failure.value.response.status_code == 401


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_pushed_files_come_back(hub, api, folder, tmp_path, repo_type):
    url = api.create_repo("things", repo_type=repo_type)
    assert url.repo_id == "user/things"
    commit = api.upload_folder(repo_id="user/things", repo_type=repo_type, folder_path=folder)
    files = {
        ".gitattributes": GITATTRIBUTES,
        "empty.bin": b"",
        "model.safetensors": WEIGHTS,
        "sub folder/notes é.txt": TEXT,
    }
    assert hub.files("user/things", repo_type=repo_type) == files
    assert any(line.startswith("PUT /lfs/") for line in hub.log)

    # anyone may read it, no one needs a token
    options = {
        "repo_type": repo_type,
        "endpoint": hub.url,
        "token": False,
        "cache_dir": tmp_path / "cache",
    }
    snapshot = Path(snapshot_download("user/things", **options))
    assert snapshot.name == commit.oid
    assert {
        str(p.relative_to(snapshot)): p.read_bytes() for p in snapshot.rglob("*") if p.is_file()
    } == files
    assert api.list_repo_files("user/things", repo_type=repo_type) == sorted(files)
    assert api.file_exists("user/things", "sub folder/notes é.txt", repo_type=repo_type)
    assert not api.file_exists("user/things", "sub folder", repo_type=repo_type)


def test_listings(hub, api):
    hub.add("user/model", {"a/b/c.txt": TEXT, "a/d.bin": WEIGHTS, "e.txt": TEXT})
    assert [entry.path for entry in api.list_repo_tree("user/model")] == [
        ".gitattributes",
        "a",
        "e.txt",
    ]
    assert [entry.path for entry in api.list_repo_tree("user/model", "a")] == ["a/b", "a/d.bin"]
    recursive = api.list_repo_tree("user/model", "a", recursive=True)
    assert [entry.path for entry in recursive] == ["a/b", "a/b/c.txt", "a/d.bin"]
    large, folder = api.get_paths_info("user/model", ["a/d.bin", "a/b", "missing"])
    assert (large.size, large.lfs.size, folder.path) == (len(WEIGHTS), len(WEIGHTS), "a/b")
    info = api.model_info("user/model", files_metadata=True)
    assert {file.rfilename: file.size for file in info.siblings}["e.txt"] == len(TEXT)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("user/model", "missing"))


def test_creation_and_deletion(hub, api, make_api):
    api.create_repo("user/model", private=True)
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("user/model")
    assert api.create_repo("user/model", exist_ok=True).repo_id == "user/model"
    assert api.model_info("user/model").private
    api.delete_repo("user/model")
    assert not api.repo_exists("user/model")
    api.delete_repo("user/model", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("user/model")


def test_revisions(hub, api, repo, download):
    first = api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"one").oid
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="next/try", revision=first)
    second = api.upload_file(
        repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"two", commit_message="Second"
    ).oid
    api.upload_file(
        repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"three", revision="next/try"
    )

    revisions = {None: b"two", first: b"one", "v1": b"one", second: b"two", "next/try": b"three"}
    assert {revision: download("a.txt", revision=revision) for revision in revisions} == revisions
    refs = api.list_repo_refs(repo)
    assert [branch.name for branch in refs.branches] == ["main", "next/try"]
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert [commit.title for commit in api.list_repo_commits(repo)][::2] == [
        "Second",
        "initial commit",
    ]
    assert api.model_info(repo, revision="v1").sha == first

    for create, name in (
        (api.create_tag, {"tag": "v1"}),
        (api.create_branch, {"branch": "next/try"}),
    ):
        create(repo, **name, exist_ok=True)
        with pytest.raises(HfHubHTTPError, match="409"):
            create(repo, **name)
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="next/try")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="v1")


def test_commits(hub, api, repo):
    add = [CommitOperationAdd(path, TEXT) for path in ("old/a.txt", "old/b.txt", "c.txt", "d.txt")]
    first = api.create_commit(repo, add, commit_message="Add").oid
    delete = [CommitOperationDelete("old/"), CommitOperationDelete("c.txt")]
    api.create_commit(repo, delete, commit_message="Delete", parent_commit=first)
    assert hub.files(repo) == {".gitattributes": GITATTRIBUTES, "d.txt": TEXT}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("c.txt", repo)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        add = [CommitOperationAdd("late.txt", TEXT)]
        api.create_commit(repo, add, commit_message="Late", parent_commit=first)
    # what has not changed makes no commit
    head = api.model_info(repo).sha
    assert api.upload_file(repo_id=repo, path_in_repo="d.txt", path_or_fileobj=TEXT).oid == head


def test_parallel_uploads(hub, api, repo):
    def upload(index):
        api.upload_file(repo_id=repo, path_in_repo=f"{index}.bin", path_or_fileobj=b"\0%d" % index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, range(8)))
    assert hub.files(repo) == {
        ".gitattributes": GITATTRIBUTES,
        **{f"{i}.bin": b"\0%d" % i for i in range(8)},
    }
    assert len(api.list_repo_commits(repo)) == 9


@pytest.mark.parametrize("token", ["hf_stranger", False])
def test_private_repositories_are_seen_by_their_owner_only(
    hub, api, make_api, download, tmp_path, token
):
    hub.add("user/model", {"a.txt": TEXT}, private=True)
    assert download("a.txt") == TEXT
    stranger = make_api(token)
    assert api.repo_exists("user/model")
    assert not stranger.repo_exists("user/model")
    for access in (
        lambda: stranger.model_info("user/model"),
        lambda: stranger.list_repo_files("user/model"),
        lambda: stranger.upload_file(
            repo_id="user/model", path_in_repo="b.txt", path_or_fileobj=TEXT
        ),
        lambda: download("a.txt", token=token, cache_dir=tmp_path / "other"),
    ):
        with pytest.raises(RepositoryNotFoundError):
            access()


@pytest.mark.parametrize(
    ("repo_id", "reason"),
    [("user/model", "don't have the rights"), ("reader/model", "a token with the role write")],
)
def test_no_permission(hub, make_api, repo_id, reason):
    hub.add(repo_id, {"a.txt": TEXT})
    before = hub.files(repo_id)
    reader = make_api("hf_reader")
    for change in (
        lambda: reader.create_repo(repo_id.replace("model", "other")),
        lambda: reader.upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"x"),
        lambda: reader.create_tag(repo_id, tag="v1"),
        lambda: reader.delete_repo(repo_id),
    ):
        with pytest.raises(HfHubHTTPError, match=reason) as failure:
            change()
        assert failure.value.response.status_code == 403
    assert hub.files(repo_id) == before


def test_what_is_missing(hub, api, repo, download):
    for options, error in (
        ({"repo_id": "user/none"}, RepositoryNotFoundError),
        ({"revision": "none"}, RevisionNotFoundError),
        ({"revision": "0" * 40}, RevisionNotFoundError),
        ({}, EntryNotFoundError),
    ):
        with pytest.raises(error):
            download("none.txt", **options)
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("user/none", endpoint=hub.url, token=False)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=TEXT, revision="none")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(repo)


def test_ranges(hub):
    hub.add("user/model", {"a.txt": b"0123456789"})
    url = f"{hub.url}/user/model/resolve/main/a.txt"
    for wanted, content in (("2-4", b"234"), ("7-", b"789"), ("-2", b"89"), ("8-99", b"89")):
        response = httpx2.get(url, headers={"Range": f"bytes={wanted}"})
        assert (response.status_code, response.content) == (206, content)
    assert httpx2.get(url, headers={"Range": "bytes=10-"}).status_code == 416


def test_a_broken_download_resumes(hub, download, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add("user/model", {"model.safetensors": WEIGHTS})
    # no answer brings the whole file
    hub.break_connection("GET", "model.safetensors", after_bytes=6500, times=None)
    assert download() == WEIGHTS
    assert hub.log.count("GET /user/model/resolve/main/model.safetensors") == 2


def test_a_failed_download_leaves_no_file(hub, download, tmp_path):
    hub.add("user/model", {"model.safetensors": WEIGHTS})
    hub.break_connection("GET", "model.safetensors", after_bytes=1000, times=None, abort=True)
    with pytest.raises(httpx2.NetworkError):
        download()
    with pytest.raises(httpx2.NetworkError):
        snapshot_download("user/model", endpoint=hub.url, token=False, cache_dir=tmp_path / "cache")
    left = [
        path.name for path in tmp_path.rglob("*") if not path.is_dir() and "blobs" in path.parts
    ]
    assert left == [hashlib.sha1(b"blob %d\0" % len(GITATTRIBUTES) + GITATTRIBUTES).hexdigest()]
    hub.faults.clear()
    assert download() == WEIGHTS


def test_a_broken_upload_is_repeated(hub, api, repo):
    hub.break_connection("PUT", "/lfs/", after_bytes=1000)
    api.upload_file(repo_id=repo, path_in_repo="model.safetensors", path_or_fileobj=WEIGHTS)
    assert hub.files(repo)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [("PUT", "/lfs/", RuntimeError), ("POST", "/commit/", httpx2.TransportError)],
)
def test_a_broken_upload_leaves_the_repository_unchanged(
    hub, api, repo, folder, method, path, error
):
    head = api.model_info(repo).sha
    hub.break_connection(method, path, after_bytes=100, times=None)
    with pytest.raises(error):
        api.upload_folder(repo_id=repo, folder_path=folder)
    assert hub.files(repo) == {".gitattributes": GITATTRIBUTES}
    assert api.model_info(repo).sha == head
    hub.faults.clear()
    api.upload_folder(repo_id=repo, folder_path=folder)
    assert hub.files(repo)["model.safetensors"] == WEIGHTS


def test_failures(hub, api, repo):
    hub.fail("POST", "/commit/", 507, message="No space is left")
    with pytest.raises(HfHubHTTPError, match="No space is left"):
        api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=TEXT)
    hub.fail("POST", "/preupload/", 503, times=2)
    api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=TEXT)
    assert hub.files(repo)["a.txt"] == TEXT
    wrong = httpx2.put(f"{hub.url}/lfs/{'0' * 64}", content=b"x")
    assert (wrong.status_code, hub.blobs) == (400, {})
    with pytest.raises(BadRequestError, match="was not uploaded"):
        operation = CommitOperationAdd("b.bin", WEIGHTS)
        operation._is_uploaded, operation._upload_mode = True, "lfs"
        api.create_commit(repo, [operation], commit_message="Without its content")


def test_stop_and_start(hub, api, repo):
    hub.stop()
    with pytest.raises(httpx2.TransportError):
        api.model_info(repo)
    hub.start()
    assert api.endpoint == hub.url
    assert api.repo_exists(repo)


def test_requests_that_are_not_understood(hub, api, repo):
    with pytest.raises(HfHubHTTPError, match="does not understand"):
        api.create_discussion(repo, title="Hello")
    assert hub.unknown == ["POST /api/models/user/model/discussions"]
    hub.unknown.clear()


@pytest.mark.slow
def test_libraries(hub, tmp_path):
    """Datasets, transformers, diffusers and model cards, where the address is read from the
    environment."""
    script = """
        import datasets, torch
        from diffusers import DDIMScheduler
        from huggingface_hub import HfApi, ModelCard
        from transformers import BertConfig, BertModel, BertTokenizer

        table = {"text": ["a", "b", "c"], "label": [0, 1, 2]}
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(table)}).push_to_hub("user/set")
        datasets.Dataset.from_dict(table).push_to_hub("user/set", split="test", private=True)
        loaded = datasets.load_dataset("user/set")
        assert {split: rows[:] for split, rows in loaded.items()} == {"train": table, "test": table}
        streamed = datasets.load_dataset("user/set", split="test", streaming=True)
        assert [row["text"] for row in streamed] == table["text"]

        sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
        model = BertModel(BertConfig(**sizes))
        model.push_to_hub("user/bert", private=True)
        again = BertModel.from_pretrained("user/bert")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))

        DDIMScheduler(num_train_timesteps=7).push_to_hub("user/ddim")
        assert DDIMScheduler.from_pretrained("user/ddim").config.num_train_timesteps == 7

        # without permission, but it exists
        assert HfApi(token="hf_reader").create_repo("user/ddim", exist_ok=True).repo_id == "user/ddim"

        ModelCard("---\\nlicense: mit\\n---\\n# Card\\n").push_to_hub("user/bert", create_pr=False)
        assert ModelCard.load("user/bert").data.license == "mit"
    """
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "TRANSFORMERS_"))
        },
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_user",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert {"model.safetensors", "config.json", "README.md"} < set(hub.files("user/bert"))
    assert len(hub.files("user/set", repo_type="dataset")) == 4
