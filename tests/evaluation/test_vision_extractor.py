import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from titok_hf.evaluation.vision_extractor import VisionExtractor
from titok_hf.hub.hashes import state_sha256

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
CONVOLUTIONS = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1], "initializer_range": 0.3}
SMALLEST = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SQUARE = {"height": 32, "width": 32}


def cropping():
    """The preprocessing is DINOv2's: the shorter side becomes 40 pixels, of which 32 are cropped."""
    return BitImageProcessor(
        size={"shortest_edge": 40}, crop_size=SQUARE, image_mean=MEAN, image_std=STD
    )


def squashing():
    return ViTImageProcessor(size=SQUARE, image_mean=MEAN, image_std=STD)


def dinov2(kind=Dinov2Model, **fields):
    return kind(Dinov2Config(**TRANSFORMER, image_size=48, **fields))


def vit(kind=ViTModel, **arguments):
    return kind(ViTConfig(**TRANSFORMER, image_size=32, num_labels=5), **arguments)


def convnext(kind=ConvNextModel):
    return kind(ConvNextConfig(**CONVOLUTIONS, num_labels=7))


@pytest.fixture
def save(tmp_path):
    """Saves a model and its processor: `save(model, processor)` is the folder."""

    def save_both(model, processor):
        model.save_pretrained(tmp_path / "network")
        processor.save_pretrained(tmp_path / "network")
        return tmp_path / "network"

    return save_both


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8)


def prepared(images, size=32, mean=MEAN, std=STD):
    """Images resized one by one, scaled to [0, 1] and normalized, in float64."""
    arrays = [
        np.asarray(
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
                (size, size), Image.Resampling.BICUBIC
            )
        )
        for image in images
    ]
    scaled = (np.stack(arrays) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).float()


@torch.no_grad()
def test_of_dinov2_it_is_the_cls_token_after_the_norm(save, images):
    model = dinov2().eval()
    torch.nn.init.normal_(model.layernorm.weight)
    found = VisionExtractor(save(model, cropping()), device="cpu")(images)
    before_the_norm = model(prepared(images), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found.features, model.layernorm(before_the_norm)[:, 0])
    assert found.logits is None
    assert found.spatial is None


@torch.no_grad()
def test_of_a_classifier_there_are_logits_too(save, images):
    model = dinov2(Dinov2ForImageClassification, num_labels=5).eval()
    extractor = VisionExtractor(save(model, cropping()), device="cpu")
    found = extractor(images)
    torch.testing.assert_close(found.logits, model(prepared(images)).logits)
    torch.testing.assert_close(found.features, model.dinov2(prepared(images)).pooler_output)
    assert (extractor.num_features, extractor.num_classes, extractor.input_size) == (16, 5, 32)


@torch.no_grad()
def test_of_a_vit_it_is_what_the_pooler_makes(save, images):
    model = vit().eval()
    found = VisionExtractor(save(model, squashing()), device="cpu")(images)
    cls_token = model(prepared(images)).last_hidden_state[:, 0]
    torch.testing.assert_close(found.features, torch.tanh(model.pooler.dense(cls_token)))


@torch.no_grad()
def test_of_a_vit_that_classifies_it_is_the_cls_token(save, images):
    model = vit(ViTForImageClassification).eval()
    extractor = VisionExtractor(save(model, squashing()), device="cpu")
    found = extractor(images)
    torch.testing.assert_close(found.features, model.vit(prepared(images)).last_hidden_state[:, 0])
    torch.testing.assert_close(found.logits, model.classifier(found.features))
    assert (extractor.num_features, extractor.num_classes) == (16, 5)


@torch.no_grad()
def test_a_pooler_that_was_never_trained_is_left_out(save, images):
    model = vit(add_pooling_layer=False).eval()
    folder = save(model, squashing())
    extractors = [VisionExtractor(folder, device="cpu") for _ in range(2)]
    torch.testing.assert_close(
        extractors[0](images).features, model(prepared(images)).last_hidden_state[:, 0]
    )
    assert extractors[0].identity() == extractors[1].identity()
    assert extractors[0].identity()["weights_sha256"] == state_sha256(model)


@torch.no_grad()
@pytest.mark.parametrize("kind", [ConvNextModel, ConvNextForImageClassification])
def test_of_a_convnext_it_is_the_normalized_mean_over_positions(save, images, kind):
    model = convnext(kind).eval()
    backbone = model.base_model
    processor = ConvNextImageProcessor(size={"shortest_edge": 64}, image_mean=MEAN, image_std=STD)
    found = VisionExtractor(save(model, processor), device="cpu")(images)
    mean = backbone(prepared(images, size=64)).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(found.features, backbone.layernorm(mean))
    if kind is ConvNextModel:
        assert found.logits is None
    else:
        torch.testing.assert_close(found.logits, model.classifier(found.features))


