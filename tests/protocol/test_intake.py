"""Hostile frames: nothing raises, nothing is signed twice, and memory stays bounded."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from random import Random
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerformer.protocol import codec, intake
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.certificates import assemble_timeouts, certify
from peerformer.protocol.effects import (
    Command,
    Connected,
    Disconnect,
    Disconnected,
    Effect,
    Persist,
    Received,
    Send,
    TimerFired,
)
from peerformer.protocol.genesis import ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.headers import BODIES_KEPT_MAX
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import (
    NO_HASH,
    PACKETS,
    PROTOCOL_VERSION,
    STATEMENTS,
    Certified,
    Commit,
    Envelope,
    Header,
    HeaderBody,
    Hello,
    Packet,
    Prepare,
    Proposal,
    Proposed,
    QuorumCertificate,
    Said,
    Timeout,
    TimeoutCertificate,
    pack,
    sign,
    signed_bytes,
)

SEEDS = {(k := KeyPair.from_seed(bytes((i,)) * 32)).peer_id: bytes((i,)) * 32 for i in range(1, 5)}
PEERS = sorted(SEEDS)
KEYS = [KeyPair.from_seed(SEEDS[peer]) for peer in PEERS]
STRANGER = KeyPair.from_seed(b"\xfe" * 32)
GENESIS = Genesis(
    PROTOCOL_VERSION, b"test", b"{}", NO_HASH, 0, NO_HASH, 0, b"\5" * 32, 32, 64,
    Limits(admission=ADMISSION_OPEN, joins_per_epoch=3),
    tuple(Founder(peer, HashChain.from_seed(SEEDS[peer]).links[0]) for peer in PEERS),
)  # fmt: skip
CHAIN = GENESIS.chain_id
NOW = 1_000_000.0
FAR = b"\x0f" * 32


def started(index: int, records: dict[str, bytes] | None = None, greet: bool = True) -> Machine:
    """Return a started peer, connected with the three others."""
    machine = Machine(GENESIS, SEEDS[PEERS[index]], records=records, now=NOW)
    machine.handle(Command("start"), NOW)
    for keys in KEYS:
        if keys.peer_id != PEERS[index]:
            machine.handle(Connected(keys.peer_id, "host:1", outbound=True), NOW)
            if greet:
                hear(machine, keys, Hello(PROTOCOL_VERSION, CHAIN, 0, None))
    return machine


def hear(machine: Machine, source: KeyPair, packet: Packet, later: float = 0.0) -> list[Effect]:
    return machine.handle(Received(source.peer_id, pack(packet)), machine.now + later)


def said(keys: KeyPair, statement: Any) -> Said:
    return Said(sign(keys, CHAIN, statement))


def body_by(
    builder: int, *, attesting: tuple[int, ...] = (0, 1, 2, 3), **changes: Any
) -> HeaderBody:
    """Return a valid null round as `builder` would build it."""
    machine = Machine(GENESIS, SEEDS[PEERS[builder]], now=NOW)
    for index in attesting:
        machine.collection.attestations[PEERS[index]] = sign(KEYS[index], CHAIN, Attestation(1, ()))
    machine.requests.operations.update(changes.get("operations", {}))
    body = machine.ballot.headers.draft(leads=True)
    assert body is not None
    return body


def gave_up(view: int, high: QuorumCertificate | None = None) -> TimeoutCertificate:
    claim = (high.view, high.digest) if high else (-1, NO_HASH)
    timeout = Timeout(1, view, *claim)
    seen = {k.peer_id: (timeout, sign(k, CHAIN, timeout).signature, high) for k in KEYS}
    return assemble_timeouts(1, view, seen, tuple(PEERS))


def certified(body: HeaderBody, view: int = 0) -> Certified:
    vote = Commit(1, view, body.header.digest)
    signed = {k.peer_id: sign(k, CHAIN, vote).signature for k in KEYS}
    return Certified(body.header, certify(vote, signed, tuple(PEERS)))


def lock_on(body: HeaderBody, view: int = 0) -> QuorumCertificate:
    vote = Prepare(1, view, body.header.digest)
    signed = {k.peer_id: sign(k, CHAIN, vote).signature for k in KEYS}
    return certify(vote, signed, tuple(PEERS))


def test_garbage_is_counted_and_enough_of_it_closes_the_connection() -> None:
    machine = started(0)
    closed = 0
    for _ in range(intake.FAULTS_MAX):
        effects = machine.handle(Received(PEERS[1], b"\xff garbage"), NOW)
        closed += sum(isinstance(effect, Disconnect) for effect in effects)
    assert machine.faults == {PEERS[1]: intake.FAULTS_MAX} and closed == 1


def test_faults_of_strangers_are_forgotten_with_their_connection() -> None:
    machine = started(0)
    for index in range(50):
        peer = KeyPair.from_seed(bytes((100 + index,)) * 32).peer_id
        machine.handle(Connected(peer, "host:9", outbound=False), NOW)
        machine.handle(Received(peer, b"garbage"), NOW)
        machine.handle(Disconnected(peer), NOW)
    assert not machine.faults


def test_a_malformed_statement_in_a_buffered_packet_raises_nothing_when_its_round_begins() -> None:
    machine = started(0)
    kind = STATEMENTS.index(Attestation)
    broken = Envelope(PEERS[3], kind, b"?", KEYS[3].sign(signed_bytes(CHAIN, kind, b"?")))
    hear(machine, KEYS[3], said(KEYS[3], Attestation(2, ())))
    body = body_by(1)
    envelope = sign(KEYS[3], CHAIN, Proposal(2, 0, FAR))
    hear(machine, KEYS[3], Proposed(envelope, replace(body.header, round=2), (broken,), None))
    hear(machine, KEYS[1], certified(body))
    assert machine.chain.tip == 1 and PEERS[3] in machine.faults


@settings(
    max_examples=400,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(frame=st.binary(max_size=400), source=st.integers(0, 3), kind=st.integers(0, len(PACKETS)))
def test_arbitrary_bytes_never_raise(victim: Machine, frame: bytes, source: int, kind: int) -> None:
    before = sum(victim.faults.values())
    for data in (frame, bytes((kind,)) + frame):
        victim.handle(Received(KEYS[source].peer_id, data), NOW)
    assert victim.chain.tip == 0 and sum(victim.faults.values()) >= before


@pytest.fixture(scope="module")
def victim() -> Machine:
    return started(0)


class Nonsense:
    """Well-formed packets full of genuine signatures under statements that make no sense."""

    def __init__(self, random: Random, machine: Machine) -> None:
        self.random, self.machine = random, machine
        self.bodies = [body_by(index) for index in range(4)]
        self.certificates = [lock_on(body, view) for body in self.bodies for view in (0, 1)]

    def __iter__(self) -> Iterator[tuple[KeyPair, Packet]]:
        while True:
            yield self.random.choice([*KEYS[1:], STRANGER]), self.of(self.random.choice(PACKETS))

    def of(self, kind: Any) -> Any:
        draw = self.random
        if kind is Envelope:
            return self.envelope()
        if kind is Header and draw.random() < 0.8:
            return self.header()
        if kind is QuorumCertificate and draw.random() < 0.7:
            return draw.choice(self.certificates)
        if kind is TimeoutCertificate and draw.random() < 0.7:
            return gave_up(draw.randrange(4), draw.choice([None, *self.certificates]))
        if get_origin(kind) is Annotated:
            return self.annotated(*get_args(kind)[:2])
        if get_origin(kind) in (UnionType, Union):
            options = [option for option in get_args(kind) if option is not NoneType]
            return None if draw.random() < 0.4 else self.of(options[0])
        if kind is bool:
            return draw.random() < 0.5
        assert is_dataclass(kind)
        hints = get_type_hints(kind, include_extras=True)
        return kind(*(self.of(hints[field.name]) for field in fields(kind)))  # type: ignore[operator]

    def annotated(self, inner: Any, layout: object) -> Any:
        draw = self.random
        match layout:
            case codec.Integer(size, signed):
                most = (1 << 8 * size - signed) - 1
                low = [-1, -2, -most - 1] if signed else []
                current = self.machine.chain.tip + 1
                plain = [0, 1, 2, 3, current, current + 1, most, most - 1]
                return min(draw.choice([*plain, *low]), most)
            case codec.Exactly(32):
                digests = [body.header.digest for body in self.bodies]
                head = self.machine.chain.head
                return draw.choice([*PEERS, STRANGER.peer_id, *digests, NO_HASH, CHAIN, head])
            case codec.Exactly(length):
                return draw.randbytes(length)
            case codec.AtMost(most):
                return draw.randbytes(draw.choice([0, 1, 1, 2, min(most, 40)]))
            case codec.Many(_):
                return tuple(self.of(get_args(inner)[0]) for _ in range(draw.choice((0, 1, 2, 3))))
            case codec.OneOf(classes):
                return self.of(draw.choice(classes))
        raise AssertionError(layout)

    def envelope(self) -> Envelope:
        draw = self.random
        keys, kind = draw.choice([*KEYS[1:], STRANGER]), draw.choice(STATEMENTS)
        envelope = sign(keys, CHAIN, self.of(kind))
        chance = draw.random()
        if chance < 0.15:
            body = envelope.body[: draw.randrange(len(envelope.body))]
            genuine = keys.sign(signed_bytes(CHAIN, envelope.kind, body))
            return replace(envelope, body=body, signature=genuine)
        return replace(envelope, signature=draw.randbytes(64)) if chance < 0.25 else envelope

    def header(self) -> Header:
        draw = self.random
        header = draw.choice(self.bodies).header
        hints = get_type_hints(Header, include_extras=True)
        for name in draw.sample([f.name for f in fields(Header)], draw.choice((0, 1, 2))):
            header = replace(header, **{name: self.of(hints[name])})
        return header


@pytest.mark.parametrize("seed", range(4))
def test_signed_nonsense_never_raises_signs_nothing_twice_and_keeps_memory_bounded(
    seed: int,
) -> None:
    print("seed", seed)
    random = Random(seed)
    machine = started(0)
    machine.handle(Connected(STRANGER.peer_id, "host:9", outbound=False), NOW)
    hear(machine, STRANGER, Hello(PROTOCOL_VERSION, CHAIN, 0, None))
    signed: dict[str, bytes] = {}
    now, nonsense = NOW, iter(Nonsense(random, machine))
    for step in range(700):
        now += random.random()
        if step % 50 == 49:
            timers = ("tick", "commit", "attest", "propose", "view")
            effects = machine.handle(TimerFired(random.choice(timers)), now)
        else:
            source, packet = next(nonsense)
            effects = machine.handle(Received(source.peer_id, pack(packet)), now)
        for effect in effects:
            if isinstance(effect, Send):
                pack(effect.packet)
            if isinstance(effect, Persist):
                for key, data in effect.records:
                    if key.startswith("slot/"):
                        assert signed.setdefault(key, data) == data
    assert len(machine.ballot.headers.bodies) <= BODIES_KEPT_MAX + 4
    assert all(len(packets) <= intake.LATER_KEPT_MAX for packets in machine.later.values())
    for peer in PEERS[1:]:
        assert len(machine.ledger._seen.get(peer, {})) <= 256
