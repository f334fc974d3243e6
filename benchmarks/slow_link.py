"""Train over slow lines: how much of the time is spent training, and how much sooner it is done.

Eight real peers, each in a network namespace behind a line of 50 Mbit/s up and down and 50 ms
each way (`slow_network.py`), with `sparse-2bit` and staleness 1. Beside it, on the same lines with
the same model, text and optimizer (`slow_rivals.py`): PyTorch's DistributedDataParallel over Gloo,
and where it is installed hivemind.

    utilisation      the share of the rounds' time that is spent in training steps
    time to loss     until held-out loss is what the swarm's last state has. DDP's loss after so
                     many steps is that of one process with the eight batches of a step, so its
                     steps are counted there (best of three learning rates) and timed on the lines;
                     hivemind trains there for as long as it takes, or twice the swarm's time

Eight peers on two cores cannot compute like eight machines. So a step is made to take the same
constant time everywhere (`step_seconds`, in the output): it computes for a part of that and
sleeps for the rest. And what is not a step (checks, aggregation, TLS) must not wait for seven
others: time is stretched. With `--stretch 8` steps and delays last eight times as long and lines
carry an eighth, so that each peer has a core to itself, and all times are told divided by eight;
`cores_busy` says how much of both was used. The protocol's own waits are not stretched: in
proportion they are shorter here. Disks are shared too: `--keep /dev/shm/NAME` runs it in memory.

The larger the model, the longer DDP takes for a step, and the swarm hardly longer for a round. What
ends that here is that eight steps must be computed by two cores in the time of one.

    python benchmarks/slow_link.py [--quick] [--rounds 12] [--stretch 8] [--width 256] [--layers 4]
        [--alone] [--json]
"""

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from slow_network import SlowNetwork, need_namespaces
from slow_rivals import (
    DDP_STEPS_MAX,
    HIVEMIND_TIMES_MAX,
    PEERS,
    RATE_FACTORS,
    Size,
    Text,
    ddp_step_seconds,
    hivemind_is_here,
    hivemind_until,
)
from trial_records import compare_chains
from trial_swarm import Folder, SlowSteps, TrialSwarm, arguments, note, report

from peerformer import events

MEGABITS, DELAY_SECONDS = 50.0, 0.05
UTILISATION_MIN = 0.95
RATIO_AIMED = 20.0
STEADY_FROM = 3  # the first two rounds wait as long as they would for slow peers


QUICK = Size(128, 2, 20, 0.2, 5, 3, 1.0)
FULL = Size(256, 4, 30, 0.25, 40, 12, 8.0)
UTILISATION_MIN_QUICK = 0.5  # five rounds of four seconds, in which checks wait for each other


# --- the swarm ------------------------------------------------------------------------------------


def run_swarm(
    directory: Path, network: SlowNetwork, size: Size
) -> tuple[TrialSwarm, dict[str, float]]:
    """Train for some rounds on slow lines; returns the stopped swarm and what all of it took."""
    trial = TrialSwarm.found(directory / "swarm", size.config())
    network.place(trial)
    for name in trial.names:
        trial.place(name, attach=SlowSteps(size.slept_seconds))
    try:
        trial.start(*trial.names)
        network.counted()
        psutil.cpu_percent()
        allowed = 120 + 4 * size.rounds * size.inner_steps * size.slept_seconds
        if not trial.reach(size.rounds, seconds=allowed):
            raise TimeoutError(f"the swarm stands at {trial.rounds()}")
        busy_percent = psutil.cpu_percent()
        sent, _, late_seconds = network.counted()
        note(f"rounds {trial.rounds()}; the router was {1e3 * late_seconds:.0f} ms late at worst")
    finally:
        trial.stop()
    return trial, {
        "bytes_sent_a_peer_and_round": round(sum(sent) / PEERS / max(1, min(trial.rounds()))),
        "cores_busy": round(busy_percent / 100, 3),
    }


def used(trial: TrialSwarm, rounds: int, stretch: float) -> dict[str, float]:
    """Return where the time of the steady rounds went, over all peers."""
    decided = [
        event
        for name in trial.names
        for event in trial.events_of(name, events.RoundCommitted)
        if STEADY_FROM <= event.round <= rounds
    ]
    seconds, count = sum(event.seconds for event in decided), len(decided)
    checking = sum(event.checking_seconds for event in decided) / count
    voting = sum(event.voting_seconds for event in decided) / count
    return {
        "utilisation": round(sum(event.training_seconds for event in decided) / seconds, 4),
        "round_seconds": round(seconds / count / stretch, 2),
        "contributions_accepted": round(sum(event.accepted for event in decided) / count, 2),
        "checking_seconds": round(checking / stretch, 2),
        "voting_seconds": round(voting / stretch, 2),
    }


