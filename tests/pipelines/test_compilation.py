"""Compiled sampling: one graph for each network and number of rows, and the images of the eager pipeline."""

import copy
import pickle

import numpy as np
import pytest
import torch
from latent_pipelines import make_pipeline, make_transformer
from transformers.modeling_layers import GradientCheckpointingLayer

from titok_hf.devices import check_backend, int8_is_exact
from titok_hf.pipelines import compilation
from titok_hf.pipelines.compilation import (
    FixedBatches,
    Int8Linear,
    OneDNNLinear,
    compiled,
    faster_dtype,
)


class CountingBackend:
    """Runs the graphs that `torch.compile` hands over as they are, and counts them by number of rows."""

    def __init__(self):
        self.rows = []

    def __call__(self, graph, inputs):
        images = [x for x in inputs if not isinstance(x, torch.nn.Parameter) and x.ndim]
        self.rows.append(images[-1].shape[0])
        return graph.forward


@pytest.fixture
def backend():
    torch.compiler.reset()
    yield CountingBackend()
    torch.compiler.reset()


def seeded():
    return torch.Generator().manual_seed(0)


class TestFixedBatches:
    @pytest.fixture
    def calls(self):
        return []

    def function(self, calls):
        def double(*tensors):
            calls.append(len(tensors[0]))
            return 2 * tensors[0] + tensors[1]

        return double

    @pytest.mark.parametrize(
        ("count", "expected"),
        [(1, [4]), (4, [4]), (5, [8]), (8, [8]), (9, [8, 8]), (16, [8, 8]), (17, [8] * 3)],
    )
    def test_the_rows_are_a_batch_or_two(self, calls, count, expected):
        fixed = FixedBatches(self.function(calls), batch_size=4, reuses_outputs=False)
        x, y = torch.randn(count, 3), torch.randn(count, 3)
        assert fixed(x, y).equal(2 * x + y)
        assert calls == expected

    def test_results_that_are_overwritten_are_kept(self):
        kept = torch.zeros(4, 1)

        def overwriting(x):
            return kept.copy_(x)

        fixed = FixedBatches(overwriting, batch_size=2, reuses_outputs=True)
        x = torch.arange(12.0)[:, None]
        assert fixed(x).equal(x)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
class TestOneDNN:
    @pytest.mark.parametrize("bias", [True, False])
    def test_the_layer_is_that_of_torch(self, bias):
        layer = torch.nn.Linear(48, 80, bias=bias).requires_grad_(False)
        other = copy.deepcopy(layer)
        other.__class__ = OneDNNLinear
        compiled_layer = torch.compile(other, fullgraph=True, backend="eager")
        batch = torch.randn(300, 48, 7)
        for x in (batch[0].T, batch.transpose(1, 2), batch.transpose(1, 2).unflatten(0, (10, 30))):
            for computed in (other(x), compiled_layer(x)):
                torch.testing.assert_close(computed, layer(x), atol=1e-5, rtol=0)

    def test_it_is_taken_where_it_is_faster(self, pipeline, monkeypatch):
        labels, arguments = [1, 2, 3], {"output_type": "pt", "num_inference_steps": 4}
        eager = pipeline(labels, generator=seeded(), **arguments)
        for faster, expected in ((1e9, {torch.nn.Linear}), (1e-9, {OneDNNLinear})):
            monkeypatch.setattr(compilation, "FASTER", faster)
            pipeline.compile(4, backend=None, dtype="float32")
            images = pipeline(labels, generator=seeded(), **arguments)
            assert images.codes.equal(eager.codes)
            torch.testing.assert_close(images.images, eager.images, atol=1e-4, rtol=0)
            for name in ("transformer", "tokenizer"):
                assert linear_layers(compiled_copy(pipeline._compiled[name])) == expected
        assert not any(
            isinstance(module, OneDNNLinear) for module in pipeline.transformer.modules()
        )


def compiled_copy(fixed):
    """The copy of a network that is compiled."""
    [network] = [
        cell.cell_contents
        for cell in fixed.function.__closure__
        if isinstance(cell.cell_contents, torch.nn.Module)
    ]
    return network


def linear_layers(network):
    """The classes of linear layers in a network."""
    return {type(m) for m in network.modules() if isinstance(m, torch.nn.Linear | Int8Linear)}


