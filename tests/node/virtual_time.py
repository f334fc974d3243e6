"""An event loop whose clock jumps to the next timer instead of waiting for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

SETTLE_SECONDS = 0.001  # in which loopback carries what was written


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing arrives; sockets must be of this process alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        select = self._selector.select

        def jump(timeout: float | None) -> list[Any]:
            found = select(SETTLE_SECONDS if timeout != 0 else 0)
            if not found:
                self.seconds += timeout or 0.0
            return found

        self._selector.select = jump

    def time(self) -> float:
        return self.seconds


def run_in_no_time(story: Coroutine[Any, Any, None]) -> None:
    """Run a story to its end; its waits take next to no time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(story)
