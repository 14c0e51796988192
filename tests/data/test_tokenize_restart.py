"""Tokenizing that is stopped, shared by processes, or out of space."""

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked import run
from tqdm.std import TqdmDefaultWriteLock

from titok_hf import TiTokModel
from titok_hf.data import Augmentation

from .distributed_tokenize import MODES, SOURCES
from .sources import write_images, write_shards
from .test_tokenize import rows_of

pytestmark = pytest.mark.slow


def contents(folder):
    """All files of a folder, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestRestart:
    PARTS = {"part_size": 2, "batch_size": 2}

    def test_after_kills_the_files_are_the_same(self, tokenize, tmp_path):
        """Killed at growing numbers of finished parts and at odd moments, with what is done
        untouched each time."""
        write_images(tmp_path / "images", {"train": 60, "test": 4})
        alone, _ = tokenize("images", **self.PARTS)
        expected = contents(alone)
        shutil.rmtree(alone)

        def tokenize_alone(**arguments):
            # tqdm's lock is one for all forks, and a process that is killed would not release it
            TqdmDefaultWriteLock.acquire = TqdmDefaultWriteLock.release = lambda *_: None
            tokenize("images", **arguments)

        start = multiprocessing.get_context("fork").Process
        partial, done, kills = tmp_path / "tokens.partial", {}, 0
        for wanted in (0, 1, 3, 3, 8, 13, 20, 30, 32):
            process = start(target=tokenize_alone, kwargs={**self.PARTS, "num_workers": kills % 2})
            process.start()
            while process.is_alive() and not (
                (partial / "tokenize.json").exists()
                and len(list(partial.glob("data/*.parquet"))) >= wanted
            ):
                time.sleep(0.001)
            time.sleep(0.002 * (kills % 4))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            if not partial.exists():  # it was faster
                break
            now = {path.name: path.stat() for path in (partial / "data").iterdir()}
            assert all(now[name].st_mtime_ns == stat.st_mtime_ns for name, stat in done.items())
            assert not alone.exists()
            done = now
        assert kills >= 4 and len(done) >= 3
        tokenize("images", **self.PARTS)
        assert contents(alone) == expected
        after = {path.name: path.stat() for path in (alone / "data").iterdir()}
        assert all(after[name].st_mtime_ns == stat.st_mtime_ns for name, stat in done.items())
        assert not partial.exists()

    @pytest.mark.parametrize(
        "missing", [[], ["README.md"], ["README.md", "latent_statistics.json"]]
    )
    def test_a_kill_before_the_last_rename(self, make_titok_config, tokenize, tmp_path, missing):
        TiTokModel(make_titok_config("pixels", quantizer="kl")).save_pretrained(tmp_path / "kl")
        write_images(tmp_path / "images", {"train": 5, "test": 1})
        arguments = {"tokenizer": tmp_path / "kl", **self.PARTS}
        folder, _ = tokenize("images", **arguments)
        expected = contents(folder)
        folder.rename(tmp_path / "tokens.partial")
        for name in missing:
            (tmp_path / "tokens.partial" / name).unlink()
        tokenize("images", **arguments)
        assert contents(folder) == expected

    def test_a_second_run_of_the_same_command_is_refused(self, tokenize, holder, tmp_path):
        """The parts that the first one is writing stay."""
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        first = holder(tmp_path / "tokens.partial")
        writing = tmp_path / "tokens.partial" / "unfinished" / "part"
        writing.parent.mkdir()
        writing.touch()
        with pytest.raises(BlockingIOError, match=rf"tokens.partial is in use .*{first.pid}"):
            tokenize("images")
        assert writing.exists()
        shutil.rmtree(writing.parent)
        first.communicate()
        folder, _ = tokenize("images")
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["README.md", "data", "tokenize.json"]

    def test_what_is_not_its_own_stays(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        other = tmp_path / "tokens.partial" / "data" / "thesis.tex"
        other.parent.mkdir(parents=True)
        other.touch()
        with pytest.raises(FileExistsError, match="holds something else, such as thesis"):
            tokenize("images")
        assert other.exists()

    def test_a_finished_folder_is_read_where_nothing_can_be_written(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        _, record = tokenize("images")
        (tmp_path / "tokens.partial").touch()  # no folder can be made there
        assert tokenize("images")[1] == record

    def test_a_finished_folder_stays_as_it_is(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        folder, record = tokenize("images")
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert tokenize("images")[1] == record
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    @pytest.mark.parametrize("num_workers", [1, 3])
    def test_workers_change_nothing(self, tokenize, tmp_path, num_workers):
        write_images(tmp_path / "images", {"train": 11, "test": 2})
        write_shards(tmp_path / "shards", [3, 5, 1, 2])
        for source in ("images", "shards/*.tar"):
            folder, _ = tokenize(source, part_size=5)
            expected = contents(folder)
            shutil.rmtree(folder)
            tokenize(source, part_size=5, num_workers=num_workers)
            assert contents(folder) == expected
            shutil.rmtree(folder)

    def test_another_command_is_refused(self, titok, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        write_images(tmp_path / "more", {"train": 4, "test": 1})
        folder, _ = tokenize("images")
        TiTokModel(titok.config).save_pretrained(tmp_path / "other")
        for place in (folder, tmp_path / "tokens.partial"):
            before = contents(place)
            for differing, source, arguments in (
                ("tokenizer", "images", {"tokenizer": tmp_path / "other"}),
                (
                    "augmentation and features",
                    "images",
                    {"augmentation": Augmentation(horizontal_flip=True)},
                ),
                ("data and parts", "more", {}),
                ("dtype", "images", {"dtype": "bfloat16"}),
            ):
                with pytest.raises(
                    FileExistsError, match=rf"{place.name} holds .* \(with other {differing}\)"
                ):
                    tokenize(source, **arguments)
            assert contents(place) == before
            if place == folder:
                folder.rename(tmp_path / "tokens.partial")
        tokenize("images", batch_size=1, max_unreadable=0.5)  # neither is part of what comes out

    def test_a_tokenizer_of_the_same_name_with_other_weights_is_refused(
        self, titok, tokenize, tokenizer, tmp_path
    ):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        tokenize("images")
        TiTokModel(titok.config).save_pretrained(tokenizer)
        with pytest.raises(FileExistsError, match="with other tokenizer"):
            tokenize("images")

    def test_other_images_of_the_same_names_are_refused(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        folder, _ = tokenize("images")
        write_images(tmp_path / "other", {"train": 6, "test": 1})
        image = next((tmp_path / "images" / "train").rglob("*.png"))
        shutil.copy(next((tmp_path / "other" / "train").rglob("005.png")), image)
        for place in (folder, tmp_path / "tokens.partial"):
            with pytest.raises(FileExistsError, match=rf"{place.name} .* \(with other data\)"):
                tokenize("images")
            if place == folder:
                folder.rename(tmp_path / "tokens.partial")

    def test_the_same_content_elsewhere_is_the_same_command(self, tokenize, tokenizer, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        folder, record = tokenize("images")
        shutil.copytree(tmp_path / "images", tmp_path / "copy")
        shutil.copytree(tokenizer, tmp_path / "weights")
        for source, weights in (
            ("images/", tokenizer),
            ("copy", tokenizer),
            ("images", tmp_path / "weights"),
        ):
            assert tokenize(source, tokenizer=weights)[1] == record
        folder.rename(tmp_path / "tokens.partial")
        tokenize("copy", tokenizer=tmp_path / "weights")

    def test_of_a_folder_that_records_no_data_their_name_counts(self, tokenize, tmp_path):
        """Earlier versions wrote such a record."""
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        folder, record = tokenize("images")
        del record["command"]["data"]
        (folder / "tokenize.json").write_text(json.dumps(record))
        assert tokenize("images")[1] == record
        shutil.copytree(tmp_path / "images", tmp_path / "copy")
        with pytest.raises(FileExistsError, match=r"\(with other source\)"):
            tokenize("copy")

    def test_a_folder_of_something_else_is_refused(self, tokenize, tmp_path):
        write_images(tmp_path / "images", {"train": 3, "test": 1})
        (tmp_path / "tokens").mkdir()
        (tmp_path / "tokens" / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="tokens exists already"):
            tokenize("images")
        assert contents(tmp_path / "tokens") == {"thesis.txt": b"mine"}
        (tmp_path / "tokens" / "thesis.txt").unlink()
        tokenize("images")
        assert len(rows_of(tmp_path / "tokens")["key"]) == 3


@pytest.mark.xdist_group("distributed")
def test_two_processes_write_what_one_writes(tokenizer, tokenize, tmp_path):
    """Images and shards from the start, and the rest of what one process began."""
    write_images(tmp_path / "images", {"train": 11, "test": 2})
    write_shards(tmp_path / "shards", [3, 5, 1])
    one = {}
    for name, source in SOURCES.items():
        folder, _ = tokenize(source, name, part_size=2)
        one[name] = contents(folder)
        if name == "rest-tokens":
            folder.rename(tmp_path / "rest-tokens.partial")
            for number in (1, 2, 5):
                next(
                    (tmp_path / "rest-tokens.partial" / "data").glob(f"train-0000{number}*")
                ).unlink()
        else:
            shutil.rmtree(folder)
    script = Path(__file__).with_name("distributed_tokenize.py")
    run(script, tmp_path, tokenizer, num_processes=2)
    for name, expected in one.items():
        assert contents(tmp_path / name) == expected
    modes = [
        path.stat().st_mode & 0o777 for path in (tmp_path / "images-tokens" / "data").iterdir()
    ]
    assert {mode: modes.count(mode) for mode in MODES} == {MODES[0]: 4, MODES[1]: 3}


def mount_small_disk(folder, size):
    """Gives this process a disk of its own; fails with `OSError` where the system does not allow
    it."""
    libc, root = ctypes.CDLL(None, use_errno=True), os.geteuid() == 0
    new_mounts, new_users, private = (
        0x00020000,
        0x10000000,
        0x4000 | 0x40000,
    )  # of <sched.h> and <sys/mount.h>
    user, group = os.getuid(), os.getgid()
    calls = [(libc.unshare, (new_mounts if root else new_mounts | new_users,))]
    calls.append((libc.mount, (b"none", b"/", None, private, None)))
    calls.append(
        (libc.mount, (b"none", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()))
    )
    for function, arguments in calls:
        if function(*arguments):
            raise OSError(ctypes.get_errno(), function.__name__)
        if function is libc.unshare and not root:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def test_a_full_disk_is_one_sentence_and_what_is_done_stays(make_titok_config, tokenize, tmp_path):
    TiTokModel(make_titok_config("pixels", quantizer="kl")).save_pretrained(tmp_path / "kl")
    write_images(tmp_path / "images", {"train": 30, "test": 2})
    (tmp_path / "disk").mkdir()

    def fill_disk(report):
        try:
            mount_small_disk(tmp_path / "disk", 32 * 1024)
        except OSError as error:
            return report.put(("skip", str(error)))
        try:
            tokenize("images", "disk/tokens", tokenizer=tmp_path / "kl", part_size=3)
        except OSError as error:
            report.put(
                (str(error), sorted(path.name for path in (tmp_path / "disk").rglob("*.parquet")))
            )

    context = multiprocessing.get_context("fork")
    report = context.Queue()
    process = context.Process(target=fill_disk, args=(report,))
    process.start()
    sentence, done = report.get(timeout=60)
    process.join()
    if sentence == "skip":
        pytest.skip(f"needs a disk that can be filled, and may mount none: {done}")
    assert (
        "tokens.partial is full. Finished parts are kept: make room" in sentence
        and "\n" not in sentence
    )
    assert 1 <= len(done) < 10 and all(name.startswith("train-0000") for name in done)