@torch.no_grad()
def test_of_a_resnet_it_is_the_mean_over_positions(save, images):
    model = ResNetModel(ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)).eval()
    found = VisionExtractor(save(model, squashing()), device="cpu")(images)
    torch.testing.assert_close(
        found.features, model(prepared(images)).last_hidden_state.mean((2, 3))
    )


@torch.no_grad()
def test_without_pooler_and_cls_token_it_is_the_mean_over_positions(save, images):
    fields = {name: value for name, value in TRANSFORMER.items() if name != "initializer_range"}
    model = SiglipVisionModel(
        SiglipVisionConfig(**fields, image_size=32, vision_use_head=False)
    ).eval()
    found = VisionExtractor(save(model, squashing()), device="cpu")(images)
    torch.testing.assert_close(found.features, model(prepared(images)).last_hidden_state.mean(1))


@torch.no_grad()
def test_images_are_not_normalized_if_the_processor_does_not(save, images):
    model = vit().eval()
    processor = ViTImageProcessor(size=SQUARE, do_normalize=False)
    found = VisionExtractor(save(model, processor), device="cpu")(images)
    expected = model(prepared(images, mean=[0, 0, 0], std=[1, 1, 1])).pooler_output
    torch.testing.assert_close(found.features, expected)


def test_it_computes_in_float32(save, images):
    model = vit(ViTForImageClassification).to(torch.bfloat16)
    extractor = VisionExtractor(save(model, squashing()), device="cpu")
    assert extractor(images).features.dtype == torch.float32
    assert {parameter.dtype for parameter in extractor.network.parameters()} == {torch.float32}
    assert not any(module.training for module in extractor.network.modules())


def test_its_identity(save):
    model = dinov2()
    folder = save(model, cropping())
    assert VisionExtractor(folder, device="cpu").identity() == {
        "name": "network",
        "weights": "network",
        "weights_sha256": state_sha256(model),
        "preprocessing": "PIL bicubic resize to 32x32, x * 0.003921569, mean [0.5, 0.4, 0.3], standard deviation "
        "[0.2, 0.3, 0.4]",
    }


def test_on_the_hub_its_identity_names_the_commit(hub, save, images):
    folder = save(vit(), squashing())
    HfApi().create_repo("user/vit")
    first = HfApi().upload_folder(folder_path=folder, repo_id="user/vit").oid
    save(vit(), squashing())
    second = HfApi().upload_folder(folder_path=folder, repo_id="user/vit").oid
    newest, older = (
        VisionExtractor("user/vit", device="cpu"),
        VisionExtractor("user/vit", first, device="cpu"),
    )
    assert newest.identity()["name"] == "user/vit"
    assert newest.identity()["weights"] == f"user/vit@{second}"
    assert older.identity()["weights"] == f"user/vit@{first}"
    assert newest.identity()["weights_sha256"] != older.identity()["weights_sha256"]
    assert not torch.equal(newest(images).features, older(images).features)


def test_a_missing_model_is_refused(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="no repository user/nothing on the Hub"):
        VisionExtractor("user/nothing")
    with pytest.raises(OSError, match="nothing"):
        VisionExtractor(tmp_path / "nothing")


def test_a_model_without_all_its_weights_is_refused(save):
    model = vit()
    folder = save(model, squashing())
    weights = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("embeddings.cls")
    }
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(
        ValueError, match=r"1 weights are missing in .*network, embeddings\.cls_token among them"
    ):
        VisionExtractor(folder)


def test_a_model_that_reads_is_refused(save):
    model = BertModel(BertConfig(**SMALLEST, vocab_size=10))
    with pytest.raises(
        ValueError, match=r"must be a vision model, .* it is a BertModel, which takes 'input_ids'"
    ):
        VisionExtractor(save(model, squashing()))


@torch.no_grad()
def test_of_a_model_of_images_and_texts_it_is_the_image_part(save, images):
    model = CLIPModel(
        CLIPConfig(
            text_config={**SMALLEST, "vocab_size": 10},
            vision_config={**SMALLEST, "image_size": 32, "patch_size": 8},
        )
    ).eval()
    found = VisionExtractor(save(model, squashing()), device="cpu")(images)
    torch.testing.assert_close(found.features, model.vision_model(prepared(images)).pooler_output)


def test_images_that_are_not_square_are_refused(save):
    processor = ViTImageProcessor(size={"height": 32, "width": 48})
    with pytest.raises(ValueError, match="must make square images, got the size"):
        VisionExtractor(save(vit(), processor))


def test_what_are_no_images_is_refused(save):
    extractor = VisionExtractor(save(vit(), squashing()), device="cpu")
    with pytest.raises(TypeError, match="uint8 images"):
        extractor(torch.zeros(1, 3, 8, 8))
