import pytest
import torch

from titok_hf import TiTokModel


class TestPatchTokens:
    """The 2D counterpart: the encoder's patches are the tokens."""

    @pytest.fixture
    def make_patch_titok(self, make_titok_config):
        def make(head="vqgan_decoder", **fields):
            fields = {"representation": "patch_tokens", "num_latent_tokens": 16, **fields}
            return TiTokModel(make_titok_config(head, **fields)).eval()

        return make

    @pytest.mark.parametrize("patch_size", [8, 16])
    def test_there_is_a_token_a_patch(self, make_patch_titok, pixel_values, patch_size):
        number = (32 // patch_size) ** 2
        titok = make_patch_titok(encoder_patch_size=patch_size, num_latent_tokens=number)
        output = titok(pixel_values)
        assert output.codes.shape == (3, number)
        assert output.reconstruction.shape == (3, 3, 32, 32)
        decoded = titok.decode_codes(output.codes)
        atol = 1e-5 * float(output.reconstruction.detach().abs().max())
        torch.testing.assert_close(decoded.reconstruction, output.reconstruction, atol=atol, rtol=0)

    def test_all_but_the_latent_tokens_is_the_same(self, make_patch_titok, make_titok_config):
        shapes = {name: tensor.shape for name, tensor in make_patch_titok().state_dict().items()}
        latent = TiTokModel(make_titok_config("vqgan_decoder", num_latent_tokens=16))
        expected = {name: tensor.shape for name, tensor in latent.state_dict().items()}
        for name in ("latent_tokens", "latent_position_embedding"):
            assert expected.pop(f"encoder.{name}") == (1, 16, 32)
        assert shapes == expected

    def test_tokens_are_the_patches_row_by_row(self, make_patch_titok, pixel_values):
        """Without attention, each token is computed from its own patch alone."""
        encoder = make_patch_titok().encoder
        encoder.blocks = torch.nn.ModuleList()
        weight, bias = encoder.patch_embedding.weight.flatten(1), encoder.patch_embedding.bias
        expected = torch.empty(3, 16, 6)
        for image in range(3):
            for token in range(16):
                row, column = divmod(token, 4)
                patch = pixel_values[
                    image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8
                ].flatten()
                x = weight @ patch + bias + encoder.position_embedding[0, 1 + token]
                for _ in range(2):  # both norms, as initialized
                    x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
                expected[image, token] = encoder.proj.weight @ x + encoder.proj.bias
        torch.testing.assert_close(encoder(pixel_values), expected)

    def test_every_patch_counts_for_every_token(self, make_patch_titok, pixel_values):
        titok, changed = make_patch_titok(), pixel_values.clone()
        changed[:, :, 24:, 24:] = 1 - changed[:, :, 24:, 24:]  # the last patch
        difference = (titok.encoder(changed) - titok.encoder(pixel_values)).abs().amax(-1)  # (B, K)
        assert (difference > 1e-4).all()

    def test_folder_keeps_it(self, make_patch_titok, pixel_values, tmp_path):
        titok = make_patch_titok()
        titok.save_pretrained(tmp_path)
        loaded = TiTokModel.from_pretrained(tmp_path)
        assert loaded.config.representation == "patch_tokens"
        assert torch.equal(loaded(pixel_values).reconstruction, titok(pixel_values).reconstruction)

    def test_the_pixel_decoder_is_put_on_as_ever(self, make_patch_titok, vqgan, pixel_values):
        warm = make_patch_titok("proxy_codes")
        tuned = warm.with_pixel_decoder(vqgan).eval()
        assert tuned.config.representation == "patch_tokens"
        torch.testing.assert_close(
            tuned(pixel_values).proxy_logits, warm(pixel_values).proxy_logits
        )

    def test_its_card_says_that_it_is_a_grid(self, make_patch_titok, titok):
        assert "16 tokens of 64 codes in a grid" in make_patch_titok().model_card("user/titok").text
        assert "8 tokens of 64 codes in a row" in titok.model_card("user/titok").text
