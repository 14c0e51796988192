import hashlib
import pickle
import socket

import pytest
import torch
from fixtures.extractors.networks import lpips_heads, vgg16_weights
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import nn

from titok_hf.evaluation.inception import InceptionExtractor
from titok_hf.hub.hashes import file_sha256, state_sha256
from titok_hf.perceptual.published_weights import (
    INCEPTION,
    LPIPS_HEADS,
    VGG16,
    WeightsFile,
    find_weights,
    load_lpips,
    load_weights,
)

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.int64)}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of torch's downloads, which does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def far():
    """A file at an address that nobody answers at."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return WeightsFile(
        ("far-12345678.pth", "other-12345678.pth"), f"http://127.0.0.1:{port}/far.pth", "12345678"
    )


@pytest.fixture
def published(tmp_path):
    """A file in its place of publication, which is a local one."""
    file = tmp_path / "published.pth"
    torch.save(TENSORS, file)
    return WeightsFile(
        ("network.pth",), file.as_uri(), hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    )


def test_a_given_file_is_taken(tmp_path, far):
    (tmp_path / "weights.pth").touch()
    assert find_weights(far, tmp_path / "weights.pth") == tmp_path / "weights.pth"
    assert find_weights(far, str(tmp_path / "weights.pth")) == tmp_path / "weights.pth"


@pytest.mark.parametrize("path", ["weights.pth", "some/folder/weights.pth"])
def test_a_file_on_the_hub_is_taken(hub, far, path):
    HfApi().create_repo("user/weights", exist_ok=True)
    HfApi().upload_file(path_or_fileobj=b"content", path_in_repo=path, repo_id="user/weights")
    assert find_weights(far, f"user/weights/{path}").read_bytes() == b"content"


@pytest.mark.parametrize("index", [0, 1])
def test_a_file_in_the_cache_is_taken_under_any_of_its_names(cache, far, index):
    cache.mkdir(parents=True)
    (cache / far.names[index]).touch()
    assert find_weights(far) == cache / far.names[index]


def test_else_it_is_downloaded_into_the_cache_once(cache, published, tmp_path):
    file = find_weights(published)
    assert file == cache / "network.pth"
    assert file.read_bytes() == (tmp_path / "published.pth").read_bytes()
    (tmp_path / "published.pth").unlink()
    assert find_weights(published) == file


def test_a_download_that_is_not_the_file_is_thrown_away(cache, published, tmp_path):
    torch.save({}, tmp_path / "published.pth")
    with pytest.raises(FileNotFoundError, match="invalid hash value"):
        find_weights(published)
    assert list(cache.iterdir()) == []


def test_what_cannot_be_downloaded_is_named_with_its_place(cache, far):
    with pytest.raises(FileNotFoundError) as refusal:
        find_weights(far)
    assert far.url in str(refusal.value)
    assert f"put it at {cache / 'far-12345678.pth'}" in str(refusal.value)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(cache, published):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError, match=f"put it at {cache}"):
        find_weights(published)


@pytest.mark.parametrize(
    "given",
    [
        "weights.pth",
        "folder/weights.pth",
        "./some/folder/weights.pth",
        "/some/folder/weights.pth",
        "a//b/c",
    ],
)
def test_a_file_that_is_not_here_and_cannot_be_on_the_hub_is_refused(hub, far, given):
    with pytest.raises(
        FileNotFoundError, match=f"no file {given}. Weights are a local file, or one on the Hub"
    ):
        find_weights(far, given)
    assert hub.log == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            "user/nothing/weights.pth",
            r"no local file user/nothing/weights\.pth\. There is no folder user/nothing here",
        ),
        (
            "user/weights/nothing.pth",
            r"nothing\.pth\. A file is missing in the repository user/weights: nothing\.pth",
        ),
    ],
)
def test_a_file_that_is_neither_here_nor_on_the_hub_is_refused(hub, far, given, sentence):
    HfApi().create_repo("user/weights")
    with pytest.raises(FileNotFoundError, match=sentence):
        find_weights(far, given)


def test_the_published_files_carry_their_hashes():
    for published in (INCEPTION, VGG16, LPIPS_HEADS):
        assert all(published.sha256[:8] in name for name in published.names)
        assert published.url.startswith("https://")
    assert len(LPIPS_HEADS.sha256) == 64  # its own name does not tell it


def test_tensors_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    torch.save(TENSORS, tmp_path / "weights.pth")
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "weights.pth", "old.pth"):
        loaded = load_weights(tmp_path / name)
        assert loaded.keys() == TENSORS.keys()
        assert all(torch.equal(loaded[key], TENSORS[key]) for key in TENSORS)


def write_script(file):
    torch.jit.script(nn.Linear(2, 2)).save(str(file))


def write_cut(file):
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-500])


def write_old_cut(file, size=-500):
    torch.save({"a": torch.zeros(1000)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("empty.pth", lambda file: file.touch()),
        ("text.pth", lambda file: file.write_text("hello world, not weights")),
        ("page.pth", lambda file: file.write_text("<!DOCTYPE html><html></html>")),
        ("cut.pth", write_cut),
        ("old_cut.pth", write_old_cut),
        ("old_cut_early.pth", lambda file: write_old_cut(file, 200)),
        ("script.pt", write_script),
        ("module.pth", lambda file: torch.save(nn.Linear(2, 2), file)),
        ("code.pth", lambda file: file.write_bytes(pickle.dumps(print))),
        ("text.safetensors", lambda file: file.write_text("hello world, not weights")),
    ],
)
def test_what_is_no_file_of_tensors_is_refused(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(
        ValueError,
        match=rf"{name} is corrupt, or not a file of tensors: expected safetensors or a state dict",
    ):
        load_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"state_dict": TENSORS, "epoch": 3}, r"\['state_dict', 'epoch'\]"),
        (torch.zeros(2), "Tensor"),
    ],
)
def test_what_holds_more_than_tensors_by_name_is_refused(tmp_path, content, held):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"must hold a dict of tensors by name, got {held}"):
        load_weights(tmp_path / "weights.pth")


def test_lpips_is_loaded_from_files_and_from_the_cache(cache, tmp_path):
    cache.mkdir(parents=True)
    torch.save(vgg16_weights(), cache / "vgg16-397923af.pth")
    save_file(lpips_heads(), tmp_path / "heads.safetensors")
    lpips = load_lpips(heads=tmp_path / "heads.safetensors")
    assert not lpips.training
    state = lpips.state_dict()
    expected = {**vgg16_weights(), **lpips_heads()}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_foreign_weights_on_the_hub_are_refused(hub, tmp_path):
    torch.save(TENSORS, tmp_path / "weights.pth")
    HfApi().create_repo("user/foreign")
    HfApi().upload_file(
        path_or_fileobj=tmp_path / "weights.pth", path_in_repo="w.pth", repo_id="user/foreign"
    )
    with pytest.raises(ValueError, match="not the weights of FIDInceptionV3"):
        InceptionExtractor("user/foreign/w.pth")


def test_the_hash_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert (
        file_sha256(tmp_path / "file")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_the_hash_of_a_state():
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, 1.0)
    nn.init.constant_(module.bias, -2.0)
    one, minus_two = b"\x00\x00\x80\x3f", b"\x00\x00\x00\xc0"
    expected = (
        b"bias torch.float32 (1,)\n" + minus_two + b"weight torch.float32 (1, 2)\n" + one + one
    )
    assert state_sha256(module) == hashlib.sha256(expected).hexdigest()


def test_the_hash_of_a_state_tells_weights_apart():
    def linear(**changes):
        module = nn.Linear(4, 4, bias=False)
        module.weight.data = torch.arange(16.0).reshape(4, 4)
        for name, value in changes.items():
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        return module

    weight = torch.arange(16.0).reshape(4, 4)
    others = [
        linear(weight=weight + torch.eye(4)),
        linear(weight=weight.T),
        linear(weight=weight.reshape(2, 8)),
        linear(weight=weight.to(torch.bfloat16)),
        linear(extra=torch.zeros(1)),
        linear(extra=torch.tensor(0.0)),
    ]
    hashes = [state_sha256(module) for module in (linear(), *others)]
    assert len(set(hashes)) == len(hashes)
    assert state_sha256(linear(weight=weight.T.contiguous().T)) == hashes[0]
