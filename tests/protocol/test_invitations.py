"""Admission by invitation: a voter vouches for whom its tickets brought, and for no more of them
than each admits, over restarts too."""

from dataclasses import replace
from typing import Any

import pytest

from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.codec import encode
from peerformer.protocol.effects import Command, Connected, Effect, Persist, Received, Send
from peerformer.protocol.genesis import ADMISSION_INVITE, Genesis
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.invitations import (
    EXPIRED,
    NOT_MINE,
    REMEMBERED_SECONDS,
    USED_UP,
    WELCOME,
)
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import VOTER
from peerformer.protocol.messages import (
    NO_HASH,
    PROTOCOL_VERSION,
    Admission,
    Hello,
    Join,
    Packet,
    Requested,
    pack,
    sign,
)
from peerformer.protocol.newcomer_packets import Present, Presented
from peerformer.protocol.printout import from_text, to_text
from peerformer.protocol.ticket import INVITATION_TAG, Invitation, Ticket
from tests.protocol.test_machine import GENESIS as OPEN
from tests.protocol.test_machine import KEYS, NOW, PEERS, SEEDS

GENESIS: Genesis = replace(OPEN, limits=replace(OPEN.limits, admission=ADMISSION_INVITE))
CHAIN = GENESIS.chain_id
NEWCOMERS = [KeyPair.from_seed(bytes((0x70 + i,)) * 32) for i in range(4)]
LATER = int(NOW) + 3_600


def ticket(giver: KeyPair = KEYS[0], **changes: Any) -> bytes:
    made = Invitation(CHAIN, Checkpoint(0, NO_HASH, NO_HASH), int(NOW), LATER, (), uses=2, serial=7)
    invitation = replace(made, **changes)
    signature = giver.sign(INVITATION_TAG + encode(invitation))
    return encode(Ticket(invitation, giver.peer_id, signature))


def inviter(records: dict[str, bytes] | None = None) -> Machine:
    """The voter that gives the tickets, connected with another voter and with all newcomers."""
    machine = Machine(GENESIS, SEEDS[PEERS[0]], records=records, now=NOW)
    machine.handle(Command("start"), NOW)
    for keys in (KEYS[1], *NEWCOMERS):
        machine.handle(Connected(keys.peer_id, "host:1", outbound=False), NOW)
        tell(machine, keys, Hello(PROTOCOL_VERSION, CHAIN, 0, None))
    return machine


def tell(machine: Machine, source: KeyPair, packet: Packet, later: float = 0.0) -> list[Effect]:
    return machine.handle(Received(source.peer_id, pack(packet)), machine.now + later)


def show(machine: Machine, keys: KeyPair, shown: bytes, only_asks: bool = False) -> Presented:
    effects = tell(machine, keys, Present(shown, only_asks), later=10.0)
    (answer,) = (e for e in effects if isinstance(e, Send) and isinstance(e.packet, Presented))
    assert answer.peer == keys.peer_id
    return answer.packet


def vouched_for(machine: Machine, keys: KeyPair) -> bool:
    """Whether a request to join is answered with a voucher that the other voter is told of."""
    join = Join(1, HashChain.from_seed(b"\1" * 32, 2).links[0], VOTER)
    asked = Requested(Admission(sign(keys, CHAIN, join), ()))
    told = [e.packet for e in tell(machine, keys, asked) if isinstance(e, Send)]
    return any(isinstance(p, Requested) and p.operation.vouchers for p in told)


def kept(effects: list[Effect]) -> dict[str, bytes]:
    return {key: data for e in effects if isinstance(e, Persist) for key, data in e.records}


def test_a_voter_vouches_for_those_who_showed_its_ticket_and_for_nobody_else() -> None:
    machine = inviter()
    first, second, third, _ = NEWCOMERS
    assert not vouched_for(machine, first)
    assert machine.requests.vouching.gathered == {}  # a stranger takes nobody's place
    assert show(machine, first, ticket()) == Presented(WELCOME, 1)
    assert vouched_for(machine, first)
    assert show(machine, third, ticket(), only_asks=True) == Presented(WELCOME, 1)
    assert show(machine, second, ticket()) == Presented(WELCOME, 0)
    assert show(machine, third, ticket()) == Presented(USED_UP, 0)
    assert not vouched_for(machine, third)
    assert show(machine, first, ticket()) == Presented(WELCOME, 0)  # who came before comes again
    assert show(machine, third, ticket(serial=8)) == Presented(WELCOME, 1)  # another ticket
    assert vouched_for(machine, third)


def test_a_use_is_durable_before_it_is_answered_and_a_restart_forgets_none() -> None:
    machine, records = inviter(), dict[str, bytes]()
    for keys in NEWCOMERS[:2]:
        effects = tell(machine, keys, Present(ticket(), False), later=10.0)
        kinds = [type(e) for e in effects if isinstance(e, Persist | Send)]
        assert kinds[0] is Persist, effects
        records |= kept(effects)
    again = inviter(records)
    assert show(again, NEWCOMERS[2], ticket()) == Presented(USED_UP, 0)
    assert vouched_for(again, NEWCOMERS[1])
    printed = from_text(to_text(again), seed=SEEDS[PEERS[0]])
    assert printed.requests.vouching.invitations is printed.requests.invitations
    assert show(printed, NEWCOMERS[2], ticket()) == Presented(USED_UP, 0)


def test_a_ticket_of_another_voter_chain_or_hand_lets_nobody_in() -> None:
    machine = inviter()
    forged = ticket()[:-64] + bytes(64)
    for wrong in (ticket(KEYS[1]), ticket(chain_id=NO_HASH), forged):
        assert show(machine, NEWCOMERS[0], wrong) == Presented(NOT_MINE, 0)
    tell(machine, NEWCOMERS[0], Present(b"no ticket", False))
    assert machine.faults[NEWCOMERS[0].peer_id] == 1
    assert not vouched_for(machine, NEWCOMERS[0])


@pytest.mark.parametrize("late", [0, 5])
def test_a_ticket_ends_with_its_time_and_its_uses_are_forgotten_a_day_later(late: int) -> None:
    machine = inviter()
    assert show(machine, NEWCOMERS[0], ticket(uses=3)).answer == WELCOME
    machine.now = float(LATER + late)
    assert show(machine, NEWCOMERS[1], ticket(uses=3)) == Presented(EXPIRED, 2)
    assert vouched_for(machine, NEWCOMERS[0])  # it may still wait for the quota of its voucher
    machine.requests.invitations.forget(LATER + REMEMBERED_SECONDS - 1)
    assert machine.requests.invitations.used
    machine.requests.invitations.forget(LATER + REMEMBERED_SECONDS)
    assert not machine.requests.invitations.used
    (persist,) = machine.outbox.take()
    assert isinstance(persist, Persist) and len(persist.deleted) == 1 and not persist.records
