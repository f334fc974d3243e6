"""Which type to compute in: bfloat16 where a short probe says that it pays on this machine.

Processors differ: some have bfloat16 instructions, on others it is emulated and slower. So it is
measured, once a process, on a matrix product of the size that a small model has; the two types
take turns, so that a moment in which the machine is busy with something else hits both.
"""

import time
from functools import cache

import torch

PROBE_SIZE = 512
PROBE_REPEATS = 6
GAIN_MIN = 1.25  # below it the rounding is not worth it


@cache
def bfloat16_pays() -> bool:
    """Tell whether a bfloat16 matrix product is clearly faster than a float32 one here."""
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator)
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(PROBE_REPEATS):
        for dtype in best:
            best[dtype] = min(best[dtype], _seconds(single.to(dtype)))
    return best[torch.float32] / best[torch.bfloat16] >= GAIN_MIN


def _seconds(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - began


def autocast_dtype(setting: str) -> torch.dtype | None:
    """Return the type of `torch.autocast` for a setting: None means plain float32."""
    if setting == "bfloat16" or (setting == "auto" and bfloat16_pays()):
        return torch.bfloat16
    return torch.float16 if setting == "float16" else None


def dtype_name(autocast: torch.dtype | None) -> str:
    """Return the setting that gives this type of `torch.autocast`."""
    return "float32" if autocast is None else str(autocast).removeprefix("torch.")
