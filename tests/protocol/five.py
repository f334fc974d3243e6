"""Five founders, their headers and their requests, made by hand."""

from dataclasses import replace

from peerformer.protocol.genesis import ADMISSION_OPEN, Founder, Genesis, Limits
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.membership import (
    SUSPENDED,
    VOTER,
    Members,
    bits_of,
    founders,
    next_members,
)
from peerformer.protocol.messages import (
    NO_HASH,
    Admission,
    Contradiction,
    Eviction,
    Header,
    Join,
    Prepare,
    Voucher,
    sign,
)
from peerformer.protocol.operations import join_hash, operation_fault

KEYS = sorted((KeyPair.from_seed(bytes((i,)) * 32) for i in range(5)), key=lambda k: k.peer_id)
STRANGER = KeyPair.from_seed(b"\xff" * 32)
GENESIS = Genesis(
    1, b"test", b"{}", NO_HASH, 0, NO_HASH, 0, NO_HASH, 32, 64,
    Limits(admission=ADMISSION_OPEN, joins_per_epoch=9),
    tuple(Founder(keys.peer_id, bytes(32)) for keys in KEYS),
)  # fmt: skip
CHAIN = GENESIS.chain_id
MEMBERS = founders(GENESIS)


def header(number: int = 1, **changes: object) -> Header:
    everybody = bits_of(MEMBERS.voters, set(MEMBERS.voters))
    plain = Header(
        1, number, NO_HASH, NO_HASH, NO_HASH, NO_HASH, KEYS[0].peer_id,
        everybody, NO_HASH, (), (), (), NO_HASH, NO_HASH, NO_HASH,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def following(members: Members, header: Header, limits: Limits = GENESIS.limits) -> Members:
    return next_members(members, header, limits)


def fault(operation: object, number: int = 1, genesis: Genesis = GENESIS) -> str | None:
    return operation_fault(operation, MEMBERS, genesis, CHAIN, number)  # type: ignore[arg-type]


def admission(
    number: int = 1,
    who: KeyPair = STRANGER,
    vouching: tuple[int, ...] = (0,),
    role: int = VOTER,
) -> Admission:
    join = sign(who, CHAIN, Join(number, b"\x07" * 32, role))
    vouchers = tuple(sign(KEYS[i], CHAIN, Voucher(join_hash(join))) for i in vouching)
    return Admission(join, vouchers)


def eviction(culprit: KeyPair) -> Eviction:
    one, two = (sign(culprit, CHAIN, Prepare(1, 0, bytes((i,)) * 32)) for i in (1, 2))
    return Eviction(Contradiction(one, two))


def away(number: int, *absent: KeyPair, members: Members = MEMBERS, **changes: object) -> Header:
    """A header whose attesters are all voters but these."""
    present = set(members.voters) - {keys.peer_id for keys in absent}
    attesters = bits_of(members.voters, present)
    return header(number, attesters=attesters, **changes)


def suspended(reputation: int = 400, quarantined_until: int = 0) -> tuple[Members, KeyPair]:
    who = KEYS[4]
    asleep = replace(
        MEMBERS.members[4], role=SUSPENDED, suspended_from=40, idle_rounds=30,
        reputation=reputation, quarantined_until=quarantined_until,
    )  # fmt: skip
    assert asleep.peer == who.peer_id
    return replace(MEMBERS, members=(*MEMBERS.members[:4], asleep)), who
