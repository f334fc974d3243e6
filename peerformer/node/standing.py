"""What others say of this peer's own standing: whether it is let in, sent away, or out of time.

An answer about a ticket counts when it is the inviter's. That this peer was evicted, or runs the
wrong version, is believed when more voters say so than may be lying together; until then it is one
peer's word. Of clocks, a majority of the connected is believed, and only for a warning: no clock of
others ever moves this one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from peerformer import events
from peerformer.errors import ConfigError
from peerformer.node.directory import PeerDirectory
from peerformer.node.examining import CLOCK_SECONDS_MAX
from peerformer.node.kept_tickets import kept_tickets, ticket_file
from peerformer.node.node import Node
from peerformer.node.versions import evicted, other_version, software_of
from peerformer.protocol.codec import encode
from peerformer.protocol.genesis import ADMISSION_INVITE
from peerformer.protocol.identity import name_of
from peerformer.protocol.invitations import ANSWERS, NO_VOTER, WELCOME
from peerformer.protocol.membership import tolerated_faults
from peerformer.protocol.messages import Packet, pack
from peerformer.protocol.newcomer_packets import BANNED, OTHER_VERSION, Farewell, Present, Presented
from peerformer.protocol.ticket import Ticket, span

LOOK_SECONDS = 1.0
SHOW_AGAIN_SECONDS = 5.0
CLOCK_CURE = "set this machine's clock: timedatectl set-ntp true"


def refused_ticket(inviter: bytes, answer: int) -> ConfigError:
    """Return the failure of a ticket that its inviter does not honour."""
    name = name_of(inviter)
    words = ANSWERS.get(answer, "its inviter does not honour it")
    return ConfigError(
        "this ticket lets nobody in any more",
        where=f"the ticket of {name}",
        why=words,
        hint=f"ask {name} for a new one: peerformer invite",
    )


@dataclass(slots=True)
class Standing:
    """Watches over one running peer's standing; fails the node where there is no going on."""

    node: Node
    directory: PeerDirectory
    tell: Callable[[events.Event], None]
    tickets: list[Ticket] = field(default_factory=list)
    clock_off_seconds: float | None = None
    _said: dict[int, dict[bytes, Farewell]] = field(default_factory=dict)  # reason -> by whom
    _shown_at: dict[bytes, float] = field(default_factory=dict)  # inviter -> loop time
    _welcome: set[bytes] = field(default_factory=set)
    _warned: set[bytes] = field(default_factory=set)

    def begin(self, port: int) -> None:
        """Begin to watch.

        Raises:
            EvictedError: if this peer's own chain says that it was evicted.
        """
        machine, examiner = self.node.peer.machine, self.node.examiner
        if machine.me in machine.chain.members.banned:
            raise evicted(machine.me, "the rounds that are stored here")
        self.tickets = kept_tickets(self.directory)
        examiner.port, examiner.on_packet, examiner.on_warning = port, self._on_packet, self.tell
        self.node.spawn(examiner.ask_again())
        self.node.spawn(self._look())

    async def _look(self) -> None:
        while True:
            self._look_at_clock()
            self._show_tickets()
            members = self.node.peer.machine.chain.members.ids
            self.node.examiner.ask_to_be_called(members)
            await asyncio.sleep(LOOK_SECONDS)

    # --- the clock -------------------------------------------------------------------------------

    def _look_at_clock(self) -> None:
        """Warn once when the clock is wrong, and once when it is right again."""
        connected = len(self.node.connections)
        off = self.node.examiner.clocks.fault(connected)
        was, self.clock_off_seconds = self.clock_off_seconds, off
        if off is not None and was is None:
            side = "behind" if off > 0 else "ahead of"
            limit = span(CLOCK_SECONDS_MAX)
            self.tell(
                events.Warned(
                    what=f"this machine's clock is {span(abs(off))} {side} those of most peers",
                    why=f"more than {limit}: others will not believe when tickets and addresses"
                    " from here are dated; training and votes do not depend on it",
                    hint=CLOCK_CURE,
                )
            )
        elif off is None and was is not None and connected:
            self.tell(events.Warned(what="this machine's clock agrees with those of the others"))

    # --- the ticket ------------------------------------------------------------------------------

    def _show_tickets(self) -> None:
        """Show each ticket to its inviter until it answers; forget them once this is a member."""
        machine = self.node.peer.machine
        if not self.tickets:
            return
        if machine.is_member or machine.genesis.limits.admission != ADMISSION_INVITE:
            self.tickets = []
            ticket_file(self.directory).unlink(missing_ok=True)
            return
        now = self.node.loop.time()
        for ticket in self.tickets:
            inviter = ticket.inviter
            connection = self.node.connections.get(inviter)
            waited = now - self._shown_at.get(inviter, -SHOW_AGAIN_SECONDS) >= SHOW_AGAIN_SECONDS
            greeted = inviter in machine.neighbourhood.greeted
            if connection is not None and greeted and waited and inviter not in self._welcome:
                self._shown_at[inviter] = now
                connection.send(pack(Present(encode(ticket), False)))

    def _on_packet(self, peer: bytes, packet: Packet) -> None:
        match packet:
            case Presented(answer) if any(ticket.inviter == peer for ticket in self.tickets):
                self._on_presented(peer, answer)
            case Farewell():
                self._on_farewell(peer, packet)

    def _on_presented(self, peer: bytes, answer: int) -> None:
        if answer == WELCOME:
            self._welcome.add(peer)
        elif answer != NO_VOTER:
            self.node.fail(refused_ticket(peer, answer))
        elif peer not in self._warned:  # it may get its vote back
            self._warned.add(peer)
            self.tell(events.Warned(what=f"{name_of(peer)} cannot let me in", why=ANSWERS[answer]))

    # --- farewells -------------------------------------------------------------------------------

    def _on_farewell(self, peer: bytes, farewell: Farewell) -> None:
        machine = self.node.peer.machine
        voters = set(machine.chain.members.voters)
        said = self._said.setdefault(farewell.reason, {})
        if peer not in voters or peer == machine.me:
            return
        said[peer] = farewell
        sayers = sorted(said.keys() & voters)
        if len(sayers) <= tolerated_faults(len(voters)):
            return
        who = ", ".join(name_of(sayer) for sayer in sayers[:4])
        if farewell.reason == BANNED:
            self.node.fail(evicted(machine.me, who))
        elif farewell.reason == OTHER_VERSION:
            software = software_of(farewell.software)
            self.node.fail(other_version("this swarm", farewell.version, software))
