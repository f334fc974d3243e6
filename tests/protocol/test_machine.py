"""One peer against the wire: what it buffers, helps, refuses, survives and never signs twice."""

from dataclasses import replace
from typing import Any

import pytest

from peerformer.protocol import codec, intake
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.certificates import assemble_timeouts, certify
from peerformer.protocol.effects import (
    Command,
    Connected,
    Disconnect,
    Disconnected,
    Effect,
    FetchState,
    Persist,
    Received,
    Send,
    StartWork,
    TimerFired,
)
from peerformer.protocol.genesis import ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.headers import APPLIES_KEPT_MAX, BODIES_KEPT_MAX
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import VOTER, subject_of
from peerformer.protocol.messages import (
    NO_HASH,
    PROTOCOL_VERSION,
    Accepted,
    Admission,
    Certified,
    Commit,
    Envelope,
    Eviction,
    GaveUp,
    HeaderBody,
    Headers,
    Hello,
    Join,
    Packet,
    Prepare,
    Prepared,
    Proposal,
    Proposed,
    QuorumCertificate,
    Requested,
    Said,
    TimedOut,
    Timeout,
    TimeoutCertificate,
    Voucher,
    pack,
    sign,
)
from peerformer.protocol.operations import join_hash

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


def sent(effects: list[Effect], kind: type, statement: type | None = None) -> list[Any]:
    packets = [effect.packet for effect in effects if isinstance(effect, Send)]
    chosen = [packet for packet in packets if isinstance(packet, kind)]
    if statement is None:
        return chosen
    return [p for p in chosen if isinstance(p.envelope.statement, statement)]


def body_by(
    builder: int, *, attesting: tuple[int, ...] = (0, 1, 2, 3), **changes: Any
) -> HeaderBody:
    """Return a valid null round as `builder` would build it."""
    machine = Machine(GENESIS, SEEDS[PEERS[builder]], now=NOW)
    for index in attesting:
        machine.collection.attestations[PEERS[index]] = sign(KEYS[index], CHAIN, Attestation(1, ()))
    machine.collection.attestations.update(changes.get("attested", {}))
    machine.requests.operations.update(changes.get("operations", {}))
    body = machine.ballot.headers.draft(leads=True)
    assert body is not None
    return body


def leader(view: int) -> int:
    return (1 + view) % 4


def proposed(body: HeaderBody, view: int, justify: TimeoutCertificate | None = None) -> Proposed:
    envelope = sign(KEYS[leader(view)], CHAIN, Proposal(1, view, body.header.digest))
    return Proposed(envelope, body.header, body.attestations, justify)


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


def disk_of(*batches: list[Effect]) -> dict[str, bytes]:
    disk: dict[str, bytes] = {}
    for effect in (effect for effects in batches for effect in effects):
        if isinstance(effect, Persist):
            disk.update(effect.records)
            for key in effect.deleted:
                disk.pop(key, None)
    return disk


# --- rounds and greetings -------------------------------------------------------------------------


def test_a_round_goes_from_proposal_to_decision_on_valid_votes() -> None:
    machine, body = started(0), body_by(leader(0))
    digest = body.header.digest
    effects = hear(machine, KEYS[1], proposed(body, 0))
    (vote, *_) = sent(effects, Said, Prepare)
    assert vote.envelope.statement == Prepare(1, 0, digest)
    for index in (1, 2):
        effects = hear(machine, KEYS[index], said(KEYS[index], Prepare(1, 0, digest)))
    assert sent(effects, Said, Commit) and sent(effects, Prepared)
    for index in (2, 3):
        effects = hear(machine, KEYS[index], said(KEYS[index], Commit(1, 0, digest)))
    assert machine.chain.tip == 1 and machine.collection.number == 2
    assert machine.chain.head == digest and not machine.faults


