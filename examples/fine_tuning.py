"""Fine-tuning of a pretrained pipeline on a folder of one's own images.

    python examples/fine_tuning.py path/to/images demo/pipeline fine-tuned

The folder has one subfolder per class, and a fifth of the images is held out. First the tokenizer learns to
reconstruct the new images, then the generator learns their codes and classes. Both are measured on the held-out
images, before and after. The output folder gets the new pipeline and two pictures: `reconstructions.png` has
held-out images with their reconstructions before and after, `samples.png` has generated images of each class.

The defaults suit the pipeline of `titok demo`. A released one asks for a smaller learning rate, since that of its
recipe is 1e-4 to 2e-4, and for `--lpips`: it adds a perceptual loss, whose network is downloaded, because the squared
error alone blurs photographs.
"""

import argparse
from pathlib import Path

from titok_hf import TiTokImageProcessor, TiTokPipeline
from titok_hf.data import ImageCollator, open_images
from titok_hf.data.credits import credited
from titok_hf.data.grids import generation_grid, image_grid
from titok_hf.evaluation import ReconstructionMetrics, reconstruct
from titok_hf.perceptual import load_lpips
from titok_hf.training import (
    MaskedTokenObjective,
    PerceptualLoss,
    ReconstructionObjective,
    TiTokTrainer,
    TiTokTrainingArguments,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", help="folder of images, one subfolder per class")
    parser.add_argument("pipeline", help="folder or Hub repository of a pretrained pipeline")
    parser.add_argument("output", type=Path, help="folder for the new pipeline and the pictures")
    parser.add_argument("--tokenizer-steps", type=int, default=500)
    parser.add_argument("--generator-steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="less than in training")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lpips", action="store_true", help="add a perceptual loss")
    arguments = parser.parse_args()

    splits = open_images(arguments.images)
    held_out, class_names = splits.dataset("test"), splits["train"].class_names
    pipeline = TiTokPipeline.from_pretrained(arguments.pipeline)
    tokenizer = pipeline.tokenizer
    processor = TiTokImageProcessor.from_image_size(tokenizer.config.image_size)

    def settings(max_steps: int) -> TiTokTrainingArguments:
        return TiTokTrainingArguments(
            str(arguments.output / "work"),
            max_steps=max_steps,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max_steps // 20,
            logging_steps=max(1, max_steps // 10),
            save_strategy="no",
            batch_eval_metrics=True,
            report_to="none",
        )

    # The tokenizer: encoder, codebook and decoder. `freeze_encoder=True` would train the decoder alone, and
    # leave the codes of all images as they are.
    losses = {}
    if arguments.lpips:
        losses["perceptual"] = PerceptualLoss(
            lpips=load_lpips(), classifier_weight=0.0, lpips_weight=1.0
        )
        losses["perceptual_weight"] = 1.0
    trainer = TiTokTrainer(
        ReconstructionObjective(tokenizer, **losses),
        settings(arguments.tokenizer_steps),
        ImageCollator(processor),
        train_dataset=splits["train"],
        eval_dataset=held_out,
        compute_metrics=ReconstructionMetrics(processor),
    )
    shown = processor(held_out.shuffle(seed=0)[:16]["image"], return_tensors="pt")["pixel_values"]
    before, row_before = trainer.evaluate(), reconstruct(tokenizer, shown)
    trainer.train()
    after, row_after = trainer.evaluate(), reconstruct(tokenizer, shown)
    rows = [processor.postprocess(row) for row in (shown, row_before, row_after)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    image_grid(rows, ["held out", "before", "after"]).save(arguments.output / "reconstructions.png")
    name = "eval_mean_squared_error"
    print(f"Error of held-out reconstructions: {before[name]:.4f} before, {after[name]:.4f} after.")

    # The generator. Classes that it knows by name keep their embedding.
    generator = pipeline.transformer.with_classes(class_names)
    trainer = TiTokTrainer(
        MaskedTokenObjective(generator, tokenizer, pipeline.scheduler),
        settings(arguments.generator_steps),
        ImageCollator(processor, label_column="label"),
        train_dataset=splits["train"],
        eval_dataset=held_out,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(
        f"Loss of held-out codes: {before['eval_loss']:.3f} before, {after['eval_loss']:.3f} after."
    )

    # The new pipeline, with the sampling of the old one
    for network in (tokenizer, generator):  # what the model card will say
        network.provenance.pop("recipe", None)
        network.provenance |= {
            "base_model": arguments.pipeline,
            "training_data": credited(arguments.images),
        }
    pipeline.register_modules(transformer=generator.eval())
    pipeline.save_pretrained(arguments.output / "pipeline")
    images = pipeline([*range(len(class_names))], num_images_per_label=8).images
    generation_grid(images, class_names).save(arguments.output / "samples.png")


if __name__ == "__main__":
    main()
