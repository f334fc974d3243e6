"""Vouchers on their way to an admission: a request to join gathers those of different voters.

Whoever wants to join tells all voters. A voter that may vouch adds its own voucher while some are
missing, and passes on what it has gathered, so that the vouchers of all meet at each. Where
admission is by invitation, only an inviter may, and requests without any voucher are not kept. An
admission
carries exactly as many as the genesis asks for: each one costs its voter a part of its quota, and
binds it to the newcomer's conduct.
"""

from dataclasses import dataclass, field

from peerformer.protocol.chain import Chain
from peerformer.protocol.invitations import Invitations
from peerformer.protocol.messages import (
    OPERATIONS_MAX,
    VOUCHERS_MAX,
    Admission,
    Envelope,
    Join,
    Voucher,
    is_genuine,
    sign,
)
from peerformer.protocol.operations import join_fault, join_hash
from peerformer.protocol.outbox import Outbox


@dataclass(slots=True)
class Gathering:
    """One request to join, and who vouches for it."""

    join: Envelope
    vouchers: dict[bytes, Envelope] = field(default_factory=dict)


@dataclass(slots=True)
class Vouching:
    """The requests to join that lack vouchers, by who wants to join."""

    chain: Chain
    outbox: Outbox
    invitations: Invitations
    gathered: dict[bytes, Gathering] = field(default_factory=dict)

    def add(self, offered: Admission) -> tuple[Admission, bool] | None:
        """Take a request in, with its vouchers and mine; None if nobody may vouch for it.

        Returns the request with the vouchers chosen for it, and whether any of them is new here.
        """
        join = offered.join
        gathering = self._gathering(join)
        if gathering is None:
            return None
        vouchers = gathering.vouchers
        usable = {s: v for s, v in vouchers.items() if self.chain.may_vouch(s)}
        for voucher in offered.vouchers:
            if len(usable) < VOUCHERS_MAX and voucher.sender not in usable:
                if self.chain.may_vouch(voucher.sender) and self._is_for(voucher, join):
                    usable[voucher.sender] = voucher
        me, needed = self.outbox.keys.peer_id, self.chain.genesis.limits.vouchers
        invited = self.invitations.may_vouch_for(join.sender)
        if len(usable) < needed and me not in usable and invited and self.chain.may_vouch(me):
            usable[me] = sign(self.outbox.keys, self.chain.chain_id, Voucher(join_hash(join)))
        if not usable and not invited:
            del self.gathered[join.sender]  # strangers without an invitation take nobody's place
            return None
        gathering.vouchers = usable
        chosen = tuple(usable[sender] for sender in sorted(usable)[:needed])
        return Admission(join, chosen), not usable.keys() <= vouchers.keys()

    def _gathering(self, join: Envelope) -> Gathering | None:
        """Return what is gathered for a request; a newer one of its sender replaces it."""
        chain, before = self.chain, self.gathered.get(join.sender)
        if before is not None and before.join == join:
            return before
        if join_fault(join, chain.members, chain.genesis, chain.chain_id, chain.tip + 1):
            return None
        if before is None and len(self.gathered) >= OPERATIONS_MAX:
            return None
        if before is not None and _round_of(join) <= _round_of(before.join):
            return None
        made = self.gathered[join.sender] = Gathering(join)
        return made

    def _is_for(self, voucher: Envelope, join: Envelope) -> bool:
        named = is_genuine(voucher, self.chain.chain_id) and voucher.statement
        return named == Voucher(join_hash(join))

    def drop_settled(self) -> None:
        """Forget requests that nobody may vouch for any more."""
        chain = self.chain
        for sender, gathering in list(self.gathered.items()):
            number = chain.tip + 1
            if join_fault(gathering.join, chain.members, chain.genesis, chain.chain_id, number):
                del self.gathered[sender]


def _round_of(join: Envelope) -> int:
    statement = join.statement
    assert isinstance(statement, Join)
    return statement.round