@pytest.mark.skipif(not int8_is_exact(), reason="this processor has no instructions for int8")
class TestInt8:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_integers_are_exact(self, bias, dtype):
        layer = torch.nn.Linear(48, 80, bias=bias)
        x = torch.randint(-127, 128, (3, 400, 48)).float()
        x[..., 0], layer.weight.data = 127, torch.randint(-127, 128, (80, 48)) / 64
        layer.weight.data[:, 0] = -127 / 64
        expected = layer(x).to(dtype)
        found = Int8Linear(layer)(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, expected, rtol=1e-5 if dtype == torch.float32 else 0.01, atol=1e-3
        )

    def test_rows_and_channels_have_scales_of_their_own(self):
        """Small rows and channels are as exact as large ones."""
        layer = torch.nn.Linear(64, 32, bias=False).requires_grad_(False)
        x = torch.randn(700, 64)
        expected = Int8Linear(layer)(x)
        growth, factors = 2.0 ** torch.randint(-9, 9, (700, 1)), 2.0 ** torch.randint(-9, 9, (32,))
        other = copy.deepcopy(layer)
        other.weight *= factors[:, None]
        assert Int8Linear(other)(x * growth).equal(expected * growth * factors)

    @pytest.mark.parametrize("shape", [(8,), (2, 8), (0, 8), (2, 0, 8)])
    def test_rows_of_zeros(self, shape):
        layer = torch.nn.Linear(8, 4)
        expected = layer.bias.detach().expand(*shape[:-1], 4)
        assert Int8Linear(layer)(torch.zeros(shape)).equal(expected)

    def test_it_is_one_graph(self, backend):
        layer = Int8Linear(torch.nn.Linear(48, 80))
        x = torch.randn(2, 5, 48)
        assert torch.compile(layer, fullgraph=True, backend=backend)(x).equal(layer(x))
        assert len(backend.rows) == 1

    def test_the_linear_layers_of_blocks_are_replaced(self, pipeline, caplog):
        latents = pipeline.tokenizer.code_latents(torch.randint(64, (4, 8), generator=seeded()))
        with torch.no_grad():
            expected = pipeline.network("tokenizer")(latents)
        pipeline.compile(4, "int8", backend=None)
        assert "compute in int8 and " in caplog.text
        for name in ("transformer", "tokenizer"):
            network = compiled_copy(pipeline._compiled[name])
            blocks = [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)]
            assert blocks and all(linear_layers(block) == {Int8Linear} for block in blocks)
            assert len(linear_layers(network)) == 2  # the first and last layers stay
        with torch.no_grad():
            found = pipeline.network("tokenizer")(latents)
        assert 0 < (found.float() - expected).square().mean() < 0.01 * expected.var()
        assert not any(isinstance(module, Int8Linear) for module in pipeline.transformer.modules())

    def test_it_is_for_a_cpu(self, pipeline):
        with pytest.raises(ValueError, match=r"needs a CPU .* VNNI, and this is meta: choose"):
            pipeline.to("meta").compile(dtype="int8", backend=None)


def test_int8_is_refused_where_sums_overflow(pipeline, monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(max=2**15 - 1))
    with pytest.raises(ValueError, match="VNNI, and this processor has none: choose another dtype"):
        pipeline.compile(dtype="int8", backend=None)


