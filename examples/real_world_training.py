"""Train on your own files with other machines, or watch a swarm survive what may happen to it.

    python examples/real_world_training.py --mode bootstrap --data-path ~/texts --epochs 2
    python examples/real_world_training.py --mode worker --bootstrap 192.0.2.7:8888 --epochs 2
    python examples/real_world_training.py --fault-demo

The first founds a swarm, the second joins it, also from another machine (the first then needs
`--host 0.0.0.0`); each trains until it has seen as much text as `--data-path` holds, so many times.
Text, JSON, CSV, Parquet, HTML, code and what else `peerformer data look` reads is read; without a
folder stories are made up. A model is saved now and then, and the same command goes on where it
stopped. `--fault-demo` starts peers of its own on this machine, kills one, cuts a part of them off,
lets one lie, and shows how the rest recover.
"""

import argparse
import asyncio
import logging
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peerformer import events
from peerformer.config import DataConfig
from peerformer.errors import PeerformerError, SwarmError
from peerformer.interface.words import words_of
from peerformer.journal import read_journal
from peerformer.node import founding
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.joining import fetch_swarm
from peerformer.node.keyring import load_or_create_key
from peerformer.node.logs import log_to
from peerformer.node.overview import overview
from peerformer.node.process import Running, run_loop
from peerformer.node.supervisor import Supervisor
from peerformer.protocol.membership import tolerated_faults
from peerformer.settings import resolve

SYNTHETIC = "synthetic:1"
CHECKPOINT_SECONDS = 300.0
DEMO_SECONDS_MAX = 600.0  # of one scene


def data_path(given: Path | None) -> str:
    """Return what to read: the folder or file if there is anything in it, else made-up stories."""
    if given is not None and given.exists():
        files = [given] if given.is_file() else [p for p in given.rglob("*") if p.is_file()]
        kinds = Counter(path.suffix or "no suffix" for path in files)
        if files:
            print("files      ", ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(12)))
            return str(given)
    print("files       none; made-up stories instead (--data-path FOLDER)")
    return SYNTHETIC


def configured(arguments: argparse.Namespace, **more: Any) -> Any:
    """Return the settings of a new swarm."""
    settings = dict(setting.split("=", 1) for setting in arguments.set)
    overrides = {"data.path": data_path(arguments.data_path), **settings, **more}
    return resolve(size=arguments.size, overrides=overrides).config


# --- one peer ------------------------------------------------------------------------------------


async def run_peer(arguments: argparse.Namespace, swarm: SwarmDirectory, own: str | None) -> int:
    """Run one peer until it has trained for all its epochs; returns how many rounds that took."""
    data = DataConfig(path=own) if own else None
    options = PeerOptions(arguments.host, arguments.port, threads=arguments.threads, data=data)
    running = Running(swarm, swarm.peer("me"), options)
    address = await running.start()
    print(f"listening   {address}   others: --mode worker --bootstrap {address}")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.leave)
    if arguments.bootstrap:
        running.node.spawn(running.bootstrap(arguments.bootstrap, None))
    replica = running.parts.bench.replica
    training, inner_steps = replica.config.training, replica.config.swarm.inner_steps
    tokens_a_round = inner_steps * training.batch_size * training.sequence_length
    tokens = replica.text.shards.num_tokens
    rounds = max(1, math.ceil(arguments.epochs * tokens / tokens_a_round))
    print(f"epochs      {arguments.epochs} of {tokens} tokens: {rounds} rounds of {tokens_a_round}")
    watch = Progress(running, rounds, time.monotonic())
    running.on_event = watch.on_event
    try:
        await running.run_until_stopped()
    except PeerformerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