def seconds_until(trial: TrialSwarm, number: int) -> float:
    """Return how long it took from the start of the last peer until half of them had a round."""
    started = max(_at(trial.events_of(name, events.NodeStarted)[0]) for name in trial.names)
    decided = sorted(
        _at(event)
        for name in trial.names
        for event in trial.events_of(name, events.RoundCommitted)
        if event.round == number
    )
    return decided[len(decided) // 2] - started


def _at(event: Any) -> float:
    return datetime.fromisoformat(event.time).timestamp()


# --- all of it ------------------------------------------------------------------------------------


def run(directory: Path, network: SlowNetwork, size: Size, *, alone: bool) -> dict[str, Any]:
    """Run the swarm and, unless it is to be alone, its rivals on the same lines."""
    trial, taken = run_swarm(directory, network, size)
    text, decided = Text(trial.swarm.path), compare_chains(trial, trial.names)
    newest = max(trial.swarm.peer(trial.names[0]).states.glob("*.state"))
    text.load(newest.read_bytes())
    number, loss = int(newest.stem), text.loss()
    ours = seconds_until(trial, number) / size.stretch
    note(f"the swarm: loss {loss:.4f} after {number} rounds and {ours:.0f} s")
    rivals: dict[str, Any] = {}
    if not alone:
        rivals = beside_ddp(loss, ours, text, trial.swarm.path, network, size)
        rivals |= beside_hivemind(loss, ours, trial.swarm.path, network, size)
    text.load(text.first)
    return {
        "peers": PEERS,
        "megabits": MEGABITS,
        "delay_seconds": DELAY_SECONDS,
        "parameters": text.parameters,
        "step_seconds": size.step_seconds,
        "stretch": size.stretch,
        "inner_steps": size.inner_steps,
        **used(trial, number, size.stretch),
        "rounds": number,
        "forks": len(decided.forks),
        "loss_first": round(text.loss(), 4),
        "loss": round(loss, 4),
        "seconds": round(ours, 1),
        **taken,
        "steps_of_a_peer": number * size.inner_steps,
        **rivals,
        "unhandled_exceptions": len(trial.faults_in_logs()),
    }


def beside_ddp(
    loss: float, ours: float, text: Text, swarm: Path, network: SlowNetwork, size: Size
) -> dict[str, Any]:
    """Return how long DDP takes to the same loss: its steps, counted, and the time of one."""
    seconds = ddp_step_seconds(swarm, network, size)
    note(f"DDP: {seconds:.2f} s a step; now how many it needs")
    needed = {factor: text.steps_until(loss, factor, DDP_STEPS_MAX) for factor in RATE_FACTORS}
    best = min((steps for steps in needed.values() if steps), default=DDP_STEPS_MAX)
    return {
        "ddp_step_seconds": round(seconds, 3),
        "ddp_steps": best,
        "ddp_steps_by_rate_factor": {str(factor): steps for factor, steps in needed.items()},
        "ddp_seconds": round(best * seconds, 1),
        "sooner_by": round(best * seconds / ours, 1),
        "sooner_by_aimed_at": RATIO_AIMED,
    }


def beside_hivemind(
    loss: float, ours: float, swarm: Path, network: SlowNetwork, size: Size
) -> dict[str, Any]:
    """Return how long hivemind takes to the same loss, if it is installed."""
    if not hivemind_is_here():
        return {"hivemind": "not installed here"}
    note("hivemind")
    allowed = HIVEMIND_TIMES_MAX * ours
    places = (network.names, network.addresses)
    seconds, lowest = hivemind_until(loss, swarm, places, size, allowed)
    took = seconds or allowed
    return {
        "hivemind": "reached it" if seconds else f"not within {allowed:.0f} s",
        "hivemind_seconds": round(took, 1),
        "hivemind_loss": round(lowest, 4),
        "sooner_than_hivemind_by": round(took / ours, 2),
    }


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help=f"{FULL.rounds}; with --quick {QUICK.rounds}")
    parser.add_argument("--stretch", type=float, help=f"{FULL.stretch}; --quick {QUICK.stretch}")
    parser.add_argument("--width", type=int, help=f"{FULL.width}; --quick {QUICK.width}")
    parser.add_argument("--layers", type=int, help=f"{FULL.layers}; --quick {QUICK.layers}")
    parser.add_argument("--ddp-steps-timed", type=int, help=f"{FULL.ddp_steps_timed}")
    parser.add_argument("--alone", action="store_true", help="without DDP and hivemind beside it")
    given = parser.parse_args()
    need_namespaces()
    size = QUICK if given.quick else FULL
    names = ("rounds", "stretch", "width", "layers", "ddp_steps_timed")
    size = replace(size, **{name: getattr(given, name) or getattr(size, name) for name in names})
    torch.set_num_threads(1)
    lines = SlowNetwork(
        PEERS, megabits=MEGABITS / size.stretch, delay_seconds=DELAY_SECONDS * size.stretch
    )
    with Folder(given.keep) as directory, lines as network:
        found = run(directory, network, size, alone=given.alone)
    needed = UTILISATION_MIN_QUICK if given.quick else UTILISATION_MIN
    found["utilisation_needed"] = needed
    passed = found["utilisation"] >= needed
    passed = passed and (given.quick or given.alone or found["sooner_by"] > 1)
    passed = passed and not found["forks"] and not found["unhandled_exceptions"]
    return report(found, passed=passed, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
