import io
import multiprocessing
import pickle
import time
import weakref
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data._utils import worker

from titok_hf import TiTokImageProcessor
from titok_hf.data import Augmentation, ImageCollator
from titok_hf.data.loader import BatchStream, TrainingLoader
from titok_hf.data.opening import open_images
from titok_hf.data.samples import IndexedSamples, StreamedSamples

from .loading import (
    COLLATOR,
    N,
    NumberedCollator,
    assert_equal,
    encode,
    make_indexed,
    make_loader,
    make_sharded,
    seen,
    take,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_sample_comes_once_an_epoch(rows, world_size, num_workers):
    readers = world_size * max(1, num_workers)
    # two epochs of the reader with the largest share, rounded up to batches
    batches_of_reader = -(-2 * -(-N // readers) // 3)
    pairs = []
    for rank in range(world_size):
        loader = make_loader(rows, rank=rank, world_size=world_size, num_workers=num_workers)
        batches = take(loader, batches_of_reader * max(1, num_workers))
        assert all(batch["pixel_values"].shape == (3, 3, 8, 8) for batch in batches)
        pairs += seen(batches)
    assert sorted(pair for pair in pairs if pair[0] < 2) == list(product(range(2), range(N)))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 1), (3, 2)])
def test_every_sample_of_a_stream_from_the_hub_comes_once_an_epoch(hub, world_size, num_workers):
    images = [{"bytes": encode(number), "path": None} for number in range(N)]
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict({"image": images, "label": [0] * N}, features).push_to_hub(
        "user/set", num_shards=3
    )
    rows = open_images("user/set", streaming=True)["train"]
    assert rows.sizes == [8, 8, 7]
    test_every_sample_comes_once_an_epoch(rows, world_size, num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_going_on_at_any_batch_is_the_run_left_alone(rows, num_workers):
    arguments = {"rank": 1, "world_size": 2, "num_workers": num_workers, "seed": 7}
    alone = take(
        make_loader(rows, **arguments), 16
    )  # two epochs: in the middle of shards, buffers and batches
    assert {batch["epoch"].max().item() for batch in alone} >= {0, 1, 2}
    for start in range(14):
        assert_equal(
            take(make_loader(rows, start_batch=start, **arguments), 2), alone[start : start + 2]
        )


def test_going_on_far_away(rows):
    start = 3_000_000
    alone = take(make_loader(rows, start_batch=start), 4)
    assert_equal(take(make_loader(rows, start_batch=start + 2), 2), alone[2:])
    assert (alone[0]["epoch"] >= start * 3 // N).all()


def test_a_loader_begins_anew_each_time(rows):
    loader = make_loader(rows)
    assert_equal(take(loader, 5), take(loader, 5))


def test_workers_may_be_started_afresh(rows):
    """Workers that are not forked receive their task by pickling."""
    loader = make_loader(rows, start_batch=4)
    stream = pickle.loads(pickle.dumps(BatchStream(loader)))
    assert_equal([batch for batch, _ in islice(stream, 5)], take(loader, 5))


def test_the_global_batch_does_not_depend_on_processes_and_accumulation(indexed):
    whole = take(make_loader(indexed, 4), 12)
    accumulated = take(make_loader(indexed, 2), 24)
    ranks = [take(make_loader(indexed, 2, rank=rank, world_size=2), 12) for rank in range(2)]
    for i, batch in enumerate(whole):
        for parts in (accumulated[2 * i : 2 * i + 2], [ranks[0][i], ranks[1][i]]):
            for name in ("pixel_values", "class_labels", "draws", "epoch", "index", "next"):
                assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_places_count_what_all_processes_see(rows, num_workers):
    """Those of a global batch are consecutive, whatever the processes and workers."""

    def places(samples):
        return {"places": torch.tensor([sample.position for sample in samples])}

    for rank in range(2):
        loader = TrainingLoader(
            rows, places, batch_size=3, rank=rank, world_size=2, num_workers=num_workers
        )
        for number, batch in enumerate(islice(loader, 5)):
            start = 6 * number + 3 * rank
            assert batch["places"].tolist() == [start, start + 1, start + 2]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_rows_with_numbers_come_in_the_same_order_from_any_number_of_workers(indexed, num_workers):
    assert_equal(
        take(make_loader(indexed), 9), take(make_loader(indexed, num_workers=num_workers), 9)
    )


def test_a_samples_random_numbers_are_its_own(rows):
    """They are those of seed, epoch and number, however many processes and workers there are."""
    for arguments in ({}, {"world_size": 2, "rank": 1}, {"num_workers": 2}):
        for batch in take(make_loader(rows, seed=3, num_draws=5, **arguments), 10):
            for epoch, index, draws in zip(
                batch["epoch"], batch["index"], batch["draws"], strict=True
            ):
                expected = np.random.default_rng((3, int(epoch), int(index))).random(5, np.float32)
                assert np.array_equal(draws.numpy(), expected)


def test_draws_do_not_depend_on_the_augmentation(rows):
    plain = ImageCollator(TiTokImageProcessor.from_image_size(8))
    batches = take(TrainingLoader(rows, plain.collate, 3, num_draws=2, shuffle_buffer=4), 8)
    for batch, other in zip(batches, take(make_loader(rows), 8), strict=True):
        assert torch.equal(batch["draws"], other["draws"])
        assert not torch.equal(batch["pixel_values"], other["pixel_values"])


def test_epochs_and_seeds_differ(rows):
    orders = []
    for seed in (0, 1):
        pairs = seen(take(make_loader(rows, batch_size=N, seed=seed), 3))
        orders += [[index for when, index in pairs if when == epoch] for epoch in range(3)]
    for i, order in enumerate(orders):
        assert order not in orders[:i]


def test_epochs_and_seeds_of_one_shard_differ(tmp_path):
    rows = make_sharded(tmp_path, range(12), (12,))
    orders = [
        batch["index"].tolist()
        for seed in (0, 1)
        for batch in take(make_loader(rows, 12, seed=seed), 3)
    ]
    for i, order in enumerate(orders):
        assert order not in orders[:i]


def test_labels_and_pixels_belong_together(rows):
    processor = TiTokImageProcessor.from_image_size(8)
    collator = NumberedCollator(processor, label_column="label")
    for batch in take(TrainingLoader(rows, collator.collate, 4), 6):
        assert torch.equal(batch["class_labels"], batch["index"] % 4)
        images = [PILImage.open(io.BytesIO(encode(index))) for index in batch["index"].tolist()]
        assert torch.equal(
            batch["pixel_values"], processor(images, return_tensors="pt")["pixel_values"]
        )


def test_batches_larger_than_the_data_set(rows):
    pairs = seen(take(make_loader(rows, batch_size=3 * N), 2))
    assert sorted(pairs) == list(product(range(6), range(N)))


def count_reads(rows, monkeypatch):
    """Numbers of the rows that are read from now on, and references that do not hold the rows."""
    reads, read_shard = [], rows.read_shard

    def read(*arguments):
        for row in read_shard(*arguments):
            reads.append((row.index, weakref.ref(row)))
            yield row

    monkeypatch.setattr(rows, "read_shard", read)
    return reads


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    sizes = (30, 50, 10, 60, 45, 5)
    return make_sharded(tmp_path_factory.mktemp("many"), [i % 20 for i in range(200)], sizes)


def test_what_was_seen_is_not_read_again(many_shards, monkeypatch):
    reads = count_reads(many_shards, monkeypatch)
    alone = take(make_loader(many_shards, 10), 20)
    assert sorted(index for index, _ in reads) == list(range(200))
    reads.clear()
    assert_equal(take(make_loader(many_shards, 10, start_batch=15), 5), alone[15:])
    # 50 that are left, and what came after the oldest of the four that waited in the buffer
    assert 50 <= len(reads) <= 50 + 4 * 8
    assert len({index for index, _ in reads}) == len(reads)


def test_no_more_is_read_than_the_buffer_holds(many_shards, monkeypatch):
    reads = count_reads(many_shards, monkeypatch)
    for given_out, _ in enumerate(islice(make_loader(many_shards, 1, shuffle_buffer=20), 180)):
        assert len(reads) - given_out <= 20
    assert len(reads) >= 180


@pytest.mark.parametrize("start_batch", [0, 120])
def test_no_more_is_held_than_the_buffer_holds(many_shards, start_batch, monkeypatch):
    reads = count_reads(many_shards, monkeypatch)
    for _ in islice(make_loader(many_shards, 1, shuffle_buffer=20, start_batch=start_batch), 10):
        held = sum(reference() is not None for _, reference in reads)
        assert held <= 20 + 2  # what was given out is held, too, and so is what was read last


def test_the_buffer_shuffles_within_its_size(many_shards):
    shards = np.random.default_rng((0, 0)).permutation(6)
    starts, sizes = np.cumsum([0, 30, 50, 10, 60, 45]), (30, 50, 10, 60, 45, 5)
    stream = [
        index for shard in shards for index in range(starts[shard], starts[shard] + sizes[shard])
    ]
    moved = {}
    for buffer_size in (1, 20, 1000):
        order = [
            index
            for _, index in seen(take(make_loader(many_shards, 10, shuffle_buffer=buffer_size), 20))
        ]
        moved[buffer_size] = np.abs(
            [stream.index(index) - place for place, index in enumerate(order)]
        ).mean()
    assert moved[1] == 0
    assert 10 < moved[20] < 20  # 2 / e of the buffer
    assert 55 < moved[1000] < 80  # a third of the stream, as all is permuted


def test_readers_of_shards_have_equal_shares(many_shards):
    pairs = [
        seen(take(make_loader(many_shards, 10, rank=rank, world_size=3), 8)) for rank in range(3)
    ]
    assert [sum(epoch == 0 for epoch, _ in reader) for reader in pairs] == [66, 67, 67]


UNREADABLE = (4, 8, 9, 22)
NUMBERS = [-1 if i in UNREADABLE else i for i in range(N)]


@pytest.fixture
def damaged(rows, tmp_path):
    """The same rows, but four of them are no images."""
    return (
        make_sharded(tmp_path, NUMBERS)
        if isinstance(rows, StreamedSamples)
        else make_indexed(NUMBERS)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_images_place_is_taken_by_the_next(rows, damaged, num_workers):
    whole = take(make_loader(rows, num_workers=num_workers), 24)
    loader = make_loader(damaged, num_workers=num_workers)
    batches = take(loader, 16)
    order = {worker: [] for worker in range(max(1, num_workers))}
    for number, batch in enumerate(whole):
        order[number % len(order)] += batch["index"].tolist()
    for number, (batch, healthy) in enumerate(zip(batches, whole[:16], strict=True)):
        assert batch.keys() == healthy.keys()
        assert torch.equal(batch["draws"], healthy["draws"]) and torch.equal(
            batch["epoch"], healthy["epoch"]
        )
        for place, (index, planned) in enumerate(
            zip(batch["index"].tolist(), healthy["index"].tolist(), strict=True)
        ):
            if isinstance(rows, StreamedSamples):
                position = number // len(order) * 3 + place
                following = order[number % len(order)][position:]
            else:
                following = [(planned + i) % N for i in range(N)]
            assert index == next(i for i in following if i not in UNREADABLE)
            if index == planned:
                assert torch.equal(batch["pixel_values"][place], healthy["pixel_values"][place])
            assert batch["class_labels"][place] == index % 4
    assert len(loader.unreadable) == 4
    if isinstance(rows, StreamedSamples):  # of 5, 1, 9, 2 and 6 samples
        names = {
            f"{damaged.names[shard]}: {i:04}"
            for shard, i in zip((0, 2, 2, 4), UNREADABLE, strict=True)
        }
    else:
        names = {damaged[i].key for i in UNREADABLE}
    assert loader.unreadable.keys() == names
    assert all(loader.unreadable.values())


def test_a_damaged_shard_is_listed(tmp_path):
    make_sharded(tmp_path)
    path = tmp_path / "train-002.tar"
    path.write_bytes(path.read_bytes()[:-5000])
    rows = open_images(str(tmp_path / "*.tar"))["train"]
    loader = make_loader(rows)
    assert loader.unreadable == {str(path): rows.damaged[str(path)]}
    assert {index for _, index in seen(take(loader, 20))} == set(range(sum(rows.sizes)))


def test_the_same_key_in_two_shards_counts_twice(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_sharded(tmp_path / name, [-1, 1, 2], (3,))
    loader = make_loader(open_images(str(tmp_path / "{a,b}" / "*.tar"))["train"])
    take(loader, 4)
    assert loader.unreadable.keys() == {
        f"{tmp_path}/{name}/train-000.tar: 0000" for name in ("a", "b")
    }


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_worker_is_its_sentence(tmp_path, num_workers):
    rows = make_sharded(tmp_path)
    with open(rows.names[2], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(OSError) as caught:
        take(make_loader(rows, num_workers=num_workers), 9)
    assert (
        str(caught.value)
        == f"The shard {rows.names[2]} has changed since it was counted; restart to count it again."
    )


def test_going_on_where_an_image_is_unreadable(damaged):
    alone = take(make_loader(damaged), 16)
    for start in range(14):
        assert_equal(take(make_loader(damaged, start_batch=start), 2), alone[start : start + 2])


def test_only_what_was_in_the_batches_so_far_is_told(damaged):
    loader = make_loader(damaged, batch_size=1, num_workers=2)
    count = 0
    batches = iter(loader)
    for _ in range(N + 2):
        next(batches)
        assert len(loader.unreadable) - count in (0, 1)
        count = len(loader.unreadable)
    batches.close()
    assert count == 4


def test_a_data_set_of_no_images_at_all_is_an_error(tmp_path, rows):
    nothing = (
        make_sharded(tmp_path, [-1] * N)
        if isinstance(rows, StreamedSamples)
        else make_indexed([-1] * N)
    )
    with pytest.raises(
        ValueError, match=f"None of {N} consecutive images could be read.*The first is"
    ):
        take(make_loader(nothing), 1)


def test_a_share_of_no_images_is_filled_with_those_of_the_next_epoch(tmp_path):
    """Each of four readers has a shard, and one of these holds no image."""
    numbers = [-1 if 4 <= i < 8 else i for i in range(16)]
    rows = make_sharded(tmp_path, numbers, (4, 4, 4, 4))
    unreadable = {}
    for rank in range(4):
        loader = make_loader(rows, batch_size=4, rank=rank, world_size=4)
        for batch in take(loader, 3):
            assert not {4, 5, 6, 7} & set(batch["index"].tolist())
            if rank == 0:
                assert (batch["epoch"] == batch["epoch"][0]).all()  # the epoch is that of the place
        unreadable |= loader.unreadable
    assert unreadable.keys() == {f"{rows.names[1]}: {i:04}" for i in range(4, 8)}


def test_tokens_take_the_place_of_images():
    codes = np.random.default_rng(0).integers(0, 50, (11, 10, 6)).astype(np.uint16)
    tokens = IndexedSamples(Dataset.from_dict({"codes": codes.tolist(), "label": list(range(11))}))
    collator = NumberedCollator(
        COLLATOR.processor, label_column="label", augmentation=Augmentation("ten")
    )
    batches = take(TrainingLoader(tokens, collator.collate, 4, num_draws=2), 6)
    for batch in batches:
        assert batch["codes"].dtype == torch.int64 and "pixel_values" not in batch
        for epoch, index, chosen in zip(
            batch["epoch"].tolist(), batch["index"].tolist(), batch["codes"], strict=True
        ):
            rng = np.random.default_rng((0, epoch, index))
            rng.random(2, np.float32)
            assert chosen.tolist() == codes[index, int(10 * rng.random())].tolist()
    assert sorted(seen(batches))[:22] == list(product(range(2), range(11)))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="The data set is empty"):
        make_loader(make_indexed([]))


def test_fewer_samples_than_readers_of_shards_are_refused(sharded, indexed):
    message = r"23 samples in shards cannot be shared by 24 readers \(12 processes with 2 each\): use fewer workers"
    with pytest.raises(ValueError, match=message):
        make_loader(sharded, world_size=12, num_workers=2)
    make_loader(indexed, world_size=12, num_workers=2)
    last = make_loader(sharded, world_size=23, rank=22)
    assert [epoch for epoch, _ in seen(take(last, 2))] == list(range(6))


def test_a_buffer_that_holds_nothing_is_refused(sharded):
    with pytest.raises(
        ValueError, match="`shuffle_buffer` must be at least 1, which does not shuffle, got 0"
    ):
        make_loader(sharded, shuffle_buffer=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_numbers_stay_as_they_are(rows, num_workers):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    take(make_loader(rows, num_workers=num_workers), 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_workers_compute_on_one_thread(rows):
    torch.set_num_threads(2)
    try:
        assert {batch["threads"].item() for batch in take(make_loader(rows, num_workers=2), 4)} == {
            1
        }
    finally:
        torch.set_num_threads(1)


def train_forever(connection):
    worker.MP_STATUS_CHECK_INTERVAL = 0.5  # seconds; torch's are 5
    for _ in make_loader(make_indexed(), num_workers=2):
        connection.send([process.pid for process in multiprocessing.active_children()])


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_die_with_the_main_process():
    receiver, sender = multiprocessing.Pipe()
    main = multiprocessing.get_context("fork").Process(target=train_forever, args=(sender,))
    main.start()
    workers = receiver.recv()
    assert len(workers) == 2 and all(map(is_alive, workers))
    main.kill()
    main.join()
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
