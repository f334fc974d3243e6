"""How long to wait before the next try: exponential, with full jitter, up to a ceiling.

Peers that lost the same one at the same moment must not all come back to it at the same moment; so
the wait is drawn anew each time, anywhere between the least one and a ceiling that doubles with
each failure in a row (Brooker, "Exponential backoff and jitter", AWS Architecture Blog, 2015). A
success resets it. Whoever is cut off from the rest waits less: when a partition heals, it is over
within seconds, and only those who were lost hurry. The draw is passed in.
"""

from dataclasses import dataclass

WAIT_SECONDS_MIN, WAIT_SECONDS_MAX = 1.0, 60.0
LOST_SECONDS_MAX = 5.0  # the ceiling of whoever hears too few
FAILURES_MAX = 10  # by then the ceiling has been reached


def wait_seconds(failures: int, share: float, *, lost: bool) -> float:
    """Return the wait after so many failures in a row; `share` is drawn from 0 to 1."""
    assert failures >= 1 and 0 <= share <= 1
    most = LOST_SECONDS_MAX if lost else WAIT_SECONDS_MAX
    ceiling = min(WAIT_SECONDS_MIN * 2.0 ** min(failures, FAILURES_MAX), most)
    return WAIT_SECONDS_MIN + share * (ceiling - WAIT_SECONDS_MIN)


@dataclass(slots=True)
class Backoff:
    """The waits between tries of one thing by somebody who is lost without it."""

    failures: int = 0

    def failed(self, share: float) -> float:
        """Note a failure; returns how long to wait."""
        self.failures = min(self.failures + 1, FAILURES_MAX)
        return wait_seconds(self.failures, share, lost=True)

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0
