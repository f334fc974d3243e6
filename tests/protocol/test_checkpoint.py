"""A newcomer with an invitation begins where it says, on the chain that it names, or not at all."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from peerformer import events
from peerformer.false_base import fork_from
from peerformer.protocol import anchoring
from peerformer.protocol.anchoring import Anchoring
from peerformer.protocol.chain import Base, Chain, first_base
from peerformer.protocol.checkpoint import (
    BASE_KEY,
    Checkpoint,
    chain_to,
    header_key,
    newest_checkpoint,
    records_of,
)
from peerformer.protocol.codec import MalformedError, encode
from peerformer.protocol.effects import (
    Command,
    Connected,
    Disconnect,
    Disconnected,
    Effect,
    Persist,
    Received,
    Report,
    Send,
    TimerFired,
)
from peerformer.protocol.identity import HashChain
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import (
    HEADERS_MAX,
    PROTOCOL_VERSION,
    AskHeaders,
    Certified,
    Headers,
    Hello,
    Packet,
    pack,
)
from peerformer.protocol.newcomer_packets import AskBase, BaseOf
from tests.protocol.test_chain import (
    GENESIS,
    KEYS,
    LINKS,
    NEWCOMER,
    PEERS,
    SECOND,
    SEEDS,
    THIRD,
    admission,
    append_with,
    certified,
    draft,
)

TIP = 205
ADMITTED = 120
SEED_OF = dict(zip(KEYS, SEEDS, strict=True))


@cache
def grown() -> Chain:
    """The true chain; one newcomer was admitted in between."""
    chain = Chain(GENESIS)
    while chain.tip < TIP:
        if chain.tip + 1 == ADMITTED:
            assert append_with(chain, admission(chain)) is None
        else:
            assert chain.append(certified(chain, draft(chain, PEERS[chain.tip % 4]))) is None
    return chain


def base_of(number: int = 100) -> Base:
    return next(base for base in grown().bases if base.round == number)


def after(number: int, last: int = TIP) -> list[Certified]:
    return grown().items[number:last]


def checkpoint() -> Checkpoint:
    return newest_checkpoint(grown())


def test_a_chain_from_a_base_goes_on_like_one_from_the_genesis() -> None:
    mine, true = chain_to(GENESIS, checkpoint(), base_of(), after(100)), grown()
    assert (mine.tip, mine.head, mine.members, mine.beacon, mine.state_root, mine.admitted) == (
        true.tip, true.head, true.members, true.beacon, true.state_root, true.admitted,
    )  # fmt: skip
    assert mine.item(100) is None and mine.item(101) == true.item(101) and mine.item(206) is None
    assert all(mine.beacon_of(n) == true.beacon_of(n) for n in (100, 101, 150, TIP))
    assert mine.leaders() == true.leaders() and mine.joins_left() == true.joins_left() == 1
    other = draft(true, PEERS[1])
    two = [admission(true, who, by) for who, by in ((SECOND, PEERS[1]), (THIRD, PEERS[2]))]
    for chain in (mine, true):
        crowded = draft(chain, PEERS[0], operations=tuple(two))
        assert chain.header_fault(crowded) == "too many admissions"
        assert chain.header_fault(other) is None
    assert mine.bases[0] == base_of(100) and mine.bases[-1] == base_of(200)


def test_a_peer_that_began_at_a_base_serves_what_can_be_followed_from_there() -> None:
    mine = chain_to(GENESIS, checkpoint(), base_of(), after(100))
    assert grown().base_for(TIP) == base_of(100) == mine.base_for(TIP)
    assert grown().base_for(199) == first_base(GENESIS)
    assert mine.base_for(199) is None and grown().base_for(TIP + 1) is None


WRONG = {
    "members": (
        lambda base: replace(base, members=replace(base.members, banned=(THIRD,))),
        "wrong members",
    ),
    "head": (lambda base: replace(base, head=b"\1" * 32), "wrong parent"),
    "beacon": (lambda base: replace(base, beacon=b"\1" * 32), "wrong beacon"),
    "state root": (lambda base: replace(base, state_root=b"\1" * 32), "null round that changes"),
    "another round": (lambda base: replace(base, round=0), "not the genesis"),
    "amid an epoch": (lambda base: replace(base, round=99), "ends no epoch"),
    "too near": (lambda base: base_of(200), "too near"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_false_word_in_a_base_is_found_out(name: str) -> None:
    change, words = WRONG[name]
    with pytest.raises(MalformedError, match=words):
        chain_to(GENESIS, checkpoint(), change(base_of()), after(100))


def test_the_headers_are_those_that_the_checkpoint_names_and_all_of_them() -> None:
    point, base, items = checkpoint(), base_of(), after(100)
    for given, words in (
        ([], "do not end"),
        (items[:-1], "do not end"),
        (items[1:], "wrong round"),
        ([*items[:50], *items[51:]], "wrong round"),
    ):
        with pytest.raises(MalformedError, match=words):
            chain_to(GENESIS, point, base, given)
    with pytest.raises(MalformedError, match="another header of round 205"):
        chain_to(GENESIS, replace(point, digest=b"\1" * 32), base, items)
    with pytest.raises(MalformedError, match="other members after round 205"):
        chain_to(GENESIS, replace(point, members_hash=b"\1" * 32), base, items)


def test_certificates_count_though_the_digest_vouches_for_the_headers() -> None:
    items = after(100)
    items[30] = replace(items[30], certificate=items[31].certificate)
    with pytest.raises(MalformedError, match="round 131"):
        chain_to(GENESIS, checkpoint(), base_of(), items)


def test_a_chain_that_a_liar_alone_votes_on_keeps_every_rule_but_the_digest() -> None:
    chain = HashChain.from_seed(SEEDS[0], length=150)
    liar: Any = SimpleNamespace(
        me=PEERS[0], keys=KEYS[PEERS[0]], hash_chain=chain, genesis=GENESIS, chain=grown()
    )
    fork = fork_from(liar, base_of(), TIP)
    assert chain_to(GENESIS, newest_checkpoint(fork), fork.base, fork.items).head == fork.head
    with pytest.raises(MalformedError, match="another header of round 205"):
        chain_to(GENESIS, checkpoint(), fork.base, fork.items)


# --- stored --------------------------------------------------------------------------------------


def machine(peer: bytes, records: dict[str, bytes], now: float = 0.0) -> Machine:
    return Machine(
        GENESIS, SEED_OF[peer], hash_chain=LINKS[peer], records=records, state_round=-1, now=now
    )


def test_a_restart_goes_on_from_the_stored_base() -> None:
    records = dict(records_of(chain_to(GENESIS, checkpoint(), base_of(), after(100))))
    again = machine(NEWCOMER, records)
    assert again.chain.base == base_of() and again.chain.head == grown().head
    assert again.chain.base_for(TIP) == base_of()


def test_a_store_whose_headers_hang_in_the_air_is_refused() -> None:
    records = dict(records_of(chain_to(GENESIS, checkpoint(), base_of(), after(100))))
    without = {key: data for key, data in records.items() if key != BASE_KEY}
    gap = {key: data for key, data in records.items() if key != header_key(101)}
    other = {**records, BASE_KEY: encode(base_of(200))}
    for damaged in (without, gap, other):
        with pytest.raises(MalformedError, match="the headers begin with"):
            machine(NEWCOMER, damaged)
    torn = {**records, BASE_KEY: records[BASE_KEY][:-1]}
    with pytest.raises(MalformedError):
        machine(NEWCOMER, torn)


# --- on the wire ---------------------------------------------------------------------------------


class Wire:
    """A newcomer between peers, some of which answer."""

    def __init__(self, point: Checkpoint, servers: dict[bytes, Machine]) -> None:
        self.newcomer, self.servers, self.now = Anchoring(GENESIS, point), servers, 0.0
        self.effects: list[Effect] = []
        self.do(Command("start"))
        for peer, server in servers.items():
            server.handle(Connected(NEWCOMER, "n:1", outbound=False), self.now)
            self.do(Connected(peer, "p:1", outbound=True))

    def do(self, event: object) -> None:
        effects = self.newcomer.handle(event, self.now)  # type: ignore[arg-type]
        self.effects += effects
        for effect in effects:
            match effect:
                case Send(peer, packet):
                    for answer in self.answers(peer, packet):
                        self.do(Received(peer, pack(answer)))
                case Disconnect(peer):
                    self.do(Disconnected(peer))

    def answers(self, peer: bytes, packet: Packet) -> list[Packet]:
        effects = self.servers[peer].handle(Received(NEWCOMER, pack(packet)), self.now)
        return [
            effect.packet
            for effect in effects
            if isinstance(effect, Send) and isinstance(effect.packet, BaseOf | Headers)
        ]

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            self.do(TimerFired("tick"))

    def told(self, kind: type) -> list[events.Event]:
        reports = [effect.event for effect in self.effects if isinstance(effect, Report)]
        return [event for event in reports if isinstance(event, kind)]


def whole(peer: bytes) -> Machine:
    return machine(peer, dict(records_of(grown())))


class Liar(Machine):
    """Another base than was asked for."""

    def handle(self, event, now):  # type: ignore[no-untyped-def]
        effects = super().handle(event, now)
        false = encode(replace(base_of(), head=b"\1" * 32))
        return [
            replace(effect, packet=BaseOf(TIP, false))
            if isinstance(effect, Send) and isinstance(effect.packet, BaseOf)
            else effect
            for effect in effects
        ]


def test_the_first_honest_peer_leads_to_the_checkpoint_in_few_packets() -> None:
    wire = Wire(checkpoint(), {PEERS[0]: whole(PEERS[0])})
    (stored,) = [effect for effect in wire.effects if isinstance(effect, Persist)]
    assert machine(NEWCOMER, dict(stored.records)).chain.head == grown().head
    assert wire.told(events.CheckpointReached) == [
        events.CheckpointReached(round=TIP, from_round=100)
    ]
    asked = [e.packet for e in wire.effects if isinstance(e, Send)]
    assert sum(isinstance(packet, AskHeaders) for packet in asked) == -(-105 // HEADERS_MAX)
    assert not wire.servers[PEERS[0]].faults


def test_a_liar_is_cut_off_and_the_next_peer_is_asked() -> None:
    false = Liar(
        GENESIS, SEED_OF[PEERS[0]], hash_chain=LINKS[PEERS[0]], state_round=-1, now=0.0,
        records=dict(records_of(grown())),
    )  # fmt: skip
    wire = Wire(checkpoint(), {PEERS[0]: false, PEERS[1]: whole(PEERS[1])})
    assert wire.newcomer.chain is not None and wire.newcomer.chain.head == grown().head
    (misbehaved,) = wire.told(events.Misbehaved)
    assert isinstance(misbehaved, events.Misbehaved) and misbehaved.peer == PEERS[0].hex()
    assert [e.peer for e in wire.effects if isinstance(e, Disconnect)] == [PEERS[0]]


def test_a_checkpoint_that_nobody_can_serve_is_awaited_and_comes_with_a_peer_that_can() -> None:
    young = machine(PEERS[0], {})  # it has decided nothing yet
    wire = Wire(checkpoint(), {PEERS[0]: young})
    waits = [event.reason for event in wire.told(events.CheckpointAwaited)]  # type: ignore[attr-defined]
    assert waits == ["no connected peer can serve it"] and wire.newcomer.chain is None
    wire.wait(60)
    assert wire.newcomer.chain is None and not young.faults  # asked again, but not too often
    assert len(wire.told(events.CheckpointAwaited)) == 1  # said once
    wire.servers[PEERS[1]] = whole(PEERS[1])
    wire.servers[PEERS[1]].handle(Connected(NEWCOMER, "n:1", outbound=False), wire.now)
    wire.do(Connected(PEERS[1], "p:1", outbound=True))
    wire.wait(anchoring.PAUSE_SECONDS + 1)
    assert wire.newcomer.chain is not None


def test_nobody_at_all_is_said_too() -> None:
    wire = Wire(checkpoint(), {})
    wire.wait(2)
    assert [event.reason for event in wire.told(events.CheckpointAwaited)] == [  # type: ignore[attr-defined]
        "nobody is connected"
    ]


def test_a_silent_peer_is_passed_over() -> None:
    silent = machine(PEERS[0], {})
    silent.handle = lambda event, now: []  # type: ignore[method-assign]
    wire = Wire(checkpoint(), {PEERS[0]: silent, PEERS[1]: whole(PEERS[1])})
    wire.wait(anchoring.SILENCE_SECONDS - 1)
    assert wire.newcomer.chain is None
    wire.wait(1)
    assert wire.newcomer.chain is not None


def test_headers_before_a_base_are_not_to_be_had_but_later_ones_are_for_whoever_looks_back() -> (
    None
):
    records = records_of(chain_to(GENESIS, checkpoint(), base_of(), after(100)))
    server = machine(PEERS[0], dict(records))
    server.handle(Connected(PEERS[1], "p:1", outbound=False), 0.0)

    def answer(tip: int, first: int) -> Headers:
        hello = Hello(PROTOCOL_VERSION, GENESIS.chain_id, tip, None)
        server.handle(Received(PEERS[1], pack(hello)), 0.0)
        effects = server.handle(Received(PEERS[1], pack(AskHeaders(first))), 0.0)
        (found,) = [
            e.packet for e in effects if isinstance(e, Send) and isinstance(e.packet, Headers)
        ]
        return found

    assert answer(tip=7, first=8) == Headers((), TIP)
    assert [item.header.round for item in answer(tip=130, first=67).items][:1] == [101]
    assert [item.header.round for item in answer(tip=130, first=131).items][:1] == [131]


def test_a_base_is_asked_for_only_after_greeting() -> None:
    server = whole(PEERS[0])
    server.handle(Connected(THIRD, "p:1", outbound=False), 0.0)
    effects = server.handle(Received(THIRD, pack(AskBase(TIP))), 0.0)
    assert server.faults == {THIRD: 1}
    assert not [e for e in effects if isinstance(e, Send) and isinstance(e.packet, BaseOf)]
