"""Links made of a seed: delay, loss, duplication, reordering, bandwidth and partitions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from peerformer.protocol.effects import FetchBlob, FetchState
from peerformer.protocol.messages import Packet

Parcel = Packet | FetchBlob | FetchState  # a fetch goes the way of what is fetched


@dataclass(slots=True)
class Network:
    """What happens to a message between two peers, known by their numbers."""

    random: Random
    delay_seconds: float = 0.05
    jitter_seconds: float = 0.1
    loss: float = 0.0
    duplication: float = 0.0
    upload_bytes_per_second: float = 0.0  # of each peer; 0: no limit
    blocked: set[tuple[int, int]] = field(default_factory=set)  # directed pairs
    # Scripted trouble: whether exactly this one, from here to there, does not pass.
    stops: Callable[[int, int, Parcel], bool] = lambda source, target, parcel: False
    lost: int = 0
    _line_free_at: dict[int, float] = field(default_factory=dict)

    def deliveries(self, source: int, target: int, size_bytes: int, now: float) -> list[float]:
        """Return the delays in seconds after which copies of a message arrive; none if lost."""
        queued = self._queued(source, size_bytes, now)
        if (source, target) in self.blocked or self.random.random() < self.loss:
            self.lost += 1
            return []
        if self.random.random() < self.duplication:
            return [queued + self.travel_seconds(), queued + self.travel_seconds()]
        return [queued + self.travel_seconds()]

    def travel_seconds(self) -> float:
        """Return how long one message is under way, once it has left."""
        return self.delay_seconds + self.random.expovariate(1.0) * self.jitter_seconds

    def _queued(self, source: int, size_bytes: int, now: float) -> float:
        if not self.upload_bytes_per_second:
            return 0.0
        begins = max(now, self._line_free_at.get(source, 0.0))
        self._line_free_at[source] = begins + size_bytes / self.upload_bytes_per_second
        return self._line_free_at[source] - now

    def split(self, one: set[int], other: set[int], *, both_ways: bool = True) -> None:
        """Block what goes from `one` to `other`, and back if `both_ways`."""
        for a in one:
            for b in other:
                self.blocked.add((a, b))
                if both_ways:
                    self.blocked.add((b, a))

    def join(self) -> None:
        """Lift all partitions."""
        self.blocked.clear()

    def heal(self) -> None:
        """Make the network timely: no partitions, no loss, no slow lines."""
        self.join()
        self.loss = self.duplication = self.upload_bytes_per_second = 0.0
        self.jitter_seconds = min(self.jitter_seconds, 0.2)
