"""Links made of a seed: delay, loss, duplication, reordering and partitions."""

from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class Network:
    """What happens to a message between two peers."""

    random: Random
    delay_seconds: float = 0.05
    jitter_seconds: float = 0.1
    loss: float = 0.0
    duplication: float = 0.0
    blocked: set[tuple[int, int]] = field(default_factory=set)  # directed pairs
    lost: int = 0

    def deliveries(self, source: int, target: int) -> list[float]:
        """Return the delays in seconds after which copies of a message arrive; none if lost."""
        if (source, target) in self.blocked or self.random.random() < self.loss:
            self.lost += 1
            return []
        copies = 2 if self.random.random() < self.duplication else 1
        return [
            self.delay_seconds + self.random.expovariate(1.0) * self.jitter_seconds
            for _ in range(copies)
        ]

    def split(self, one: set[int], other: set[int], *, both_ways: bool = True) -> None:
        """Block what goes from `one` to `other`, and back if `both_ways`."""
        for a in one:
            for b in other:
                self.blocked.add((a, b))
                if both_ways:
                    self.blocked.add((b, a))

    def heal(self) -> None:
        """Make the network timely: no partitions, no loss."""
        self.blocked.clear()
        self.loss = self.duplication = 0.0
