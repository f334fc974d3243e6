"""What an honest voter of a small world may hear next, as data."""

from dataclasses import dataclass

Lock = tuple[int, int]  # view and digest (0 or 1) of a quorum of prepares
NO_LOCK: Lock = (-1, -1)


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The view's time is over."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """The process died, and came back with what it had stored."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """The leader of a view proposes a digest; `justify` is the lock in its certificate."""

    view: int
    digest: int
    justify: Lock | None


@dataclass(frozen=True, slots=True)
class Locked:
    """A quorum prepared."""

    lock: Lock


@dataclass(frozen=True, slots=True)
class GaveUp:
    """So many honest voters gave up the view, claiming these locks, and a liar claims none."""

    view: int
    claims: tuple[Lock, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A quorum gave up the view; `lock` is the highest that one of it claims."""

    view: int
    lock: Lock


News = TimerFired | Restarted | Proposed | Locked | GaveUp | Ended