def test_a_message_of_an_older_round_is_answered_with_what_was_decided_but_not_too_often() -> None:
    machine, item = started(0), certified(body_by(1))
    hear(machine, KEYS[1], item)
    old = TimedOut(sign(KEYS[3], CHAIN, Timeout(1, 0, -1, NO_HASH)), None)
    (answer,) = sent(hear(machine, KEYS[3], old), Headers)
    assert answer == Headers((item,), 1)
    assert not sent(hear(machine, KEYS[3], old), Headers)
    assert sent(hear(machine, KEYS[3], old, later=5.0), Headers)


def test_a_message_of_the_next_round_waits_and_counts_when_its_round_begins() -> None:
    machine = started(0)
    early = said(KEYS[2], Attestation(2, ()))
    hear(machine, KEYS[2], early)
    assert not machine.collection.attestations
    hear(machine, KEYS[1], certified(body_by(1)))
    assert machine.collection.attestations == {PEERS[2]: early.envelope}
    assert not machine.later


def test_buffered_messages_are_few_and_small_and_none_are_kept_of_far_rounds() -> None:
    machine = started(0)
    machine.handle(Connected(STRANGER.peer_id, "host:9", outbound=False), NOW)
    hear(machine, STRANGER, Hello(PROTOCOL_VERSION, CHAIN, 0, None))
    for view in range(100):
        for keys in (KEYS[1], STRANGER):
            hear(machine, keys, said(keys, Prepare(2, view, FAR)))
            hear(machine, keys, said(keys, Prepare(3 + view, 0, FAR)))
    kept = {peer: len(packets) for peer, packets in machine.later.items()}
    assert kept == dict.fromkeys((PEERS[1], STRANGER.peer_id), intake.LATER_KEPT_MAX)
    machine.later.clear()
    next_header = replace(body_by(1).header, round=2)
    for view in range(9):
        for keys in (KEYS[1], STRANGER):
            envelope = sign(keys, CHAIN, Proposal(2, view, FAR))
            hear(machine, keys, Proposed(envelope, next_header, (), None))
            hear(machine, keys, HeaderBody(next_header, ()))
            hear(machine, keys, Certified(next_header, lock_on(body_by(1))))
    assert {peer: len(packets) for peer, packets in machine.later.items()} == {PEERS[1]: 1}
    machine.handle(Disconnected(PEERS[1]), NOW)
    assert not machine.later


def test_a_hello_of_another_chain_version_or_of_the_banned_is_sent_away() -> None:
    for hello in (Hello(9, CHAIN, 0, None), Hello(PROTOCOL_VERSION, bytes(32), 0, None)):
        machine = started(0, greet=False)
        effects = hear(machine, KEYS[1], hello)
        assert [e.peer for e in effects if isinstance(e, Disconnect)] == [PEERS[1]]
        assert PEERS[1] not in machine.neighbourhood.greeted
    machine = started(0)
    machine.chain.members = replace(machine.chain.members, banned=(STRANGER.peer_id,))
    machine.handle(Connected(STRANGER.peer_id, "host:9", outbound=False), NOW)
    effects = hear(machine, STRANGER, Hello(PROTOCOL_VERSION, CHAIN, 0, None))
    assert any(isinstance(effect, Disconnect) for effect in effects)


def test_a_member_whose_greeting_was_lost_is_heard_all_the_same() -> None:
    machine = started(0, greet=False)
    hear(machine, KEYS[1], proposed(body_by(1), 0))
    assert machine.ballot.proposals and not machine.faults


def test_a_stranger_is_heard_only_after_its_greeting() -> None:
    machine = started(0)
    machine.handle(Connected(STRANGER.peer_id, "host:9", outbound=False), NOW)
    hear(machine, STRANGER, certified(body_by(1)))
    assert machine.chain.tip == 0 and machine.faults == {STRANGER.peer_id: 1}


# --- proposals ------------------------------------------------------------------------------------


