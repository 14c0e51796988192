"""Progress bars, which all look alike.

They are on stderr, of the main process alone, and only where stderr is a terminal or a notebook.
`huggingface_hub.utils.disable_progress_bars("titok_hf")` hides them, and so does
`HF_HUB_DISABLE_PROGRESS_BARS=1`.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from huggingface_hub.utils import are_progress_bars_disabled, tqdm

Item = TypeVar("Item")
GROUP = "titok_hf"  # of progress bars, for huggingface_hub
# Looks of bars: with a known and an unknown total, and where nothing is counted.
COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
ENDLESS = "{desc}: {n_fmt} [{elapsed}, {rate_noinv_fmt}]"
TIMED = "{desc} [{elapsed}]"
BRIEF = 1.0  # seconds; what takes less leaves no line


def bar_settings(description: str, unit: str, form: str = COUNTED) -> dict[str, Any]:
    """Returns the arguments of `tqdm` for a bar of this look; see `ProgressBar`."""
    # told by the environment, since a bar must not connect the processes
    hidden = are_progress_bars_disabled(GROUP) or os.environ.get("RANK", "0") != "0"
    return {
        "desc": description,
        "unit": f" {unit}",
        "bar_format": form,
        "dynamic_ncols": True,
        "delay": 0,  # whatever `TQDM_DELAY` says
        "miniters": 1,  # otherwise a smaller last batch is not shown
        "disable": True if hidden else None,  # `None` shows it on a terminal only
    }


class ProgressBar(tqdm):
    """A progress bar, see the module. What is done in an instant leaves no line.

    Args:
        description: Name of what is done, such as `"reconstructions"`.
        total: Number of units; `None` if it is not known.
        unit: Unit in the plural.
        initial: Number of units that were done before.
        shown: Whether it is shown at all.
        form: Look of the bar; by default one that counts.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        unit: str = "images",
        initial: int = 0,
        shown: bool = True,
        form: str | None = None,
    ):
        settings = bar_settings(description, unit, form or (COUNTED if total else ENDLESS))
        settings |= {} if shown else {"disable": True}
        super().__init__(**settings, total=total, initial=initial, name=GROUP)

    def close(self) -> None:
        if not self.disable:
            self.leave = self.format_dict["elapsed"] >= BRIEF
        super().close()


def counted(
    items: Iterable[Item], description: str, unit: str = "images", total: int | None = None
) -> Iterator[Item]:
    """Yields items, and shows how many are done."""
    with ProgressBar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def index_batches(count: int, batch_size: int, description: str) -> Iterator[torch.Tensor]:
    """Yields the indices `(B,)` of batches of images, and shows how many images are done."""
    with ProgressBar(description, count) as bar:
        for indices in torch.arange(count).split(batch_size):
            yield indices
            bar.update(len(indices))


@contextmanager
def working(description: str) -> Iterator[None]:
    """Shows how long something takes of which nothing can be counted."""
    with ProgressBar(description, form=TIMED) as bar:
        done = Event()

        def tick() -> None:
            while not done.wait(0.5):
                bar.refresh()

        ticking = Thread(target=tick, daemon=True)
        if not bar.disable:
            ticking.start()
        try:
            yield
        finally:
            done.set()
            if not bar.disable:
                ticking.join()
