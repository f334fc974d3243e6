"""Let a swarm run for an hour with comings and goings and an attacker, and see what grows.

Seven real peers train; one of them lies from the beginning (its contributions point the other
way). Once a minute something changes, in turn: a peer is killed and comes back, a newcomer joins,
the newcomer leaves for good, a peer is stopped politely and started again. Memory and descriptors
of the peers that stay are sampled all the time; a line is laid through the samples after the
warm-up (least squares), and its slope told in bytes and descriptors an hour. All logs are read.

Slopes are of the second half of the run: before that, caches and allocators fill.

    python benchmarks/soak.py [--quick] [--minutes 60] [--json]
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
from trial_records import compare_chains
from trial_swarm import Folder, TrialSwarm, arguments, note, report, toy

PEERS = 7
MINUTES, SECONDS_QUICK = 60.0, 40.0
CHURN_SECONDS, CHURN_SECONDS_QUICK = 60.0, 8.0
SAMPLE_SECONDS = 1.0
ATTACK = "sign-flip"
# Of the peers that stay. Journals, the chain and its headers in memory grow with the rounds: a
# header and its certificate are about 1.5 kB, some 5 MB for the 3,600 rounds of an hour.
SLOPE_BYTES_MAX = 16 << 20
SLOPE_DESCRIPTORS_MAX = 4.0
BACK_SECONDS_MAX = 90.0


@dataclass(slots=True)
class Samples:
    """What one peer that stays took, over time."""

    seconds: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def slopes(self) -> tuple[float, float]:
        """Return the slopes of the second half, an hour."""
        half = len(self.seconds) // 2
        hours = np.array(self.seconds[half:]) / 3_600
        return tuple(
            float(np.polyfit(hours, np.array(values[half:], float), 1)[0])
            for values in (self.memory_bytes, self.descriptors)
        )  # type: ignore[return-value]


class Soak:
    """A swarm under churn."""

    def __init__(self, trial: TrialSwarm, seed: int) -> None:
        self.trial, self.random = trial, Random(seed)
        self.liar, *rest = trial.names
        self.staying = rest[:3]  # sampled, never restarted
        self.churned = rest[3:]
        self.newcomer: str | None = None
        self.samples = {name: Samples() for name in self.staying}
        self.changes: list[str] = []
        self.turn = 0
        self.began = time.monotonic()

    def sample(self) -> None:
        """Note what the peers that stay take now."""
        for name, samples in self.samples.items():
            process = psutil.Process(self.trial.pid(name))
            samples.seconds.append(time.monotonic() - self.began)
            samples.memory_bytes.append(process.memory_info().rss)
            samples.descriptors.append(process.num_fds())

    def change(self) -> None:
        """Let the next thing happen."""
        changes: tuple[Callable[[], str], ...] = (self._kill, self._join, self._stop, self._leave)
        what = changes[self.turn % len(changes)]()
        self.turn += 1
        self.changes.append(what)
        note(f"{time.monotonic() - self.began:.0f} s, round {max(self.trial.rounds())}: {what}")

    def _kill(self) -> str:
        name = self.random.choice(self.churned)
        self.trial.supervisor.kill(name)
        self.trial.start(name)
        return f"{name} was killed and is back"

    def _stop(self) -> str:
        name = self.random.choice(self.churned)
        self.trial.supervisor.order(name, "stop")
        self.trial.supervisor.children[name].process.join(BACK_SECONDS_MAX)
        self.trial.start(name)
        return f"{name} was stopped and is back"

    def _join(self) -> str:
        self.newcomer = self.trial.new_peer()
        self.trial.start(self.newcomer)
        return f"{self.newcomer} joins"

    def _leave(self) -> str:
        assert self.newcomer is not None
        name, self.newcomer = self.newcomer, None
        self.trial.supervisor.order(name, "leave")
        self.trial.supervisor.children[name].process.join(BACK_SECONDS_MAX)
        return f"{name} left"


def run(directory: Path, *, seconds: float, every: float, seed: int) -> dict[str, Any]:
    """Run the trial; returns its figures."""
    trial = TrialSwarm.found(directory / "swarm", toy(PEERS, **{"swarm.idle_rounds_max": 0}))
    soak = Soak(trial, seed)
    trial.place(soak.liar, attack=ATTACK)
    try:
        trial.start(*trial.names)
        soak.began = time.monotonic()
        next_change = every
        while (now := time.monotonic() - soak.began) < seconds:
            soak.sample()
            if now >= next_change:
                next_change += every
                soak.change()
            time.sleep(SAMPLE_SECONDS)
        members = [*soak.staying, *soak.churned]
        last = max(trial.rounds()) + 1
        back = trial.reach(last, members, seconds=BACK_SECONDS_MAX)
    finally:
        trial.stop()
    decided = compare_chains(trial, members)
    faults = trial.faults_in_logs()
    for line in (*decided.forks, *decided.lost, *decided.unequal, *faults):
        note(f"BROKEN  {line}")
    slopes = {name: samples.slopes() for name, samples in soak.samples.items()}
    memory = [samples.memory_bytes for samples in soak.samples.values()]
    return {
        "seconds": round(seconds),
        "peers": PEERS,
        "attack": ATTACK,
        "changes": len(soak.changes),
        "rounds": decided.tip,
        "all_back": back,
        "memory_bytes_first": max(values[0] for values in memory),
        "memory_bytes_half": max(values[len(values) // 2] for values in memory),
        "memory_bytes_last": max(values[-1] for values in memory),
        "memory_slope_bytes_an_hour": round(max(slope[0] for slope in slopes.values())),
        "descriptors_slope_an_hour": round(max(slope[1] for slope in slopes.values()), 2),
        "descriptors_last": max(s.descriptors[-1] for s in soak.samples.values()),
        "forks": len(decided.forks),
        "lost_certified_rounds": len(decided.lost),
        "state_roots_unequal": len(decided.unequal),
        "unhandled_exceptions": len(faults),
    }


def has_passed(found: dict[str, Any], *, flat: bool) -> bool:
    """Whether everything held; slopes count where the run was long enough to have some."""
    names = ("forks", "lost_certified_rounds", "state_roots_unequal", "unhandled_exceptions")
    is_flat = (
        found["memory_slope_bytes_an_hour"] <= SLOPE_BYTES_MAX
        and found["descriptors_slope_an_hour"] <= SLOPE_DESCRIPTORS_MAX
    )
    return found["all_back"] and not any(found[name] for name in names) and (is_flat or not flat)


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, help=f"{MINUTES:.0f}")
    parser.add_argument("--seed", type=int, default=1, help="of who goes")
    given = parser.parse_args()
    seconds = (
        60 * given.minutes if given.minutes else SECONDS_QUICK if given.quick else 60 * MINUTES
    )
    every = CHURN_SECONDS_QUICK if given.quick else CHURN_SECONDS
    with Folder(given.keep) as directory:
        found = run(directory, seconds=seconds, every=every, seed=given.seed)
    found["slopes_count"] = not given.quick
    return report(found, passed=has_passed(found, flat=not given.quick), as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
