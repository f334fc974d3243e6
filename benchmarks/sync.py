"""Let a newcomer fetch the agreed state from sources of which f lie: how fast is it at the tip?

*Over a line*: seven real peers train, each in a network namespace behind a line of 50 Mbit/s and
50 ms (`slow_network.py`); two of them serve false chunks. A newcomer with an empty disk starts
behind such a line. Its rate is the bytes of the state over the time from its start, greetings and
headers included, until it holds the state of the tip; against what the line carries.

*Over loopback*: the state of a model of 124 M parameters (992 MB), served by four processes of
which one lies, fetched, checked and installed by a fifth. Its time is that of all of this.

    python benchmarks/sync.py [--quick] [--json]
"""

import asyncio
import mmap
import multiprocessing
import os
import shutil
import sys
import time
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from slow_network import PORT, SlowNetwork, need_namespaces
from trial_swarm import Folder, SlowSteps, TrialSwarm, arguments, lie_about_states, note, report

from peerformer import events
from peerformer.bench import ServedState
from peerformer.config import Config
from peerformer.gradients.fixed_point import AgreedState, parameters_of
from peerformer.node.assemble import StateServer
from peerformer.node.blobs import BlobStore
from peerformer.node.fetching import Fetcher
from peerformer.node.process import run_loop
from peerformer.node.room import Room
from peerformer.node.syncing import KeptChunks
from peerformer.node.transport import Transport
from peerformer.protocol.effects import FetchState
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import tolerated_faults
from peerformer.protocol.merkle import MerkleTree
from peerformer.settings import resolve

PEERS = 7
MEGABITS, DELAY_SECONDS = 50.0, 0.05
RATE_SHARE_MIN = 0.7
LOOPBACK_SECONDS_MAX = 20.0
SOURCES = 4
PARAMETERS, PARAMETERS_QUICK = 124_000_000, 31_000_000

WIDTH, WIDTH_QUICK = 576, 320  # of the models on lines: states of some 130 and 40 MB
STEP_SECONDS = 10.0  # a round must last longer than a fetch: what is fetched is the tip
ARRIVAL_SECONDS_MAX = 240.0


# --- over a line ----------------------------------------------------------------------------------


def config(width: int) -> Config:
    """Return settings of a model whose state is large and whose steps are cheap."""
    return resolve(
        size="nano",
        overrides={
            "model.hidden_size": width,
            "model.intermediate_size": 3 * width,
            "model.num_layers": 3,
            "model.num_heads": 4,
            "model.num_kv_heads": 4,
            "model.head_dim": width // 4,
            "model.max_positions": 32,
            "data.path": "synthetic:1",
            "data.vocab_size": 300,
            "training.sequence_length": 32,
            "training.batch_size": 1,
            "optimizer.name": "adamw",
            "swarm.peers": PEERS,
            "swarm.inner_steps": 4,
            "swarm.codec": "sparse-2bit",
            "swarm.rule": "mean",
            "swarm.joins_per_voucher": 0,
        },
    ).config


def over_a_line(directory: Path, width: int) -> dict[str, Any]:
    """Let a newcomer come to a training swarm; returns its rate."""
    lines = SlowNetwork(PEERS + 1, megabits=MEGABITS, delay_seconds=DELAY_SECONDS)
    with lines as network:
        steps = SlowSteps(STEP_SECONDS)
        trial = TrialSwarm.found(directory / "swarm", config(width), attach=steps)
        network.place(trial)
        liars = trial.names[: tolerated_faults(PEERS)]
        for name in liars:
            trial.tell(name, lies="states")
        late: TrialSwarm | None = None
        try:
            trial.start(*trial.names)
            if not trial.reach(1, seconds=ARRIVAL_SECONDS_MAX):
                raise TimeoutError(f"the swarm did not begin: {trial.rounds()}")
            late = newcomer_beside(trial, directory / "newcomer")
            name = late.names[0]
            late.tell(name, namespace=network.names[-1])
            late.place(name, host=network.addresses[-1], port=PORT)
            network.counted()
            late.start(name)
            known = trial.supervisor.children[liars[0]]  # the worst to begin with
            late.supervisor.order(name, "bootstrap", known.address, known.peer_id)
            if not late.reach(1, seconds=ARRIVAL_SECONDS_MAX):
                raise TimeoutError("the newcomer never held the state")
            _, received, _ = network.counted()
        finally:
            trial.stop()
            if late is not None:
                late.stop()
        fetched = late.events_of(name, events.SyncFinished)[0]
        started = late.events_of(name, events.NodeStarted)[0]
        lies = {event.name for event in late.events_of(name, events.Misbehaved)}
        seconds = _at(fetched) - _at(started)
        rate = fetched.bytes / seconds
        return {
            "megabits": MEGABITS,
            "state_bytes": fetched.bytes,
            "sources": PEERS,
            "sources_lying": len(liars),
            "liars_noticed": len(lies),
            "honest_accused": len(lies - set(liars)),
            "seconds": round(seconds, 2),
            "bytes_received": received[-1],
            "share_of_line": round(rate * 8 / (MEGABITS * 1e6), 3),
            "unhandled_exceptions": len(trial.faults_in_logs() + late.faults_in_logs()),
        }


