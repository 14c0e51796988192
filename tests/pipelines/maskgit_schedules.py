"""Schedules of MaskGIT: their formulas, and what tests draw of them."""

import math
from typing import get_args

import torch
from hypothesis import strategies as st

from titok_hf.pipelines.scheduling_maskgit import MaskSchedule

MASK = 64
SCHEDULES = get_args(MaskSchedule)
FORMULAS = {
    "arccos": lambda r: 2 / math.pi * math.acos(r),
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "linear": lambda r: 1 - r,
    "root": lambda r: 1 - math.sqrt(r),
}

schedules = st.sampled_from(SCHEDULES)
shares = st.floats(0, 1, width=32)
settings_of_schedulers = st.fixed_dictionaries(
    {
        "mask_schedule": schedules,
        "token_temperature": st.sampled_from([0.0, 0.5, 1.0, 9.5]),
        "choice_temperature": st.sampled_from([0.0, 4.5, 100.0]),
        "anneal_token_temperature": st.booleans(),
        "confidence": st.sampled_from(["log_prob", "logit"]),
        "softmax_temperature_annealing": st.booleans(),
    }
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def count_masked(codes):
    return (codes == MASK).sum(-1)


def frequencies(codes, size):
    return torch.bincount(codes.flatten(), minlength=size) / codes.numel()
