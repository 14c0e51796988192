"""Official checkpoints through `from_pretrained`, held against outputs of the reference
implementation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.parity.fill import fill, integers, normal, uniform
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from titok_hf import (
    MaskGitModel,
    MaskGitScheduler,
    MaskGitUViTModel,
    MaskGitVQGANConfig,
    MaskGitVQGANModel,
    TiTokModel,
    TiTokPipeline,
)
from titok_hf.conversion import FORMATS
from titok_hf.conversion.maskgit import official_sampling
from titok_hf.modeling.quantization import DiagonalGaussian

CASES = Path(__file__).parents[1] / "fixtures" / "parity" / "cases"
# long ones first
GENERATORS = {
    "generator_s128": MaskGitUViTModel,
    "generator_b64": MaskGitModel,
    "generator_l32": MaskGitModel,
}
TOKENIZERS = (
    "titok_b128_512",
    "titok_l32",
    "titok_ll32_vae_c16",
    "titok_bl128_vq8k",
    "titok_bl128_vae_c16",
    "titok_sl256_vq8k",
    "titok_bl64_vq8k",
    "titok_bl64_vae_c16",
    "titok_b64",
    "titok_s128",
    "titok_s128_stage1",
)
VQGAN = "maskgit_vqgan"
VQGAN_FILE = "maskgit-vqgan-imagenet-f16-256.bin"

TOLERANCE = 5e-6
TOLERANCE_OF_VQGAN = 5e-5
AMBIGUOUS = 1e-4  # gap of squared distances below which either of two codes is right
NEAR_TIE = 1e-4  # share of the logits' range below which either decision of a greedy step is right
MAX_NEAR_TIES = 1 / 6  # of the steps of an image that a generator's greedy runs have

REFERENCE_SCALES = {"constant": 3.0, "linear": 4.5, "power-cosine": 6.9}


class Case:
    """A reference checkpoint's description, its inputs and the reference's outputs."""

    def __init__(self, name):
        description = json.loads((CASES / f"{name}.json").read_text())
        self.name = name
        self.shapes = description["shapes"]
        self.config = description.get("config")
        self.salt = description["salt"]
        self.reference = load_file(CASES / f"{name}.safetensors")

    def weights(self):
        return {
            name: torch.from_numpy(fill(name, shape, self.salt))
            for name, shape in self.shapes.items()
        }

    def uniform(self, name, *shape):
        return torch.from_numpy(uniform(name, list(shape), self.salt))

    def normal(self, name, *shape):
        return torch.from_numpy(normal(name, list(shape), self.salt))

    def integers(self, name, high, *shape):
        return torch.from_numpy(integers(name, list(shape), high, self.salt))

    def pixel_values(self, image_size):
        return self.uniform("pixel_values", 2, 3, image_size, image_size)

    def format(self):
        [official_format] = [known for known in FORMATS.values() if known.recognizes(self.shapes)]
        return official_format

    def our_config(self):
        return self.format().model_class.config_class(**self.format().config_fields(self.config))


class Loaded:
    """A case's checkpoint in the reference's files, loaded from there."""

    def __init__(self, case, folder, model_class):
        self.case = case
        if case.name == VQGAN:
            self.file = folder / VQGAN_FILE
            torch.save(case.weights(), self.file)
        else:
            self.file = folder / "model.safetensors"
            (folder / "config.json").write_text(json.dumps(case.config))
            save_file(case.weights(), self.file)
        self.model = model_class.from_pretrained(folder)

    def stored(self):
        """Names and tensors of the checkpoint, one by one."""
        if self.file.suffix == ".bin":
            yield from torch.load(self.file, weights_only=True).items()
            return
        with safe_open(self.file, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


@pytest.fixture
def load(tmp_path):
    """Loads a case: `load(case, TiTokModel)`. Its files, of up to 2.5 GB, are gone after the test."""
    yield lambda case, model_class: Loaded(case, tmp_path, model_class)
    shutil.rmtree(tmp_path)


def assert_near(name, actual, expected, tolerance=TOLERANCE):
    """Asserts that no number is off by more than `tolerance` of the largest expected one."""
    atol = tolerance * float(expected.abs().max())
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=atol, msg=lambda message: f"{name}: {message}"
    )


def assert_outputs(outputs, reference, tolerances=None):
    """Asserts that all of the reference's outputs are there, and near; codes and code vectors where
    they are certain.

    Args:
        outputs, reference: Tensors by name.
        tolerances: By name, where it is not the usual one.
    """
    assert outputs.keys() == reference.keys() - {"code_margin"}
    for name, output in outputs.items():
        expected = reference[name]
        if name in ("codes", "quantized"):
            certain = reference["code_margin"] > AMBIGUOUS  # (B, N)
            if name == "quantized":
                certain = certain[:, None, None]
            output = torch.where(certain, output, expected)
        if expected.dtype == torch.int64:
            assert torch.equal(output, expected), name
        else:
            assert_near(name, output, expected, (tolerances or {}).get(name, TOLERANCE))


def assert_official_again(loaded):
    """Asserts that the loaded model makes up the official checkpoint, bit for bit."""
    official = loaded.model.config.official_format().to_official(loaded.model)
    assert {name: list(tensor.shape) for name, tensor in official.items()} == loaded.case.shapes
    for name, stored in loaded.stored():
        assert official[name].dtype == stored.dtype, name
        assert torch.equal(official[name].view(torch.int32), stored.view(torch.int32)), name


def in_reference_layout(tokens):
    """Tokens `(B, N, C)` as the reference holds them, `(B, C, 1, N)`."""
    return tokens.transpose(1, 2).unsqueeze(2)


def encode(model, pixel_values):
    """Returns the result of `encode` and the output of the encoder alone."""
    outputs = []
    hook = model.encoder.register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output)
    )
    encoded = model.encode(pixel_values)
    hook.remove()
    return encoded, outputs[0]


def vector_quantizer_outputs(model, pixel_values):
    encoded, encoder_output = encode(model, pixel_values)
    model.quantizer.commitment_cost = 0.0
    codebook_loss = model.quantizer(encoder_output).quantizer_loss
    return {
        "encoder_output": in_reference_layout(encoder_output),
        "codes": encoded.codes,
        "quantized": in_reference_layout(encoded.latents),
        "codebook_loss": codebook_loss,
        "commitment_loss": encoded.quantizer_loss - codebook_loss,
    }


def gaussian_outputs(model, pixel_values):
    encoded, encoder_output = encode(model, pixel_values)
    posterior = DiagonalGaussian.from_parameters(encoder_output)
    kl = [
        DiagonalGaussian.from_parameters(token[None]).kl() for token in encoder_output.flatten(0, 1)
    ]
    kl = torch.stack(kl).unflatten(0, encoder_output.shape[:2])  # (B, N)
    assert_near("quantizer_loss", encoded.quantizer_loss, kl.sum(-1).mean())
    return {
        "encoder_output": in_reference_layout(encoder_output),
        "mean": in_reference_layout(encoded.latents),
        "logvar": in_reference_layout(posterior.logvar),
        "kl": kl,
    }


def decode(model, case):
    config = model.config
    if config.quantizer == "vq":
        return model.decode_codes(
            case.integers("codes", config.codebook_size, 2, config.num_latent_tokens)
        )
    latents = case.normal("latents", 2, config.latent_dim, 1, config.num_latent_tokens)
    return model.decode(latents.squeeze(2).transpose(1, 2))


def decoder_outputs(model, case):
    decoded, outputs = decode(model, case), {}
    if decoded.proxy_logits is not None:
        side = model.config.image_size // model.config.decoder_patch_size
        logits = decoded.proxy_logits.transpose(1, 2).unflatten(-1, (side, side))  # (B, N, h, w)
        outputs["proxy_logits_every_64th"] = logits[:, ::64]
    if decoded.reconstruction is not None:
        outputs["decoded_every_8th"] = decoded.reconstruction[..., ::8, ::8]
        outputs["decoded_mean"] = decoded.reconstruction.mean((-2, -1))
        outputs["decoded_std"] = decoded.reconstruction.std((-2, -1))
    return outputs


def tokenizer_outputs(model, case):
    encoder_outputs = (
        vector_quantizer_outputs if model.config.quantizer == "vq" else gaussian_outputs
    )
    return encoder_outputs(model, case.pixel_values(model.config.image_size)) | decoder_outputs(
        model, case
    )


def vqgan_outputs(model, case):
    encoded = model.encode(case.pixel_values(256))
    decoded = model.decode_codes(case.integers("codes", 1024, 2, 256)).reconstruction
    return {
        "hidden_every_16th": encoded.unquantized[:, ::16],
        "codes": encoded.codes,
        "decoded_every_8th": decoded[..., ::8, ::8],
        "decoded_mean": decoded.mean((-2, -1)),
    }


def logits_outputs(model, case):
    config = model.config
    labels = case.integers("labels", config.num_labels, 2)
    codes = case.integers("codes", config.codebook_size, 2, config.num_tokens)
    codes = codes.masked_fill(
        case.uniform("mask", 2, config.num_tokens) < 0.6, config.mask_token_id
    )
    return {
        "logits_every_64th": model(codes, labels).logits[..., ::64],
        "uncond_logits_every_64th": model(codes, torch.full_like(labels, config.null_label)).logits[
            ..., ::64
        ],
    }


class RecordingScheduler(MaskGitScheduler):
    """Keeps what each step got and gave; calls of a pipeline use copies, which share the list."""

    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        self.steps = []

    def step(self, logits, timestep, sample, *arguments, **kwargs):
        output = super().step(logits, timestep, sample, *arguments, **kwargs)
        self.steps.append((logits, sample, output.prev_sample))
        return output


def greedy_pipeline(model, tokenizer, official_generator, schedule, annealed):
    """The pipeline with the reference's way to sample, at temperature 0."""
    official = {
        **official_generator,
        "num_steps": 8,
        "randomize_temperature": 0.0,
        "guidance_scale": REFERENCE_SCALES[schedule],
        "guidance_decay": schedule,
    }
    scheduler, sampling = official_sampling({"model": {"generator": official}})
    scheduler["softmax_temperature_annealing"] = annealed
    pipeline = TiTokPipeline(
        tokenizer, model, RecordingScheduler(model.config.mask_token_id, **scheduler), **sampling
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def computed_once(forward):
    """A generator's `forward` that remembers: greedy runs have many steps in common."""
    outputs = {}

    def remember(codes, labels):
        ids = (*codes.flatten().tolist(), *labels.tolist())
        if ids not in outputs:
            outputs[ids] = forward(codes, labels)
        return outputs[ids]

    return remember


def margin_of_difference(logits, sample, ours, theirs, mask_token_id):
    """Returns how near a tie the decisions are in which one greedy step of one image differs from the
    reference's.

    Args:
        logits: `(N, codebook_size)`, guidance applied. The confidence of a token is its largest
            logit.
        sample: Codes `(N,)` before the step.
        ours, theirs: Codes `(N,)` after it.

    Returns:
        The largest margin by which our logits speak against the reference's decisions, as a share
        of their range: of a code, from the best code; of a token that one masks and the other
        keeps, from the confidence at the cut.
    """
    confidence = logits.amax(-1)  # (N,)
    masked = ours == mask_token_id
    kept = (sample == mask_token_id) & ~masked  # by this step
    margins = []
    for token in (ours != theirs).nonzero().flatten().tolist():
        if theirs[token] == mask_token_id:
            margins.append(confidence[token] - confidence[masked].max())
        elif masked[token]:
            margins.append(confidence[kept].min() - confidence[token])
        else:
            margins.append(confidence[token] - logits[token, theirs[token]])
    return float(torch.stack(margins).max() / (logits.max() - logits.min()))


def assert_greedy_steps(model, case, tokenizer, schedules):
    """Asserts that each step of the greedy runs with these guidance schedules, from the reference's
    codes, decides as the reference does.

    A decision may differ where it is a near tie: which code or which token is ahead then hangs on
    the last bits of the logits, which are not the same on every processor.
    """
    labels = case.integers("labels", model.config.num_labels, 2)
    model.forward = computed_once(model.forward)
    num_decisions, differing = 0, {}
    for schedule in schedules:
        for kind in ("annealed", "plain"):
            run = f"greedy_{schedule}_{kind}"
            states = torch.cat(
                [case.reference[f"{run}_states"], case.reference[run][None]]
            )  # (steps + 1, B, N)
            pipeline = greedy_pipeline(
                model, tokenizer, case.config["model"]["generator"], schedule, kind == "annealed"
            )
            pipeline(
                labels,
                output_type="codes",
                callback_on_step_end=lambda _pipeline, step, *_, states=states: {
                    "codes": states[step + 1]
                },
            )
            for step, (logits, sample, ours) in enumerate(pipeline.scheduler.steps):
                assert torch.equal(sample, states[step]), (run, step)
                for image, decided in enumerate(
                    zip(logits, sample, ours, states[step + 1], strict=True)
                ):
                    num_decisions += 1
                    if not torch.equal(decided[2], decided[3]):
                        margin = margin_of_difference(*decided, model.config.mask_token_id)
                        differing[run, step, image] = margin
    worst, margin = max(differing.items(), key=lambda item: item[1], default=(None, 0.0))
    said = (
        f"{len(differing)} of {num_decisions} decisions differ; the margin is largest, {margin:.1e} of the range, "
        f"at {worst}"
    )
    assert margin < NEAR_TIE, said
    assert len(differing) <= MAX_NEAR_TIES * num_decisions, said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model_class"), GENERATORS.items(), ids=GENERATORS)
@torch.no_grad()
def test_generator_is_the_reference_and_goes_back(load, make_titok_config, name, model_class):
    case = Case(name)
    loaded = load(case, model_class)
    sizes = {
        "num_latent_tokens": loaded.model.config.num_tokens,
        "codebook_size": loaded.model.config.codebook_size,
    }
    tokenizer = TiTokModel(make_titok_config("pixels", **sizes))

    logits = {output: tensor for output, tensor in case.reference.items() if "logits" in output}
    assert_outputs(logits_outputs(loaded.model, case), logits)
    # the smallest with all schedules, the others with their own
    own = case.config["model"]["generator"]["guidance_decay"]
    schedules = REFERENCE_SCALES if name == "generator_l32" else [own]
    assert_greedy_steps(loaded.model, case, tokenizer, schedules)
    assert_official_again(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
@torch.no_grad()
def test_tokenizer_is_the_reference_and_goes_back(load, name):
    case = Case(name)
    loaded = load(case, TiTokModel)

    tolerances = {}
    if loaded.model.config.head == "vqgan_decoder":
        tolerances = dict.fromkeys(
            ("decoded_every_8th", "decoded_mean", "decoded_std"), TOLERANCE_OF_VQGAN
        )
    assert_outputs(tokenizer_outputs(loaded.model, case), case.reference, tolerances)
    assert_official_again(loaded)


@pytest.mark.slow
@torch.no_grad()
def test_vqgan_is_the_reference_and_goes_back(load):
    case = Case(VQGAN)
    loaded = load(case, MaskGitVQGANModel)

    assert_outputs(
        vqgan_outputs(loaded.model, case),
        case.reference,
        dict.fromkeys(case.reference, TOLERANCE_OF_VQGAN),
    )
    assert_official_again(loaded)


@pytest.mark.parametrize("name", [*TOKENIZERS, *GENERATORS])
def test_shapes_tell_the_configuration(name):
    case = Case(name)
    fields = case.format().config_fields(case.format().config_from_shapes(case.shapes))
    assert case.format().model_class.config_class(**fields).to_dict() == case.our_config().to_dict()


def test_shapes_tell_the_configuration_of_the_vqgan():
    case = Case(VQGAN)
    fields = case.format().config_fields(case.format().config_from_shapes(case.shapes))
    sizes = {
        "image_size": case.config["resolution"],
        "num_channels": case.config["num_channels"],
        "hidden_channels": case.config["hidden_channels"],
        "channel_multipliers": case.config["channel_mult"],
        "num_res_blocks": case.config["num_res_blocks"],
        "latent_channels": case.config["z_channels"],
    }
    expected = MaskGitVQGANConfig(**sizes, shortcut_of_output=True)
    assert MaskGitVQGANConfig(**fields).to_dict() == expected.to_dict()


@pytest.mark.parametrize("name", [*TOKENIZERS, *GENERATORS])
def test_configuration_goes_back(name):
    case = Case(name)
    config = case.our_config()
    fields = case.format().config_fields(case.format().official_config(config))
    assert type(config)(**fields).to_dict() == config.to_dict()


def test_every_case_is_compared():
    others = {file.stem for file in CASES.glob("vtp_*")}  # see `test_vtp.py`
    # see tests/training/test_self_supervision.py
    others |= {"self_supervised_losses", "contrastive_losses"}
    others |= {"alignment_losses"}  # see tests/training/test_latent_options.py
    # see tests/modeling/test_lightning_dit.py and test_pipeline_latent_dit.py
    others |= {"lightningdit_tiny", "lightningdit_tiny_qknorm", "lightningdit_b1", "latent_flow"}
    others |= {"va_vae"}  # see test_lightning_dit.py
    assert {file.stem for file in CASES.iterdir()} - others == {
        *TOKENIZERS,
        *GENERATORS,
        VQGAN,
        "losses",
    }
