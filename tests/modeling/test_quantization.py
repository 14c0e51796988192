import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from titok_hf.modeling.quantization import DiagonalGaussian, VectorQuantizer


def make_quantizer(normalize, commitment_cost=0.25):
    quantizer = VectorQuantizer(64, 6, commitment_cost, normalize)
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


@pytest.fixture(params=[True, False], ids=["normalized", "plain"])
def quantizer(request):
    return make_quantizer(request.param)


@pytest.fixture
def unquantized():
    return torch.randn(3, 8, 6, requires_grad=True)


def test_codes_are_int64_indices_of_the_nearest_vectors(quantizer, unquantized):
    output = quantizer(unquantized)

    vectors, codebook = unquantized, quantizer.codebook.weight
    if quantizer.normalize:
        vectors, codebook = (rows / rows.norm(dim=-1, keepdim=True) for rows in (vectors, codebook))
    distances = (vectors[:, :, None] - codebook).norm(dim=-1)
    assert output.codes.dtype == torch.int64
    assert torch.equal(output.codes, distances.argmin(-1))


def test_latents_are_the_vectors_of_the_codes(quantizer, unquantized):
    output = quantizer(unquantized)

    assert output.latents.shape == unquantized.shape
    assert torch.equal(output.unquantized, unquantized)
    torch.testing.assert_close(output.latents, quantizer.lookup(output.codes))


def test_lookup_takes_any_shape_and_normalizes_only_if_asked(quantizer):
    codes = torch.randint(64, (2, 3, 4))
    vectors = quantizer.lookup(codes)

    assert vectors.shape == (2, 3, 4, 6)
    is_unit = torch.allclose(vectors.norm(dim=-1), torch.ones(2, 3, 4))
    assert is_unit == quantizer.normalize


def test_quantizing_code_vectors_gives_their_codes_back(quantizer):
    codes = torch.arange(64).view(4, 16)
    assert torch.equal(quantizer(quantizer.lookup(codes)).codes, codes)


@given(exponent=st.integers(-20, 20))
def test_normalized_codes_do_not_depend_on_the_length_of_the_latents(exponent):
    torch.manual_seed(0)
    quantizer, unquantized = make_quantizer(normalize=True), torch.randn(2, 8, 6)
    assert torch.equal(quantizer(unquantized * 2.0**exponent).codes, quantizer(unquantized).codes)


def test_latents_pass_gradients_straight_to_the_encoder_and_none_to_the_codebook(
    quantizer, unquantized
):
    upstream = torch.randn(3, 8, 6)
    (quantizer(unquantized).latents * upstream).sum().backward()

    expected = upstream
    if quantizer.normalize:
        leaf = unquantized.detach().requires_grad_()
        (expected,) = torch.autograd.grad((F.normalize(leaf, dim=-1) * upstream).sum(), leaf)
    torch.testing.assert_close(unquantized.grad, expected)
    assert quantizer.codebook.weight.grad is None


def test_loss_pulls_codes_to_latents_and_latents_to_codes_by_the_commitment_cost(unquantized):
    quantizer = make_quantizer(normalize=False, commitment_cost=0.25)
    output = quantizer(unquantized)
    output.quantizer_loss.backward()

    difference = (quantizer.codebook.weight[output.codes] - unquantized).detach()
    codebook_gradient = torch.zeros(64, 6)
    for code, row in zip(output.codes.flatten().tolist(), difference.flatten(0, 1), strict=True):
        codebook_gradient[code] += 2 * row / difference.numel()
    torch.testing.assert_close(output.quantizer_loss, 1.25 * difference.square().mean())
    torch.testing.assert_close(quantizer.codebook.weight.grad, codebook_gradient)
    torch.testing.assert_close(unquantized.grad, -0.25 * 2 * difference / difference.numel())


def test_without_commitment_cost_the_loss_leaves_the_latents_alone(unquantized):
    quantizer = make_quantizer(normalize=True, commitment_cost=0.0)
    quantizer(unquantized).quantizer_loss.backward()

    assert unquantized.grad.abs().max() == 0
    assert quantizer.codebook.weight.grad.abs().max() > 0


