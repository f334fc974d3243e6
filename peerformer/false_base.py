"""A false beginning for newcomers: a chain that only its maker votes on, or a base that never was.

Such a chain keeps every rule but that its base never was, so nothing tells it from the true one but
the digest that a checkpoint names.
"""

from dataclasses import dataclass, field, replace
from random import Random

from peerformer.protocol.certificates import certify
from peerformer.protocol.chain import Base, Chain
from peerformer.protocol.codec import decode, encode
from peerformer.protocol.identity import hash_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import (
    REPUTATION_START,
    VOTER,
    Member,
    Members,
    bits_of,
    next_members,
)
from peerformer.protocol.messages import (
    HEADERS_MAX,
    NO_HASH,
    PROTOCOL_VERSION,
    Certified,
    Commit,
    Header,
    Headers,
    Packet,
    sign,
)
from peerformer.protocol.newcomer_packets import BaseOf


@dataclass(slots=True)
class FalseBases:
    """What one liar tells each newcomer."""

    random: Random
    forks: dict[bytes, Chain] = field(default_factory=dict)

    def told(self, machine: Machine, peer: bytes, packet: BaseOf | Headers) -> Packet:
        """Return what a newcomer is told instead of the base or the headers that it asked for."""
        if isinstance(packet, BaseOf):
            if not packet.data:
                return packet
            base = decode(Base, packet.data)
            fork = self.forks[peer] = fork_from(machine, base, packet.round)
            wrong_word = replace(base, head=hash_of("another header", base.head))
            false = wrong_word if self.random.random() < 0.3 else fork.base
            return replace(packet, data=encode(false))
        told = self.forks.get(peer)
        if told is None or not packet.items:
            return packet
        first = packet.items[0].header.round
        items = (told.item(number) for number in range(first, first + HEADERS_MAX))
        return Headers(tuple(item for item in items if item is not None), packet.tip)


def fork_from(machine: Machine, base: Base, last_round: int) -> Chain:
    """Return a chain that its maker alone votes on, from a base up to a round.

    It keeps every rule but that its base never was: nothing tells but the digest of a checkpoint.
    """
    chain_id, limits = machine.chain.chain_id, machine.genesis.limits
    me = Member(machine.me, VOTER, machine.hash_chain.links[0], 1, REPUTATION_START, 0, 0)
    chain = Chain(machine.genesis, base=replace(base, members=Members((me,), ())))
    while chain.tip < last_round:
        reveal = machine.hash_chain.next_after(chain.members.members[0].chain_anchor)
        if reveal is None:
            break
        header = Header(
            version=PROTOCOL_VERSION,
            round=chain.tip + 1,
            parent=chain.head,
            members_hash=chain.members.hash,
            next_members_hash=NO_HASH,
            parameters_hash=machine.genesis.parameters_hash,
            builder=machine.me,
            attesters=bits_of((machine.me,), {machine.me}),
            attestations_hash=NO_HASH,
            contributions=(),
            refused=(),
            operations=(),
            reveal=reveal,
            beacon=chain.next_beacon(reveal),
            state_root=chain.state_root,
        )
        after = next_members(chain.members, header, limits)
        header = replace(header, next_members_hash=after.hash)
        vote = Commit(header.round, 0, header.digest)
        signed = {machine.me: sign(machine.keys, chain_id, vote).signature}
        chain.append(Certified(header, certify(vote, signed, (machine.me,))))
    return chain
