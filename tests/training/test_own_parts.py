"""A user's own collator, processor, data sets and metrics, as `Trainer` takes them."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers.trainer_utils import EvalPrediction

from titok_hf import TiTokImageProcessor
from titok_hf.data import ImageCollator
from titok_hf.training import TiTokTrainer, TiTokTrainingArguments


@pytest.fixture
def args(tmp_path):
    return TiTokTrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


class CaptionedCollator:
    """A collator that reads columns of its own; it keeps what it saw."""

    def __init__(self, processor):
        self.processor = processor
        self.seen = []

    def __call__(self, features):
        self.seen += [(feature["caption"], feature["label"]) for feature in features]
        images = [feature["picture"] for feature in features]
        assert all(image.size == (8, 8) for image in images)
        return self.processor(images, return_tensors="pt")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_collator_gets_the_rows_as_they_are(make_objective, digits, args, num_workers):
    """It trains bit by bit what `ImageCollator` trains on the same images."""
    args.dataloader_num_workers = num_workers
    processor = TiTokImageProcessor.from_image_size(32)
    captions = [f"a digit, number {number}" for number in range(len(digits))]
    captioned = digits.rename_column("image", "picture").add_column("caption", captions)
    weights = []
    for dataset, collator in (
        (captioned, CaptionedCollator(processor)),
        (digits, ImageCollator(processor)),
    ):
        trainer = TiTokTrainer(
            make_objective("vqgan"),
            args,
            train_dataset=dataset,
            eval_dataset=dataset.select(range(4)),
            data_collator=collator,
        )
        trainer.train()
        weights.append(trainer.model.model.state_dict())
        if num_workers == 0 and dataset is captioned:
            assert len(collator.seen) >= 3 * 4 + 4
            assert {text for text, _ in collator.seen} <= set(captions)
            labels = dict(zip(captions, digits["label"], strict=True))
            assert all(labels[text] == label for text, label in collator.seen)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_collator_needs_images(make_objective, args):
    with pytest.raises(ValueError, match="no column 'image' but text"):
        TiTokTrainer(
            make_objective("vqgan"),
            args,
            train_dataset=Dataset.from_dict({"text": ["a"]}),
            eval_dataset=Dataset.from_dict({"text": ["a"]}),
            data_collator=lambda features: features,
        )


@pytest.mark.parametrize("stage", ["vqgan", "warmup", "classifier"])
def test_own_metrics_see_predictions_and_targets(make_objective, digits, args, stage):
    seen = []

    def measure(prediction: EvalPrediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"own": float(np.abs(prediction.predictions).mean())}

    processor = TiTokImageProcessor.from_image_size(32)
    collator = ImageCollator(processor, label_column="label" if stage == "classifier" else None)
    trainer = TiTokTrainer(
        make_objective(stage),
        args,
        train_dataset=digits,
        eval_dataset=digits.select(range(6)),
        data_collator=collator,
        compute_metrics=measure,
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in history] == [2, 3]
    assert history[0]["eval_own"] == pytest.approx(float(np.abs(seen[0][0]).mean()))
    batch = collator([digits[index] for index in range(6)])
    if stage == "classifier":
        assert seen[0][0].shape == (6, 10)
        np.testing.assert_array_equal(seen[0][1], batch["class_labels"].numpy())
    else:
        assert seen[0][0].shape == (6, 3, 32, 32)
        np.testing.assert_array_equal(seen[0][1], batch["pixel_values"].numpy())


def test_an_objective_without_predictions_takes_no_metrics(make_objective, digits, args):
    with pytest.raises(TypeError, match=r"compute_metrics.*MaskedTokenObjective"):
        TiTokTrainer(
            make_objective("generator"),
            args,
            train_dataset=digits,
            eval_dataset=digits,
            data_collator=ImageCollator(TiTokImageProcessor.from_image_size(32), "image", "label"),
            compute_metrics=dict,
        )


def test_the_processing_class_is_published(make_objective, digits, args, hub):
    """It takes the place of the collator's processor."""
    args.hub_model_id = "user/published"
    trainer = TiTokTrainer(
        make_objective("vqgan"),
        args,
        train_dataset=digits,
        eval_dataset=digits,
        data_collator=lambda features: {},
        processing_class=TiTokImageProcessor.from_image_size(48),
    )
    trainer.push_to_hub()
    published = TiTokImageProcessor.from_pretrained("user/published")
    assert published.crop_size["height"] == 48
