"""Kill the peers of a training swarm again and again, and look what they forgot or said twice.

Seven real processes train; each is killed (SIGKILL) at random moments from outside, and by chance
at the fault points of its own persistence layer, between writing and synchronising (see
`peerformer/node/faults.py`). Now and then all are killed at once. Each is started again by the same
command. After every kill the victim's store is held against what the others had received from it
by then: what was sent must have been kept. At the end:

    double signs            two statements of a key for one slot, in any store or received by anyone
    lost certified rounds   decided according to a journal, absent from that peer's store
    state roots             every snapshot against the certified header, the same round at all peers
    loss                    held-out bits a byte, beside a copy of the swarm that nobody disturbs;
                            in full also of a second such swarm of another seed: what chance does

    python benchmarks/kill.py [--quick] [--kills 200] [--seed N] [--json]
"""

import random
import shutil
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trial_records import Decided, Signed, chain_in, compare_chains
from trial_swarm import Folder, TrialSwarm, arguments, note, report, toy

from peerformer import events
from peerformer.errors import SwarmError
from peerformer.node.faults import POINTS
from peerformer.protocol.membership import tolerated_faults

KILLS, KILLS_QUICK = 200, 10
PAUSE_SECONDS_MEAN = 0.4  # between two kills from outside: about half a round
AWAY_SECONDS_MAX = 0.5
EVERYBODY_SHARE = 0.04  # of the kills from outside take all peers at once
FAULT_CHANCE = 0.002  # at each fault point; a peer passes about forty in a round
BACK_SECONDS_MAX = 90.0
FIRST_COMPARED = 3  # the loss of the rounds before falls so fast that a round's delay is more
LOSS_GAP_MAX = 0.01
# Prose, whose loss stays far from nothing; and less noise than with the settings of `nano`.
STEADY = {
    "data.path": str(Path(__file__).parents[1] / "docs"),
    "training.batch_size": 32,
    "optimizer.muon_learning_rate": 0.005,
    "optimizer.learning_rate": 0.001,
}
LOSS_GAP_MAX_QUICK = 0.05  # a dozen kills in a dozen rounds, all of them while it falls steeply
VALIDATORS = 2


@dataclass(slots=True)
class Toll:
    """What the kills did."""

    kills: int = 0
    faults: int = 0
    everybody: int = 0
    not_back: int = 0
    sent_not_kept: list[str] = field(default_factory=list)
    owed: dict[str, int] = field(default_factory=dict)  # the round that a peer had reached


