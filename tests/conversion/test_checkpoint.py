import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from titok_hf.conversion.checkpoint import find_weights, read_config, read_tensors, write_tensors
from titok_hf.devices import parse_dtype

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "bias": torch.tensor([1.5], dtype=torch.bfloat16),
}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer_titok_l32.bin", "last.pt", "last.pth"]
)
def test_one_file_is_found_and_read(tmp_path, name):
    write_tensors(TENSORS, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")

    assert find_weights(tmp_path) == find_weights(tmp_path / name) == [tmp_path / name]
    assert_same(read_tensors([tmp_path / name]), TENSORS)


def test_bin_of_old_pytorch_is_read(tmp_path):
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert_same(read_tensors([tmp_path / "old.bin"]), TENSORS)


def write_shards(folder):
    weight_map = {}
    for i, (name, tensor) in enumerate(TENSORS.items()):
        weight_map[name] = f"model-{i}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_together(tmp_path):
    write_shards(tmp_path)
    assert_same(read_tensors(find_weights(tmp_path)), TENSORS)


def test_missing_shard_is_an_error(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"index\.json names files that do not exist: model-1\.safetensors"
    ):
        find_weights(tmp_path)


@pytest.mark.parametrize("names", [("a.bin", "b.bin"), ("model.safetensors", "pytorch_model.bin")])
def test_two_candidates_are_refused(tmp_path, names):
    for name in names:
        write_tensors(TENSORS, tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"holds more than one checkpoint: {', '.join(names)}\. Name the file"
    ):
        find_weights(tmp_path)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no weights: expected one file of .safetensors, .bin"
    ):
        find_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        find_weights(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_tensors_outlive_their_file(tmp_path, name):
    write_tensors(TENSORS, tmp_path / name)
    tensors = read_tensors([tmp_path / name])
    (tmp_path / name).write_bytes(bytes(1000))

    assert_same(tensors, TENSORS)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))]
)
def test_pickles_that_run_code_are_refused(tmp_path, save):
    save({"weight": Harmful(tmp_path / "harm")}, tmp_path / "model.bin")
    with pytest.raises(
        ValueError, match=r"would run code, and was not loaded\. .*safetensors\.torch\.save_file"
    ):
        read_tensors([tmp_path / "model.bin"])
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
@pytest.mark.parametrize("length", [0, 7, 60, -1])
def test_truncated_files_are_refused(tmp_path, name, length):
    write_tensors(TENSORS, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:length])
    with pytest.raises(ValueError, match=rf"{name}.* corrupt"):
        read_tensors([tmp_path / name])


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>404</html>" * 100,
        b"bad",
        b"h\x00",
        b"\x80\x02X\x01\x00\x00\x00\x80",
        b"\x80\x02K\x01.",
        b"\x80\x02M",
    ],
)
def test_garbage_is_refused(tmp_path, name, garbage):
    (tmp_path / name).write_bytes(garbage)
    with pytest.raises(ValueError, match=rf"{name}.* corrupt"):
        read_tensors([tmp_path / name])


@pytest.mark.parametrize(
    ("thing", "held"),
    [
        ([torch.zeros(2)], "list"),
        ({"model": {"weight": torch.zeros(2)}, "step": 3}, r"\['model', 'step'\]"),
    ],
)
def test_anything_but_tensors_by_name_is_refused(tmp_path, thing, held):
    torch.save(thing, tmp_path / "model.bin")
    with pytest.raises(ValueError, match=f"must hold a dict of tensors by name, got {held}"):
        read_tensors([tmp_path / "model.bin"])


CONFIG = """
model:
  vq_model: {num_latent_tokens: 64}
  generator:
    image_seq_len: ${model.vq_model.num_latent_tokens}
    dropout: 1e-1
    name: ${model.none}
"""


def test_references_in_yaml_are_resolved(tmp_path):
    (tmp_path / "maskgit.yaml").write_text(CONFIG)
    config = read_config(tmp_path / "maskgit.yaml")
    assert config["model"]["generator"] == {
        "image_seq_len": 64,
        "dropout": 0.1,
        "name": "${model.none}",
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "must hold a mapping, got list"),
        ("{unclosed", "must be a configuration in JSON or YAML"),
    ],
)
def test_broken_configs_are_refused(tmp_path, text, sentence):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_config(tmp_path / "config.json")


def test_dtypes_have_names():
    assert parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, float16, got 'int8'"):
        parse_dtype("int8")
