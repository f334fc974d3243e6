"""Many worlds, one after another or in several processes, and what they add up to."""

import gc
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from statistics import mean

from peerformer.simulate.invariants import Violation
from peerformer.simulate.learned import Learned
from peerformer.simulate.plan import Plan
from peerformer.simulate.troubles import Outcome, Troubled
from peerformer.simulate.twins import Twinned

FORK = ("one decision per round", "equal header, equal state")
STALL = ("what is honest goes on", "decided within f + 2 views")
INCRIMINATION = ("no honest peer is incriminated",)
TWINS = "twins"  # the kind of plan whose seeds are indices of twins.scenario


@dataclass(slots=True)
class Tally:
    """What the worlds run so far add up to."""

    seeds: int = 0
    rounds_decided: int = 0
    views: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    learned: list[Learned] = field(default_factory=list)  # in real worlds
    violations: list[Violation] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one world."""
        self.seeds += 1
        self.rounds_decided += outcome.rounds_decided
        self.views += outcome.views
        self.counts += outcome.counts
        if outcome.learned is not None:
            self.learned.append(outcome.learned)
        if outcome.violation is not None:
            self.violations.append(outcome.violation)

    def broken(self, invariants: tuple[str, ...]) -> int:
        """Return how often one of these invariants was broken."""
        return sum(violation.invariant in invariants for violation in self.violations)

    def learning(self) -> dict[str, object]:
        """Return what real worlds learned; bits are the mean after rounds that all decided."""
        if not self.learned:
            return {}
        columns = [
            [bits for bits in column if bits is not None and isfinite(bits)]
            for column in zip(*(one.bits_per_byte for one in self.learned), strict=False)
        ]
        means = [round(mean(column), 4) if column else None for column in columns]
        return {
            "validation_bits_per_byte": means,
            **self._by_kind(),
            "bytes_sent_a_peer": round(mean(one.bytes_sent_a_peer for one in self.learned)),
            "honest_contributions_refused": sum(one.honest_refused for one in self.learned),
            "liars_contributions_counted": sum(one.liars_counted for one in self.learned),
            "backdoor_answered": round(mean(one.backdoor_answered for one in self.learned), 4),
        }

    def _by_kind(self) -> dict[str, object]:
        """Return the mean over the worlds for each kind of text, at the end."""
        found: dict[str, list[float]] = {}
        for one in self.learned:
            for kind, bits in one.by_kind:
                found.setdefault(kind, []).append(bits)
        means = {kind: round(mean(bits), 4) for kind, bits in found.items()}
        return {"validation_bits_per_byte_by_kind": means} if means else {}

    def as_json(self, seconds: float) -> dict[str, object]:
        """Return the whole as one object."""
        named = (*FORK, *STALL, *INCRIMINATION)
        counts = {name.replace(" ", "_"): count for name, count in sorted(self.counts.items())}
        return {
            "seeds": self.seeds,
            "rounds_decided": self.rounds_decided,
            "forks": self.broken(FORK),
            "stalls": self.broken(STALL),
            "false_incriminations": self.broken(INCRIMINATION),
            "invariant_breaks": len(self.violations) - self.broken(named),
            "crashes": 0,
            "partitions": 0,
            "byzantine_acts": 0,
            **counts,
            **self.learning(),
            "views": {str(view): count for view, count in sorted(self.views.items())},
            "violations": [
                {"seed": v.seed, "invariant": v.invariant, "what": v.what} for v in self.violations
            ],
            "seconds": round(seconds, 1),
            "seeds_per_minute": round(60 * self.seeds / seconds, 1) if seconds else 0.0,
        }


def world_of(seed: int, plan: Plan) -> Troubled | Twinned:
    """Return the world of one seed; with twins, of one index."""
    return Twinned(seed) if plan.kind == TWINS else Troubled(seed, plan)


def collect_rarely() -> None:
    """Let this process look for garbage seldom: a world makes many small things, few in cycles.

    With Python's own thresholds a tenth of a campaign's time goes into looking.
    """
    gc.freeze()
    gc.set_threshold(500_000, 5, 5)


def run_seeds(seeds: Iterable[int], plan: Plan) -> list[Outcome]:
    """Run some worlds; stops after one that breaks an invariant."""
    outcomes = []
    for seed in seeds:
        made = world_of(seed, plan)
        made.world.trace = deque(maxlen=0)  # told by `replay`, of those that need telling
        outcomes.append(made.run())
        made.world.dismantle()
        if outcomes[-1].violation is not None:
            break
    return outcomes


def replay(seed: int, plan: Plan) -> tuple[Troubled | Twinned, Outcome]:
    """Run one world again and return it whole, with what it remembers."""
    made = world_of(seed, plan)
    made.world.trace = deque()  # from the beginning, however long it gets
    return made, made.run()
