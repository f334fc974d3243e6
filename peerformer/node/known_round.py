"""One whole round on a gradient that is known beforehand: every vote told, the outcome reckoned.

A few peers of this program meet on 127.0.0.1: production peers with production nodes, over TLS,
each with a store of its own in a temporary directory, under the swarm's own limits, codec, rule
and outer step. Each contributes the same known vector, so whatever the rule, the outcome is known:
that vector, through the codec, by one outer step, which is reckoned here once more by the plain
reference in Python's own integers. Keys and genesis are drawn for the test: nothing that is signed
in it can be mixed up with the swarm, whose training it does not touch.
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from peerformer.config import Config
from peerformer.errors import SwarmError
from peerformer.gradients.compress import check, decode, encode, encoded_size
from peerformer.gradients.fixed_point import AgreedState, outer_step_reference
from peerformer.journal import Journal
from peerformer.node.blobs import BlobStore
from peerformer.node.founding import founders_of
from peerformer.node.journal import DurableStore
from peerformer.node.node import Node
from peerformer.node.transport import Transport
from peerformer.peer import Made, Peer
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.certificates import decided_fault
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.effects import (
    Applied,
    Apply,
    Audited,
    Check,
    Checked,
    Command,
    Effect,
    Event,
    Persist,
    Received,
    Repeat,
    Work,
    WorkFinished,
)
from peerformer.protocol.genesis import Genesis, Limits
from peerformer.protocol.identity import KeyPair, name_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import peers_of
from peerformer.protocol.merkle import state_root
from peerformer.protocol.messages import Commit, Contribution, Prepare, Said, unpack
from peerformer.train.agreement import next_state
from peerformer.train.outer import outer_rate_q16

PEERS = 4  # the fewest that withstand a liar
VALUES = 4_096  # of the known gradient
SECONDS_MAX = 60.0
LOCAL = "127.0.0.1"
EMPTY = bytes(32)


def known_gradient() -> Tensor:
    """Return the known vector: values from -0.01 to 0.01, each other than its neighbours."""
    return (torch.arange(VALUES) * 7_919 % 2_001 - 1_000).float() / 100_000


@dataclass(frozen=True, slots=True)
class Heard:
    """A statement as the first peer heard it, or signed it itself."""

    kind: str  # contribution, attestation, prepare or commit
    name: str
    milliseconds: float  # since the first statement of the round


@dataclass(frozen=True, slots=True)
class KnownRound:
    """What came of the test."""

    heard: tuple[Heard, ...]
    signers: tuple[str, ...]  # of the certificate
    certificate_fault: str | None
    roots: tuple[str, ...]  # of the state, peer by peer
    difference_max: int  # from the known answer, in units of the fixed point
    milliseconds: float  # until every peer holds the state
    blob_size: int
    codec: str
    rule: str

    @property
    def fault(self) -> str | None:
        """Why the round is not as it must be, or None."""
        if self.certificate_fault:
            return self.certificate_fault
        if len(set(self.roots)) > 1:
            return "the peers do not hold the same state"
        if self.difference_max:
            return f"the state is {self.difference_max} units beside the known answer"
        return None


@dataclass(slots=True)
class KnownBench:
    """A bench that contributes the known gradient, and does the rest as a swarm's does."""

    config: Config
    state: AgreedState
    round: int = 0
    computed: dict[bytes, AgreedState] = field(default_factory=dict)

    def train(self, round_number: int, seed: bytes, should_stop: Callable[[], bool]) -> Made | None:
        """Encode the known gradient, in the first round."""
        if round_number != 1:
            return None
        none_P = torch.zeros(VALUES)
        made = encode(known_gradient(), none_P, codec=self.config.swarm.codec, feedback=0.0)
        return Made(made.blob, b"", 1)

    def check(self, work: Check, blob: bytes) -> Checked:
        """Decode it."""
        try:
            check(blob, VALUES, self.config.swarm.codec)
        except ValueError as error:
            return Checked(str(error), None, malformed=True)
        return Checked(None, 0)

    def repeat(
        self, work: Repeat, blob: bytes, record: bytes, should_stop: Callable[[], bool]
    ) -> Audited:
        """Nobody is audited here."""
        return Audited(passed=None, why="there are no audits")

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> Applied | None:
        """Combine contributions as the swarm does."""
        if round_number != self.round + 1:
            return None
        state, refused = next_state(self.config, self.state, round_number, blobs, seed)
        root = state_root(state.to_bytes())
        self.computed[root] = state
        return Applied(root, refused)

    def adopt(self, round_number: int, apply: Apply | None, root: bytes, *, accepted: bool) -> bool:
        """Move to a computed state, or stay."""
        self.state = self.computed.get(root, self.state) if apply else self.state
        self.round, self.computed = round_number, {}
        return state_root(self.state.to_bytes()) == root

    def install(self, round_number: int, root: bytes, state: bytes) -> bool:
        """Take a fetched state."""
        self.state, self.round = AgreedState.from_bytes(state, VALUES), round_number
        return state_root(state) == root


