"""Cut the network of a training swarm in every way that the docs name, and watch who goes on.

Seven real processes, each in a network namespace of its own (see `slow_network.py`), train while
the network is cut: 3|4 (nobody has the five that a decision takes), 2|5, one peer that is heard
by nobody, a 2|5 that comes and goes every 5 s, and nothing at all for everybody. After each
cut all is healed. Counted are

    forks              two headers for a round, in any store
    pause              the longest time between two decisions of a side that holds a quorum, against
                       two view timeouts as the peers reckon them from what they measured
    recovery           from the healing until all seven hold a state that was decided after it
    minority_decided   decisions of a side without a quorum: there must be none

Namespaces need root; without it the trial says so and ends with exit code 77.

    python benchmarks/partition.py [--quick] [--seconds 60] [--json]
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from slow_network import SlowNetwork, need_namespaces
from trial_records import compare_chains
from trial_swarm import Folder, SlowSteps, TrialSwarm, arguments, note, report, toy

from peerformer import events
from peerformer.protocol.timing import Timing

PEERS = 7
DELAY_SECONDS = 0.005
FLAP_SECONDS = 5.0
SECONDS = 60.0  # of each cut, where the quick size has its own
RECOVERY_SECONDS_MAX = 10.0
RECOVERY_SECONDS_WAITED = 90.0
STEP_SECONDS = 0.05  # of training, see trial_swarm.SlowSteps: the machine must not be the limit


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut the network; `side` are the peers that keep a quorum, if any do."""

    name: str
    side: tuple[int, ...]
    quick_seconds: float
    cut: Callable[[SlowNetwork], None]
    flaps: bool = False


CUTS = (
    Cut("3|4", (), 4, lambda network: network.part((0, 1, 2), (3, 4, 5, 6))),
    Cut("2|5", (2, 3, 4, 5, 6), 12, lambda network: network.part((0, 1), (2, 3, 4, 5, 6))),
    Cut("one way", (1, 2, 3, 4, 5, 6), 6, lambda network: network.cut((0,), range(PEERS))),
    Cut(
        "flapping", (2, 3, 4, 5, 6), 10,
        lambda network: network.part((0, 1), (2, 3, 4, 5, 6)), flaps=True,
    ),
    Cut("blackout", (), 4, lambda network: network.cut(range(PEERS), range(PEERS))),
)  # fmt: skip


def moments(trial: TrialSwarm, name: str) -> list[float]:
    """Return when a peer took in each decision, in seconds since 1970."""
    decided = trial.events_of(name, events.RoundCommitted)
    return [datetime.fromisoformat(event.time).timestamp() for event in decided]


def two_views(trial: TrialSwarm, name: str) -> float:
    """Return how long two views may last, as a peer reckons it from what it measured."""
    timing = Timing(600.0)
    for event in trial.events_of(name, events.RoundCommitted)[-16:]:
        timing.note_round(event.seconds)
        timing.trains.append(event.training_seconds)
        timing.checks.append(event.checking_seconds)
    return timing.first_view() + timing.view(1)


def hold(network: SlowNetwork, cut: Cut, seconds: float) -> None:
    """Keep a cut up for so long, or let it come and go."""
    ends = time.monotonic() + seconds
    is_cut = False
    while (left := ends - time.monotonic()) > 0:
        is_cut = not is_cut
        (cut.cut if is_cut else SlowNetwork.heal)(network)
        time.sleep(min(left, FLAP_SECONDS) if cut.flaps else left)


def try_cut(trial: TrialSwarm, network: SlowNetwork, cut: Cut, seconds: float) -> dict[str, Any]:
    """Cut, hold, heal and wait; returns what happened."""
    names = trial.names
    began = time.time()
    hold(network, cut, seconds)
    before = max(trial.rounds())
    healed = time.time()
    network.heal()
    # One round may have been decided already by votes that were under way.
    recovered = trial.reach(before + 1, seconds=RECOVERY_SECONDS_WAITED)
    recovery = time.time() - healed
    side = [names[index] for index in cut.side]
    rest = [name for name in names if name not in side]
    pauses = [
        later - earlier
        for name in side
        for earlier, later in pairwise(
            [began, *_between(moments(trial, name), began, healed), healed]
        )
    ]
    # What was voted on before the cut may still be decided just after it.
    grace = began + 1.0
    minority = sum(len(_between(moments(trial, n), grace, healed)) for n in rest)
    found = {
        "cut": cut.name,
        "seconds": round(healed - began, 1),
        "pause_seconds_max": round(max(pauses), 2) if pauses else None,
        "two_view_timeouts_seconds": round(two_views(trial, names[-1]), 1),
        "decided_meanwhile": max((len(_between(moments(trial, n), began, healed)) for n in side),
                                 default=0),
        "minority_decided": 0 if cut.flaps else minority,
        "recovery_seconds": round(recovery, 2) if recovered else None,
    }  # fmt: skip
    note(str(found))
    return found


def _between(times: list[float], start: float, end: float) -> list[float]:
    return [moment for moment in times if start <= moment <= end]


def has_passed(cut: dict[str, Any]) -> bool:
    """Whether what must hold of a cut does."""
    pause, recovery = cut["pause_seconds_max"], cut["recovery_seconds"]
    went_on = pause is None or pause <= cut["two_view_timeouts_seconds"]
    back = recovery is not None and recovery <= RECOVERY_SECONDS_MAX
    return went_on and back and not cut["minority_decided"]


def run(
    directory: Path, network: SlowNetwork, seconds_of: Callable[[Cut], float]
) -> dict[str, Any]:
    """Try all cuts on one swarm; returns the figures."""
    config = toy(PEERS)
    trial = TrialSwarm.found(directory / "swarm", config, attach=SlowSteps(STEP_SECONDS))
    network.place(trial)
    try:
        trial.start(*trial.names)
        if not trial.reach(2, seconds=60):
            raise TimeoutError(f"the swarm did not begin: {trial.rounds()}")
        cuts = [try_cut(trial, network, cut, seconds_of(cut)) for cut in CUTS]
    finally:
        trial.stop()
    decided = compare_chains(trial, trial.names)
    for line in (*decided.forks, *decided.lost, *decided.unequal, *trial.faults_in_logs()):
        note(f"BROKEN  {line}")
    recoveries = [cut["recovery_seconds"] or RECOVERY_SECONDS_WAITED for cut in cuts]
    return {
        "network": "namespaces",
        "peers": PEERS,
        "rounds": decided.tip,
        "forks": len(decided.forks),
        "lost_certified_rounds": len(decided.lost),
        "state_roots_unequal": len(decided.unequal),
        "recovery_seconds_max": max(recoveries),
        "unhandled_exceptions": len(trial.faults_in_logs()),
        "cuts": cuts,
    }


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, help=f"of each cut; {SECONDS:.0f}")
    given = parser.parse_args()

    def seconds_of(cut: Cut) -> float:
        return given.seconds or (cut.quick_seconds if given.quick else SECONDS)

    need_namespaces()
    networks = SlowNetwork(PEERS, delay_seconds=DELAY_SECONDS)
    with Folder(given.keep) as directory, networks as network:
        found = run(directory, network, seconds_of)
    broken = ("forks", "lost_certified_rounds", "state_roots_unequal", "unhandled_exceptions")
    passed = all(map(has_passed, found["cuts"])) and not any(found[name] for name in broken)
    return report(found, passed=passed, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
