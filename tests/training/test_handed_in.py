"""Tests of the data sets that users pass to the trainer, for training and for evaluation."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info
from transformers import TrainerCallback

from titok_hf.data import ImageCollator, IndexedSamples, open_images
from titok_hf.training import TiTokTrainer, TiTokTrainingArguments


class Mapped(TorchDataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Iterated(TorchIterableDataset):
    """Shares its rows among workers itself, as torch asks for."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter(self.rows[first::step])


def with_arrays(digits, convert):
    return [{"image": convert(row["image"]), "label": row["label"]} for row in digits]


def channels_first(image):
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


IN_ANY_ORDER = {
    "samples": IndexedSamples,
    "torch": lambda digits: digits.with_format("torch"),
    "numpy": lambda digits: digits.with_format("numpy"),
    "arrow": lambda digits: digits.with_format("arrow"),
    "pandas": lambda digits: digits.with_format("pandas"),
    "some columns": lambda digits: digits.with_format("torch", columns=["label"]),
    "transform": lambda digits: digits.with_transform(lambda rows: rows),
    "list": list,
    "tuple": lambda digits: tuple(digits),
    "map-style": lambda digits: Mapped(list(digits)),
    "map-style of a data set": Mapped,
    "arrays": lambda digits: with_arrays(digits, np.asarray),
    "tensors": lambda digits: with_arrays(digits, channels_first),
    "floats": lambda digits: with_arrays(digits, lambda image: channels_first(image) / 255),
}
ITERABLE = {
    "to_iterable_dataset": lambda digits: digits.to_iterable_dataset(num_shards=3),
    "iterable of format torch": lambda digits: digits.to_iterable_dataset().with_format("torch"),
    "generator without features": lambda digits: IterableDataset.from_generator(
        lambda: iter(list(digits))
    ),
    "iterable of torch": lambda digits: Iterated(list(digits)),
}


class Seen(TrainerCallback):
    """Keeps the images of all batches, in training and evaluation."""

    def __init__(self):
        self.images = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.register_forward_pre_hook(
            lambda module, args, inputs: self.images.extend(inputs["pixel_values"]),
            with_kwargs=True,
        )


@pytest.fixture
def trained(make_objective, make_trainer):
    """The trainer and the images that it saw."""

    def trained(data, **arguments):
        seen = Seen()
        trainer = make_trainer(
            make_objective("classifier"), train_dataset=data, callbacks=[seen], **arguments
        )
        trainer.train()
        return trainer, seen.images

    return trained


class TestTraining:
    @pytest.mark.parametrize("kind", IN_ANY_ORDER)
    def test_all_that_can_be_read_in_any_order_trains_alike(self, trained, digits, kind):
        _, expected = trained(digits, num_train_epochs=1)
        trainer, found = trained(IN_ANY_ORDER[kind](digits), num_train_epochs=1)
        assert len(found) == len(expected) == 20
        assert all(map(torch.equal, found, expected))
        assert trainer.state.epoch == pytest.approx(20 / 18)

    @pytest.mark.parametrize("kind", ITERABLE)
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_iterables_train_in_their_order(self, trained, digits, kind, num_workers):
        """Whoever shares them among workers: no row is lost and none comes twice."""
        trainer, found = trained(
            ITERABLE[kind](digits), max_steps=9, dataloader_num_workers=num_workers
        )
        expected = trainer.data_collator(list(digits))["pixel_values"]
        for epoch in (found[:18], found[18:]):
            assert all(map(torch.equal, epoch, expected))
        assert trainer.state.epoch == 1

    def test_an_iterable_goes_on_where_it_was(self, trained, digits):
        def saving(**arguments):
            data = digits.to_iterable_dataset()
            return {"data": data, "save_strategy": "steps", "save_steps": 2, **arguments}

        _, before = trained(**saving(max_steps=2))
        seen = Seen()
        trainer, _ = trained(**saving(max_steps=2))
        trainer.add_callback(seen)
        trainer.args.max_steps = 4
        trainer.train(resume_from_checkpoint=True)
        expected = trainer.data_collator(list(digits))["pixel_values"]
        assert all(map(torch.equal, before + seen.images[-8:], expected[:16]))

    def test_rows_without_images_are_for_an_own_collator(self, make_objective, tmp_path, digits):
        rows = [{"pixels": torch.rand(3, 32, 32)} for _ in range(8)]
        for data in (rows, Mapped(rows), Iterated(rows)):
            trainer = TiTokTrainer(
                make_objective("vqgan"),
                TiTokTrainingArguments(
                    output_dir=str(tmp_path), use_cpu=True, max_steps=2, save_strategy="no"
                ),
                lambda features: {
                    "pixel_values": torch.stack([feature["pixels"] for feature in features])
                },
                train_dataset=data,
                eval_dataset=data,
            )
            trainer.train()
            assert trainer.evaluate()["eval_loss"] > 0

    def test_unreadable_images_of_an_iterable_are_replaced_and_listed(self, trained, digits):
        rows = list(digits)
        rows[3] = {**rows[3], "image": b"no image"}
        trainer, found = trained(Iterated(rows), max_steps=4, max_unreadable=0.5)
        assert [*trainer.unreadable] == ["3"]
        assert torch.equal(found[3], found[4])