class Killer:
    """Kills and starts the peers of one swarm."""

    def __init__(self, trial: TrialSwarm, seed: int) -> None:
        self.trial, self.random, self.toll = trial, random.Random(seed), Toll()
        self.signed = Signed(trial.swarm.genesis().chain_id)
        self.names = trial.names

    def kill(self, number: int) -> None:
        """Kill until there were so many; those that a fault point took count."""
        while self.toll.kills < number:
            until = time.monotonic() + self.random.expovariate(1 / PAUSE_SECONDS_MEAN)
            while time.monotonic() < until and all(map(self.trial.alive, self.names)):
                time.sleep(0.005)
            faulted = [name for name in self.names if not self.trial.alive(name)]
            victims = [] if faulted else self._victims()
            for name in victims:
                with suppress(SwarmError):  # a fault point was faster
                    self.trial.supervisor.kill(name)
            self.toll.faults += len(faulted)
            self.toll.everybody += len(victims) == len(self.names)
            self._bury([*faulted, *victims])
            if victims:
                time.sleep(self.random.uniform(0.0, AWAY_SECONDS_MAX))
            if faulted or victims:
                killed = self.trial.start(*faulted, *victims)
                self.toll.kills += killed
                self.toll.faults += killed

    def _victims(self) -> list[str]:
        """Choose whom to kill: one that is back from the last time, or all at once."""
        rounds = dict(zip(self.names, self.trial.rounds(self.names), strict=True))
        back = [name for name in self.names if rounds[name] >= self.toll.owed.get(name, 0)]
        behind = len(self.names) - len(back)
        if behind >= tolerated_faults(len(self.names)):
            started = time.monotonic()
            while time.monotonic() - started < BACK_SECONDS_MAX:
                here = self.trial.rounds(self.names)
                owed = [self.toll.owed.get(name, 0) for name in self.names]
                if all(a >= b for a, b in zip(here, owed, strict=True)):
                    return []
                if not all(map(self.trial.alive, self.names)):
                    return []
                time.sleep(0.05)
            self.toll.not_back += behind
            self.toll.owed.clear()
            return []
        if self.random.random() < EVERYBODY_SHARE:
            return list(self.names)
        return [self.random.choice(back)]

    def _bury(self, victims: list[str]) -> None:
        """Look at what the dead left: what others had from them must be in their stores."""
        for name in self.names:
            self.signed.read_frames(self.trial.swarm.peer(name).path / "frames")
        for name in victims:
            peer = self.trial.swarm.peer(name)
            kept = self.signed.read_store(peer.path)
            chain = chain_in(self.trial, name)
            tip = max(chain, default=0)
            me = bytes.fromhex(str((peer.read_status() or {}).get("peer_id", "")))
            self.toll.sent_not_kept += [
                f"{name}: {kind} of round {number}, view {view}"
                for _, kind, number, view in self.signed.sent_in(me, tip) - kept
            ]
            self.toll.kills += 1
            self.toll.owed[name] = tip
        if victims:
            rounds = self.trial.rounds(self.names)
            note(
                f"kill {self.toll.kills}: {', '.join(victims)}; rounds {min(rounds)}-{max(rounds)}"
            )

    def finish(self) -> int:
        """Let all come back and decide two more rounds; returns the round that all reached."""
        for name in self.names:
            self.trial.tell(name, faults="")
        last = max(self.trial.rounds(self.names)) + 2
        deadline = time.monotonic() + BACK_SECONDS_MAX
        while min(here := self.trial.rounds(self.names)) < last and time.monotonic() < deadline:
            dead = [name for name in self.names if not self.trial.alive(name)]
            if dead:  # those that were started before keep their fault points until they end
                self.toll.faults += len(dead)
                self._bury(dead)
                self.trial.start(*dead)
            time.sleep(0.1)
        self.toll.not_back += sum(number < last for number in here)
        self.trial.stop()
        for name in self.names:
            self.signed.read_frames(self.trial.swarm.peer(name).path / "frames")
            self.signed.read_store(self.trial.swarm.peer(name).path)
        return last


def loss_curve(trial: TrialSwarm) -> dict[int, float]:
    """Return bits a byte of the agreed model by round, as the peers that measure it found."""
    found = {}
    for name in trial.names[:VALIDATORS]:
        for event in trial.events_of(name, events.Validated):
            found[event.step] = event.bits_per_byte
    return found


def gaps(disturbed: dict[int, float], calm: dict[int, float]) -> dict[str, float]:
    """Return how far two curves are apart, relative to the calm one; of five rounds each."""

    def smooth(curve: dict[int, float], number: int) -> float:
        near = [curve[n] for n in range(number - 2, number + 3) if n in curve]
        return sum(near) / len(near)

    common = [n for n in sorted(disturbed.keys() & calm.keys()) if n >= FIRST_COMPARED]
    found = [smooth(disturbed, n) / smooth(calm, n) - 1 for n in common]
    if not found:
        return {"rounds_compared": 0, "loss_gap_mean": 1.0, "loss_gap_max": 1.0}
    return {
        "rounds_compared": len(found),
        "loss_gap_mean": round(sum(map(abs, found)) / len(found), 5),
        "loss_gap_max": round(max(map(abs, found)), 5),
        "loss_worse_mean": round(sum(found) / len(found), 5),
        "bits_per_byte": round(disturbed[common[-1]], 4),
        "bits_per_byte_undisturbed": round(calm[common[-1]], 4),
    }


def found_swarm(directory: Path, peers: int, seed: int) -> TrialSwarm:
    """Found a swarm of a seed whose loss is steady."""
    return TrialSwarm.found(directory, toy(peers, **STEADY, **{"training.seed": seed % 2**31}))


