"""Long vectors shared out among threads, as many as torch uses for its own operators.

NumPy lets other threads run while it computes, so threads of Python are enough. Each has a range of
coordinates to itself, and what the ranges come to is put together in their order: integers are the
same for any number of threads. Short vectors stay on the caller's thread. A work must call no
operator of torch: each thread would then bring a pool of its own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

SHARED_LEAST = 1 << 20  # coordinates: below, starting threads and waiting for them is felt

Result = TypeVar("Result")


def shared_out(work: Callable[[int, int], Result], count: int, step: int) -> list[Result]:
    """Return what `work(start, stop)` returns for ranges that make up `count` coordinates.

    Args:
        work: called at least once, from several threads.
        count: of coordinates.
        step: every range but the last is a multiple of it.
    """
    threads = torch.get_num_threads() if count >= SHARED_LEAST else 1
    share = max(1, -(-count // (step * threads))) * step
    starts = range(0, max(count, 1), share)
    if len(starts) == 1:
        return [work(0, count)]
    with ThreadPoolExecutor(len(starts), "gradients") as pool:
        return list(pool.map(work, starts, (min(count, start + share) for start in starts)))
