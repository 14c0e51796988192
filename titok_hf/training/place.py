"""The place of a training: which samples it has seen, and the state of which optimizer it has."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.legs import Leg

# File of a checkpoint with its step, the legs up to there, and the class of the optimizer.
PLACE = "place.json"


class KeptPlace:
    """Mixin of `WholeCheckpoints` that goes on after the samples that were seen up to a checkpoint."""

    start_step = 0
    legs: Sequence[Leg] = ()
    place: Mapping[str, Any] = {}  # content of `PLACE` of the checkpoint, if there is one

    def find_place(self, checkpoint: str | None) -> None:
        """Finds the place in the data at which training goes on: after the samples that were seen
        up to a checkpoint, whatever the settings were."""
        if checkpoint is None:
            self.legs = ()
            return
        self.place = json.loads((Path(checkpoint) / PLACE).read_text())
        self.legs = [Leg(**leg) for leg in self.place["legs"]]
        if self.samples_to_see is not None:
            to_see = max(self.samples_to_see - sum(leg.samples for leg in self.legs), 0)
            self.args.max_steps = self.place["step"] + math.ceil(to_see / self.global_batch_size)

    def current_legs(self) -> list[Leg]:
        """Returns the legs of the training up to this step."""
        steps = self.state.global_step - self.start_step
        return self.loader.legs(steps * self.args.gradient_accumulation_steps)

    def complete_checkpoint(self, folder: Path) -> None:
        legs = [dataclasses.asdict(leg) for leg in self.current_legs()]
        place = {
            "step": self.state.global_step,
            "legs": legs,
            "optimizer": self.optimizer_name(),
        }
        (folder / PLACE).write_text(json.dumps(place))

    def lost_state(self, checkpoint: Path) -> str | None:
        """Returns what is lost if a checkpoint has no state for this optimizer; `None` if it has."""
        written = self.place["optimizer"]
        if not any(checkpoint.glob("optimizer*")):
            reason = "no optimizer state, as with `save_only_model`"
        elif written != self.optimizer_name():
            reason = f"the state of the optimizer {written}, not of {self.optimizer_name()}"
        else:
            return None
        return (
            f"{checkpoint} has {reason}: training goes on from its weights at step "
            f"{self.place['step']}, but the optimizer's moments start anew, so that the result differs "
            "from that of an uninterrupted run."
        )

    def optimizer_name(self) -> str:
        """Returns the full name of the optimizer's class, since some classes share their name."""
        kind = type(getattr(self.optimizer, "optimizer", self.optimizer))  # accelerate wraps it
        return f"{kind.__module__}.{kind.__qualname__}"
