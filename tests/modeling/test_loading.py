import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from titok_hf import MaskGitModel, MaskGitUViTModel, MaskGitVQGANModel, TiTokModel

CLASSES = [TiTokModel, MaskGitVQGANModel, MaskGitModel, MaskGitUViTModel]


@pytest.fixture(params=CLASSES, ids=lambda model_class: model_class.config_class.model_type)
def model(request, titok, vqgan, generator, uvit_config):
    models = {TiTokModel: titok, MaskGitVQGANModel: vqgan, MaskGitModel: generator}
    return models.get(request.param) or MaskGitUViTModel(uvit_config)


@pytest.fixture(params=["own class", "AutoModel"])
def loader(request, model):
    return type(model) if request.param == "own class" else AutoModel


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_checkpoint_of_another_type_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    for other in CLASSES:
        if other is type(model):
            continue
        expected, got = other.config_class.model_type, model.config.model_type
        sentence = f"{other.config_class.__name__} expects a model of type '{expected}', got one of '{got}'"
        with pytest.raises(ValueError, match=sentence):
            other.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match=sentence):
            other.config_class.from_pretrained(tmp_path)


def test_checkpoint_without_some_weights_is_refused(model, loader, tmp_path):
    model.save_pretrained(tmp_path)
    first, second = list(model.state_dict())[:2]
    edit_weights(tmp_path, lambda weights: (weights.pop(first), weights.pop(second)))

    sentence = f"does not fit {type(model).__name__} with its configuration: 2 weights are missing, .*{first}"
    with pytest.raises(ValueError, match=sentence):
        loader.from_pretrained(tmp_path)


def test_checkpoint_with_other_weights_is_refused(model, loader, tmp_path):
    model.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"stray.weight": torch.zeros(2)}))

    with pytest.raises(ValueError, match=r"1 weights are unexpected, stray\.weight among them"):
        loader.from_pretrained(tmp_path)


def test_loading_info_comes_on_request(model, loader, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)

    assert type(loaded) is type(model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