class TestTiTok:
    @pytest.mark.parametrize("count", [3, 8, 11])
    def test_the_images_are_those_of_the_eager_pipeline(self, pipeline, backend, count):
        labels = [*range(10), 0]
        eager = pipeline(labels, generator=seeded(), output_type="pt")
        pipeline.compile(4, backend=backend, dtype="float32")
        labels = labels[:count]
        seeds = torch.randint(2**63 - 1, (11,), generator=seeded()).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[:count]]
        fast = pipeline(labels, generator=generators, output_type="pt")
        assert (fast.codes != eager.codes[:count]).sum() <= 1  # a tie that rounding decides
        if fast.codes.equal(eager.codes[:count]):
            torch.testing.assert_close(fast.images, eager.images[:count], atol=1e-4, rtol=0)

    def test_however_many_images_there_are_at_most_two_graphs_a_network(self, pipeline, backend):
        pipeline.compile(4, backend=backend, dtype="float32")
        backend.rows.clear()  # the check that it works at all
        for count in (1, 2, 3, 4, 5, 9, 12):
            for scale in (1.0, 3.0):
                pipeline([1] * count, guidance_scale=scale, num_inference_steps=3)
        assert len(backend.rows) == 4  # of the generator and of the decoder

    def test_a_graph_break_is_an_error(self, pipeline, backend, monkeypatch):
        forward = type(pipeline.transformer).backbone

        def breaking(self, ids):
            torch._dynamo.graph_break()
            return forward(self, ids)

        monkeypatch.setattr(type(pipeline.transformer), "backbone", breaking)
        pipeline.compile(4, backend=backend, dtype="float32")
        with pytest.raises(torch._dynamo.exc.Unsupported):
            pipeline(1)

    def test_the_own_networks_keep_their_precision(self, pipeline, tmp_path, pixel_values):
        before = pipeline.tokenizer.encode(pixel_values).latents
        weights = copy.deepcopy(pipeline.transformer.state_dict())
        pipeline.compile(backend=None, dtype="bfloat16")
        assert pipeline([1, 2], output_type="pt").images.isfinite().all()
        assert pipeline.tokenizer.encode(pixel_values).latents.equal(before)
        pipeline.save_pretrained(tmp_path)
        saved = type(pipeline).from_pretrained(tmp_path).transformer.state_dict()
        assert all(saved[name].equal(weight) for name, weight in weights.items())

    def test_the_copy_of_the_tokenizer_has_no_encoder(self, pipeline):
        pipeline.compile(backend=None)
        tokenizer = compiled_copy(pipeline._compiled["tokenizer"])
        assert tokenizer.encoder is None and pipeline.tokenizer.encoder is not None

    def test_it_says_in_what_it_computes(self, pipeline, caplog):
        pipeline.compile(backend=None, dtype="bfloat16")
        assert "The following calls compute in bfloat16." in caplog.text

    def test_a_pipeline_in_half_precision_stays_in_it(self, pipeline, caplog):
        pipeline.to(torch.bfloat16).compile(backend=None)
        assert "compute in bfloat16" in caplog.text

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [({"batch_size": 0}, "at least 1, got 0"), ({"dtype": "float8"}, "float8")],
    )
    def test_wrong_arguments(self, pipeline, wrong, message):
        with pytest.raises(ValueError, match=message):
            pipeline.compile(backend=None, **wrong)


class TestCompiledNoLonger:
    """The copies are of networks that the pipeline may have no longer."""

    @pytest.fixture
    def compiled_pipeline(self, pipeline):
        return pipeline.compile(4, "bfloat16", backend=None)

    def assert_as_never_compiled(self, pipeline):
        assert pipeline.compiled_dtype is None
        never = type(pipeline)(**pipeline.components)
        sampling = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
        expected, found = (
            each([1, 2], generator=seeded(), **sampling).images for each in (never, pipeline)
        )
        assert found.equal(expected) and found.dtype == expected.dtype

    @pytest.mark.parametrize("name", ["transformer", "tokenizer"])
    def test_with_another_part(self, compiled_pipeline, name, caplog):
        other = copy.deepcopy(getattr(compiled_pipeline, name))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
        setattr(compiled_pipeline, name, other)
        assert "no longer compiled: call `compile` again" in caplog.text
        self.assert_as_never_compiled(compiled_pipeline)

    def test_with_a_guide(self):
        flow = make_pipeline().compile(4, backend=None)
        flow.guidance_transformer = make_transformer(1)
        self.assert_as_never_compiled(flow)

    def test_another_scheduler_changes_no_network(self, compiled_pipeline):
        compiled_pipeline.scheduler = copy.copy(compiled_pipeline.scheduler)
        assert compiled_pipeline.compiled_dtype == "bfloat16"

    def test_elsewhere(self, compiled_pipeline):
        self.assert_as_never_compiled(compiled_pipeline.to(torch.float16).to(torch.float32))

    def test_pickled(self, compiled_pipeline):
        self.assert_as_never_compiled(pickle.loads(pickle.dumps(compiled_pipeline)))
        assert compiled_pipeline.compiled_dtype == "bfloat16"


def test_a_flow_is_compiled_too(backend):
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    eager = pipeline([1, 2, 0], generator=seeded(), guidance_scale=2.0, output_type="pt")
    pipeline.compile(4, backend=backend, dtype="float32")
    backend.rows.clear()
    fast = pipeline([1, 2, 0], generator=seeded(), guidance_scale=2.0, output_type="pt")
    torch.testing.assert_close(fast.images, eager.images, atol=1e-4, rtol=0)
    assert len(backend.rows) == 2


@pytest.mark.slow
def test_with_inductor(generator):
    codes, labels = torch.randint(64, (2, 8)), torch.tensor([1, 2])
    network, function = generator, lambda model, *ids: model(*ids).logits
    fixed = {"batch_size": 2, "dtype": torch.float32, "backend": "inductor"}
    with torch.no_grad():
        expected = function(network, codes, labels)
        found = compiled(network, function, **fixed)(codes, labels)
    assert (found - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())


