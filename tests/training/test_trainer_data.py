"""Tests of the trainer's data: epochs, images that cannot be read, weights of batches, and
publishing."""

import io
import json
import logging
import os
import tarfile
from itertools import islice

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from transformers import AutoModelForImageClassification, TrainerCallback

from titok_hf import (
    MaskGitModel,
    MaskGitVQGANModel,
    TiTokImageProcessor,
    TiTokModel,
    VTPImageProcessor,
)
from titok_hf.data import ImageCollator, TrainingLoader, open_images
from titok_hf.training import TiTokTrainingArguments


def steps_of(trainer):
    """The entries of the log that belong to steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def files(digits):
    """Makes a data set of the digits as PNG files, of which some hold something else: `files({3:
    b"no image"})`."""

    def make(broken):
        images = []
        for i, row in enumerate(digits):
            file = io.BytesIO()
            row["image"].save(file, "PNG")
            images.append({"bytes": broken.get(i, file.getvalue()), "path": f"digit-{i}.png"})
        features = Features({"image": Image(), "label": ClassLabel(10)})
        return Dataset.from_dict({"image": images, "label": digits["label"]}, features=features)

    return make


class TestEpochs:
    @pytest.mark.parametrize(
        ("epochs", "accumulation", "steps"), [(2, 1, 9), (1, 2, 3), (0.5, 1, 3)]
    )
    def test_they_end_with_the_step_that_sees_the_last_sample(
        self, make_objective, make_trainer, epochs, accumulation, steps
    ):
        """18 digits in batches of 4."""
        trainer = make_trainer(
            make_objective("classifier"),
            num_train_epochs=epochs,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        assert trainer.state.max_steps == trainer.state.global_step == steps
        for entry in steps_of(trainer):
            assert entry["epoch"] == pytest.approx(entry["step"] * 4 * accumulation / 18, abs=1e-4)
        assert trainer.state.epoch == pytest.approx(steps * 4 * accumulation / 18)

    def test_steps_count_if_they_are_given(self, make_objective, make_trainer):
        trainer = make_trainer(make_objective("classifier"), num_train_epochs=5, max_steps=2)
        trainer.train()
        assert trainer.state.global_step == 2

    @pytest.mark.parametrize("name", ["logging_strategy", "eval_strategy", "save_strategy"])
    def test_what_happens_at_the_end_of_an_epoch_is_refused(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"`{name}` must be 'no' or 'steps', got 'epoch'"):
            TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: "epoch"})

    def test_every_sample_is_seen_once_an_epoch(self, make_objective, make_trainer, digits):
        """9 steps of 4: two epochs of 18, whose border is within the fifth batch."""
        seen = []

        class Seen(TrainerCallback):
            def on_step_begin(self, args, state, control, model, **kwargs):
                model.register_forward_pre_hook(
                    lambda module, args, inputs: seen.extend(inputs["pixel_values"]),
                    with_kwargs=True,
                )

            def on_step_end(self, args, state, control, model, **kwargs):
                model._forward_pre_hooks.clear()

        trainer = make_trainer(make_objective("classifier"), num_train_epochs=2, callbacks=[Seen()])
        trainer.train()
        images = trainer.data_collator(list(digits))["pixel_values"]
        for epoch in (seen[:18], seen[18:]):
            assert all(sum(torch.equal(image, digit) for image in epoch) == 1 for digit in images)
        assert not all(torch.equal(*pair) for pair in zip(seen[:18], seen[18:], strict=True))


@pytest.mark.slow
class TestUnreadable:
    def test_they_are_counted_and_listed_and_training_goes_on(self, broken, tmp_path):
        trainer = broken(max_unreadable=0.2)
        trainer.train()
        counts = [entry.get("unreadable_images", 0) for entry in steps_of(trainer)]
        assert counts == sorted(counts) and counts[-1] == 2
        listed = [
            json.loads(line)
            for line in (tmp_path / "trainer" / "unreadable.jsonl").read_text().splitlines()
        ]
        assert [entry["key"] for entry in listed] == ["digit-11.png", "digit-3.png"]
        assert all(entry["reason"] for entry in listed)

    def test_without_any_there_is_no_list(self, make_objective, make_trainer, files, tmp_path):
        trainer = make_trainer(make_objective("classifier"), train_dataset=files({}), max_steps=2)
        trainer.train()
        assert not (tmp_path / "trainer" / "unreadable.jsonl").exists()
        assert all("unreadable_images" not in entry for entry in steps_of(trainer))

    @pytest.fixture
    def broken(self, make_objective, make_trainer, files):
        """Builds a trainer for an epoch of 18 images, two of them broken: `broken(max_unreadable=0.2)`."""

        def make(**arguments):
            return make_trainer(
                make_objective("classifier"),
                train_dataset=files({3: b"no image", 11: b""}),
                num_train_epochs=1,
                **arguments,
            )

        return make

    @pytest.mark.parametrize(("share", "stops"), [(2 / 18, False), (1 / 18, True), (0, True)])
    def test_past_the_given_share_training_stops(self, broken, share, stops):
        trainer = broken(max_unreadable=share)
        if not stops:
            trainer.train()
            return
        with pytest.raises(
            ValueError, match=r"[12] of 18 images could not be read, .*unreadable.jsonl lists them"
        ) as error:
            trainer.train()
        assert "such as digit-" in str(error.value)

    @pytest.mark.parametrize("saving", [{}, {"save_strategy": "steps", "save_steps": 2}])
    def test_they_are_counted_without_a_log(self, broken, tmp_path, saving):
        trainer = broken(max_unreadable=0.1, logging_steps=500, **saving)
        with pytest.raises(ValueError, match="2 of 18 images could not be read"):
            trainer.train()
        assert len((tmp_path / "trainer" / "unreadable.jsonl").read_text().splitlines()) == 2
        last = trainer.args.max_steps
        assert not (tmp_path / "trainer" / f"checkpoint-{last}").exists()

    def test_workers_report_theirs(self, broken):
        trainer = broken(max_unreadable=0.2, dataloader_num_workers=2)
        trainer.train()
        assert steps_of(trainer)[-1]["unreadable_images"] == 2

    def test_damaged_shards_are_listed_too(self, make_objective, make_trainer, digits, tmp_path):
        for number in range(2):
            with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
                for i, row in enumerate(digits):
                    file = io.BytesIO()
                    row["image"].save(file, "PNG")
                    member = tarfile.TarInfo(f"{i:02}.png")
                    member.size = file.tell()
                    file.seek(0)
                    shard.addfile(member, file)
        size = (tmp_path / "1.tar").stat().st_size
        os.truncate(tmp_path / "1.tar", size // 2)
        rows = open_images(str(tmp_path / "{0..1}.tar"), label_column=None)["train"]
        trainer = make_trainer(
            make_objective("vqgan"), train_dataset=rows, max_steps=2, max_unreadable=0.1
        )
        trainer.train()
        assert [entry["unreadable_images"] for entry in steps_of(trainer)] == [1, 1]
        [listed] = map(
            json.loads, (tmp_path / "trainer" / "unreadable.jsonl").read_text().splitlines()
        )
        assert listed["key"].endswith("1.tar") and "truncated" in listed["reason"]

    @pytest.mark.parametrize("share", [-0.1, 1.1])
    def test_the_share_is_one(self, tmp_path, share):
        with pytest.raises(
            ValueError, match=rf"`max_unreadable` must be a share in \[0, 1\], got {share}"
        ):
            TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_unreadable=share)


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.3])
def test_masked_tokens_of_accumulated_batches_count_alike(
    make_objective, make_trainer, generator_config, unmasked_weight
):
    """Loss and gradient of a step are those of the weighted mean over all of its tokens, image by
    image."""
    generator_config.unmasked_weight = unmasked_weight
    generator_config.hidden_dropout = generator_config.attention_dropout = 0.0
    objective = make_objective("generator").train()
    found = {}

    class Gradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            found.update((name, p.grad.clone()) for name, p in model.model.named_parameters())

    trainer = make_trainer(
        objective,
        callbacks=[Gradient()],
        per_device_train_batch_size=3,
        gradient_accumulation_steps=4,
        max_steps=1,
        max_grad_norm=0,
        learning_rate=0,
    )
    loader = TrainingLoader(
        trainer.train_samples,
        trainer.data_collator.collate,
        batch_size=12,
        num_draws=objective.num_draws,
    )
    batch = next(iter(loader))
    trainer.train()

    total = weights = 0
    for i in range(12):
        row = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        masked = int(
            objective.scheduler.add_noise(torch.zeros(1, 8), row["draws"][:, 0]).count_nonzero()
        )
        weight = masked + unmasked_weight * (8 - masked)
        total, weights = total + weight * objective(**row).loss, weights + weight
    (total / weights).backward()
    assert steps_of(trainer)[0]["loss"] == pytest.approx((total / weights).item(), rel=1e-5)
    for name, parameter in objective.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
class TestPublishing:
    @pytest.mark.parametrize(
        ("stage", "model_class"),
        [
            ("vqgan", MaskGitVQGANModel),
            ("warmup", TiTokModel),
            ("generator", MaskGitModel),
            ("classifier", AutoModelForImageClassification),
        ],
    )
    def test_the_averaged_model_and_the_processor_are_published(
        self, hub, make_objective, make_trainer, stage, model_class
    ):
        trainer = make_trainer(
            make_objective(stage, ema_decay=0.9), max_steps=2, hub_model_id="user/trained"
        )
        trainer.train()
        commit = trainer.push_to_hub("Two steps")
        assert commit is not None
        published = model_class.from_pretrained("user/trained").state_dict()
        for name, tensor in trainer.model.ema.module.state_dict().items():
            assert torch.equal(published[name], tensor), name
        assert (
            TiTokImageProcessor.from_pretrained("user/trained").to_dict()
            == trainer.data_collator.processor.to_dict()
        )
        assert "README.md" in hub.files("user/trained") or stage == "classifier"

    def test_the_whole_copy_of_a_sharded_model_keeps_its_provenance(
        self, make_objective, make_trainer
    ):
        objective = make_objective("warmup")
        objective.model.provenance = {"license": "mit"}
        trainer = make_trainer(objective)
        trainer.is_fsdp_enabled = True
        whole = trainer.result()
        assert whole is not objective.model and whole.provenance == {"license": "mit"}

    def test_arguments_say_where(self, hub, make_objective, make_trainer):
        trainer = make_trainer(
            make_objective("warmup"), hub_model_id="user/secret", hub_private_repo=True
        )
        trainer.push_to_hub(revision="draft")
        assert "model.safetensors" in hub.files("user/secret", "draft")
        assert "model.safetensors" not in hub.files("user/secret")
        assert hub.repositories["model", "user/secret"].private

    def test_each_checkpoint_is_published(self, hub, make_objective, make_trainer):
        trainer = make_trainer(
            make_objective("warmup"),
            max_steps=5,
            save_strategy="steps",
            save_steps=2,
            push_to_hub=True,
            hub_model_id="user/trained",
        )
        published = []

        class Published(TrainerCallback):
            def on_save(self, args, state, control, model, **kwargs):
                same = TiTokModel.from_pretrained("user/trained").state_dict()
                published.append(state.global_step)
                assert all(
                    torch.equal(same[name], tensor)
                    for name, tensor in model.model.state_dict().items()
                )

        trainer.add_callback(Published())
        trainer.train()
        assert published == [2, 4, 5]
        assert (
            trainer.model.training
        )  # of no consequence, but publishing put it in evaluation mode in between

    def test_a_hub_out_of_reach_does_not_stop_the_training(
        self, hub, make_objective, make_trainer, caplog
    ):
        trainer = make_trainer(
            make_objective("warmup"),
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
            push_to_hub=True,
            hub_model_id="user/trained",
        )
        hub.fail("POST", "/api/models/user/trained/commit/main", 403)
        with caplog.at_level(logging.WARNING, "titok_hf.training.trainer"):
            trainer.train()
        assert trainer.state.global_step == 4
        assert any("Step 2 could not be published" in message for message in caplog.messages)


def test_ids_that_the_generator_lacks_stop_the_training(make, make_trainer):
    features = Features({"codes": List(Value("int64")), "label": Value("int64")})
    for codes, label, sentence in (
        (64, 3, r"`codes` must be in \[0, 64\), got values from 0 to 64"),
        (63, 11, r"`class_labels` must be in \[0, 11\), got values from 11 to 11"),
    ):
        rows = {"codes": [[0] * 7 + [codes]] * 4, "label": [label] * 4}
        tokens = Dataset.from_dict(rows, features)
        with pytest.raises(ValueError, match=sentence):
            make_trainer(make("generator"), train_dataset=tokens, max_steps=1).train()


def test_images_that_are_not_in_the_unit_interval_stop_training_and_evaluation(
    make, make_trainer, digits
):
    """Images as a normalizing processor makes them."""
    trainer = make_trainer(make("warmup"), eval_dataset=digits, max_steps=1)
    trainer.data_collator = ImageCollator(VTPImageProcessor.from_image_size(32))
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(
            ValueError, match=r"`pixel_values` must be in \[0, 1\], got values from -"
        ):
            run()


def test_columns_stay_for_the_collator(make_objective, make_trainer, digits):
    """Although `remove_unused_columns` would remove the images before evaluation."""
    trainer = make_trainer(
        make_objective("classifier"), eval_dataset=digits, remove_unused_columns=True, max_steps=1
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


class TestResumedWithAnotherBatch:
    """18 digits in batches of 4, and after a checkpoint in others."""

    @pytest.fixture
    def resumed(self, make_objective, make_trainer, tmp_path):
        """The trainers before and after the checkpoint of step 2, and the images that they saw."""

        def resumed(**arguments):
            seen = []

            class Seen(TrainerCallback):
                def on_train_begin(self, args, state, control, model, **kwargs):
                    model.register_forward_pre_hook(
                        lambda module, args, inputs: seen.extend(inputs["pixel_values"]),
                        with_kwargs=True,
                    )

            common = {"callbacks": [Seen()], "save_strategy": "steps", "save_steps": 2}
            first = make_trainer(make_objective("classifier"), max_steps=2, **common)
            first.train()
            second = make_trainer(make_objective("classifier"), **common, **arguments)
            second.train(resume_from_checkpoint=True)
            return first, second, seen

        return resumed

    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_an_epoch_still_has_every_image_once(self, resumed, digits, batch_size):
        first, second, seen = resumed(per_device_train_batch_size=batch_size, num_train_epochs=1)
        assert len(seen) == 8 + batch_size * -(-10 // batch_size)
        images = first.data_collator(list(digits))["pixel_values"]
        assert all(sum(torch.equal(image, digit) for image in seen[:18]) == 1 for digit in images)
        epochs = [entry["epoch"] for entry in steps_of(second)]
        assert epochs == sorted(epochs)
        assert epochs[2] == pytest.approx((8 + batch_size) / 18, abs=1e-4)
        assert second.state.max_steps == second.state.global_step == 2 + -(-10 // batch_size)

    def test_with_equal_samples_per_step_nothing_changes(self, resumed, make_trainer):
        _, second, seen = resumed(
            per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6
        )
        loader = TrainingLoader(second.train_samples, second.data_collator.collate, batch_size=4)
        expected = [image for batch in islice(loader, 6) for image in batch["pixel_values"]]
        assert len(seen) == len(expected) and all(map(torch.equal, seen, expected))