def newcomer_beside(trial: TrialSwarm, directory: Path) -> TrialSwarm:
    """Return a peer on a disk of its own that has what a ticket leads to, and no state."""
    shutil.copytree(
        trial.swarm.path, directory, ignore=shutil.ignore_patterns("peers", "state-0.bin", "trial*")
    )
    late = TrialSwarm(directory)
    late.new_peer()
    return late


def _at(event: Any) -> float:
    return datetime.fromisoformat(event.time).timestamp()


# --- over loopback --------------------------------------------------------------------------------


def serve(
    served: ServedState, seed: bytes, directory: Path, *, lies: bool, end: Connection
) -> None:
    """Serve a state until the pipe closes; in a process of its own."""
    if lies:
        lie_about_states()

    async def story() -> None:
        transport = Transport(seed)
        transport.store = BlobStore(directory, bytes_max=1 << 20)
        transport.may_fetch = lambda _: True
        StateServer(transport.store).serve(served)
        host, port = await transport.listen("127.0.0.1", 0, lambda _: None)
        end.send(f"{host}:{port}")
        await asyncio.to_thread(end.poll, None)
        os._exit(0)

    run_loop(story())


async def fetch(
    addresses: dict[bytes, str], root: bytes, size: int, directory: Path
) -> tuple[float, float, int]:
    """Fetch and install a state; returns the seconds of the fetch, of all, and the lies seen."""
    transport, lies = Transport(b"\x09" * 32), []
    store = BlobStore(directory, bytes_max=1 << 20)
    fetcher = Fetcher(
        transport, store, bytes(32), lambda peer: (addresses[peer],), lambda *lie: lies.append(lie)
    )
    began = time.monotonic()
    work, in_memory = FetchState(1, root, size, tuple(addresses)), KeptChunks(None, Room())
    data = await fetcher.state(work, in_memory, lambda _: None)
    fetched = time.monotonic()
    assert data is not None, "no source gave the state"
    installed = ServedState.of(1, AgreedState.from_bytes(data, parameters_of(size)))
    assert installed.tree.root == root
    ended = time.monotonic()
    await transport.close()
    return fetched - began, ended - began, len(lies)


def over_loopback(directory: Path, parameters: int) -> dict[str, Any]:
    """Fetch a large state from four local sources, one of which lies."""
    import torch

    generator = torch.Generator().manual_seed(1)
    theta_P = torch.randint(-(2**20), 2**20, (parameters,), dtype=torch.int32, generator=generator)
    path = directory / "state"
    path.write_bytes(AgreedState(theta_P, torch.zeros_like(theta_P), ()).to_bytes())
    size = path.stat().st_size
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    tree = MerkleTree(size, lambda start, end: bytes(view[start:end]))
    served = ServedState(1, view, tree)  # type: ignore[arg-type]
    context = multiprocessing.get_context("fork")
    addresses, processes, ends = {}, [], []
    try:
        for index in range(SOURCES):
            ours, theirs = context.Pipe()
            seed, place = bytes([index + 1]) * 32, directory / f"source-{index}"
            words = {"lies": index < tolerated_faults(SOURCES), "end": theirs}
            process = context.Process(
                target=serve, args=(served, seed, place), kwargs=words, daemon=True
            )
            process.start()
            processes.append(process)
            ends.append(ours)
            addresses[KeyPair.from_seed(seed).peer_id] = ours.recv()
        note(f"a state of {size / 1e6:.0f} MB is served by {SOURCES}")
        fetching, seconds, lies = run_loop(fetch(addresses, tree.root, size, directory / "mine"))
    finally:
        for process in processes:
            process.kill()
            process.join()
    return {
        "parameters": parameters,
        "state_bytes": size,
        "sources": SOURCES,
        "sources_lying": tolerated_faults(SOURCES),
        "lies_noticed": lies,
        "fetch_seconds": round(fetching, 2),
        "seconds": round(seconds, 2),
        "megabytes_a_second": round(size / fetching / 1e6),
        "memory_bytes_max": psutil.Process().memory_info().rss,
    }


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    parser.add_argument("--parameters", type=int, help=f"over loopback: {PARAMETERS}")
    given = parser.parse_args()
    need_namespaces()
    parameters = given.parameters or (PARAMETERS_QUICK if given.quick else PARAMETERS)
    with Folder(given.keep) as directory:
        loopback = over_loopback(directory, parameters)
        note(str(loopback))
        line = over_a_line(directory, WIDTH_QUICK if given.quick else WIDTH)
    allowed = LOOPBACK_SECONDS_MAX * parameters / PARAMETERS
    passed = (
        line["share_of_line"] >= RATE_SHARE_MIN
        and line["liars_noticed"] > 0
        and not line["honest_accused"]
        and not line["unhandled_exceptions"]
        and loopback["seconds"] <= allowed
        and loopback["lies_noticed"] > 0
    )
    found = {"share_of_line_needed": RATE_SHARE_MIN, "loopback_seconds_allowed": round(allowed, 1)}
    return report({"line": line, "loopback": loopback, **found}, passed=passed, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
