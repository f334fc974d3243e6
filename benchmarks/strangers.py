"""Let strangers do their worst to a training swarm: does it slow down, and what do they cost?

Seven real peers train on loopback. A process with the lowest priority, which holds no member's
key, attacks them from hundreds of loopback addresses (so that limits an address do not help), one
way after the other:

    silent          1,000 connections that say nothing
    half            1,000 that stop in the middle of the handshake
    garbage         bytes that are no handshake
    wrong-key       a certificate of the network over a key of another kind
    oversize        frames that claim to be two gigabytes long
    junk            50 fresh keys that greet, and then send validly signed votes as fast as they can
    slow-reader     fresh keys that ask for the genesis, addresses and files, and read nothing

Counted: the rounds' time under the worst of the attacks beside that before them, the memory that
all strangers together cost a peer at worst, and what is left of it afterwards, in memory and in
descriptors. A young peer grows by itself as well, so what is left in memory is how much more the
most attacked one has grown than the others, whom one in 28 connections goes to; all are told.

A step of training sleeps for most of its time (`trial_swarm.SlowSteps`), so that it is the peers
that are measured and not who gets the two cores.

    python benchmarks/strangers.py [--quick] [--json]
"""

import asyncio
import contextlib
import multiprocessing
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trial_swarm import Folder, SlowSteps, TrialSwarm, arguments, note, report, toy

from peerformer import events
from peerformer.node.certificate import (
    issue_leaf,
    load_identity,
    network_authority,
    tls_contexts,
)
from peerformer.node.process import run_loop
from peerformer.node.transfer import REQUEST
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.messages import (
    PROTOCOL_VERSION,
    AskPeers,
    Commit,
    Hello,
    Prepare,
    Said,
    pack,
    sign,
)
from peerformer.protocol.newcomer_packets import AskGenesis

PEERS = 7
MANY, KEYS = 1_000, 50
STEP_SECONDS = 0.25
CALM_ROUNDS_MIN = 3
GROWTH_MAX = 0.2
STRANGERS_BYTES_MAX = 128 << 20  # what all strangers together may cost a peer, stated in the docs
LEFT_BYTES_MAX = 16 << 20  # a peer's own memory breathes by that much
LEFT_DESCRIPTORS_MAX = 4
STALLED_ROUNDS = 10  # an attack that lasts so many and in which none is decided
STEADY_SAMPLES = 20  # connections for contributions come and go each round: the fewest count
CALM_SECONDS, CALM_SECONDS_QUICK = 60.0, 6.0
ATTACK_SECONDS, ATTACK_SECONDS_QUICK = 40.0, 3.0
# A peer gives memory back every half minute, and later where that took long the last time.
REST_SECONDS, REST_SECONDS_QUICK = 90.0, 8.0
SAMPLE_SECONDS = 0.25
JUNK_PREPARED = 200  # votes that each key signs beforehand and sends again and again


# --- the strangers --------------------------------------------------------------------------------


