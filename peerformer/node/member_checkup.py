"""A ticket, looked at from this machine: who of it is reached, and what one member says of me.

The key that asks is drawn for it and thrown away, nothing is written, no use of the ticket is
spent, and nobody becomes a member. What is measured is real: the clock over this very connection,
the way back by a connection that the member opens, the uplink by bytes that it acknowledges.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from peerformer import __version__
from peerformer.errors import EvictedError, PeerformerError, SwarmError
from peerformer.node.examining import CLOCK_SECONDS_MAX
from peerformer.node.findings import NO, WARNING, Finding, Report, as_bytes
from peerformer.node.inviting import is_loopback
from peerformer.node.joining import Talk, reason_of
from peerformer.node.own_checkup import Needs, look_at_this_machine, needs_of
from peerformer.node.standing import CLOCK_CURE
from peerformer.node.transport import Connection, DialError, Transport
from peerformer.protocol.genesis import ADMISSION_CLOSED, ADMISSION_INVITE, Genesis
from peerformer.protocol.identity import name_of
from peerformer.protocol.invitations import ANSWERS, NO_VOTER, WELCOME
from peerformer.protocol.messages import PROTOCOL_VERSION, pack
from peerformer.protocol.newcomer_packets import SAMPLE_SIZE_MAX, ReachedBack, Sample, Sampled
from peerformer.protocol.ticket import Ticket, span

CLOCK_SECONDS_GOOD = 5.0
CALL_BACK_SECONDS_MAX = 15.0  # a firewall that swallows what comes costs the member its full time
SAMPLE_SECONDS_MAX = 3.0
SAMPLES_MAX, SAMPLES_AT_ONCE = 80, 8  # less than a member takes of one key
SEND_SECONDS_GOOD = 60.0  # for one contribution to one peer


@dataclass(slots=True)
class Checkup:
    """One examination under way."""

    ticket: Ticket
    seed: bytes
    host: str
    port: int
    directory: Path
    now: Callable[[], float] = time.time
    findings: list[Finding] = field(default_factory=list)
    is_reached: bool | None = None

    def note(self, what: str, measured: str, verdict: str = "ok", cure: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(what, measured, verdict, cure))

    async def report(self) -> Report:
        """Look at everything; whatever goes wrong is a finding, never an exception."""
        self._look_at_ticket()
        transport = Transport(self.seed)
        needs: Needs | None = None
        try:
            listens = await self._listen(transport)
            connection = await self._reach(transport)
            if connection is not None:
                needs = await self._examined(transport, connection, listens=listens)
        finally:
            await transport.close()
        own = look_at_this_machine(self.directory, needs)
        return Report((*own, *self.findings), asked_a_member=True, is_reached=self.is_reached)

    def _look_at_ticket(self) -> None:
        invitation, now = self.ticket.invitation, self.now()
        name = name_of(self.ticket.inviter)
        if now >= invitation.expires:
            ago = span(now - invitation.expires)
            cure = f"ask {name} for a new one: peerformer invite"
            self.note("ticket", f"of {name}, expired {ago} ago", NO, cure)
        else:
            self.note("ticket", f"of {name}, good for {span(invitation.expires - now)} more")

    async def _listen(self, transport: Transport) -> bool:
        """Listen where a peer would, so that the member can call back."""
        try:
            _, self.port = await transport.listen(self.host, self.port, lambda _: None)
        except SwarmError as error:
            cure = f"stop what uses it, or choose another: --port {self.port + 1}"
            self.note("listen", f"{error.what} ({error.why})", NO, cure)
            return False
        self.note("listen", f"on {self.host}, port {self.port}")
        return True

    async def _reach(self, transport: Transport) -> Connection | None:
        """Dial all places; the inviter's connection goes on, or else the first."""
        reached: list[Connection] = []
        for place in self.ticket.invitation.places:
            where = f"{name_of(place.peer)} at {place.address.decode()}"
            began = time.monotonic()
            try:
                reached.append(await transport.dial(place.address.decode(), expect=place.peer))
            except DialError as error:
                self.note("reach", f"{where}: {reason_of(error)}", WARNING)
                continue
            self.note("reach", f"{where}: in {1e3 * (time.monotonic() - began):.0f} ms")
        if not reached:
            cure = "look at the network and firewall here, and ask whether they are running"
            self.note("members", "nobody of this ticket is reached", NO, cure)
            return None
        inviter = [c for c in reached if c.peer_id == self.ticket.inviter]
        return (inviter or reached)[0]

    async def _examined(
        self, transport: Transport, connection: Connection, *, listens: bool
    ) -> Needs | None:
        """Ask the member at the other end; returns what its swarm takes, if it tells."""
        talk = Talk(transport.peer_id, connection, connection.address)
        genesis: Genesis | None = None
        steps: list[Callable[[], Awaitable[None]]] = []
        try:
            genesis = await talk.genesis()
            if genesis.chain_id != self.ticket.invitation.chain_id:
                raise SwarmError("the peer there is of another swarm than the ticket")
            await talk.greet(genesis.chain_id, self.port if listens else 0)
            self._judge_greeting(talk)
            steps = [lambda: self._show_ticket(talk, genesis), lambda: self._upload(talk, genesis)]
            steps += [lambda: self._way_back(talk)] if listens else []
            for step in steps:
                await step()
        except (SwarmError, EvictedError) as error:
            self._note_failure(error)
        return needs_of(genesis) if genesis is not None else None

    def _note_failure(self, error: PeerformerError) -> None:
        why = f" ({error.why})" if error.why else ""
        self.note("member", f"{error.what}{why}", NO, error.hint or "")

    def _judge_greeting(self, talk: Talk) -> None:
        software = talk.software or "unknown"
        same = "" if software == __version__ else ", another one that speaks the same"
        self.note(
            "versions",
            f"protocol {PROTOCOL_VERSION}, peerformer {__version__} here, {software} there{same}",
        )
        off, error = talk.clock_behind_seconds or 0.0, talk.round_trip_seconds / 2
        side = "behind" if off > 0 else "ahead"
        measured = f"{abs(off):.1f} s {side}, give or take {1e3 * error:.0f} ms"
        if abs(off) > CLOCK_SECONDS_MAX:
            limit = f"{measured}: more than {span(CLOCK_SECONDS_MAX)}"
            self.note("clock", limit, NO, CLOCK_CURE)
        elif abs(off) > CLOCK_SECONDS_GOOD:
            self.note("clock", measured, WARNING, CLOCK_CURE)
        else:
            self.note("clock", measured)

    async def _show_ticket(self, talk: Talk, genesis: Genesis) -> None:
        """Ask the inviter whether it would let a newcomer in."""
        admission = genesis.limits.admission
        if admission == ADMISSION_CLOSED:
            self.note(
                "admission", "this swarm lets nobody in", NO, "found another: peerformer init"
            )
        if admission != ADMISSION_INVITE:
            return
        name = name_of(self.ticket.inviter)
        if talk.connection.peer_id != self.ticket.inviter:
            words = f"{name} lets newcomers in, and is not reached: joining waits for it"
            self.note("admission", words, WARNING, f"ask {name} to start its peer")
            return
        given = await talk.show(self.ticket, only_ask=True)
        if given.answer == WELCOME:
            self.note("admission", f"{name} lets {given.left} more in by this ticket")
        else:
            verdict = WARNING if given.answer == NO_VOTER else NO
            cure = f"ask {name} for a new one: peerformer invite"
            self.note("admission", ANSWERS.get(given.answer, "refused"), verdict, cure)

    async def _upload(self, talk: Talk, genesis: Genesis) -> None:
        """Measure how fast this machine's bytes come to the member, for a few seconds."""
        loop, sample = asyncio.get_running_loop(), pack(Sample(bytes(SAMPLE_SIZE_MAX)))
        began, sent, arrived, last = loop.time(), 0, 0, loop.time()
        for _ in range(SAMPLES_AT_ONCE):
            sent += talk.connection.send(sample)
        while arrived < sent * SAMPLE_SIZE_MAX:
            left = SAMPLE_SECONDS_MAX - (loop.time() - began)
            try:
                taken = await talk.wait(Sampled, "a receipt for a sample", max(left, 0.01))
            except SwarmError:
                break  # the time is over, or the member takes no more
            arrived, last = arrived + taken.size, loop.time()
            if sent < SAMPLES_MAX:
                sent += talk.connection.send(sample)
        if not arrived:
            words = f"less than {as_bytes(SAMPLE_SIZE_MAX)} in {SAMPLE_SECONDS_MAX:.0f} s"
            self.note("upload", words, WARNING, "try again: the member may be busy")
            return
        rate = arrived / max(last - began - talk.round_trip_seconds, 1e-3)
        seconds = genesis.blob_size_max / rate
        words = f"{8 * rate / 1e6:.1f} Mbit/s; a contribution has up to"
        words += f" {as_bytes(genesis.blob_size_max)}, {seconds:.1f} s to one peer"
        slow = seconds > SEND_SECONDS_GOOD
        self.note("upload", words, *((WARNING, "a faster uplink") if slow else ()))

    async def _way_back(self, talk: Talk) -> None:
        """Hear whether the member reached this machine by a connection of its own."""
        told = await talk.wait(ReachedBack, "word on calling back", CALL_BACK_SECONDS_MAX)
        address = told.address.decode("ascii", "replace")
        fault = told.fault.decode("ascii", "replace")
        if fault.startswith("busy"):
            self.note("reached", f"not tried: the member is {fault}", WARNING, "try again")
            return
        self.is_reached = not fault
        if self.is_reached:
            self.note("reached", f"by the member, at {address}")
        elif is_loopback(f"{self.host}:0") and not is_loopback(address):
            cure = f"listen for others too: --host 0.0.0.0 --port {self.port}"
            self.note("reached", f"not at {address}: this listens on {self.host}", WARNING, cure)
        else:
            cure = f"forward port {self.port} of your router to this machine; or join as a guest"
            self.note("reached", f"not at {address}: {fault}", WARNING, cure)
