"""Which type to compute in: bfloat16 where a short probe says that it pays on this machine.

Processors differ: some have bfloat16 instructions, on others it is emulated and slower. So it is
measured, once a process, on a matrix product of the size that a small model has.
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
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    single = _seconds(torch.float32)
    return single / _seconds(torch.bfloat16) >= GAIN_MIN


def _seconds(dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator).to(dtype)
    best = float("inf")
    for _ in range(PROBE_REPEATS):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return best


def autocast_dtype(setting: str) -> torch.dtype | None:
    """Return the type of `torch.autocast` for a setting: None means plain float32."""
    if setting == "bfloat16" or (setting == "auto" and bfloat16_pays()):
        return torch.bfloat16
    return None
