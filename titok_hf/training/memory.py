"""Measurement of peak memory."""

import resource
import sys
from pathlib import Path


class PeakMemory:
    """Context manager that measures the peak resident memory of the process, `gib`, in GiB.

    Only Linux can reset the counter; elsewhere the peak since the start of the process is reported.
    """

    gib: float = 0.0

    def __enter__(self) -> "PeakMemory":
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset VmHWM
        return self

    def __exit__(self, *exception: object) -> None:
        if sys.platform == "linux":
            lines = Path("/proc/self/status").read_text().splitlines()
            kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            kib = peak // 1024 if sys.platform == "darwin" else peak
        self.gib = kib / 2**20
