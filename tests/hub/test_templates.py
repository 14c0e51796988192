"""Every class that can be published has a card template, and cards are written nowhere else."""

import dataclasses
import re
from pathlib import Path

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from jinja2 import UndefinedError
from transformers import CLIPTokenizer, PreTrainedConfig

import titok_hf
from titok_hf import (
    LatentDiTPipeline,
    LightningDiTConfig,
    LightningDiTModel,
    TiTokModel,
    VTPForImageReconstruction,
    VTPImageProcessor,
    VTPModel,
    VTPProcessor,
    VTPVisionModel,
)
from titok_hf.hub import cards
from titok_hf.hub.publish import PublishMixin

PACKAGE = Path(titok_hf.__file__).parent
TEMPLATES = Path(cards.__file__).parent
PUBLIC = [getattr(titok_hf, name) for name in titok_hf.__all__]
PUBLISHED = [item for item in PUBLIC if isinstance(item, type) and issubclass(item, PublishMixin)]
CONFIGURATIONS = [
    item for item in PUBLIC if isinstance(item, type) and issubclass(item, PreTrainedConfig)
]
SOURCES = [path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(TEMPLATES)]


@pytest.fixture
def things(
    titok, vqgan, generator, uvit, processor, scheduler, pipeline, make_vtp_config, clip_files
):
    """One of every class that can be published."""
    vtp_processor = VTPImageProcessor.from_image_size(32)
    things = [titok, vqgan, generator, uvit, processor, scheduler, pipeline, vtp_processor]
    things += [make(make_vtp_config()) for make in (VTPModel, VTPVisionModel)]
    tokenizer = VTPForImageReconstruction(make_vtp_config(has_text=False))
    channels = tokenizer.config.latent_dim
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    statistics = {"latent_mean": [0.0] * channels, "latent_std": [1.0] * channels}
    dit = LightningDiTModel(LightningDiTConfig(in_channels=channels, **sizes, **statistics))
    things += [tokenizer, dit]
    things += [LatentDiTPipeline(tokenizer, dit, FlowMatchEulerDiscreteScheduler())]
    things += [VTPProcessor(vtp_processor, CLIPTokenizer.from_pretrained(clip_files))]
    return {type(thing): thing for thing in things}


def test_each_kind_is_there(things):
    assert things.keys() == set(PUBLISHED)


@pytest.mark.parametrize("published", PUBLISHED)
def test_a_template_renders(things, published):
    card = things[published].model_card("user/card", "v2")
    assert f'{published.__name__}.from_pretrained("user/card", revision="v2")' in card.text
    assert cards.GENERATED in card.text and re.match(r"\n# \w", card.text)
    assert card.data.library_name in ("transformers", "diffusers") and card.data.pipeline_tag
    assert "{{" not in card.text and "{%" not in card.text and "\n\n\n" not in card.text


def test_every_template_is_of_a_class_or_part_of_others():
    bases = {base.__name__ for published in PUBLISHED for base in published.__mro__}
    names = {path.stem for path in TEMPLATES.glob("*.md")}
    # a converted VA-VAE is of a class of diffusers
    assert names - bases == {"provenance", "token_data", "AutoencoderKL"}


def test_a_subclass_has_the_card_of_its_base(make_titok_config):
    class MyTiTok(TiTokModel):
        pass

    mine = MyTiTok(make_titok_config("pixels")).model_card("user/card")
    assert "# TiTok tokenizer" in mine.text


def test_a_fact_that_a_thing_lacks_is_an_error(titok):
    with pytest.raises(UndefinedError, match="no_such_field"):
        cards.TEMPLATES.from_string("{{ thing.config.no_such_field }}").render(thing=titok)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_card_is_written_elsewhere(path):
    source = path.read_text(encoding="utf-8")
    for mark in ("](http", "```python", "```bibtex", "@inproceedings", "## Use"):
        assert mark not in source
    assert not list(path.parent.glob("*.md"))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_configuration_holds_what_the_network_needs(configuration):
    assert "provenance" not in {field.name for field in dataclasses.fields(configuration)}
    assert "provenance" not in configuration().to_dict()
    with pytest.raises(ValueError, match="provenance"):
        configuration.from_dict({**configuration().to_dict(), "provenance": {"license": "mit"}})


@pytest.mark.parametrize("room", ["modeling", "pipelines"])
def test_networks_do_not_know_cards(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert not re.search(r"hub\.cards|def (describe|replaces_card)\b", path.read_text("utf-8"))
