import math
from collections import Counter

import pytest
import torch

from titok_hf import TiTokModel
from titok_hf.evaluation import codebook_statistics, reconstruct


@pytest.fixture
def images():
    return torch.rand(10, 3, 32, 32)


@pytest.fixture(params=["vqgan", "titok"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


class TestReconstruct:
    def test_images_are_encoded_and_decoded(self, tokenizer, images):
        reconstructions = reconstruct(tokenizer, images)
        expected = tokenizer.decode_codes(tokenizer.encode(images).codes).reconstruction
        assert expected.min() < 0 or expected.max() > 1
        torch.testing.assert_close(reconstructions, expected, atol=1e-4, rtol=1e-4)
        assert not reconstructions.requires_grad

    @pytest.mark.parametrize("batch_size", [1, 3, 10, 128])
    def test_batches_change_nothing(self, tokenizer, images, batch_size):
        torch.testing.assert_close(reconstruct(tokenizer, images, batch_size), reconstruct(tokenizer, images))

    def test_continuous_tokenizers_reconstruct_too(self, make_titok_config, images):
        tokenizer = TiTokModel(make_titok_config("pixels", quantizer="kl")).eval()
        torch.testing.assert_close(reconstruct(tokenizer, images), reconstruct(tokenizer, images, 4))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_models_in_half_precision_take_float32_images(self, tokenizer, images, dtype):
        reconstructions = reconstruct(tokenizer.to(dtype), images)
        assert reconstructions.dtype == torch.float32 and reconstructions.isfinite().all()


class TestCodebookStatistics:
    def test_they_are_those_of_the_counted_codes(self, tokenizer, images):
        counts = Counter(tokenizer.encode(images).codes.flatten().tolist())
        assert 1 < len(counts) < 64
        total = sum(counts.values())
        entropy = -sum(count / total * math.log(count / total) for count in counts.values())
        found = codebook_statistics(tokenizer, images.split(4))
        assert found == {"usage": len(counts) / 64, "perplexity": pytest.approx(math.exp(entropy))}

    def test_one_code_in_use(self, titok, images):
        with torch.no_grad():
            titok.quantizer.codebook.weight.copy_(-titok.encode(images).unquantized[0, 0])
            titok.quantizer.codebook.weight[5] *= -1
            # all tokens alike: the head of the encoder ignores its input
            titok.encoder.proj.weight.zero_()
            titok.encoder.proj.bias.copy_(titok.quantizer.codebook.weight[5])
        assert codebook_statistics(titok, [images]) == {"usage": 1 / 64, "perplexity": pytest.approx(1)}

    def test_all_codes_in_use_alike(self, vqgan):
        """Four images of 16 tokens, each of which has a code of its own."""
        images = torch.rand(4, 3, 32, 32)
        with torch.no_grad():
            vectors = vqgan.encode(images).unquantized.flatten(2).transpose(1, 2).flatten(0, 1)  # (64, C)
            vqgan.quantizer.codebook.weight.copy_(vectors)
        assert codebook_statistics(vqgan, images.split(1)) == {"usage": 1, "perplexity": pytest.approx(64)}
