"""How long agreement takes: from the last commitment to the last decision, and where the time goes.

Starts a real swarm of processes on this machine (founded in a temporary directory), lets it decide
some rounds, and reads the peers' journals. A round's agreement is the time from the last peer's
commitment (`Trained`, or the round's beginning if it trained ahead) to the last peer's
`RoundCommitted`.

    python benchmarks/agreement.py [--peers 7] [--rounds 8] [--staleness 0] [--json]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import psutil

from peerformer import events
from peerformer.journal import read_journal
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.overview import overview
from peerformer.node.supervisor import Supervisor
from peerformer.settings import resolve

PHASES = (
    "seconds",
    "training_seconds",
    "waiting_seconds",
    "checking_seconds",
    "voting_seconds",
    "utilisation",
)


def run(peers: int, rounds: int, staleness: int, directory: Path) -> tuple[SwarmDirectory, float]:
    """Run a swarm for some rounds; returns its directory and the peak memory of all processes."""
    settings = {"swarm.peers": peers, "swarm.staleness": staleness, "data.max_bytes": 1_500_000}
    config = resolve(size="nano", overrides=settings).config
    supervisor = Supervisor(SwarmDirectory(directory / "swarm"))
    supervisor.found(config, lambda _: None)
    peak = 0.0
    try:
        names = [peer.name for peer in supervisor.swarm.peers()]
        options = PeerOptions(threads=1, validates=False)
        supervisor.await_listening([supervisor.start(name, options) for name in names])
        while overview(supervisor.swarm)["round"] < rounds:
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            peak = max(peak, sum(process.memory_full_info().pss for process in processes))
            time.sleep(0.5)
    finally:
        supervisor.stop()
    return supervisor.swarm, peak


def measure(swarm: SwarmDirectory, rounds: int) -> dict[str, object]:
    """Read the journals."""
    committed: dict[int, list[float]] = {}
    decided: dict[int, list[events.RoundCommitted]] = {}
    for peer in swarm.peers():
        trained: dict[int, float] = {}
        begins = 0.0
        for event in read_journal(peer.journal):
            if isinstance(event, events.Trained):
                trained[event.round] = _seconds(event.time)
            elif isinstance(event, events.RoundCommitted):
                decided.setdefault(event.round, []).append(event)
                if event.round in trained:  # with staleness 1 perhaps before the round began
                    moment = max(trained[event.round], begins)
                    committed.setdefault(event.round, []).append(moment)
                begins = _seconds(event.time)
    numbers = [n for n in range(2, rounds + 1) if n in committed and n in decided]
    agreement = [
        max(_seconds(event.time) for event in decided[n]) - max(committed[n]) for n in numbers
    ]
    phases = {
        phase: statistics.median(getattr(e, phase) for n in numbers for e in decided[n])
        for phase in PHASES
    }
    return {
        "rounds": len(numbers),
        "agreement_seconds_median": round(statistics.median(agreement), 3),
        "agreement_seconds_max": round(max(agreement), 3),
        **{phase: round(value, 3) for phase, value in phases.items()},
    }


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        swarm, peak = run(arguments.peers, arguments.rounds, arguments.staleness, Path(directory))
        found = measure(swarm, arguments.rounds)
    found |= {
        "peers": arguments.peers,
        "peak_memory_gigabytes": round(peak / 1e9, 2),
        "cores": psutil.cpu_count(),
        "machine": platform.machine(),
    }
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<26} {value}")


if __name__ == "__main__":
    main()