class Listening:
    """A peer whose own statements, and those it hears, are noted with their time."""

    def __init__(self, peer: Peer, note: Callable[[str, bytes], None]) -> None:
        self.peer, self.note = peer, note
        self.machine, self.bench, self.blobs = peer.machine, peer.bench, peer.blobs

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Note what comes and what is signed; the peer does the rest."""
        if isinstance(event, Received):
            try:
                packet = unpack(event.frame)
            except MalformedError:
                packet = None
            if isinstance(packet, Said):
                self._note(packet.envelope.statement, packet.envelope.sender)
        before = set(self.machine.outbox.signed)
        effects = self.peer.handle(event, now)
        if any(isinstance(effect, Persist) for effect in effects):
            for key in sorted(self.machine.outbox.signed.keys() - before):
                envelope = self.machine.outbox.signed[key]
                self._note(envelope.statement, envelope.sender)
        return effects

    def _note(self, statement: object, sender: bytes) -> None:
        match statement:
            case Contribution(round=1):
                self.note("contribution", sender)
            case Attestation(round=1):
                self.note("attestation", sender)
            case Prepare(round=1):
                self.note("prepare", sender)
            case Commit(round=1):
                self.note("commit", sender)

    def perform(self, work: Work, should_stop: Callable[[], bool] = lambda: False) -> WorkFinished:
        """Do a work."""
        return self.peer.perform(work, should_stop)


def run_known_round(config: Config, limits: Limits) -> KnownRound:
    """Run the test; blocks for about a second. `config` and `limits` are the swarm's.

    Raises:
        SwarmError: if the round is not decided in time.
    """
    with tempfile.TemporaryDirectory(prefix="peerformer-test-") as directory:
        return asyncio.run(_run(config, limits, Path(directory)))


async def _run(config: Config, limits: Limits, directory: Path) -> KnownRound:
    seeds = [secrets.token_bytes(32) for _ in range(PEERS)]
    genesis, first = known_genesis(config, limits, seeds)
    heard: dict[tuple[str, bytes], float] = {}

    def note(kind: str, sender: bytes) -> None:
        heard.setdefault((kind, sender), time.monotonic())

    nodes: list[Node] = []
    benches = [KnownBench(config, first) for _ in seeds]
    try:
        for seed, bench in zip(seeds, benches, strict=True):
            listener = note if not nodes else lambda *_: None
            nodes.append(await known_node(directory, genesis, seed, bench, listener))
        await meet(nodes)
        for node in nodes:
            node.post(Command("start"))
        await _until(lambda: all(bench.round >= 1 for bench in benches), nodes)
        began, over = min(heard.values()), time.monotonic()
        chain = nodes[0].peer.machine.chain
        item = chain.item(1)
        assert item is not None
        voters = chain.past_members[1].voters
        signers = peers_of(voters, item.certificate.signers) or ()
        return KnownRound(
            tuple(
                Heard(kind, name_of(peer), 1_000 * (at - began))
                for (kind, peer), at in sorted(heard.items(), key=lambda pair: pair[1])
            ),
            tuple(name_of(peer) for peer in signers),
            decided_fault(item, voters, chain.chain_id),
            tuple(state_root(bench.state.to_bytes()).hex() for bench in benches),
            _difference(config, benches[0].state),
            1_000 * (over - began),
            genesis.blob_size_max,
            config.swarm.codec,
            config.swarm.rule,
        )
    finally:
        for node in nodes:
            node.stop("over")
            node.stopped.exception()
            await node.close()


def known_genesis(
    config: Config, limits: Limits, seeds: list[bytes]
) -> tuple[Genesis, AgreedState]:
    """Return the genesis of a few peers with a few values, and their first state: zeros."""
    zeros_P = torch.zeros(VALUES, dtype=torch.int32)
    first = AgreedState(zeros_P, zeros_P.clone(), ())
    data = first.to_bytes()
    least = min(limits.contributions_min, len(seeds))
    changed = {"staleness": 0, "audit_permille": 0, "train_milliseconds_max": 5_000}
    genesis = Genesis(
        version=1,
        name=b"test",
        recipe=b"{}",
        tokenizer_hash=EMPTY,
        tokenizer_size=0,
        validation_hash=EMPTY,
        validation_size=0,
        state_root=state_root(data),
        state_size=len(data),
        blob_size_max=encoded_size(VALUES, config.swarm.codec),
        limits=replace(limits, contributions_min=least, **changed),
        founders=founders_of(seeds),
    )
    return genesis, first


async def known_node(
    directory: Path,
    genesis: Genesis,
    seed: bytes,
    bench: KnownBench,
    note: Callable[[str, bytes], None],
    host: str = LOCAL,
) -> Node:
    """Return a node that listens, with a store of its own, for a bench of the known gradient."""
    me = KeyPair.from_seed(seed).peer_id
    place = directory / name_of(me)
    place.mkdir(exist_ok=True)
    store = DurableStore.open(place, peer_id=me, chain_id=genesis.chain_id)
    transport, blobs = Transport(seed), BlobStore(place / "blobs", bytes_max=1 << 24)
    made: list[Node] = []
    await transport.listen(host, 0, lambda connection: made[0].on_connection(connection))
    address = f"{LOCAL}:{transport.listening[0][1]}"
    machine = Machine(genesis, seed, addresses=(address,), records={}, now=time.time())
    node = Node(
        Listening(Peer(machine, bench, blobs), note),
        transport=transport,
        store=store,
        blobs=blobs,
        journal=Journal(place / "journal.jsonl", lambda: datetime.now(UTC)),
    )
    made.append(node)
    node.serve_blobs()
    return node


async def meet(nodes: list[Node]) -> None:
    """Connect each with each, and wait until all have greeted."""
    for index, node in enumerate(nodes):
        for other in nodes[:index]:
            machine = other.peer.machine
            address = machine.neighbourhood.addresses[0]
            node.on_connection(await node.transport.dial(address, expect=machine.me))
    others = len(nodes) - 1
    await _until(
        lambda: all(len(node.peer.machine.neighbourhood.greeted) == others for node in nodes), nodes
    )


async def _until(condition: Callable[[], bool], nodes: list[Node]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        for node in nodes:
            if node.stopped.done():
                node.stopped.result()  # whatever failed comes out here
        if time.monotonic() > deadline:
            raise SwarmError(
                "the test round was not decided in time",
                why=f"{SECONDS_MAX:.0f} s are over; is this machine very busy?",
            )
        await asyncio.sleep(0.005)


def _difference(config: Config, state: AgreedState) -> int:
    """Return how far the state is from the known answer at most, in units of the fixed point."""
    made = encode(known_gradient(), torch.zeros(VALUES), codec=config.swarm.codec, feedback=0.0)
    sent = decode(made.blob, VALUES, config.swarm.codec).tolist()
    rates = (outer_rate_q16(config, 1), round(config.swarm.outer_momentum * 65_536))
    known = [
        outer_step_reference(0, 0, value, rate_q16=rates[0], momentum_q16=rates[1], nesterov=True)
        for value in sent
    ]
    found = zip(state.theta_P.tolist(), state.momentum_P.tolist(), strict=True)
    pairs = zip(found, known, strict=True)
    return max(max(abs(a - c), abs(b - d)) for (a, b), (c, d) in pairs)
