"""Each error of the client, from a real request, becomes one sentence about the repository."""

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from loopback_repositories import HubError, Repository

from titok_hf.hub.errors import explain_hub_errors

REPO = "user/thing"


@pytest.fixture
def hub(hub):
    hub.add(REPO, {"a.txt": b"a"})
    hub.add("user/private", {"a.txt": b"a"}, private=True)
    return hub


def upload(path="b.txt", token=None):
    HfApi(token=token).upload_file(repo_id=REPO, path_in_repo=path, path_or_fileobj=b"b")


def info(repo_id=REPO, token=None):
    return lambda: HfApi(token=token).model_info(repo_id)


def assert_explained(request, error, *words, repo_id=REPO):
    with pytest.raises(error, match=repo_id) as raised, explain_hub_errors(repo_id):
        request()
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("token", ["hf_user", "hf_stranger", False])
def test_missing_repository(hub, token):
    words = "no folder user/none here", "no repository", "private", "hf auth login"
    assert_explained(info("user/none", token), FileNotFoundError, *words, repo_id="user/none")


@pytest.mark.parametrize("token", ["hf_stranger", False])
def test_private_repository(hub, token):
    words = "no repository", "private", "hf auth login"
    assert_explained(info("user/private", token), FileNotFoundError, *words, repo_id="user/private")


def test_gated_repository(hub):
    class GatedRepository(Repository):
        def find(self, revision, *kinds):
            raise HubError(403, "Access to it is restricted", "GatedRepo")

    hub.repositories["model", REPO] = GatedRepository("model", REPO, private=False)
    assert_explained(info(), PermissionError, "requested", "hf auth login")


@pytest.mark.parametrize(
    "download",
    [
        lambda: hf_hub_download(REPO, "a.txt", revision="v9"),
        lambda: snapshot_download(REPO, revision="v9"),
    ],
    ids=["file", "snapshot"],
)
def test_missing_revision(hub, download):
    assert_explained(download, FileNotFoundError, "no such revision", "v9")


def test_missing_file(hub):
    assert_explained(
        lambda: hf_hub_download(REPO, "none.txt"), FileNotFoundError, "missing", "none.txt"
    )


def test_what_is_not_in_the_cache(hub, tmp_path, monkeypatch):
    def download(**arguments):
        hf_hub_download(REPO, "a.txt", cache_dir=tmp_path, **arguments)

    assert_explained(
        lambda: download(local_files_only=True),
        FileNotFoundError,
        "no folder",
        "cache",
        "local_files_only",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_explained(download, FileNotFoundError, "cache", "HF_HUB_OFFLINE")
    assert_explained(info(), FileNotFoundError, "HF_HUB_OFFLINE")


def test_no_permission(hub):
    assert_explained(
        lambda: upload(token="hf_stranger"), PermissionError, "403", "You don't have the rights"
    )


def test_an_invalid_token(hub):
    assert_explained(info(token="hf_wrong"), PermissionError, "401", "Invalid credentials")


@pytest.mark.parametrize("status", [400, 413, 500, 507])
def test_a_refusal_says_why(hub, status):
    hub.fail("POST", "/commit/", status, message="No space is left")
    assert_explained(upload, OSError, str(status), "No space is left")


def test_a_hub_that_fails(hub):
    hub.fail("GET", "/api/models/", 500, times=None)
    assert_explained(info(), OSError, "500")


@pytest.mark.parametrize("abort", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("method", "path", "request_"),
    [
        ("GET", "/api/models/", info()),
        ("POST", "/preupload/", upload),
        ("PUT", "/lfs/", lambda: upload("b.bin")),
        ("POST", "/commit/", upload),
    ],
    ids=["information", "preupload", "large file", "commit"],
)
def test_a_cut_connection(hub, method, path, request_, abort):
    hub.break_connection(method, path, times=None, abort=abort)
    assert_explained(request_, ConnectionError, "broke", "try again")


def test_a_hub_out_of_reach(hub):
    hub.stop()
    try:
        assert_explained(info(), ConnectionError, "broke", "try again")
    finally:
        hub.start()


@pytest.mark.parametrize(
    "error", [ValueError("a"), RuntimeError("CUDA out of memory"), KeyError("a"), OSError("a")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised, explain_hub_errors(REPO):
        raise error
    assert raised.value is error


def test_an_invalid_name_passes(hub):
    with pytest.raises(ValueError, match="user/a/b"), explain_hub_errors("user/a/b"):
        HfApi().model_info("user/a/b")


def test_a_result_passes(hub):
    with explain_hub_errors(REPO):
        assert HfApi().model_info(REPO).id == REPO
