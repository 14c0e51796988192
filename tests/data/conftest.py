import datasets
import pytest
from huggingface_hub import HfFileSystem

from titok_hf.data import tokenize_to_folder

from .loading import make_indexed, make_sharded


@pytest.fixture
def caches(monkeypatch, tmp_path_factory):
    """A cache of `datasets` of its own for each test, and nothing known of what others saw on the
    Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    HfFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def indexed():
    return make_indexed()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return make_sharded(tmp_path_factory.mktemp("shards"))


@pytest.fixture(params=["indexed", "sharded"])
def rows(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def tokenizer(titok, tmp_path):
    """Folder of the tokenizer `titok`."""
    titok.save_pretrained(tmp_path / "titok")
    return tmp_path / "titok"


@pytest.fixture
def tokenize(tokenizer, tmp_path):
    """`tokenize("images", "tokens", part_size=3)`, in the temporary folder; returns the folder and
    the record."""

    def tokenize(source, name="tokens", **arguments):
        arguments = {"tokenizer": tokenizer, "batch_size": 4, "num_workers": 0, **arguments}
        record = tokenize_to_folder(str(tmp_path / source), output_dir=tmp_path / name, **arguments)
        return tmp_path / name, record

    return tokenize
