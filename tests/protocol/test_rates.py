"""Floods of questions: answered at the stated rate, while an honest catch-up is not slowed."""

from collections.abc import Callable
from random import Random

import pytest

from peerformer import events
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.certificates import certify
from peerformer.protocol.effects import (
    Command,
    Connected,
    Disconnect,
    Disconnected,
    Effect,
    Received,
    Report,
    Send,
    TimerFired,
)
from peerformer.protocol.genesis import Founder, Genesis, Limits
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import (
    HEADERS_MAX,
    NO_HASH,
    PROTOCOL_VERSION,
    AskHeaders,
    AskPeers,
    AskProposed,
    AskSaid,
    Certified,
    Commit,
    Headers,
    Hello,
    Packet,
    Peers,
    pack,
    sign,
    unpack,
)
from peerformer.protocol.newcomer_packets import AskBase, AskGenesis, BaseOf, GenesisBytes
from peerformer.protocol.rates import GROSS_FACTOR, RATES, Rate

SEEDS = {(k := KeyPair.from_seed(bytes((i,)) * 32)).peer_id: bytes((i,)) * 32 for i in range(1, 5)}
PEERS = sorted(SEEDS)
KEYS = [KeyPair.from_seed(SEEDS[peer]) for peer in PEERS]
GENESIS = Genesis(
    PROTOCOL_VERSION, b"test", b"{}", NO_HASH, 0, NO_HASH, 0, b"\5" * 32, 32, 64, Limits(),
    tuple(Founder(peer, HashChain.from_seed(SEEDS[peer]).links[0]) for peer in PEERS),
)  # fmt: skip
CHAIN = GENESIS.chain_id
NOW = 1_000_000.0
HELLO = Hello(PROTOCOL_VERSION, CHAIN, 0, None)


def stranger(number: int) -> KeyPair:
    return KeyPair.from_seed((1_000 + number).to_bytes(32, "little"))


def started() -> Machine:
    machine = Machine(GENESIS, SEEDS[PEERS[0]], now=NOW)
    machine.handle(Command("start"), NOW)
    return machine


def hear(machine: Machine, source: KeyPair, packet: Packet, later: float = 0.0) -> list[Effect]:
    return machine.handle(Received(source.peer_id, pack(packet)), machine.now + later)


def greet(machine: Machine, keys: KeyPair) -> None:
    machine.handle(Connected(keys.peer_id, "11.0.0.1:9", outbound=False), machine.now)
    hear(machine, keys, HELLO)


def sent(effects: list[Effect], kind: type) -> list[Packet]:
    packets = [effect.packet for effect in effects if isinstance(effect, Send)]
    return [packet for packet in packets if isinstance(packet, kind)]


def chain_of(length: int) -> list[Certified]:
    """Certified headers of null rounds."""
    builder = Machine(GENESIS, SEEDS[PEERS[0]], now=NOW)
    for number in range(1, length + 1):
        for keys in KEYS:
            envelope = sign(keys, CHAIN, Attestation(number, ()))
            builder.collection.attestations[keys.peer_id] = envelope
        body = builder.ballot.headers.draft(leads=True)
        assert body is not None
        vote = Commit(number, 0, body.header.digest)
        signed = {k.peer_id: sign(k, CHAIN, vote).signature for k in KEYS[:3]}
        assert builder.extend(Certified(body.header, certify(vote, signed, tuple(PEERS)))) is None
        builder.outbox.take()
    return builder.chain.items


@pytest.fixture(scope="module")
def long_chain() -> list[Certified]:
    return chain_of(500)


def holder(items: list[Certified]) -> Machine:
    """A peer that has these rounds."""
    machine = started()
    for item in items:
        assert machine.chain.append(item) is None
    machine._begin_round()
    return machine


