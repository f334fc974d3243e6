"""Run 64 real nodes on this machine, several to a process, and tell what each of them takes.

Every node is the product's own: its key, store, TLS connections to all others, tensor thread. Only
the processes are fewer, since torch alone takes 200 MB in each. Told are memory and processor
time a node and round, and the round's time, which on two cores is what 64 nodes compute one after
the other.

    python benchmarks/nodes.py [--quick] [--nodes 64] [--rounds 20] [--processes 4] [--json]
"""

import asyncio
import logging
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from trial_records import compare_chains
from trial_swarm import Folder, TrialSwarm, arguments, note, report, toy

from peerformer import events
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.process import Running, run_loop
from peerformer.node.worker import leave_operators_to_the_bench

NODES, NODES_QUICK = 64, 16
ROUNDS, ROUNDS_QUICK = 20, 3
PROCESSES = 4
SECONDS_MAX = 3_600.0


def be_nodes(swarm: Path, names: list[str], control: Connection) -> None:
    """Be several peers in one event loop, until the pipe closes."""
    logging.basicConfig(filename=swarm / f"{names[0]}.log", level=logging.INFO, force=True)
    leave_operators_to_the_bench()

    async def story() -> None:
        directory = SwarmDirectory(swarm)
        options = PeerOptions(threads=1, validates=False)
        peers = [Running(directory, directory.peer(name).make(), options) for name in names]
        control.send([(await peer.start(), peer.peer.machine.me) for peer in peers])
        address, key = await asyncio.to_thread(control.recv)
        for peer in peers:
            if peer.peer.machine.me != key:
                peer.node.spawn(peer.bootstrap(address, key))
        stopped = asyncio.ensure_future(asyncio.to_thread(control.poll, None))
        ends = [asyncio.ensure_future(peer.run_until_stopped()) for peer in peers]
        await asyncio.wait([stopped, *ends], return_when=asyncio.FIRST_COMPLETED)
        for peer in peers:
            peer.node.stop("stopped")
        await asyncio.gather(*ends, return_exceptions=True)

    try:
        run_loop(story())
    except BaseException:
        logging.getLogger("peerformer.node").exception("the nodes failed")
        raise


def start(trial: TrialSwarm, processes: int) -> tuple[list[Any], list[Connection]]:
    """Start all nodes, shared out among processes, and introduce them to the first."""
    context = multiprocessing.get_context("forkserver")
    started, ends = [], []
    for index in range(processes):
        ours, theirs = context.Pipe()
        names = trial.names[index::processes]
        process = context.Process(
            target=be_nodes, args=(trial.swarm.path, names, theirs), daemon=True
        )
        process.start()
        theirs.close()
        started.append(process)
        ends.append(ours)
    places = [end.recv() for end in ends]
    for end in ends:
        end.send(places[0][0])
    return started, ends


def run(directory: Path, *, nodes: int, rounds: int, processes: int) -> dict[str, Any]:
    """Run the trial; returns its figures."""
    trial = TrialSwarm.found(directory / "swarm", toy(nodes))
    note(f"founded with {nodes} voters")
    started, ends = start(trial, processes)
    began, shown = time.monotonic(), 0
    memory, processor = 0, 0.0
    base = _memory(started)
    try:
        while min(trial.rounds()) < rounds and all(p.is_alive() for p in started):
            if time.monotonic() - began > SECONDS_MAX:
                break
            if min(trial.rounds()) > shown:
                shown = min(trial.rounds())
                note(f"round {shown} after {time.monotonic() - began:.0f} s")
            memory = max(memory, _memory(started))
            time.sleep(1)
        took = time.monotonic() - began
        reached = min(trial.rounds())
        for process in started:
            times = psutil.Process(process.pid).cpu_times()
            processor += times.user + times.system
    finally:
        for end in ends:
            end.close()
        for process in started:
            process.join(60)
            process.kill()
    decided = compare_chains(trial, trial.names)
    seconds = [e.seconds for e in trial.events_of(trial.names[0], events.RoundCommitted)]
    logs = [path.read_text() for path in trial.swarm.path.glob("*.log")]
    return {
        "nodes": nodes,
        "processes": processes,
        "rounds": reached,
        "seconds": round(took, 1),
        "round_seconds": round(median(seconds), 2) if seconds else None,
        "memory_bytes_a_node": memory // nodes,
        "memory_bytes_a_node_at_start": base // nodes,
        "processor_seconds_a_node_and_round": round(processor / nodes / max(1, reached), 3),
        "forks": len(decided.forks),
        "lost_certified_rounds": len(decided.lost),
        "state_roots_unequal": len(decided.unequal),
        "unhandled_exceptions": sum(text.count("Traceback") for text in logs),
    }


def _memory(processes: list[Any]) -> int:
    """Return the memory of some processes; what they share counts once."""
    return sum(psutil.Process(process.pid).memory_full_info().pss for process in processes)


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    parser.add_argument("--nodes", type=int, help=f"{NODES}; with --quick {NODES_QUICK}")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}; with --quick {ROUNDS_QUICK}")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    given = parser.parse_args()
    nodes = given.nodes or (NODES_QUICK if given.quick else NODES)
    rounds = given.rounds or (ROUNDS_QUICK if given.quick else ROUNDS)
    with Folder(given.keep) as directory:
        found = run(directory, nodes=nodes, rounds=rounds, processes=given.processes)
    broken = ("forks", "lost_certified_rounds", "state_roots_unequal", "unhandled_exceptions")
    passed = found["rounds"] >= rounds and not any(found[name] for name in broken)
    return report(found, passed=passed, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
