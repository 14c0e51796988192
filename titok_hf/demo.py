"""The demo: trains and evaluates a tokenizer and a generator on handwritten digits, in minutes."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import TrainerCallback

from .data.opening import open_images
from .evaluation.generation import measure_generation
from .evaluation.image_sources import DatasetImages, GeneratedImages
from .evaluation.metric_networks import MetricNetworks
from .evaluation.neighbors import nearest_neighbors
from .evaluation.pictures import (
    generation_grid,
    reconstruction_grid,
    training_curves,
    unmasking_grid,
)
from .evaluation.protocol import Protocol
from .evaluation.reconstruction import measure_reconstruction, reconstruct
from .hub.provenance import write_provenance
from .modeling.titok import TiTokModel
from .pipelines import TiTokPipeline
from .training.memory import PeakMemory
from .training.recipe import Recipe
from .training.recipe_run import RecipeRun

DATA_NAME = "UCI Optical Recognition of Handwritten Digits"


def run_demo(
    output_dir: str | Path,
    seed: int = 0,
    overrides: Sequence[str] = (),
    images_per_class: int = 100,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Trains the recipe `digits`, evaluates it on held-out and generated images and draws pictures.

    A second call with the same folder resumes the run.

    Args:
        output_dir: Folder of the run. At the end, it contains `vqgan/`, `tokenizer/`, `pipeline/`,
            `reconstructions.png`, `samples.png`, `unmasking.png`, `training.png` and
            `metrics.json`.
        seed: Random seed.
        overrides: Changes of the recipe, `key=value`.
        images_per_class: Number of images to generate and evaluate per class; at least 7, because
            the Fréchet distance of 64 features needs 65 images.
        callbacks: Callbacks of the trainers.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: If the folder holds a run of another recipe or seed.
    """
    # train
    output_dir = Path(output_dir)
    digits = open_images("digits")
    dataset = DatasetDict({split: digits.dataset(split) for split in digits})
    run = RecipeRun(
        Recipe.load("digits", overrides),
        dataset,
        output_dir,
        seed=seed,
        callbacks=callbacks,
        data_name=DATA_NAME,
    )
    vqgan, warm, tokenizer, pipeline = map(
        run.result, ("vqgan", "warmup", "decoder_finetuning", "generator")
    )

    # evaluate
    with PeakMemory() as memory:
        started = time.perf_counter()
        protocol = Protocol.load("demo")
        judges = MetricNetworks.load(protocol, ["accuracy", "frechet_distance"])
        train, test = (
            DatasetImages(dataset[split], protocol, label_column="label")
            for split in ("train", "test")
        )
        generated = GeneratedImages(pipeline, 10 * images_per_class, protocol, seed).whole(
            batch_size=250
        )
        tokenizers = {
            "vqgan": vqgan,
            "warmup": warm.with_pixel_decoder(vqgan).eval(),
            "decoder_finetuning": tokenizer,
        }
        seen = (generated.images, train.whole().images, test.whole().images)
        metrics = {
            "seed": seed,
            "generated": {
                "images": generated.num_images,
                **measure_generation([generated], train, protocol, judges).values,
                **nearest_neighbors(judges.extractor, *seen),
            },
            "reconstructed": {
                name: measure_reconstruction(
                    model,
                    run.processor,
                    test,
                    protocol,
                    reference=train,
                    judges=judges,
                ).values
                for name, model in tokenizers.items()
            },
            "real_held_out": {
                "images": test.num_images,
                **measure_generation([test], train, protocol, judges).values,
            },
        }

        # draw pictures
        by_class = (
            generated.images.unflatten(0, (images_per_class, 10)).transpose(0, 1).flatten(0, 1)
        )
        names = pipeline.transformer.config.id2label
        pixel_values = test.whole().images / 255
        reconstruction_grid(pixel_values, reconstruct(tokenizer, pixel_values).clamp(0, 1)).save(
            output_dir / "reconstructions.png"
        )
        samples = run.processor.postprocess(by_class / 255)
        generation_grid(samples, list(names.values())).save(output_dir / "samples.png")
        unmasking_grid(pipeline, list(range(0, 10, 2)), seed).save(output_dir / "unmasking.png")
        paths = [run.work_dir / "logs" / f"{name}.json" for name in run.recipe.stages]
        logs = {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}
        training_curves(
            {name: log["history"] for name, log in logs.items()}, output_dir / "training.png"
        )

    # save metrics and model cards
    parts = {
        name: {key: log[key] for key in ("seconds", "peak_memory_gib", "resumed_from")}
        for name, log in logs.items()
    }
    parts["evaluation"] = {"seconds": time.perf_counter() - started, "peak_memory_gib": memory.gib}
    metrics["parts"] = parts
    write_cards(output_dir, tokenizer, pipeline, metrics)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def write_cards(
    output_dir: Path, tokenizer: TiTokModel, pipeline: TiTokPipeline, metrics: dict[str, Any]
) -> None:
    """Adds the metrics to the provenance of tokenizer and generator, and writes model cards."""
    reconstruction = {
        metric: metrics["reconstructed"]["decoder_finetuning"][metric]
        for metric in ("accuracy", "mean_squared_error", "frechet_distance")
    }
    generation = {
        metric: metrics["generated"][metric] for metric in ("accuracy", "frechet_distance")
    }
    of_tokenizer = results(
        "image-reconstruction", reconstruction, metrics["real_held_out"]["images"]
    )
    of_generator = results(
        "unconditional-image-generation", generation, metrics["generated"]["images"]
    )
    for model, measured, folder in (
        (tokenizer, of_tokenizer, "tokenizer"),
        (pipeline.tokenizer, of_tokenizer, "pipeline/tokenizer"),
        (pipeline.transformer, of_generator, "pipeline/transformer"),
    ):
        model.provenance = {**model.provenance, "license": "cc-by-4.0", "results": measured}
        write_provenance(model.provenance, output_dir / folder)
    for thing, folder in ((tokenizer, "tokenizer"), (pipeline, "pipeline")):
        thing.model_card(f"{output_dir.name}/{folder}").save(output_dir / folder / "README.md")


def results(task: str, measures: dict[str, float], count: int) -> list[dict[str, Any]]:
    """Returns metrics in the form of a model card's results."""
    of = (
        "held-out digits and their reconstructions"
        if task == "image-reconstruction"
        else "generated digits"
    )
    protocol = (
        f"demo: {count} {of}, rounded to uint8 and averaged to 8x8 pixels in [0, 1]; accuracy of a "
        "support vector machine and Fréchet distance of the pixels, both against the real training "
        "digits; mean squared error at 32x32"
    )
    return [
        {
            "task": task,
            "dataset": DATA_NAME,
            "split": "test",
            "metric": metric,
            "value": value,
            "protocol": protocol,
        }
        for metric, value in measures.items()
    ]