class Line:
    """Two machines and what is under way between them, 10 ms each way."""

    def __init__(
        self, server: Machine, client: Machine, lost: Callable[[], bool] = lambda: False
    ) -> None:
        self.machines = {server.me: server, client.me: client}
        self.lost, self.now = lost, NOW
        self.under_way: list[tuple[float, bytes, bytes, bytes]] = []
        self.passed: list[Packet] = []
        for one, other in ((server, client), (client, server)):
            one_end = Connected(other.me, "11.0.0.2:9", outbound=one is client)
            self.carry(one.me, one.handle(one_end, self.now))

    def carry(self, sender: bytes, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and effect.peer in self.machines:
                about_headers = isinstance(effect.packet, AskHeaders | Headers)
                if not (about_headers and self.lost()):
                    frame = pack(effect.packet)
                    self.under_way.append((self.now + 0.01, sender, effect.peer, frame))

    def run(self, until: Callable[[], bool], seconds_max: float) -> float:
        """Run until a condition holds; returns how long it took."""
        began, ticked = self.now, self.now
        while not until():
            assert self.now - began < seconds_max
            self.now = round(self.now + 0.01, 3)
            due = [flight for flight in self.under_way if flight[0] <= self.now]
            self.under_way = [flight for flight in self.under_way if flight[0] > self.now]
            for _, source, target, frame in due:
                self.passed.append(unpack(frame))
                effects = self.machines[target].handle(Received(source, frame), self.now)
                self.carry(target, effects)
            if self.now - ticked >= 1.0:
                ticked = self.now
                for me, machine in self.machines.items():
                    self.carry(me, machine.handle(TimerFired("tick"), self.now))
        return self.now - began


def newcomer() -> Machine:
    machine = Machine(GENESIS, b"\x77" * 32, state_round=-1, now=NOW)
    machine.handle(Command("start"), NOW)
    return machine


def test_a_catch_up_of_500_headers_goes_as_fast_as_the_line_allows(
    long_chain: list[Certified],
) -> None:
    server, client = holder(long_chain), newcomer()
    line = Line(server, client)
    seconds = line.run(lambda: client.chain.tip == 500, seconds_max=60)
    asked = [packet for packet in line.passed if isinstance(packet, AskHeaders)]
    answers = [packet for packet in line.passed if isinstance(packet, Headers)]
    trips = -(-500 // HEADERS_MAX)
    print("seconds", seconds, "asked", len(asked), "answers", len(answers))
    assert len(answers) == len(asked) == trips
    assert seconds <= trips * 0.02 + 0.05
    assert not server.faults and not client.faults


@pytest.mark.parametrize("seed", range(3))
def test_a_catch_up_over_a_bad_line_takes_no_longer_for_the_limits_and_nobody_is_blamed(
    seed: int, long_chain: list[Certified], monkeypatch: pytest.MonkeyPatch
) -> None:
    print("seed", seed)

    def catch_up() -> float:
        random = Random(seed)
        server, client = holder(long_chain), newcomer()
        line = Line(server, client, lost=lambda: random.random() < 0.3)
        seconds = line.run(lambda: client.chain.tip == 500, seconds_max=100)
        assert not server.faults and not client.faults
        return seconds

    limited = catch_up()
    monkeypatch.setitem(RATES, AskHeaders, Rate(1_000_000, 1_000_000.0))
    unlimited = catch_up()
    print("seconds", limited, "without limits", unlimited)
    assert limited == unlimited


def test_a_flood_for_headers_is_answered_at_the_stated_rate_and_blamed_when_gross(
    long_chain: list[Certified],
) -> None:
    server, client, flooder = holder(long_chain), newcomer(), stranger(1)
    greet(server, flooder)
    rate, seconds = RATES[AskHeaders], 3.0
    effects: list[Effect] = []
    for _ in range(300):  # a hundred a second, always for the same ones
        effects += hear(server, flooder, AskHeaders(1), later=0.01)
    answers = len(sent(effects, Headers))
    print("answers", answers, "faults", server.faults)
    first = 1  # headers that it never had before are not counted
    assert answers <= first + rate.burst + rate.per_second * seconds
    asked_over = 300 - GROSS_FACTOR * (rate.burst + rate.per_second * seconds)
    assert asked_over > 0 and server.faults[flooder.peer_id] >= asked_over - 2
    assert any(isinstance(effect, Disconnect) for effect in effects)
    blamed = [e.event for e in effects if isinstance(e, Report)]
    assert any(isinstance(e, events.Misbehaved) and "flood" in e.reason for e in blamed)
    line = Line(server, client)
    line.now = server.now
    assert line.run(lambda: client.chain.tip == 500, seconds_max=60) < 1.0


def test_walking_along_the_chain_again_and_again_is_a_flood_too(
    long_chain: list[Certified],
) -> None:
    server, flooder = holder(long_chain), stranger(1)
    greet(server, flooder)
    effects: list[Effect] = []
    for _ in range(5):
        for first in range(1, 500, HEADERS_MAX):
            effects += hear(server, flooder, AskHeaders(first), later=0.01)
    for _ in range(50):
        effects += hear(server, flooder, AskHeaders(501), later=0.01)
    walk, rate = -(-500 // HEADERS_MAX), RATES[AskHeaders]
    assert len(sent(effects, Headers)) <= walk + rate.burst + rate.per_second * 2


FLOODS = {
    AskPeers: (AskPeers(32), Peers),
    AskGenesis: (AskGenesis(0), GenesisBytes),
    AskBase: (AskBase(1), BaseOf),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_question_is_answered_at_its_rate_and_again_when_time_has_passed(kind: type) -> None:
    machine, asker = started(), stranger(1)
    greet(machine, asker)
    question, answer = FLOODS[kind]
    rate = RATES[kind]
    effects = [e for _ in range(rate.burst + 5) for e in hear(machine, asker, question)]
    assert len(sent(effects, answer)) == rate.burst
    assert not machine.faults  # too much, but not grossly
    later = 1.01 / rate.per_second
    assert len(sent(hear(machine, asker, question, later=later), answer)) == 1
    assert not sent(hear(machine, asker, question), answer)
    greet(machine, stranger(2))
    assert sent(hear(machine, stranger(2), question), answer)  # others are not held to account


def test_repeated_greetings_are_answered_with_my_votes_a_few_times_only() -> None:
    machine = started()
    greet(machine, KEYS[1])
    machine.outbox.sign_once(Attestation(1, ()))
    machine.outbox.take()
    effects = [e for _ in range(50) for e in hear(machine, KEYS[1], HELLO)]
    assert 0 < len([e for e in effects if isinstance(e, Send)]) <= RATES[Hello].burst
    assert not machine.faults


@pytest.mark.parametrize(
    "question", [AskProposed(1, NO_HASH), AskSaid(PEERS[1], 0, 1, 0), Peers(())], ids=repr
)
def test_every_limited_kind_is_blamed_only_when_it_comes_ten_times_too_often(
    question: Packet,
) -> None:
    machine = started()
    greet(machine, KEYS[1])
    rate = RATES[type(question)]
    for _ in range(int(rate.burst * GROSS_FACTOR)):
        hear(machine, KEYS[1], question)
    assert not machine.faults
    hear(machine, KEYS[1], question)
    assert machine.faults == {PEERS[1]: 1}


def test_limits_are_forgotten_with_the_connection_and_a_gone_peer_leaves_nothing() -> None:
    machine, asker = started(), stranger(1)
    greet(machine, asker)
    hear(machine, asker, AskPeers(32))
    assert machine.rates._limits and machine.neighbourhood.links
    machine.handle(Disconnected(asker.peer_id), machine.now)
    assert not hear(machine, asker, HELLO) and not hear(machine, asker, AskHeaders(1))
    assert not machine.rates._limits and not machine.neighbourhood.links
    assert asker.peer_id not in machine.neighbourhood.greeted