def undisturbed(directory: Path, rounds: int) -> TrialSwarm:
    """Run a copy of the swarm that nobody disturbs for as many rounds."""
    calm = TrialSwarm(directory)
    for name in calm.names[:VALIDATORS]:
        calm.place(name, validates=True)
    try:
        calm.start(*calm.names)
        if not calm.reach(rounds, seconds=60 + 10 * rounds):
            raise TimeoutError(f"the undisturbed run stands at {calm.rounds()}")
    finally:
        calm.stop()
    return calm


def points_hit(trial: TrialSwarm) -> dict[str, int]:
    """Count the kills by fault point, as the logs of the peers tell."""
    hit: Counter[str] = Counter()
    for peer in trial.swarm.peers():
        text = peer.log.read_text(errors="replace") if peer.log.exists() else ""
        hit.update({point: text.count(f"killed at {point}") for point in POINTS})
    return {point: count for point, count in hit.items() if count}


def run(directory: Path, *, peers: int, kills: int, seed: int) -> dict[str, Any]:
    """Run the trial; returns its figures."""
    trial = found_swarm(directory / "swarm", peers, seed)
    shutil.copytree(directory / "swarm", directory / "calm")
    killer, began = Killer(trial, seed), time.monotonic()
    for name in trial.names:
        trial.tell(name, faults=",".join(f"{point}:{FAULT_CHANCE}" for point in POINTS))
    for name in trial.names[:VALIDATORS]:
        trial.place(name, validates=True)
    try:
        trial.start(*trial.names)
        killer.kill(kills)
        last = killer.finish()
    finally:
        trial.stop()
    took = time.monotonic() - began
    note(f"{killer.toll.kills} kills in {took:.0f} s, {last} rounds; now as many undisturbed")
    decided: Decided = compare_chains(trial, trial.names)
    calm = undisturbed(directory / "calm", last)
    chance = {}
    if kills >= KILLS:
        found_swarm(directory / "other", peers, seed + 1)
        curves = loss_curve(undisturbed(directory / "other", last)), loss_curve(calm)
        chance = {"loss_gap_by_chance": gaps(*curves)["loss_gap_mean"]}
    toll, double = killer.toll, killer.signed.double()
    for line in (*double, *toll.sent_not_kept, *decided.lost, *decided.forks, *decided.unequal):
        note(f"BROKEN  {line}")
    return {
        "seed": seed,
        "peers": peers,
        "kills": toll.kills,
        "kills_at_fault_points": toll.faults,
        "kills_of_all_at_once": toll.everybody,
        "fault_points": points_hit(trial),
        "not_back": toll.not_back,
        "rounds": decided.tip,
        "statements_checked": sum(map(len, killer.signed.slots.values())),
        "double_signs": len(double),
        "sent_but_not_kept": len(toll.sent_not_kept),
        "lost_certified_rounds": len(decided.lost),
        "forks": len(decided.forks),
        "state_roots_unequal": len(decided.unequal),
        **gaps(loss_curve(trial), loss_curve(calm)),
        **chance,
        "unhandled_exceptions": len(trial.faults_in_logs()),
        "seconds": round(took, 1),
        "seconds_a_kill": round(took / max(1, toll.kills), 2),
    }


def has_passed(found: dict[str, Any], gap_max: float) -> bool:
    """Whether everything held, and the curves are no further apart."""
    broken = (
        "not_back", "double_signs", "sent_but_not_kept", "lost_certified_rounds", "forks",
        "state_roots_unequal", "unhandled_exceptions",
    )  # fmt: skip
    return not any(found[name] for name in broken) and found["loss_gap_mean"] <= gap_max


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, help=f"{KILLS}; with --quick {KILLS_QUICK}")
    parser.add_argument("--peers", type=int, default=7)
    parser.add_argument("--seed", type=int, default=None, help="of the moments and victims")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else time.time_ns() % 10**9
    note(f"seed {seed}")
    kills = given.kills or (KILLS_QUICK if given.quick else KILLS)
    with Folder(given.keep) as directory:
        found = run(directory, peers=given.peers, kills=kills, seed=seed)
    gap_max = LOSS_GAP_MAX if kills >= KILLS else LOSS_GAP_MAX_QUICK
    found["loss_gap_allowed"] = gap_max
    return report(found, passed=has_passed(found, gap_max), as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
