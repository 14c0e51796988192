import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPTokenizer

from titok_hf import VTPImageProcessor, VTPModel, VTPProcessor
from titok_hf.evaluation import (
    class_embeddings,
    clip_templates,
    zero_shot_files,
    zero_shot_probabilities,
)

LABELS = ["cat", "dog", "owl"]


@pytest.fixture
def model(make_vtp_config):
    return VTPModel(make_vtp_config(text_vocab_size=514, text_context_length=77)).eval()


@pytest.fixture
def processor(clip_files):
    """Spells texts, letter by letter."""
    tokenizer = CLIPTokenizer.from_pretrained(clip_files, model_max_length=77)
    return VTPProcessor(VTPImageProcessor.from_image_size(32), tokenizer)


def test_templates_are_clips():
    templates = clip_templates()
    assert len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert (templates[0], templates[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


@torch.no_grad()
def test_embedding_of_a_class_is_the_mean_over_its_prompts(model, processor):
    templates = ["a {}.", "the {}!"]
    embeddings = class_embeddings(model, processor, LABELS, templates)

    prompts = [template.format("dog") for template in templates]
    features = model.get_text_features(processor(text=prompts, return_tensors="pt")["input_ids"])
    torch.testing.assert_close(embeddings[1], F.normalize(features.mean(0), dim=-1))
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))


def test_ids_of_another_vocabulary_are_refused(make_vtp_config, processor):
    model = VTPModel(make_vtp_config(text_vocab_size=513, text_context_length=77))
    with pytest.raises(
        ValueError, match=r"`input_ids` must be in \[0, 513\), got values .* to 513"
    ):
        class_embeddings(model, processor, LABELS)


@torch.no_grad()
def test_probabilities_are_of_scaled_cosines(model):
    images = torch.randn(2, 3, 32, 32)
    embeddings = F.normalize(torch.randn(3, 16), dim=-1)
    cosines = model.get_image_features(images) @ embeddings.T
    torch.testing.assert_close(
        zero_shot_probabilities(model, images, embeddings), (100 * cosines).softmax(-1)
    )
    torch.testing.assert_close(
        zero_shot_probabilities(model, images, embeddings, 5.0), (5 * cosines).softmax(-1)
    )


def test_files_are_squashed_and_classified(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "vtp")
    processor.save_pretrained(tmp_path / "vtp")
    image = Image.linear_gradient("L").resize((60, 90))
    image.save(tmp_path / "image.png")
    [found] = zero_shot_files(tmp_path / "vtp", LABELS, [tmp_path / "image.png"], ["a {}."])

    pixel_values = processor.image_processor(
        image.convert("RGB"), crop="squash", return_tensors="pt"
    )["pixel_values"]
    embeddings = class_embeddings(model, processor, LABELS, ["a {}."])
    expected = zero_shot_probabilities(model, pixel_values, embeddings)[0]
    assert list(found) == LABELS
    torch.testing.assert_close(torch.tensor(list(found.values())), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("labels", "templates", "sentence"),
    [
        (["cat"], None, r"at least two different names to choose from, got \['cat'\]"),
        (["cat", "dog", "cat"], None, "at least two different names"),
        (["cat", ""], None, "at least two different names"),
        ("cat", None, "at least two different names to choose from, got 'cat'"),
        (
            LABELS,
            ["a {}.", "a photo"],
            "A template must have `{}` where the name goes, got 'a photo'",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(model, processor, labels, templates, sentence):
    with pytest.raises(ValueError, match=sentence):
        class_embeddings(model, processor, labels, templates)


def test_what_is_no_image_is_refused(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "vtp")
    processor.save_pretrained(tmp_path / "vtp")
    (tmp_path / "image.png").write_text("none")
    with pytest.raises(ValueError, match=r"image\.png must be an image file"):
        zero_shot_files(tmp_path / "vtp", LABELS, [tmp_path / "image.png"])