def test_an_unjustified_or_forged_justified_proposal_gets_no_vote() -> None:
    body = body_by(leader(1))
    good = gave_up(0)
    first, *rest = good.votes
    forged = replace(good, votes=(replace(first, signature=bytes(64)), *rest))
    few = replace(good, votes=good.votes[:2])
    locked = gave_up(0, lock_on(body_by(leader(0))))
    for justify in (None, forged, few, gave_up(1), locked, replace(locked, high=None)):
        machine = started(0)
        effects = hear(machine, KEYS[leader(1)], proposed(body, 1, justify))
        assert not sent(effects, Said, Prepare) and machine.faults[PEERS[leader(1)]] == 1
    machine = started(0)
    effects = hear(machine, KEYS[leader(1)], proposed(body, 1, good))
    assert sent(effects, Said, Prepare) and machine.ballot.consensus.view == 1


def test_a_locked_header_is_proposed_again_by_the_next_leader() -> None:
    body = body_by(leader(0))
    machine = started(leader(1))
    hear(machine, KEYS[1], HeaderBody(body.header, body.attestations))
    effects = hear(machine, KEYS[1], GaveUp(gave_up(0, lock_on(body))))
    if not sent(effects, Proposed):  # it asked for the header first
        effects = hear(machine, KEYS[1], body)
    (again, *_) = sent(effects, Proposed)
    assert again.header == body.header
    assert again.envelope.statement == Proposal(1, 1, body.header.digest)


@pytest.mark.parametrize("wrong", range(8))
def test_a_proposal_that_is_wrong_in_one_way_gets_no_vote(wrong: int) -> None:
    machine, body = started(0), body_by(1)
    good = proposed(body, 0)
    other, twin = body_by(2), body_by(1, attesting=(0, 1, 2))
    out_of_turn = sign(KEYS[2], CHAIN, Proposal(1, 0, other.header.digest))
    sender = KEYS[1]
    packets = (
        replace(good, envelope=sign(KEYS[2], CHAIN, good.envelope.statement)),
        replace(good, header=other.header),
        proposed(other, 0),
        replace(good, attestations=good.attestations[:2]),
        replace(good, attestations=good.attestations[::-1]),
        replace(good, envelope=replace(good.envelope, signature=bytes(64))),
        Proposed(out_of_turn, other.header, other.attestations, None),
        replace(good, header=twin.header, attestations=twin.attestations),
    )
    effects = hear(machine, sender, packets[wrong])
    assert not sent(effects, Said, Prepare) and machine.faults == {PEERS[1]: 1}
    assert sent(hear(machine, sender, good), Said, Prepare)


def test_a_flood_of_valid_headers_neither_stalls_nor_kills_the_next_leader() -> None:
    """Any voter can build many headers on different attestations; only proposed ones find room."""
    quorums = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 3)]
    joins = []
    for index in range(4):
        join = sign(KeyPair.from_seed(bytes((80 + index,)) * 32), CHAIN, Join(1, NO_HASH, VOTER))
        joins.append(codec.encode(join))
    flood = []
    for attesting in quorums:
        for encoded in joins:
            join = codec.decode(Envelope, encoded)
            voucher = sign(KEYS[2], CHAIN, Voucher(join_hash(join)))
            admission = Admission(join, (voucher,))
            flood.append(body_by(2, attesting=attesting, operations={join.sender: admission}))
    assert len({body.header.digest for body in flood}) > BODIES_KEPT_MAX
    victim, leading = started(0), started(leader(0))
    for body in flood:
        hear(victim, KEYS[2], body)
        hear(leading, KEYS[2], body)
    assert not victim.ballot.headers.bodies  # nobody asked for them
    for index in (0, 1, 2, 3):
        leading.collection.attested = True
        effects = hear(leading, KEYS[2], said(KEYS[index], Attestation(1, ())))
        if sent(effects, Proposed):
            break
    else:
        effects = leading.handle(TimerFired("propose"), NOW + 9)
    (proposal, *_) = sent(effects, Proposed)
    assert sent(hear(victim, KEYS[leader(0)], proposal), Said, Prepare)