def test_a_backend_that_cannot_compile_is_one_line():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    with pytest.raises(OSError, match=r"cannot compile for cpu .* install a C\+\+ compiler"):
        check_backend(broken, torch.device("cpu"))


def test_an_unknown_backend_is_not_for_want_of_a_compiler():
    with pytest.raises(ValueError, match=r"no backend 'inductr' but .*inductor"):
        check_backend("inductr", torch.device("cpu"))


@pytest.mark.parametrize(
    ("flops", "onednn", "expected"),
    [
        (2e9, 1e9, torch.bfloat16),
        (1.2e9, 1e9, torch.float32),
        (5e8, 1e9, torch.float32),
        (2e9, 1.9e9, torch.float32),
    ],
)
def test_the_faster_data_type_is_taken(monkeypatch, flops, onednn, expected):
    def measured(device, dtype, multiply=torch.mm):
        if multiply is not torch.mm:
            return onednn
        return flops if dtype == torch.bfloat16 else 1e9

    monkeypatch.setattr(compilation, "matmul_flops", measured)
    assert faster_dtype(torch.device("cpu")) == expected


def test_many_pipelines_are_compiled_side_by_side(backend):
    """More than torch compiles of one function."""
    for width in range(4, 16):
        network = torch.nn.Linear(width, 2)
        fixed = {"batch_size": 2, "dtype": torch.float32, "backend": backend}
        fast = compiled(network, lambda model, x: model(x), **fixed)
        x = torch.randn(3, width)
        torch.testing.assert_close(fast(x), network(x))


class TestStream:
    def test_images_do_not_depend_on_the_batch(self, pipeline):
        labels = [3, "one", 4, 1, 5]
        one, many = (
            torch.stack(list(pipeline.stream(labels, size, seed=7, output_type="codes")))
            for size in (1, 4)
        )
        assert one.shape == (5, 8) and one.equal(many)

    def test_each_process_makes_its_own_by_their_numbers(self, pipeline):
        whole = list(pipeline.stream([3, 1, 4, 1], 2, output_type="codes"))
        part = list(pipeline.stream([1, 1], 2, numbers=[1, 3], output_type="codes"))
        assert part[0].equal(whole[1]) and part[1].equal(whole[3])
        assert not part[0].equal(part[1])

    def test_no_more_labels_are_read_than_a_batch(self, pipeline):
        read = []

        def labels():
            for number in range(1000):
                read.append(number)
                yield number % 10

        images = pipeline.stream(labels(), batch_size=4, output_type="codes")
        for _ in range(5):
            next(images)
        assert len(read) == 8

    def test_a_tensor_and_a_name_are_labels(self, pipeline):
        of_tensor = list(pipeline.stream(torch.tensor([3, 1]), output_type="codes"))
        of_name = list(pipeline.stream("three", output_type="codes"))
        assert len(of_tensor) == 2 and len(of_name) == 1 and of_name[0].equal(of_tensor[0])

    def test_an_id_of_numpy_is_a_label(self, pipeline):
        [codes] = pipeline.stream(np.int64(3), output_type="codes")
        assert codes.equal(next(pipeline.stream([3], output_type="codes")))

    @pytest.mark.parametrize(
        ("name", "value"),
        [("generator", None), ("num_images_per_label", 2), ("return_dict", False)],
    )
    def test_what_it_sets_itself_is_refused(self, pipeline, name, value):
        with pytest.raises(TypeError, match=f"`stream` takes no `{name}`: "):
            next(pipeline.stream([1, 2], **{name: value}))

    def test_as_many_numbers_as_labels(self, pipeline):
        with pytest.raises(ValueError, match="longer than"):
            list(pipeline.stream([1, 2], numbers=[0], output_type="codes"))

    def test_what_the_evaluation_measures_is_what_it_yields(self, pipeline):
        from titok_hf.evaluation.image_sources import GeneratedImages
        from titok_hf.evaluation.protocol import Protocol

        protocol = Protocol.load("demo", ["image_size=32"])
        [batch] = GeneratedImages(pipeline, 3, protocol, seed=5).batches(8)
        images = pipeline.stream([0, 1, 2], seed=5, output_type="np")
        for ours, measured in zip(images, batch.images, strict=True):
            ours = torch.from_numpy(ours).permute(2, 0, 1) * 255
            assert (ours - measured).abs().max() < 1
