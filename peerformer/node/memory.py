"""Memory that is free goes back to the system: what strangers made a peer take, it does not keep.

A thousand handshakes that came to nothing leave free memory in pieces all over the heap, and the C
library keeps most of it (measured: 40 of 43 MB after 3,600 silent connections). glibc gives it
back when asked, which takes a millisecond, or a second where the heap is in very many pieces. So it
is asked only when the process has grown since, and as seldom as keeps that below a hundredth of
the time. Other C libraries are left alone.
"""

import asyncio
import ctypes
import time
from collections.abc import Callable

import psutil

LOOK_SECONDS = 5.0
GROWTH_BYTES_MIN = 8 << 20  # a peer's own memory breathes by about that much
SHARE_OF_TIME_MAX = 0.01


def found_trim() -> Callable[[int], int] | None:
    """Return the C library's `malloc_trim`, where it has one."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no glibc, or no C library by this way
        return None
    return trim


async def give_back_memory(look_seconds: float = LOOK_SECONDS) -> None:
    """Give free memory back whenever this process has grown, off the event loop."""
    trim, process = found_trim(), psutil.Process()
    pause, known_bytes = look_seconds, process.memory_info().rss
    while trim is not None:
        await asyncio.sleep(pause)
        pause = look_seconds
        if process.memory_info().rss >= known_bytes + GROWTH_BYTES_MIN:
            began = time.monotonic()
            await asyncio.to_thread(trim, 0)
            pause = max(look_seconds, (time.monotonic() - began) / SHARE_OF_TIME_MAX)
            known_bytes = process.memory_info().rss
