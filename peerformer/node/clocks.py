"""What the clocks of a machine tell that a person wants to know: it slept, stood still, or was set.

Three clocks differ in what stops them. The monotonic one counts while the machine runs, the boot
clock while it sleeps too, and the wall clock is whatever somebody sets. So the boot clock ahead of
the monotonic one is sleep, the wall clock apart from the boot clock was set, and two looks further
apart than they should be mean that nobody ran this process. Where there is no boot clock (not on
Linux), a wall clock that leaps ahead is taken for sleep if the machine says nothing else.

Pure: the readings come from the caller.
"""

import time
from dataclasses import dataclass

from peerformer import events

JUMP_SECONDS_MIN = 10.0  # corrections of a time service are smaller
STILL_SECONDS_MIN = 20.0  # a busy machine may keep a process waiting for some seconds


@dataclass(frozen=True, slots=True)
class Reading:
    """The three clocks at one moment, in seconds; `boot` is None where there is no such clock."""

    wall: float
    monotonic: float
    boot: float | None


def read_clocks() -> Reading:
    """Look at the clocks of this machine."""
    return Reading(time.time(), time.monotonic(), _boot())


def _boot() -> float | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else None


def running_seconds() -> float:
    """Return seconds on a clock that never goes back and counts sleep where the system can."""
    boot = _boot()
    return time.monotonic() if boot is None else boot


@dataclass(slots=True)
class ClockWatch:
    """Compares each look at the clocks with the one before."""

    before: Reading
    every_seconds: float  # how often somebody looks

    def look(self, now: Reading) -> list[events.Slept | events.ClockJumped]:
        """Return what has happened since the last look."""
        then, self.before = self.before, now
        ran = now.monotonic - then.monotonic
        wall = now.wall - then.wall
        found: list[events.Slept | events.ClockJumped] = []
        if now.boot is None or then.boot is None:
            slept = wall - ran if wall - ran >= JUMP_SECONDS_MIN else 0.0
            jumped = min(wall - ran, 0.0)
        else:
            slept = (now.boot - then.boot) - ran
            jumped = wall - (now.boot - then.boot)
        if slept >= JUMP_SECONDS_MIN:
            found.append(events.Slept(seconds=slept, cause="the machine slept"))
        if ran - self.every_seconds >= STILL_SECONDS_MIN:
            found.append(events.Slept(seconds=ran, cause="the process stood still"))
        if abs(jumped) >= JUMP_SECONDS_MIN:
            found.append(events.ClockJumped(seconds=jumped))
        return found
