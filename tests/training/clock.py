"""A clock that the tests of throughput turn by hand."""

from transformers import TrainerCallback


class Clock:
    """Stands in for the module `time`; its time passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Slow(TrainerCallback):
    """Lets seconds pass in each step, and in each batch of an evaluation."""

    def __init__(self, clock, step, evaluation=0.0):
        self.clock = clock
        self.step = step
        self.evaluation = evaluation

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.now += self.step

    def on_prediction_step(self, args, state, control, **kwargs):
        self.clock.now += self.evaluation
