"""The moving average of a network's weights."""

import torch
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel


class MovingAverage(AveragedModel):
    """The exponential moving average of a model's weights; buffers are copied from the model.

    torch's own `update_parameters` reads the buffer `n_averaged` to find the first step, and so
    waits for the device. Here the host keeps track of it.
    """

    def __init__(self, model: PreTrainedModel, decay: float):
        super().__init__(model)
        self.decay = decay
        self.has_begun = False

    @torch.no_grad()
    def update_parameters(self, model: PreTrainedModel, step: int) -> None:
        """Updates the average; `step` is the number of optimizer steps taken."""
        averages, weights = [*self.module.parameters()], [*model.parameters()]
        if step == 1 and not self.has_begun:  # a resumed run starts at a later step
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        self.has_begun = True
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
        self.n_averaged += 1