class TestEvaluation:
    @pytest.mark.parametrize("kind", IN_ANY_ORDER | ITERABLE)
    def test_the_loss_is_the_same(self, make_objective, make_trainer, digits, kind):
        objective = make_objective("classifier")
        expected = make_trainer(objective, eval_dataset=digits).evaluate()["eval_loss"]
        data = (IN_ANY_ORDER | ITERABLE)[kind](digits)
        trainer = make_trainer(objective, eval_dataset=data)
        for loss in (
            trainer.evaluate()["eval_loss"],
            make_trainer(objective).evaluate(data)["eval_loss"],
            make_trainer(objective).predict(data).metrics["test_loss"],
            make_trainer(objective, eval_dataset={"a": data}).evaluate()["eval_a_loss"],
        ):
            assert loss == pytest.approx(expected, rel=1e-5)


class TestRefused:
    @pytest.mark.parametrize(
        "splits",
        [
            lambda digits: DatasetDict(train=digits, test=digits),
            lambda digits: IterableDatasetDict(train=digits.to_iterable_dataset(), test=digits),
            lambda digits: {"train": digits, "test": digits},
            lambda digits: open_images("digits"),
        ],
        ids=["DatasetDict", "IterableDatasetDict", "dict", "ImageSplits"],
    )
    def test_all_splits_at_once(self, make_objective, make_trainer, digits, splits):
        with pytest.raises(
            ValueError, match=r"`train_dataset` must be one split, got .* splits train, test: name"
        ):
            make_trainer(make_objective("classifier"), train_dataset=splits(digits))

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            ("path/to/images", r"`train_dataset` must be a data set, got 'path/to/images'"),
            (5, "`train_dataset` must be a data set or rows, got a int"),
            ([(1, 2)], "must be a dictionary with image and label, but row 0 is a tuple"),
            ([{"picture": 1}], "dictionary with image and label, but row 0 has picture"),
            ([{"image": np.zeros((2, 2, 2, 2)), "label": 0}], r"got float64 of shape \(2, 2, 2"),
        ],
        ids=["path", "number", "tuple", "columns", "array"],
    )
    def test_what_is_no_data(self, trained, data, sentence):
        with pytest.raises(ValueError, match=sentence):
            trained(data, max_steps=1)

    def test_an_iterable_without_a_number_of_steps(self, trained, digits):
        with pytest.raises(ValueError, match="set `max_steps`"):
            trained(digits.to_iterable_dataset())

    def test_nothing_to_train_on(self, make_objective, processor, tmp_path):
        trainer = TiTokTrainer(
            make_objective("vqgan"),
            TiTokTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            data_collator=ImageCollator(processor),
        )
        with pytest.raises(ValueError, match="Training needs a `train_dataset`"):
            trainer.train()

    def test_an_iterator_that_has_ended(self, trained, digits):
        with pytest.raises(ValueError, match="an iterator can be read only once"):
            trained(iter(list(digits)), max_steps=6)


def test_a_format_that_was_saved_does_not_matter(digits, tmp_path):
    Dataset.from_dict(
        {"image": list(digits["image"]) * 2, "label": list(range(2)) * 18}
    ).with_format("torch").save_to_disk(tmp_path / "saved")
    splits = open_images(str(tmp_path / "saved"))
    assert {split: len(splits[split]) for split in splits} == {"train": 28, "test": 8}
    assert isinstance(splits["train"][0].label, int)
