import pytest
import torch

from titok_hf import TiTokImageProcessor, VTPForImageReconstruction, VTPImageProcessor, VTPModel
from titok_hf.modeling.auto import load_tokenizer


@pytest.fixture
def vtp(make_vtp_config):
    return VTPModel(make_vtp_config())


@pytest.mark.parametrize("family", ["titok", "vqgan", "vtp"])
@pytest.mark.parametrize("with_processor", [True, False])
def test_every_family_loads_with_its_processor(request, tmp_path, family, with_processor):
    saved = request.getfixturevalue(family)
    saved.save_pretrained(tmp_path)
    processor_class = VTPImageProcessor if family == "vtp" else TiTokImageProcessor
    if with_processor:
        processor_class.from_image_size(32).save_pretrained(tmp_path)
    model, processor = load_tokenizer(tmp_path)

    assert type(model) is (VTPForImageReconstruction if family == "vtp" else type(saved))
    assert type(processor) is processor_class and not model.training
    image = processor.postprocess(torch.zeros(1, 3, 32, 32))[0].resize((50, 40))
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    decoded = model.decode(model.encode(pixel_values).latents).reconstruction
    assert processor.postprocess(decoded)[0].size == (32, 32)


def test_what_is_no_tokenizer_is_refused(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be a tokenizer, one of titok, maskgit_vqgan, vtp; it is a 'maskgit'"):
        load_tokenizer(tmp_path)