def test_a_header_of_many_views_does_not_crowd_out_the_next_one() -> None:
    machine = started(0)
    body = body_by(leader(0))
    hear(machine, KEYS[leader(0)], proposed(body, 0))
    bodies = {view: body_by(leader(view)) for view in (0, 1, 2, 3)}
    headers = machine.ballot.headers
    for number in range(3 * BODIES_KEPT_MAX):  # stand-ins for what as many leaders proposed
        filler = replace(bodies[1].header, attestations_hash=bytes((number,)) * 32)
        headers.bodies[filler.digest] = HeaderBody(filler, ())
    assert headers.add(bodies[2]) is None
    assert bodies[2].header.digest in headers.bodies
    assert body.header.digest in headers.bodies  # voted for: others may need it from me
    assert len(headers.bodies) <= BODIES_KEPT_MAX + 1


def test_more_attestation_sets_than_are_kept_do_not_stop_the_aggregation() -> None:
    machine = started(0)
    headers = machine.ballot.headers
    headers.state_ready = True
    accepted = (Accepted(PEERS[0], FAR, 10),)
    machine.collection.held[PEERS[0]] = FAR
    for number in range(2 * APPLIES_KEPT_MAX):
        apply = headers.apply_of(accepted, bytes((number,)) * 32)
        machine.outbox.take()
        assert headers.outcome(apply, ()) is None
        assert machine.outbox.take(), f"aggregation {number} was never ordered"
    assert len(headers.applied) <= APPLIES_KEPT_MAX


# --- evidence -------------------------------------------------------------------------------------


def test_an_equivocating_voter_is_convicted_by_its_own_two_signatures_and_others_are_told() -> None:
    machine = started(0)
    one, two = (said(KEYS[3], Prepare(1, 0, bytes((i,)) * 32)) for i in (1, 2))
    hear(machine, KEYS[3], one)
    effects = hear(machine, KEYS[1], two)
    told = sent(effects, Requested)
    assert told and all(isinstance(packet.operation, Eviction) for packet in told)
    assert subject_of(told[0].operation) == PEERS[3]
    other = started(2)
    hear(other, KEYS[0], told[0])
    assert isinstance(other.requests.operations[PEERS[3]], Eviction)


def test_what_was_never_verified_is_not_remembered_as_said() -> None:
    """A forged certificate, even while a decision waits for its header, must not fill slots."""
    machine, body = started(0), body_by(1)
    for index in (1, 2, 3):
        hear(machine, KEYS[index], said(KEYS[index], Commit(1, 0, body.header.digest)))
    assert machine.ballot.consensus.decided and machine.chain.tip == 0
    good = gave_up(7)
    forged = replace(good, votes=tuple(replace(v, signature=bytes(64)) for v in good.votes))
    hear(machine, KEYS[3], GaveUp(forged))
    assert all(machine.ledger.find(peer, "timeout", 1, 7) is None for peer in PEERS)


# --- restarts -------------------------------------------------------------------------------------


def test_a_restarted_peer_gives_the_same_vote_and_no_other() -> None:
    machine = Machine(GENESIS, SEEDS[PEERS[0]], now=NOW)
    effects = machine.handle(Command("start"), NOW)
    for keys in KEYS[1:]:
        effects += machine.handle(Connected(keys.peer_id, "host:1", outbound=True), NOW)
        effects += hear(machine, keys, Hello(PROTOCOL_VERSION, CHAIN, 0, None))
    one, two = body_by(1), body_by(1, attesting=(0, 1, 2))
    effects += hear(machine, KEYS[1], proposed(one, 0))
    (vote, *_) = sent(effects, Said, Prepare)
    again = Machine(GENESIS, SEEDS[PEERS[0]], records=disk_of(effects), now=NOW)
    again.handle(Command("start"), NOW)
    again.handle(Connected(PEERS[1], "host:1", outbound=True), NOW)
    effects = hear(again, KEYS[1], Hello(PROTOCOL_VERSION, CHAIN, 0, None))
    assert sent(effects, Said, Prepare) == [vote]  # byte for byte
    effects = hear(again, KEYS[1], proposed(two, 0))
    assert not sent(effects, Said, Prepare) and not disk_of(effects)


