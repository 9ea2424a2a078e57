"""How much memory a process has needed."""

import sys

import torch


def peak_memory() -> dict[str, float]:
    """The most that this process has held so far, in MiB: resident, and of each GPU in use."""
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        peak["memory/peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            peak[f"memory/peak_gpu{number}_mib"] = torch.cuda.max_memory_allocated(number) / 2**20
    return peak
