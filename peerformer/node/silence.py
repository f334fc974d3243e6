"""When a peer of which nothing comes counts as gone: a timeout, with the time that it takes stated.

Each side sends at least a keep-alive every `idle_seconds_max`, so a silence of `limit_seconds` is
several of them missed. It is looked for every `look_seconds`; a peer that is gone without a word
(a pulled cable, a stopped process) is so noticed within the sum of both after the last byte. The
time in which this process itself did not run is not held against anybody: whoever was stopped finds
what came meanwhile in the system's buffers, and reads it first (the point of "Lifeguard", Dadgar et
al., arXiv 1707.00788). Time is passed in; it knows no connection.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Silence:
    """How long nothing has come of one peer, in seconds of a monotonic clock."""

    limit_seconds: float
    look_seconds: float
    heard_at: float
    looked_at: float
    asleep_seconds: float = 0.0  # of the time before the last look, in which I did not run

    @classmethod
    def begin(cls, limit_seconds: float, look_seconds: float, now: float) -> "Silence":
        """Begin when a connection is up: that was a sign of life."""
        return cls(limit_seconds, look_seconds, now, now)

    @property
    def detection_seconds_max(self) -> float:
        """Within which time of its last byte a peer that is gone is noticed."""
        return self.limit_seconds + self.look_seconds

    def heard(self, now: float) -> None:
        """Note that something came, were it one byte."""
        self.heard_at = now

    def is_gone(self, now: float) -> bool:
        """Look; True if the silence has lasted too long while I was listening."""
        late = now - self.looked_at - self.look_seconds
        self.asleep_seconds = late if late > self.look_seconds else 0.0
        self.heard_at += self.asleep_seconds
        self.looked_at = now
        return now - self.heard_at > self.limit_seconds
