"""Codes that a tokenizer of 64 codes refuses, with the error that says why."""

import torch


def unfit_codes(num_tokens: int) -> list[tuple[torch.Tensor, type[Exception], str]]:
    """Returns codes, the class of the error, and the pattern of its sentence."""
    size = rf"`codes` must have shape \(batch, {num_tokens}\), got"
    values = r"`codes` must be in \[0, 64\), got values from"
    dtype = "`codes` must be an int64 tensor, got"
    fit = torch.zeros(2, num_tokens, dtype=torch.int64)
    return [
        (fit + 64, ValueError, f"{values} 64 to 64"),
        (fit - 1, ValueError, f"{values} -1 to -1"),
        (fit[:, :-1], ValueError, rf"{size} \(2, {num_tokens - 1}\)"),
        (fit[0], ValueError, rf"{size} \({num_tokens},\)"),
        (fit.float(), TypeError, f"{dtype} torch.float32"),
        (fit.bool(), TypeError, f"{dtype} torch.bool"),
    ]
