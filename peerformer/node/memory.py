"""Memory that is free goes back to the system: what strangers made a peer take, it does not keep.

A thousand handshakes that came to nothing leave free memory in pieces all over the heap, and the C
library keeps most of it (measured: 40 of 43 MB after 3,600 silent connections). glibc gives it
back when asked, which takes a millisecond, or a second where the heap is in very many pieces. So it
is asked when the process has grown since, and now and then, for what was in use the last time may
be free; and as seldom as keeps that below a hundredth of a processor. Other C libraries are left
alone.

Connections that end badly refer to themselves, with the buffers of their TLS. Python looks for such
garbage when its objects have grown by a quarter, which beside those of PyTorch is next to never; so
it is looked for before. What the process began with is not looked at again, so that this is quick.
"""

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable

import psutil

LOOK_SECONDS = 5.0
GROWTH_BYTES_MIN = 8 << 20  # a peer's own memory breathes by about that much
AGAIN_SECONDS = 30.0
SHARE_OF_TIME_MAX = 0.01


def found_trim() -> Callable[[int], int] | None:
    """Return the C library's `malloc_trim`, where it has one."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no glibc, or no C library by this way
        return None
    return trim


async def give_back_memory(
    look_seconds: float = LOOK_SECONDS, again_seconds: float = AGAIN_SECONDS
) -> None:
    """Give free memory back, off the event loop."""
    trim, process = found_trim(), psutil.Process()
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()

    def give_back() -> float:
        began = time.thread_time()
        gc.collect()
        if trim is not None:
            trim(0)
        return time.thread_time() - began

    known_bytes, asked_at = process.memory_info().rss, time.monotonic()
    pause = look_seconds
    while True:
        await asyncio.sleep(pause)
        pause = look_seconds
        has_grown = process.memory_info().rss >= known_bytes + GROWTH_BYTES_MIN
        if has_grown or time.monotonic() - asked_at >= again_seconds:
            pause = max(look_seconds, await asyncio.to_thread(give_back) / SHARE_OF_TIME_MAX)
            known_bytes, asked_at = process.memory_info().rss, time.monotonic()
