import pytest
import torch

from titok_hf.data.emoji import CATEGORIES, load_emoji_dataset
from titok_hf.evaluation import emoji, evaluate_reconstruction
from titok_hf.evaluation.image_sources import open_source
from titok_hf.evaluation.metric_networks import load_extractor
from titok_hf.evaluation.protocol import Protocol
from titok_hf.train import train_recipe

pytestmark = pytest.mark.xdist_group("emoji")


@pytest.fixture(scope="module", autouse=True)
def caches():
    """One cache for all tests here, in place of one for each: pictures and judge are made once."""


@pytest.fixture(scope="module")
def extractor(caches):
    """The judge after a tenth of its training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "NUM_STEPS", 60)
        yield load_extractor("emoji", device="cpu")


@pytest.fixture(scope="module")
def held_out():
    source = open_source("emoji:image_size=32,one_per_concept=true", Protocol.load("emoji"), "test")
    return torch.cat([batch.images for batch in source.batches(512)])


@pytest.mark.slow
class TestJudge:
    def test_it_keeps_the_contract(self, extractor):
        assert extractor.class_names == list(CATEGORIES)
        seen = extractor(torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8))
        assert (seen.features.shape, seen.logits.shape) == ((3, 64), (3, 9))
        assert seen.spatial is None

    def test_it_tells_flags_and_people_apart(self, extractor, held_out):
        labels = torch.tensor(load_emoji_dataset(32, one_per_concept=True)["test"]["label"])
        predicted = extractor(held_out).logits.argmax(1)
        assert (predicted == labels).float().mean() > 0.4  # the largest category is a fifth
        flags = labels == CATEGORIES.index("Flags")
        assert (predicted[flags] == labels[flags]).float().mean() > 0.8

    def test_an_image_is_seen_as_if_alone(self, extractor, held_out):
        together, alone = extractor(held_out[:5]), extractor(held_out[3:4])
        torch.testing.assert_close(together.features[3:4], alone.features)

    def test_it_is_trained_once(self, extractor, monkeypatch):
        monkeypatch.setattr(emoji, "train_network", None)
        assert emoji.EmojiExtractor().identity() == extractor.identity()

    def test_training_repeats_itself_and_leaves_the_global_seed(self):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        first, again = (emoji.train_network(num_steps=2).state_dict() for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_tokenizer_and_a_generator_are_trained_and_judged(self, extractor, tmp_path):
        """The recipe of emoji trains a few steps on them, and its cards credit OpenMoji."""
        source = "emoji:image_size=64,one_per_concept=true"
        steps = [f"stages.{stage}.training.max_steps=2" for stage in ("single_stage", "generator")]
        pipeline = train_recipe("titok-emoji", source, tmp_path / "run", overrides=steps)
        for card in map(str, (pipeline.tokenizer.model_card("u/t"), pipeline.model_card("u/p"))):
            assert "OpenMoji" in card and "CC BY-SA 4.0" in card and "https://openmoji.org" in card
        assert pipeline("Flags", num_inference_steps=2).images[0].size == (64, 64)
        result = evaluate_reconstruction(
            tmp_path / "run" / "tokenizer",
            source,
            "emoji",
            ["image_size=64"],
            num_images=70,
            device="cpu",
        )
        assert result.reference["split"] == "train" and result.num_images == 70
        assert 0 <= result.metrics["accuracy"].value < 0.5
        assert result.metrics["frechet_distance"].value > 0
