"""How long to wait: local judgement only, never a validity rule.

Waits follow what was seen lately, between a floor and a ceiling, so that one dead or slow peer does
not slow every round and a fast network is not made to wait for a slow one's sake.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

DELTA_SECONDS = 2.0  # one message's delay, generously
WAIT_SECONDS_MIN = 3.0
WAIT_SECONDS_MAX = 60.0
VIEW_GROWTH, VIEW_GROWTH_MAX = 1.5, 8.0
PATIENCE_AHEAD = 0.25  # of a training: waiting for commitments is free while the next one goes on
UNKNOWN_WORK_SECONDS = 5.0  # fetching and aggregating, before any was seen
SAMPLES_KEPT = 16


def _samples() -> deque[float]:
    return deque(maxlen=SAMPLES_KEPT)


@dataclass(slots=True)
class Timing:
    """Recent durations in seconds, and the waits that follow from them."""

    train_seconds_max: float
    trains_ahead: bool = False  # nobody idles while it waits for others' commitments
    spreads: deque[float] = field(default_factory=_samples)  # first to last commitment
    checks: deque[float] = field(default_factory=_samples)  # reveal to my attestation
    trains: deque[float] = field(default_factory=_samples)  # my training

    rounds: deque[float] = field(default_factory=_samples)  # whole rounds

    def note_round(self, seconds: float) -> None:
        """Note how long a round took."""
        self.rounds.append(seconds)

    def commit_wait(self) -> float:
        """Return how long after my own commitment I wait for those of others."""
        wait = self._wait(self.spreads, self.train_seconds_max)
        if self.trains_ahead and self.trains:
            patience = PATIENCE_AHEAD * median(self.trains)  # hours, where the machine slept in one
            return max(wait, min(patience, self.train_seconds_max))
        return wait

    def attest_wait(self) -> float:
        """Return how long I fetch and check before I attest what I have."""
        return self._wait(self.checks, WAIT_SECONDS_MAX)

    def first_view(self) -> float:
        """Return how long view 0 may last from the start of the round (T_0)."""
        longest = max(median(self.trains), median(self.rounds or self.trains)) if self.trains else 0
        train = 4 * longest + 10 if self.trains else self.train_seconds_max
        return min(train, self.train_seconds_max) + self.attest_wait() + self.base()

    def base(self) -> float:
        """Return T_base: how long a proposal and its votes may take once all is attested."""
        work = 2 * median(self.checks) if self.checks else UNKNOWN_WORK_SECONDS
        work = min(work, WAIT_SECONDS_MAX)
        return 4 * DELTA_SECONDS + 2 * work

    def view(self, view: int) -> float:
        """Return how long a view above 0 may last (T_view)."""
        return self.base() * min(VIEW_GROWTH**view, VIEW_GROWTH_MAX)

    def _wait(self, samples: deque[float], most: float) -> float:
        seconds = 1.5 * median(samples) if samples else most
        return min(max(seconds, WAIT_SECONDS_MIN), most)
