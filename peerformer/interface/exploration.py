"""The exploration of all orders of messages, spread over processes, with a clock."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from peerformer.simulate.explore import Explored, configurations, explore_one


@dataclass(frozen=True, slots=True)
class ExploreResult:
    """What was found in each world, and how long all took."""

    worlds: tuple[Explored, ...]
    seconds: float

    @property
    def exhausted(self) -> bool:
        """Every state of every world was met."""
        return all(world.exhausted for world in self.worlds)

    @property
    def violation(self) -> tuple[str, ...] | None:
        """The shortest way to a broken promise, step by step, if there is one."""
        found = [world.violation for world in self.worlds if world.violation is not None]
        return min(found, key=len, default=None)


def explore(
    *, seconds: float, jobs: int, on_progress: Callable[[Explored], None], views: int = 2
) -> ExploreResult:
    """Explore every world of so many views, without and with restarts, for `seconds` at most.

    `on_progress` is called with each world as it is done.
    """
    start = time.monotonic()
    keep_going = partial(_is_before, start + seconds)
    worlds = [*configurations(views, restarts=True), *configurations(views, restarts=False)]
    found = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(explore_one, world, keep_going) for world in worlds]
        for future in as_completed(futures):
            found.append(future.result())
            on_progress(found[-1])
    return ExploreResult(tuple(found), time.monotonic() - start)


def _is_before(deadline: float) -> bool:
    return time.monotonic() < deadline