def test_a_restarted_peer_claims_the_lock_it_had() -> None:
    machine, body = started(0), body_by(1)
    effects = hear(machine, KEYS[1], proposed(body, 0))
    for index in (1, 2):
        vote = said(KEYS[index], Prepare(1, 0, body.header.digest))
        effects += hear(machine, KEYS[index], vote)
    assert sent(effects, Said, Commit)
    again = started(0, records=disk_of(effects))
    (timeout, *_) = sent(again.handle(TimerFired("view"), NOW + 99), TimedOut)
    assert timeout.high and timeout.high.digest == body.header.digest
    assert timeout.envelope.statement.high_view == 0


def test_a_leader_of_a_later_view_survives_a_restart_after_its_own_vote() -> None:
    machine = started(leader(1))
    effects = []
    for index in (0, 1, 3):
        effects += hear(machine, KEYS[index], said(KEYS[index], Attestation(1, ())))
    effects += hear(machine, KEYS[1], GaveUp(gave_up(0)))
    assert sent(effects, Proposed) and sent(effects, Said, Prepare)
    again = started(leader(1), records=disk_of(effects))
    assert again.ballot.consensus.view == 1
    for index in (0, 1, 3):
        hear(again, KEYS[index], said(KEYS[index], Attestation(1, ())))
    (timeout, *_) = sent(again.handle(TimerFired("view"), NOW + 99), TimedOut)
    assert timeout.envelope.statement.view == 1


def test_records_of_another_key_or_out_of_place_are_refused() -> None:
    foreign = codec.encode(sign(KEYS[1], CHAIN, Prepare(1, 0, FAR)))
    with pytest.raises(codec.MalformedError):
        Machine(GENESIS, SEEDS[PEERS[0]], records={"slot/000000000001/prepare/0": foreign}, now=NOW)
    item = codec.encode(certified(body_by(1)))
    with pytest.raises(codec.MalformedError):
        Machine(GENESIS, SEEDS[PEERS[0]], records={"header/000000000002": item}, now=NOW)
    with pytest.raises(codec.MalformedError):
        Machine(GENESIS, SEEDS[PEERS[0]], state_round=1, now=NOW)


def test_a_batch_of_headers_orders_the_newest_state_and_none_in_between() -> None:
    items: list[Certified] = []
    for number in (1, 2, 3):
        builder = Machine(GENESIS, SEEDS[PEERS[0]], now=NOW)
        for item in items:
            assert builder.extend(item) is None
        for keys in KEYS:
            envelope = sign(keys, CHAIN, Attestation(number, ()))
            builder.collection.attestations[keys.peer_id] = envelope
        body = builder.ballot.headers.draft(leads=True)
        assert body is not None
        vote = Commit(number, 0, body.header.digest)
        signed = {k.peer_id: sign(k, CHAIN, vote).signature for k in KEYS}
        items.append(Certified(body.header, certify(vote, signed, tuple(PEERS))))
    newcomer = Machine(GENESIS, SEEDS[PEERS[3]], state_round=-1, now=NOW)
    newcomer.sync.retry_at = NOW + 5  # it has just failed to fetch the first one
    newcomer.handle(Command("start"), NOW)
    newcomer.handle(Connected(PEERS[1], "host:1", outbound=True), NOW)
    hear(newcomer, KEYS[1], Hello(PROTOCOL_VERSION, CHAIN, 3, None))
    effects = hear(newcomer, KEYS[1], Headers(tuple(items), 3), later=6.0)
    works = [effect.work for effect in effects if isinstance(effect, StartWork)]
    assert [work.round for work in works if isinstance(work, FetchState)] == [3]


def test_two_valid_certificates_for_one_round_stop_the_peer() -> None:
    machine = started(0)
    hear(machine, KEYS[1], certified(body_by(1)))
    hear(machine, KEYS[2], certified(body_by(2)))
    assert machine.forked
    assert machine.handle(TimerFired("tick"), NOW + 9) == []


def test_a_stale_wait_of_an_earlier_round_does_not_end_the_next_ones() -> None:
    machine = started(0)
    hear(machine, KEYS[1], certified(body_by(1)))
    machine.handle(TimerFired("propose"), NOW)
    assert not machine.ballot.grace_over
