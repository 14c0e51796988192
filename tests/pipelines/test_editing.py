"""Editing by tokens: what stays, the ends of an interpolation, and which pixels a token changes."""

import pytest
import torch
from training.tiny_pretraining import make_model

from titok_hf import TiTokModel
from titok_hf.pipelines import (
    complete,
    interpolate,
    interpolate_classes,
    swap_tokens,
    token_influence,
)


@pytest.fixture
def codes(titok):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return titok.encode(images).codes


class TestComplete:
    def test_only_the_named_tokens_are_drawn(self, pipeline, codes):
        generator = torch.Generator().manual_seed(0)
        output = complete(
            pipeline, codes, [0, 5], [1, 2], generator=generator, output_type="codes"
        ).images
        kept = [place for place in range(codes.shape[1]) if place not in (0, 5)]
        assert output[:, kept].equal(codes[:, kept])
        assert output.max() < pipeline.tokenizer.config.codebook_size

    def test_the_given_codes_are_not_changed(self, pipeline, codes):
        before = codes.clone()
        complete(pipeline, codes, range(4), [3, 3])
        assert codes.equal(before)

    @pytest.mark.parametrize("token", [-1, 8])
    def test_a_place_that_is_not_there_is_said(self, pipeline, codes, token):
        with pytest.raises(ValueError, match=f"places from 0 to 7, got {token}"):
            complete(pipeline, codes, [token], [1, 2])


class TestInterpolate:
    def test_of_codes_the_ends_are_the_reconstructions(self, titok):
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            expected = titok.decode(titok.encode(images).latents).reconstruction
        found = interpolate(titok, *images, num_images=5)
        assert found.shape == (5, 3, 32, 32)
        torch.testing.assert_close(found[[0, -1]], expected)

    def test_of_a_grid_the_middle_is_decoded_from_the_mean(self):
        torch.manual_seed(0)
        model = make_model(has_text=False).eval()
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            middle = model.decode(model.encode(images).latents.mean(0, keepdim=True))
        found = interpolate(model, *images, num_images=3)
        torch.testing.assert_close(found[1:2], middle.reconstruction)

    def test_one_image_is_too_few(self, titok):
        with pytest.raises(ValueError, match="at least 2, for both ends, got 1"):
            interpolate(titok, *torch.rand(2, 3, 32, 32), num_images=1)


class TestSwap:
    def test_the_named_tokens_change_places(self, codes):
        first, second = swap_tokens(*codes, [0, 5])
        for place in range(8):
            order = (1, 0) if place in (0, 5) else (0, 1)
            assert [first[place], second[place]] == [codes[i][place] for i in order]

    def test_twice_is_the_same_as_never(self, codes):
        assert torch.stack(swap_tokens(*swap_tokens(*codes, [1, 2]), [1, 2])).equal(codes)

    def test_a_place_that_is_not_there_is_said(self, codes):
        with pytest.raises(ValueError, match="places from 0 to 7, got 8"):
            swap_tokens(*codes, [8])


class TestInterpolateClasses:
    def test_the_ends_are_images_of_the_classes(self, pipeline):
        output = interpolate_classes(pipeline, 1, 2, num_images=5, seed=3, output_type="codes")

        def alone(label):
            generator = [torch.Generator().manual_seed(3)]
            return pipeline(label, generator=generator, output_type="codes").codes[0]

        assert output.codes[0].equal(alone(1)) and output.codes[-1].equal(alone(2))

    def test_ever_fewer_tokens_of_the_first_image_stay(self, pipeline):
        codes = interpolate_classes(pipeline, 1, 2, num_images=5, output_type="codes").codes
        kept = (codes == codes[0]).sum(1)
        assert (kept >= torch.tensor([8, 6, 4, 2, 0])).all()

    def test_one_image_is_too_few(self, pipeline):
        with pytest.raises(ValueError, match="at least 2, for both ends, got 1"):
            interpolate_classes(pipeline, 1, 2, num_images=1)


class TestInfluence:
    def test_it_is_the_mean_change_of_the_pixels(self, titok, codes):
        generator = torch.Generator().manual_seed(1)
        found = token_influence(titok, codes[0], num_samples=3, generator=generator)
        assert found.shape == (8, 32, 32) and (found >= 0).all()
        drawn = torch.randint(64, (8, 3), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            original = titok.decode_codes(codes[:1]).reconstruction
            expected = 0
            for sample in range(3):
                changed = codes[:1].clone()
                changed[0, 2] = drawn[2, sample]
                expected += (titok.decode_codes(changed).reconstruction - original).abs().mean(
                    1
                ) / 3
        torch.testing.assert_close(found[2], expected[0])

    def test_of_some_tokens(self, titok, codes):
        def influence(tokens):
            drawn = torch.Generator().manual_seed(1)
            return token_influence(titok, codes[0], generator=drawn, tokens=tokens)

        assert influence([5, 2]).equal(influence(None)[[5, 2]])

    def test_a_token_that_keeps_its_code_changes_nothing(self, make_titok_config):
        alone = TiTokModel(make_titok_config("pixels", codebook_size=1)).eval()
        assert token_influence(alone, torch.zeros(8, dtype=torch.long)).max() < 1e-6
