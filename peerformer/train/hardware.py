"""What a machine gives and takes: threads, the same bits again, its speed and its memory.

Knows nothing of what is trained on it.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from peerformer.config import TrainingConfig
from peerformer.errors import ConfigError, MemoryExhaustedError

PROBE_SIZE = 1_024
PROBE_SECONDS = 0.25
PROBE_REPEATS_MIN = 3
# What PyTorch says when an allocation fails on a processor; on a GPU it has a type of its own.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")


@contextmanager
def compute_settings(settings: TrainingConfig) -> Iterator[int]:
    """Set threads and determinism for a run, and put determinism back; yields the threads."""
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    before = torch.are_deterministic_algorithms_enabled()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    try:
        yield torch.get_num_threads()
    finally:
        torch.use_deterministic_algorithms(before)


def keep_threads(threads: int, settings: TrainingConfig) -> None:
    """Go on with as many threads as a run began with, so that its sums round alike.

    Raises:
        ConfigError: if the settings ask for another number.
    """
    if threads and settings.threads not in (0, threads):
        raise ConfigError(
            f"this deterministic run was computed by {threads} threads, and"
            f" {settings.threads} would round otherwise",
            where="training.threads",
            hint=f"--training.threads {threads}, or --training.deterministic false",
        )
    torch.set_num_threads(threads or torch.get_num_threads())


@cache
def probed_flops(dtype: torch.dtype, threads: int) -> float:
    """Return the FLOP/s of the fastest of some matrix products of a type, measured now."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator).to(dtype)
    began, best, repeats = time.perf_counter(), float("inf"), 0
    while repeats < PROBE_REPEATS_MIN or time.perf_counter() - began < PROBE_SECONDS:
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
        repeats += 1
    return 2 * PROBE_SIZE**3 / best


def peak_memory_bytes() -> int:
    """Return the most memory that this process has had resident, on a GPU if it uses one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1_024


@contextmanager
def memory_told(where: str, remedy: str) -> Iterator[None]:
    """Tell an exhausted memory as one clear failure.

    Args:
        where: what was being done.
        remedy: which setting to halve.

    Raises:
        MemoryExhaustedError: if there was not enough.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _exhausted(where, remedy, error) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise _exhausted(where, remedy, error) from error


def _exhausted(where: str, remedy: str, error: BaseException) -> MemoryExhaustedError:
    return MemoryExhaustedError(
        "there is not enough memory", where=where, why=str(error).split("\n")[0], hint=remedy
    )


def memory_remedy(settings: TrainingConfig) -> str:
    """Say which setting to halve, so that a step takes less memory: what changes least first."""
    size = settings.batch_size // settings.accumulation
    if size > 1 and settings.batch_size % (2 * settings.accumulation) == 0:
        return (
            f"--training.accumulation {2 * settings.accumulation}"
            f"   (halves the {size} sequences of a pass; the losses stay the same)"
        )
    if size > 1:
        return f"--batch-size {settings.batch_size // 2}   (half of training.batch_size)"
    if settings.sequence_length > 8:
        half = max(8, settings.sequence_length // 2)
        return f"--training.sequence_length {half}   (half as long)"
    return "--size with a smaller preset, or halve model.hidden_size"