def test_bfloat16_distances_are_computed_in_float32(quantizer, unquantized):
    quantizer, unquantized = quantizer.bfloat16(), unquantized.bfloat16()
    output = quantizer(unquantized)

    vectors = (
        F.normalize(unquantized.float(), dim=-1) if quantizer.normalize else unquantized.float()
    )
    codebook = quantizer.codebook.weight.float()
    codebook = F.normalize(codebook, dim=-1) if quantizer.normalize else codebook
    assert output.latents.dtype == torch.bfloat16
    assert torch.equal(
        output.codes, torch.cdist(vectors.flatten(0, 1), codebook).argmin(-1).view(3, 8)
    )


def test_codebook_starts_uniform_within_one_over_its_size():
    quantizer = VectorQuantizer(64, 32, 0.25, normalize=True)
    quantizer.init_weights()

    largest = quantizer.codebook.weight.abs().max().item()
    assert 0.95 / 64 < largest <= 1 / 64


def test_parameters_split_into_mean_and_clamped_log_variance():
    parameters = torch.tensor([[[1.0, -2.0, -100.0, 100.0], [0.0, 3.0, -30.0, 0.5]]])
    posterior = DiagonalGaussian.from_parameters(parameters)

    assert torch.equal(posterior.mean, torch.tensor([[[1.0, -2.0], [0.0, 3.0]]]))
    assert torch.equal(posterior.logvar, torch.tensor([[[-30.0, 20.0], [-30.0, 0.5]]]))


def test_samples_have_the_mean_and_the_variance_of_the_posterior():
    posterior = DiagonalGaussian(torch.full((50_000,), 2.0), torch.full((50_000,), math.log(0.25)))
    sample = posterior.sample(torch.Generator().manual_seed(0))

    assert sample.mean().item() == pytest.approx(2.0, abs=0.02)
    assert sample.std().item() == pytest.approx(0.5, abs=0.02)


def test_samples_depend_on_the_generator_alone():
    posterior = DiagonalGaussian(torch.zeros(2, 8, 6), torch.zeros(2, 8, 6))
    state = torch.get_rng_state()
    first = posterior.sample(torch.Generator().manual_seed(1))

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, posterior.sample(torch.Generator().manual_seed(1)))
    assert not torch.equal(first, posterior.sample(torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_noise_is_scaled_in_float32_and_moved(dtype):
    mean, logvar, noise = (
        torch.randn(2, 8, 6).to(dtype),
        torch.randn(2, 8, 6).to(dtype),
        torch.randn(2, 8, 6),
    )
    sample = DiagonalGaussian(mean, logvar).sample(noise=noise)
    assert sample.dtype == dtype
    torch.testing.assert_close(
        sample, (mean.double() + (logvar.double() / 2).exp() * noise).to(dtype)
    )


def test_samples_without_a_generator_come_from_the_global_one():
    posterior = DiagonalGaussian(torch.zeros(2, 8, 6), torch.zeros(2, 8, 6))
    torch.manual_seed(3)
    first = posterior.sample()
    second = posterior.sample()
    torch.manual_seed(3)

    assert torch.equal(first, posterior.sample())
    assert not torch.equal(first, second)


def test_samples_pass_gradients_to_mean_and_log_variance():
    mean, logvar = (
        torch.randn(2, 8, 6, requires_grad=True),
        torch.randn(2, 8, 6, requires_grad=True),
    )
    sample = DiagonalGaussian(mean, logvar).sample(torch.Generator().manual_seed(0))
    sample.sum().backward()

    torch.testing.assert_close(mean.grad, torch.ones(2, 8, 6))
    torch.testing.assert_close(logvar.grad, 0.5 * (sample - mean).detach())


def test_divergence_is_summed_over_tokens_and_averaged_over_images():
    mean, logvar = torch.randn(4, 8, 6), torch.randn(4, 8, 6)
    expected = (
        kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum((1, 2)).mean()
    )

    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_of_the_standard_normal_is_zero_in_float32(dtype):
    divergence = DiagonalGaussian(
        torch.zeros(2, 8, 6, dtype=dtype), torch.zeros(2, 8, 6, dtype=dtype)
    ).kl()

    assert divergence.dtype == torch.float32
    assert divergence == 0


def test_autocast_leaves_the_codes(quantizer):
    unquantized = torch.randn(512, 8, 6)
    expected = quantizer(unquantized)
    with torch.autocast("cpu", torch.bfloat16):
        output = quantizer(unquantized)
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantizer_loss, expected.quantizer_loss)