class Progress:
    """Shows how training goes, saves the model now and then, and ends it after its rounds."""

    def __init__(self, running: Running, rounds: int, now: float) -> None:
        self.running, self.rounds = running, rounds
        self.saved_at = self.began = now
        self.first: int | None = None

    def on_event(self, event: events.Event) -> None:
        """Take in what happens, on the event loop."""
        if isinstance(event, events.RoundCommitted):
            self.on_round(event)
        elif not isinstance(event, events.ChunkFetched):
            words = words_of(event)
            if words is not None:
                print(words, flush=True)

    def on_round(self, event: events.RoundCommitted) -> None:
        """Show a line; save, or end."""
        status = self.running.status()
        mine = [row for row in status["members"] if row["peer_id"] == status["peer_id"]]
        done = mine[0]["contributed"] if mine else 0
        self.first = done if self.first is None else self.first
        seconds = (time.monotonic() - self.began) / max(1, done - self.first)
        left = max(0, self.rounds - done) * seconds
        bits = list(status["bits_per_byte"].values())
        learned = f"{bits[-1]:.3f} bits per byte" if bits else "–"
        loss = "–" if status["loss"] is None else f"{status['loss']:.3f}"
        cells = 20 * min(done, self.rounds) // self.rounds
        bar = "█" * cells + "░" * (20 - cells)
        print(
            f"round {event.round:4d}  {bar} {done}/{self.rounds}  loss {loss}  {learned}  "
            f"{event.accepted}/{event.contributions} accepted  left {left:.0f} s",
            flush=True,
        )
        is_over = done >= self.rounds
        if is_over or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
            self.saved_at = time.monotonic()
            self.running.node.worker.submit(self.save)
        if is_over and not self.running.leaving:
            self.running.node.worker.submit(
                lambda: self.running.node.loop.call_soon_threadsafe(self.end)
            )

    def save(self) -> None:
        """Save the agreed model; on the worker's thread."""
        print(f"saved       {self.running.save_checkpoint()}", flush=True)

    def end(self) -> None:
        """Leave, once."""
        if not self.running.leaving:
            self.running.leave()


def bootstrap(arguments: argparse.Namespace) -> int:
    """Found a swarm, or go on with the one founded before."""
    swarm = SwarmDirectory(Path("runs") / (arguments.run or f"node-{arguments.port}"))
    key = load_or_create_key(swarm.peer("me").make().key)
    if swarm.genesis_file.exists():
        print(f"resumed     {swarm.path}")
    else:
        founding.found(swarm, configured(arguments, **{"swarm.peers": 1}), [key], print)
        print(f"founded     {swarm.path}")
    return run_logged(arguments, swarm, None)


def worker(arguments: argparse.Namespace) -> int:
    """Join a swarm by an address."""
    if not arguments.bootstrap:
        raise SwarmError("a worker needs a peer to begin with", hint="--bootstrap HOST:PORT")
    swarm = SwarmDirectory(Path("runs") / (arguments.run or f"node-{arguments.port}"))
    key = load_or_create_key(swarm.peer("me").make().key)
    if not swarm.genesis_file.exists():
        run_loop(fetch_swarm(swarm, key, arguments.bootstrap, print))
    return run_logged(arguments, swarm, data_path(arguments.data_path))


def run_logged(arguments: argparse.Namespace, swarm: SwarmDirectory, own: str | None) -> int:
    """Run a peer with its log in its directory."""
    log_to(swarm.peer("me").log)
    code = run_loop(run_peer(arguments, swarm, own))
    print(f"go on with  the same command; use it: peerformer generate --from {swarm.path.name}")
    return int(code)


# --- what may happen to a swarm -------------------------------------------------------------------


