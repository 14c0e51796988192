"""The network of FID, held against torch-fidelity's and pytorch-fid's on deterministic weights."""

import pytest
import torch
from fixtures.extractors.networks import description, images, inception_weights, reference
from huggingface_hub import HfApi
from safetensors.torch import save_file

from titok_hf.evaluation.inception import FIDInceptionV3, InceptionExtractor, resize_like_tensorflow
from titok_hf.hub.hashes import file_sha256
from titok_hf.modeling.loading import load_strictly

TOLERANCE = 1e-5  # of the largest number
EVERY = 8  # the fixture holds every 8th number


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_weights(), file)
    return file


@pytest.fixture(scope="module")
def extractor(weights_file):
    return InceptionExtractor(weights_file, device="cpu")


@pytest.fixture(scope="module")
def extracted(extractor):
    return extractor(images("inception", 2, 96, 128))


def assert_near(actual, expected):
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"), [("features", 2048), ("logits", 1008), ("spatial", 2023)]
)
def test_it_sees_what_torch_fidelitys_sees(extracted, kind, size):
    found = getattr(extracted, kind)
    assert found.shape == (2, size)
    assert found.dtype == torch.float32
    assert_near(found[:, ::EVERY], reference("inception")[kind])


def test_features_tell_images_apart_and_are_alive(extracted):
    features = extracted.features
    assert (features[0] - features[1]).abs().max() > 100 * TOLERANCE * features.max()
    assert 0.5 < (features > 0).float().mean() < 0.95


def test_with_pytorch_fids_preprocessing_it_sees_what_pytorch_fids_sees(extracted, weights_file):
    extractor = InceptionExtractor(weights_file, preprocessing="pytorch-fid", device="cpu")
    found = extractor(images("inception", 2, 96, 128))
    assert_near(found.features[:, ::EVERY], reference("inception")["pytorch_fid_features"])
    assert (
        found.features - extracted.features
    ).abs().max() > 100 * TOLERANCE * extracted.features.max()


def test_tensors_have_the_names_and_shapes_of_the_published_file():
    shapes = {
        name: list(tensor.shape)
        for name, tensor in FIDInceptionV3().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert shapes == description("inception")["shapes"]


def test_the_file_may_count_batches(extractor):
    weights = {
        name: torch.zeros_like(tensor) for name, tensor in FIDInceptionV3().state_dict().items()
    }
    network = FIDInceptionV3()
    load_strictly(network, weights)
    assert not any(tensor.any() for tensor in network.state_dict().values())


def test_an_image_is_seen_as_if_alone(extractor, extracted):
    alone = extractor(images("inception", 2, 96, 128)[1:])
    for kind in ("features", "logits", "spatial"):
        assert_near(getattr(alone, kind), getattr(extracted, kind)[1:])


def test_images_of_299_pixels_are_seen_as_they_are(extractor):
    large = images("large", 1, 304, 304)[..., :299, :299]
    expected = extractor.network((large.double() / 128 - 1).float())
    assert_near(extractor(large).features, expected.features)


@pytest.mark.parametrize("preprocessing", ["tensorflow", "pytorch-fid"])
def test_of_images_of_twice_the_size_it_takes_each_second_pixel_or_the_mean_of_four(
    weights_file, preprocessing
):
    twice = images("twice", 1, 608, 608)[..., :598, :598]
    if preprocessing == "tensorflow":
        pixel_values = twice[..., ::2, ::2].double() / 128 - 1
    else:
        pixel_values = (
            twice.double().unflatten(3, (299, 2)).unflatten(2, (299, 2)).mean((3, 5)) / 127.5 - 1
        )
    extractor = InceptionExtractor(weights_file, preprocessing, device="cpu")
    assert_near(extractor(twice).features, extractor.network(pixel_values.float()).features)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(5, 7, 9), (7, 5, 4), (6, 6, 6), (1, 3, 5), (8, 8, 7)]
)
def test_resizing_takes_pixels_from_integer_positions(height, width, size):
    image = torch.randint(0, 256, (1, 2, height, width)).double()
    expected = torch.zeros(1, 2, size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            y, x = row * height / size, column * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            for corner_y, weight_y in ((top, 1 - (y - top)), (bottom, y - top)):
                for corner_x, weight_x in ((left, 1 - (x - left)), (right, x - left)):
                    expected[..., row, column] += (
                        weight_y * weight_x * image[..., corner_y, corner_x]
                    )
    resized = resize_like_tensorflow(image.float(), size)
    torch.testing.assert_close(resized.double(), expected, rtol=0, atol=255 * 2e-6)


def test_convolutions_are_not_rounded_on_a_gpu_and_the_setting_comes_back(extractor, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32")
    seen = []
    hook = extractor.network.Mixed_5b.register_forward_hook(
        lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision)
    )
    extractor(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    hook.remove()
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_its_identity(extractor, weights_file):
    identity = extractor.identity()
    assert identity["name"] == "inception-v3-fid"
    assert identity["weights"] == "inception.pth"
    assert identity["weights_sha256"] == file_sha256(weights_file)
    assert "TensorFlow 1" in identity["preprocessing"]
    other = InceptionExtractor(weights_file, preprocessing="pytorch-fid", device="cpu").identity()
    assert other.pop("preprocessing") != identity.pop("preprocessing")
    assert other == identity


def test_weights_on_the_hub_are_named_so(hub, weights_file, extractor):
    HfApi().create_repo("user/inception")
    HfApi().upload_file(
        path_or_fileobj=weights_file, path_in_repo="fid/w.pth", repo_id="user/inception"
    )
    identity = InceptionExtractor("user/inception/fid/w.pth", device="cpu").identity()
    assert identity["weights"] == "user/inception/fid/w.pth"
    assert identity["weights_sha256"] == extractor.identity()["weights_sha256"]


def test_the_network_is_frozen(extractor):
    assert not any(module.training for module in extractor.network.modules())
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())


@pytest.mark.parametrize(
    ("batch", "error", "sentence"),
    [
        (torch.zeros(1, 3, 8, 8), TypeError, r"uint8 images in \[0, 255\], got torch.float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, r"got \(3, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), ValueError, r"got \(1, 8, 8, 3\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), ValueError, r"got \(0, 3, 8, 8\)"),
    ],
)
def test_what_are_no_images_is_refused(extractor, batch, error, sentence):
    with pytest.raises(error, match=sentence):
        extractor(batch)


def test_an_unknown_preprocessing_is_refused(weights_file):
    with pytest.raises(ValueError, match="must be one of tensorflow, pytorch-fid, got 'clean'"):
        InceptionExtractor(weights_file, preprocessing="clean")


def test_the_weights_of_another_network_are_refused(tmp_path):
    weights = {
        name: tensor for name, tensor in FIDInceptionV3().state_dict().items() if name != "fc.bias"
    }
    weights |= {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000)}
    save_file(weights, tmp_path / "torchvision.safetensors")
    with pytest.raises(ValueError, match="not the weights of FIDInceptionV3") as refusal:
        InceptionExtractor(tmp_path / "torchvision.safetensors")
    assert "1 tensors are missing, fc.bias among them" in str(refusal.value)
    assert "1 tensors are unexpected, AuxLogits.fc.bias among them" in str(refusal.value)
    assert "fc.weight among them: (1000, 2048) instead of (1008, 2048)" in str(refusal.value)
