"""Who was invited: the tickets that a voter gave out, counted by that voter itself.

Where admission is by invitation, a voter vouches for nobody but those who showed it a ticket that
it had signed: an invitation is a promise of a voucher. A ticket is shown to its inviter alone,
since whoever sees it could use it. Each use is bound to the key that came with it and durable
before the answer leaves, so that a restart forgets none of them, and whoever comes again with the
same key costs nothing more.

How the newcomer goes on with the answer, and what a ticket looks like as text, is others' business.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from peerformer.protocol.chain import Chain
from peerformer.protocol.codec import MalformedError, decode
from peerformer.protocol.genesis import ADMISSION_INVITE
from peerformer.protocol.identity import hash_of
from peerformer.protocol.membership import VOTER
from peerformer.protocol.newcomer_packets import Present, Presented
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.ticket import DAY_SECONDS, Ticket, is_signed

INVITED_PREFIX = "invited/"
REMEMBERED_SECONDS = DAY_SECONDS  # past its time: an admission may wait for its voter's quota
WELCOME, USED_UP, EXPIRED, NOT_MINE, NO_VOTER = 1, 2, 3, 4, 5
ANSWERS = {
    WELCOME: "it is good",
    USED_UP: "all whom it admits have come",
    EXPIRED: "it has expired, by the clock of the peer that gave it",
    NOT_MINE: "the peer that should have given it did not",
    NO_VOTER: "the peer that gave it has no vote, and can vouch for nobody",
}


@dataclass(slots=True)
class Invitations:
    """The uses of my tickets: ticket -> the keys that came with it, and when it expires."""

    chain: Chain
    outbox: Outbox
    used: dict[bytes, dict[bytes, int]] = field(default_factory=dict)

    def restore(self, records: Mapping[str, bytes]) -> None:
        """Take back the uses counted before a restart; raises MalformedError."""
        for key, data in records.items():
            if key.startswith(INVITED_PREFIX):
                try:
                    ticket, peer = map(bytes.fromhex, key.removeprefix(INVITED_PREFIX).split("/"))
                except ValueError as error:
                    raise MalformedError(f"{key}: not the key of a ticket's use") from error
                self.used.setdefault(ticket, {})[peer] = int.from_bytes(data, "little")

    def may_vouch_for(self, peer: bytes) -> bool:
        """Whether I vouch for a newcomer: anybody, or whoever came with a ticket of mine."""
        if self.chain.genesis.limits.admission != ADMISSION_INVITE:
            return True
        return any(peer in holders for holders in self.used.values())

    def show(self, peer: bytes, shown: Present, now: float) -> None:
        """Answer whoever shows a ticket; unless it only asks, this counts as a use."""
        answer, left = self._judge(peer, shown, now)
        self.outbox.send(peer, Presented(answer, left))

    def _judge(self, peer: bytes, shown: Present, now: float) -> tuple[int, int]:
        """Return the answer, and how many more may come with the ticket."""
        me = self.outbox.keys.peer_id
        ticket = decode(Ticket, shown.ticket)
        invitation = ticket.invitation
        mine = ticket.inviter == me and invitation.chain_id == self.chain.chain_id
        if not mine or not is_signed(ticket):
            return NOT_MINE, 0
        member = self.chain.members.get(me)
        if member is None or member.role != VOTER:
            return NO_VOTER, 0
        name = hash_of("ticket", shown.ticket)
        holders = self.used.get(name, {})
        left = max(0, max(1, invitation.uses) - len(holders))
        if peer in holders:
            return WELCOME, left
        if now >= invitation.expires:
            return EXPIRED, left
        if not left:
            return USED_UP, 0
        if shown.only_asks:
            return WELCOME, left
        self.used.setdefault(name, {})[peer] = invitation.expires
        data = invitation.expires.to_bytes(8, "little")
        self.outbox.persist(((_key(name, peer), data),))
        return WELCOME, left - 1

    def forget(self, now: float) -> None:
        """Forget the uses of tickets that nobody can come with any more."""
        gone = [
            (name, peer)
            for name, holders in self.used.items()
            for peer, expires in holders.items()
            if now >= expires + REMEMBERED_SECONDS
        ]
        for name, peer in gone:
            del self.used[name][peer]
        self.used = {name: holders for name, holders in self.used.items() if holders}
        if gone:
            self.outbox.persist((), [_key(name, peer) for name, peer in gone])


def _key(ticket: bytes, peer: bytes) -> str:
    return f"{INVITED_PREFIX}{ticket.hex()}/{peer.hex()}"