class Demo:
    """Peers of its own, and what is done to them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.names = sorted(directory.name for directory in supervisor.swarm.peers())

    def now(self) -> dict[str, dict[str, Any]]:
        """Return the peers' rows, by name."""
        return {row["name"]: row for row in overview(self.supervisor.swarm)["peers"]}

    def until(self, what: str, holds: Callable[[dict[str, dict[str, Any]]], bool]) -> float:
        """Wait for something, and say how long that took."""
        began = time.monotonic()
        while not holds(self.now()):
            if time.monotonic() - began > DEMO_SECONDS_MAX:
                raise SwarmError(f"waited in vain: {what}", where=str(self.supervisor.swarm.path))
            time.sleep(0.1)
        print(f"  {what} after {time.monotonic() - began:.1f} s", flush=True)
        return time.monotonic() - began

    def tip(self, names: list[str]) -> int:
        """Return the newest round of some peers."""
        return max(int(row["round"]) for name, row in self.now().items() if name in names)

    def further(self, names: list[str], rounds: int) -> Callable[[dict[str, Any]], bool]:
        """Return whether all of these hold the state of so many rounds more than now."""
        goal = self.tip(names) + rounds
        return lambda rows: all((rows[name]["state_round"] or 0) >= goal for name in names)

    def kill(self) -> None:
        """Kill one peer, and bring it back."""
        victim, others = self.names[-1], self.names[:-1]
        print(f"killing {victim} (SIGKILL) in the middle of its work")
        self.supervisor.kill(victim)
        self.until("the others decided two more rounds", self.further(others, 2))
        self.supervisor.await_listening([self.supervisor.start(victim)])
        self.until(f"{victim} is back and holds the state of all", self.further(self.names, 1))

    def partition(self) -> None:
        """Cut a minority off, and heal."""
        f = tolerated_faults(len(self.names))
        few, many = self.names[:f], self.names[f:]
        print(f"cutting off {', '.join(few)}")
        self.supervisor.partition(few, many)
        self.until(
            "the minority waits for a quorum, and says so",
            lambda rows: all(rows[name]["state"] == "waiting for a quorum" for name in few),
        )
        before = self.tip(few)
        self.until("the majority decided two more rounds", self.further(many, 2))
        print(f"  the minority decided {self.tip(few) - before} rounds meanwhile: nobody forks")
        self.supervisor.partition(self.names)
        self.until("healed: all hold the state of one round", self.further(self.names, 1))

    def attack(self) -> list[str]:
        """Let one vote for two headers at once; returns who is left."""
        liar, others = self.names[-1], self.names[:-1]
        print(f"{liar} begins to vote for two headers at once")
        self.supervisor.order(liar, "lie", "equivocate")
        self.until(f"{liar} is evicted", lambda rows: rows[liar]["state"] == "evicted")
        for event in read_journal(self.supervisor.swarm.peer(others[0]).journal):
            if isinstance(event, events.PeerEvicted):
                print(f"  evidence  {event.evidence}")
        self.until("the honest decided two more rounds", self.further(others, 2))
        return others

    def compare(self, honest: list[str]) -> int:
        """Compare what the honest hold; 0 if that is the same."""
        roots: dict[int, set[str]] = {}
        for name in honest:
            for event in read_journal(self.supervisor.swarm.peer(name).journal):
                if isinstance(event, events.RoundCommitted):
                    roots.setdefault(event.round, set()).add(event.state_root)
        forks = [number for number, found in sorted(roots.items()) if len(found) > 1]
        bits = overview(self.supervisor.swarm)["bits_per_byte"]
        learned = [f"{value:.3f}" for value in bits.values()]
        print(f"{len(roots)} rounds, {len(forks)} of them with more than one state")
        if learned:
            print(f"bits per byte on held-out text: {learned[0]} before, {learned[-1]} now")
        return 1 if forks else 0


def fault_demo(arguments: argparse.Namespace) -> int:
    """Start peers, do to them what may happen, and show the recovery."""
    name = arguments.run or f"fault-demo-{int(time.time())}"
    supervisor = Supervisor(SwarmDirectory(Path("runs") / name))
    more = {"swarm.peers": arguments.peers, "swarm.joins_per_voucher": 0}
    supervisor.found(configured(arguments, **more), print)
    demo = Demo(supervisor)
    try:
        first = PeerOptions(threads=1)
        others = PeerOptions(threads=1, validates=False)
        children = [
            supervisor.start(name, others if index else first)
            for index, name in enumerate(demo.names)
        ]
        supervisor.await_listening(children)
        demo.until("the first two rounds are decided", demo.further(demo.names, 2))
        demo.kill()
        demo.partition()
        honest = demo.attack()
        saved = supervisor.save_checkpoint(honest[0])
        print(f"saved       {saved}")
        return demo.compare(honest)
    finally:
        supervisor.stop()


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=("bootstrap", "worker"), default="bootstrap")
    parser.add_argument("--data-path", type=Path, help="file or folder of text, of many formats")
    parser.add_argument("--epochs", type=float, default=1.0, help="how often to see that text")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to others")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="any peer of a swarm to join")
    parser.add_argument("--run", help="name of the directory under runs/")
    parser.add_argument("--size", default="nano", help="of a new model: nano, tiny, small, …")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--fault-demo", action="store_true", help="kill, partition and attack")
    parser.add_argument("--peers", type=int, default=7, help="of --fault-demo, 4 at least")
    arguments = parser.parse_args()
    logging.captureWarnings(True)
    try:
        if arguments.epochs <= 0 or arguments.peers < 4:
            raise SwarmError("--epochs must be more than 0, and --peers 4 at least")
        if arguments.fault_demo:
            return fault_demo(arguments)
        return worker(arguments) if arguments.mode == "worker" else bootstrap(arguments)
    except PeerformerError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
