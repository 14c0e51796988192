"""Images that a pipeline makes follow from its seed and their numbers, and unfit ones are refused."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import BaseOutput

from titok_hf.evaluation.image_sources import GeneratedImages, number_of_classes

from .collecting import collected, protocol
from .tiny_models import make_ddpm, make_dit


@pytest.fixture
def ddpm():
    return make_ddpm()


class TestGeneratedImages:
    def test_each_class_in_turn_in_any_batches(self, pipeline):
        pipeline.to("cpu")
        whole = GeneratedImages(pipeline, 23, protocol(), seed=3)
        assert (whole.labelled, whole.num_classes) == (True, 10)
        assert whole.describe() == {"seed": 3, "classes": "10 in turn"}
        _, indices, images, labels = collected(whole, 23)
        assert indices.tolist() == list(range(23))
        assert labels.tolist() == [*range(10), *range(10), 0, 1, 2]
        assert (images[3] != images[13]).any()  # the same class, another image
        for batch_size in (1, 7):
            _, _, others, labels = collected(whole, batch_size)
            difference = (others.int() - images.int()).abs()
            assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-4
            assert labels.tolist() == [i % 10 for i in range(23)]

    def test_images_are_of_the_classes_that_their_labels_say(self, pipeline):
        """Each generator's seed is the first half of a hash, and its image what the pipeline makes
        with it alone."""
        source = GeneratedImages(pipeline, 14, protocol(), seed=3)
        _, _, images, labels = collected(source, 5)
        for index in (0, 6, 13):
            seed = int(hashlib.sha256(f"3/{index}".encode()).hexdigest()[:16], 16) // 2
            output = pipeline(
                int(labels[index]),
                generator=[torch.Generator().manual_seed(seed)],
                output_type="np",
            )
            expected = torch.from_numpy((output.images[0] * 255).round()).permute(2, 0, 1)
            assert (expected - images[index]).abs().max() <= 1
            other = pipeline(
                (index + 1) % 10, generator=[torch.Generator().manual_seed(seed)], output_type="np"
            )
            assert (other.images[0] != output.images[0]).any()

    def test_the_pipelines_progress_bar_stays_as_it_was(self, ddpm, capsys):
        ddpm.set_progress_bar_config(desc="mine")
        source = GeneratedImages(ddpm, 2, protocol(), num_inference_steps=1)
        collected(source, 2)
        assert capsys.readouterr().err == ""
        ddpm(num_inference_steps=1)
        assert "mine" in capsys.readouterr().err

    @pytest.mark.parametrize("rounding", ["truncate", "round"])
    def test_a_pipeline_without_classes(self, ddpm, rounding):
        ddpm.set_progress_bar_config(disable=True)
        source = GeneratedImages(ddpm, 5, protocol(rounding=rounding), num_inference_steps=4)
        assert not source.labelled
        assert source.describe() == {"seed": 0, "classes": None}
        _, _, images, labels = collected(source, 5)
        assert labels is None
        assert torch.equal(collected(source, 2)[2], images)
        seeds = [
            int(hashlib.sha256(f"0/{index}".encode()).hexdigest()[:16], 16) // 2
            for index in range(5)
        ]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = ddpm(5, generators, num_inference_steps=4, output_type="np").images
        expected = (
            np.round(output * 255) if rounding == "round" else np.floor(output * np.float32(255))
        )
        assert np.array_equal(images.permute(0, 2, 3, 1), expected)

    def test_seeds_give_other_images_and_none_twice(self, ddpm):
        first, second = (
            collected(GeneratedImages(ddpm, 8, protocol(), seed, num_inference_steps=2), 8)[2]
            for seed in (0, 1)
        )
        hashes = Counter(bytes(image.flatten().tolist()) for image in torch.cat([first, second]))
        assert len(hashes) == 16

    def test_fewer_images_are_the_first_of_more(self, ddpm):
        few, many = (
            collected(GeneratedImages(ddpm, number, protocol(), num_inference_steps=2), 3)[2]
            for number in (4, 8)
        )
        assert torch.equal(few, many[:4])

    def test_the_random_state_of_the_program_stays_and_does_not_matter(self, ddpm):
        source = GeneratedImages(ddpm, 2, protocol(), num_inference_steps=2)
        state = torch.get_rng_state()
        first = collected(source, 2)[2]
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert torch.equal(collected(source, 2)[2], first)

    def test_a_scheduler_that_gets_no_generators_is_seeded_too(self):
        """Again the same images, though others in other batches."""
        dit = make_dit()
        dit.scheduler = DDPMScheduler()
        source = GeneratedImages(dit, 6, protocol(), num_inference_steps=3, guidance_scale=1.0)
        images = collected(source, 3)[2]
        assert torch.equal(collected(source, 3)[2], images)
        torch.rand(1)
        assert torch.equal(source.make(torch.arange(3, 6)).images, images[3:])
        assert not torch.equal(collected(source, 2)[2], images)

    def test_arguments_reach_the_pipeline(self, ddpm):
        few, many = (
            collected(GeneratedImages(ddpm, 2, protocol(), num_inference_steps=steps), 2)[2]
            for steps in (2, 5)
        )
        assert not torch.equal(few, many)

    def test_arguments_that_it_does_not_take_are_refused(self, ddpm, pipeline):
        with pytest.raises(ValueError, match="A DDPMPipeline takes no guidance_scale, shift, or"):
            GeneratedImages(ddpm, 2, protocol(), shift=1, guidance_scale=2.0)
        for name in ("class_labels", "generator", "output_type"):
            with pytest.raises(
                ValueError, match=f"A TiTokPipeline takes no {name}, or the evaluation sets it"
            ):
                GeneratedImages(pipeline, 2, protocol(), **{name: "np"})

    def test_other_pipelines_are_refused(self, ddpm):
        parts = dict.fromkeys(
            ["vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"]
        )
        scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
        prompted = StableDiffusionPipeline(
            unet=None, scheduler=scheduler, requires_safety_checker=False, **parts
        )
        with pytest.raises(
            TypeError,
            match="`class_labels` or `batch_size` is expected, got a StableDiffusionPipel",
        ):
            GeneratedImages(prompted, 2, protocol())
        with pytest.raises(TypeError, match="The number of classes of a DDPMPipeline is not known"):
            number_of_classes(ddpm)

    def test_nan_is_refused(self, ddpm, pipeline):
        torch.nn.init.constant_(ddpm.unet.conv_out.bias, torch.nan)
        with pytest.raises(ValueError, match=r"Images must be in \[0, 1\], got nan to nan"):
            collected(GeneratedImages(ddpm, 2, protocol(), num_inference_steps=2), 2)
        for parameter in pipeline.tokenizer.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
        with pytest.raises(ValueError, match="must be finite, got NaN"):
            collected(GeneratedImages(pipeline, 2, protocol()), 2)

    def test_images_out_of_range_are_refused(self, ddpm):
        class Unscaled(DDPMPipeline):
            """Makes images in [0, 255]."""

            def __call__(
                self, batch_size=1, generator=None, output_type="pil", num_inference_steps=2
            ):
                output = super().__call__(batch_size, generator, num_inference_steps, output_type)
                return BaseOutput(images=255 * output.images)

        unscaled = Unscaled(ddpm.unet, ddpm.scheduler)
        with pytest.raises(ValueError, match=r"Images must be in \[0, 1\], got .* to \d{2}"):
            collected(GeneratedImages(unscaled, 2, protocol()), 2)

    def test_images_of_another_size_are_refused(self, pipeline):
        sentence = (
            "is for images of {0}x{0} pixels, the pipeline makes {1}x{1}. Choose another protocol"
        )
        with pytest.raises(ValueError, match=sentence.format(64, 32)):
            GeneratedImages(pipeline, 2, protocol(image_size=64))  # known before any is made
        with pytest.raises(ValueError, match=sentence.format(32, 16)):
            collected(GeneratedImages(make_ddpm(16), 2, protocol(), num_inference_steps=1), 2)
