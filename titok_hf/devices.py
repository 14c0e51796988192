"""The default device, and data types by name."""

import torch


def default_device() -> torch.device:
    """Returns the accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def parse_dtype(name: str) -> torch.dtype:
    """Returns a dtype that weights may have, by name.

    Raises:
        ValueError: If it is not the name of one.
    """
    dtypes = {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    if name not in dtypes:
        raise ValueError(f"The dtype must be one of {', '.join(dtypes)}, got {name!r}.")
    return dtypes[name]