@dataclass(slots=True)
class Stranger:
    """The means of an attack: where the peers are, and what is known of their swarm."""

    targets: list[tuple[str, int]]
    genesis: Genesis
    random: Random = field(default_factory=lambda: Random(7))
    held: list[Any] = field(default_factory=list)

    def somewhere(self) -> tuple[str, int]:
        """Return one of a few hundred loopback addresses."""
        return f"127.{self.random.randint(1, 5)}.{self.random.randint(0, 99)}.1", 0

    def target(self, number: int) -> tuple[str, int]:
        """Return whom the so-manieth connection is for: most are for one peer."""
        return self.targets[0] if number % 4 else self.random.choice(self.targets)

    async def tcp(self, number: int) -> socket.socket:
        """Connect without a word."""
        one = socket.socket()
        one.setblocking(False)
        one.bind(self.somewhere())
        await asyncio.get_running_loop().sock_connect(one, self.target(number))
        self.held.append(one)
        return one

    async def tls(
        self, number: int, context: ssl.SSLContext
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect with a key."""
        host, port = self.target(number)
        both = await asyncio.open_connection(
            host, port, ssl=context, server_hostname="peerformer", local_addr=self.somewhere()
        )
        self.held.append(both[1])
        return both

    async def acquainted(
        self, number: int, kind: bytes = b"M"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect with a fresh key and be accepted."""
        key = Ed25519PrivateKey.generate()
        reader, writer = await self.tls(number, tls_contexts(key)[1])
        writer.write(kind)
        await reader.readexactly(1)
        return reader, writer


async def silent(stranger: Stranger, number: int) -> None:
    """Say nothing."""
    await stranger.tcp(number)
    await asyncio.sleep(3_600)


async def half(stranger: Stranger, number: int) -> None:
    """Begin a handshake and leave it there."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls = context.wrap_bio(incoming, outgoing, server_hostname="peerformer")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    one = await stranger.tcp(number)
    cut = len(hello) if number % 2 else len(hello) // 2
    await asyncio.get_running_loop().sock_sendall(one, hello[:cut])
    await asyncio.sleep(3_600)


async def garbage(stranger: Stranger, number: int) -> None:
    """Send noise."""
    one = await stranger.tcp(number)
    await asyncio.get_running_loop().sock_sendall(one, stranger.random.randbytes(65_536))


async def wrong_key(stranger: Stranger, number: int) -> None:
    """Show a leaf of the network over a key of another kind."""
    key = ec.generate_private_key(ec.SECP256R1())
    context = tls_contexts(Ed25519PrivateKey.generate())[1]
    load_identity(context, key, issue_leaf(network_authority(), key.public_key()))  # type: ignore[arg-type]
    reader, writer = await stranger.tls(number, context)
    writer.write(b"M")
    await reader.read(1)


async def oversize(stranger: Stranger, number: int) -> None:
    """Announce a frame of two gigabytes, and begin to send it."""
    reader, writer = await stranger.acquainted(number)
    writer.write((2**31).to_bytes(4, "little") + bytes(65_536))
    await reader.read()


async def junk(stranger: Stranger, number: int) -> None:
    """Greet, then send votes that are signed and nobody's, as fast as they are taken."""
    keys = KeyPair.from_seed(stranger.random.randbytes(32))
    chain_id = stranger.genesis.chain_id
    reader, writer = await stranger.tls(number, tls_contexts(keys.private_key)[1])
    writer.write(b"M")
    await reader.readexactly(1)
    frames = [framed(pack(Hello(PROTOCOL_VERSION, chain_id, 0, None)))]
    for index in range(JUNK_PREPARED):
        kind = Prepare if index % 2 else Commit
        vote = kind(index // 4 + 1, index % 4, stranger.random.randbytes(32))
        frames.append(framed(pack(Said(sign(keys, chain_id, vote)))))
    reading = asyncio.ensure_future(reader.read())
    while not reading.done():
        for frame in frames:
            writer.write(frame)
        await writer.drain()
        await asyncio.sleep(0.01)


async def slow_reader(stranger: Stranger, number: int) -> None:
    """Ask for a great deal, and read nothing."""
    genesis, blobs = stranger.genesis, number % 2
    reader, writer = await stranger.acquainted(number, b"B" if blobs else b"M")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    hello = framed(pack(Hello(PROTOCOL_VERSION, genesis.chain_id, 0, None)))
    files = ((genesis.tokenizer_hash, genesis.tokenizer_size),)
    for _ in range(2_000):
        if blobs:
            writer.write(b"".join(REQUEST.pack(key, 0, size, True) for key, size in files))
        else:
            writer.write(hello + framed(pack(AskGenesis(0))) + framed(pack(AskPeers(32))))
        await writer.drain()
        await asyncio.sleep(0.01)


def framed(data: bytes) -> bytes:
    """Return a frame."""
    return len(data).to_bytes(4, "little") + data


Attack = Callable[[Stranger, int], Awaitable[None]]
ATTACKS: dict[str, tuple[Attack, int]] = {  # and how many at a time
    "silent": (silent, MANY),
    "half": (half, MANY),
    "garbage": (garbage, 100),
    "wrong-key": (wrong_key, 50),
    "oversize": (oversize, 50),
    "junk": (junk, KEYS),
    "slow-reader": (slow_reader, KEYS),
}


def attack(name: str, targets: list[tuple[str, int]], genesis: bytes, seconds: float) -> None:
    """Attack for so long, with as many at a time as the attack has; in a process of its own."""
    os.nice(19)
    act, count = ATTACKS[name]
    stranger = Stranger(targets, Genesis.from_bytes(genesis))

    async def again(number: int) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, ssl.SSLError, TimeoutError):
                await asyncio.sleep(number / count)  # not all in one moment: that is one's own load
                await act(stranger, number)
            await asyncio.sleep(0.2)

    async def all_at_it() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        tasks = [asyncio.ensure_future(again(number)) for number in range(count)]
        await asyncio.wait(tasks, timeout=seconds)
        os._exit(0)

    run_loop(all_at_it())


# --- what they cost -------------------------------------------------------------------------------


class Meter:
    """Memory and descriptors of some processes, looked at all the time."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._stopping = threading.Event()
        self.peaks = [0] * len(pids)
        self.descriptors = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            with contextlib.suppress(psutil.Error):
                self.peaks = list(map(max, self.peaks, self.memory()))
                self.descriptors = max(self.descriptors, *self.open())

    def memory(self) -> list[int]:
        """Resident bytes of each now."""
        return [process.memory_info().rss for process in self._processes]

    def open(self) -> list[int]:
        """Descriptors of each now."""
        return [process.num_fds() for process in self._processes]

    def open_at_least(self) -> list[int]:
        """Descriptors that each has open all the while."""
        fewest = self.open()
        for _ in range(STEADY_SAMPLES):
            time.sleep(SAMPLE_SECONDS)
            fewest = list(map(min, fewest, self.open()))
        return fewest

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()


def round_seconds(trial: TrialSwarm, start: float, end: float) -> list[float]:
    """Return the time of each round that a peer began and ended between two moments."""
    found = []
    for name in trial.names:
        for event in trial.events_of(name, events.RoundCommitted):
            moment = datetime.fromisoformat(event.time).timestamp()
            if start <= moment - event.seconds and moment <= end:
                found.append(event.seconds)
    return found


def hold(name: str, targets: list[tuple[str, int]], genesis: Genesis, seconds: float) -> None:
    """Attack for so long."""
    context = multiprocessing.get_context("fork")
    words = (name, targets, genesis.to_bytes(), seconds)
    process = context.Process(target=attack, args=words, daemon=True)
    process.start()
    process.join(seconds + 20)
    process.kill()
    process.join()


def run(directory: Path, calm: float, seconds: float, rest: float) -> dict[str, Any]:
    """Run the trial; returns its figures."""
    steps = SlowSteps(STEP_SECONDS)
    trial = TrialSwarm.found(directory / "swarm", toy(PEERS), attach=steps)
    genesis = trial.swarm.genesis()
    try:
        trial.start(*trial.names)
        if not trial.reach(3, seconds=60):
            raise TimeoutError(f"the swarm did not begin: {trial.rounds()}")
        targets = [("127.0.0.1", trial.options[name].port) for name in trial.names]
        meter = Meter([trial.pid(name) for name in trial.names])
        began, first = time.time(), min(trial.rounds())
        time.sleep(calm)
        trial.reach(first + CALM_ROUNDS_MIN, seconds=60)  # on a loaded machine there may be none
        before, open_before = meter.memory(), meter.open_at_least()
        attacked, by_attack = time.time(), dict[str, list[float]]()
        for name in ATTACKS:
            since = time.time()
            hold(name, targets, genesis, seconds)
            by_attack[name] = round_seconds(trial, since, time.time())
            grown = max(map(int.__sub__, meter.memory(), before))
            note(f"{name}: {grown / 1e6:.0f} MB more")
        ended = time.time()
        peak = max(map(int.__sub__, meter.peaks, before))
        time.sleep(rest)
        left = list(map(int.__sub__, meter.memory(), before))
        left_open = max(map(int.__sub__, meter.open_at_least(), open_before))
        meter.stop()
        alive = sum(map(trial.alive, trial.names))
    finally:
        trial.stop()
    calm_rounds, rounds = (
        round_seconds(trial, began, attacked),
        round_seconds(trial, attacked, ended),
    )
    usual = median(calm_rounds) if calm_rounds else 0.0
    stalled = seconds > STALLED_ROUNDS * usual and not all(by_attack.values())
    slowest = float("inf") if stalled else max(median(t) for t in by_attack.values() if t)
    return {
        "peers": PEERS,
        "peers_alive": alive,
        "round_seconds": round(usual, 3),
        "round_seconds_attacked": round(slowest, 3),
        "growth": round(slowest / usual - 1, 3) if usual else float("inf"),
        "round_seconds_by_attack": {n: round(median(t), 2) for n, t in by_attack.items() if t},
        "rounds_measured": [len(calm_rounds) // PEERS, len(rounds) // PEERS],
        "strangers_bytes_max": peak,
        "strangers_bytes_allowed": STRANGERS_BYTES_MAX,
        "bytes_left": left[0] - round(median(left[1:])),
        "bytes_left_by_peer": left,
        "descriptors_max": meter.descriptors,
        "descriptors_left": left_open,
        "unhandled_exceptions": len(trial.faults_in_logs()),
    }


def main() -> int:
    """Run and report."""
    parser = arguments(__doc__)
    given = parser.parse_args()
    calm, seconds, rest = (
        (CALM_SECONDS_QUICK, ATTACK_SECONDS_QUICK, REST_SECONDS_QUICK)
        if given.quick
        else (CALM_SECONDS, ATTACK_SECONDS, REST_SECONDS)
    )
    with Folder(given.keep) as directory:
        found = run(directory, calm, seconds, rest)
    passed = (
        found["growth"] <= GROWTH_MAX
        and found["strangers_bytes_max"] <= STRANGERS_BYTES_MAX
        and found["bytes_left"] <= LEFT_BYTES_MAX
        and found["descriptors_left"] <= LEFT_DESCRIPTORS_MAX
        and found["peers_alive"] == PEERS
        and not found["unhandled_exceptions"]
    )
    return report(found, passed=passed, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
