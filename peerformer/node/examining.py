"""What two nodes tell each other of themselves: the time, the software, whether they are reached.

Whoever connects may ask, a newcomer's `doctor` as well as a member, and nobody needs to believe an
answer. Since strangers ask, everything is bounded: questions and samples by rates for each key and
for all together; and a peer is called back only at the address that its connection comes from, over
a connection that must show its own key, so that nobody can have a third party knocked at. These
frames are between the nodes; no protocol machine ever sees them.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from peerformer import __version__, events
from peerformer.node.connection import Connection
from peerformer.node.transport import DialError, Transport
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import name_of
from peerformer.protocol.messages import PACKETS, Packet, pack, unpack
from peerformer.protocol.newcomer_packets import (
    OTHER_VERSION,
    VERSION_SIZE_MAX,
    WORDS_SIZE_MAX,
    About,
    AskAbout,
    Farewell,
    Presented,
    ReachedBack,
    Sample,
    Sampled,
)
from peerformer.protocol.rates import Rate, TokenBucket

CLOCK_SECONDS_MAX = 300.0  # a clock further off than this is wrong, whatever the network did
ASK_AGAIN_SECONDS = 600.0  # clocks are set right, or drift, within hours
REACHED_MAX = 3  # addresses remembered at which others reached this peer

# For one key and for all keys together. A question costs little; a peer that runs asks once for a
# connection and then every ten minutes, and 64 of them may start behind one address.
QUESTIONS, ALL_QUESTIONS = Rate(burst=8, per_second=0.2), Rate(burst=512, per_second=16.0)
# A call back is a TLS handshake of ours.
CALLS, ALL_CALLS = Rate(burst=3, per_second=0.05), Rate(burst=16, per_second=0.5)
CALLS_AT_ONCE_MAX = 8
# 4 MiB to measure one uplink; together no more than strangers may make us read anyway.
SAMPLES, ALL_SAMPLES = Rate(burst=90, per_second=0.5), Rate(burst=1_024, per_second=16.0)
KEYS_REMEMBERED_MAX = 4_096

_MINE = {PACKETS.index(kind) for kind in (AskAbout, About, ReachedBack, Sample, Sampled, Farewell)}
_SHARED = {PACKETS.index(Presented)}  # taken here, and by no machine


@dataclass(slots=True)
class Allowance:
    """What one kind of request may still cost: for each key, and for all together."""

    rate: Rate
    rate_of_all: Rate
    _of_all: TokenBucket | None = None
    _by_key: dict[bytes, TokenBucket] = field(default_factory=dict)

    def take(self, peer: bytes, now: float) -> bool:
        """Take one from both if both have one."""
        if len(self._by_key) >= KEYS_REMEMBERED_MAX:
            self._by_key.clear()  # their keys are spent as well: what all may take is not renewed
        mine = self._by_key.setdefault(peer, TokenBucket(self.rate.burst, now))
        if not mine.take(self.rate.burst, self.rate.per_second, now):
            return False
        self._of_all = self._of_all or TokenBucket(self.rate_of_all.burst, now)
        return self._of_all.take(self.rate_of_all.burst, self.rate_of_all.per_second, now)


@dataclass(slots=True)
class PeerClocks:
    """How far this machine's clock is from those of the peers that are connected, in seconds."""

    behind: dict[bytes, float] = field(default_factory=dict)  # peer -> its clock minus mine

    def fault(self, connected: int) -> float | None:
        """Return how far mine is behind, if more than half of the connected say it is wrong.

        All of them must say so in the same direction: two clocks that differ say nothing.
        """
        for sign in (1.0, -1.0):
            off = [
                seconds for seconds in self.behind.values() if seconds * sign > CLOCK_SECONDS_MAX
            ]
            if 2 * len(off) > max(connected, len(self.behind)):
                return median(off)
        return None


@dataclass(slots=True)
class Examiner:
    """Asks and answers for one node. `wall` is the clock that a person would set right."""

    transport: Transport
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    connections: dict[bytes, Connection]
    on_packet: Callable[[bytes, Packet], None] = lambda *_: None  # farewells, answers to tickets
    on_warning: Callable[[events.Warned], None] = lambda _: None
    wall: Callable[[], float] = time.time
    port: int = 0  # where this node listens
    clocks: PeerClocks = field(default_factory=PeerClocks)
    _asked_at: dict[bytes, float] = field(default_factory=dict)
    _called_at: dict[bytes, float] = field(default_factory=dict)  # whom I asked to, and when
    _reached: dict[str, float] = field(default_factory=dict)  # address -> loop time
    _calls: int = 0  # under way
    _dismissed: set[bytes] = field(default_factory=set)  # told of already
    _questions: Allowance = field(default_factory=lambda: Allowance(QUESTIONS, ALL_QUESTIONS))
    _call_backs: Allowance = field(default_factory=lambda: Allowance(CALLS, ALL_CALLS))
    _samples: Allowance = field(default_factory=lambda: Allowance(SAMPLES, ALL_SAMPLES))

    # --- asking --------------------------------------------------------------------------------

    def met(self, connection: Connection) -> None:
        """Ask a peer that has just connected."""
        self._asked_at[connection.peer_id] = self.wall()
        connection.send(pack(AskAbout(0)))

    def ask_to_be_called(self, peers: Iterable[bytes]) -> None:
        """Ask one of these peers to call back, unless it was asked, or one reached me, lately."""
        now = asyncio.get_running_loop().time()
        asked = {p: at for p, at in self._called_at.items() if now - at < ASK_AGAIN_SECONDS}
        self._called_at = asked
        if self.reached_at or not self.port:
            return
        for peer in peers:
            if peer in self.connections and peer not in asked:
                asked[peer] = now
                self._asked_at[peer] = self.wall()
                self.connections[peer].send(pack(AskAbout(self.port)))
                return

    @property
    def reached_at(self) -> list[str]:
        """The addresses at which others reached me lately, by connections of their own."""
        now = asyncio.get_running_loop().time()
        return [a for a, at in self._reached.items() if now - at < 2 * ASK_AGAIN_SECONDS]

    def parted(self, peer: bytes) -> None:
        """Forget a peer that is gone."""
        self._asked_at.pop(peer, None)
        self.clocks.behind.pop(peer, None)

    def dismiss(self, peer: bytes, reason: str, farewell: Farewell) -> None:
        """Tell a peer why it is sent away, and the operator if it is for its version."""
        if peer in self.connections:
            self.connections[peer].send(pack(farewell))
        new = peer not in self._dismissed and len(self._dismissed) < KEYS_REMEMBERED_MAX
        if farewell.reason == OTHER_VERSION and new:
            self._dismissed.add(peer)
            hint = "it was told to install the version that runs here"
            self.on_warning(
                events.Warned(what=f"{name_of(peer)} was sent away", why=reason, hint=hint)
            )

    async def ask_again(self) -> None:
        """Ask all again from time to time, for ever."""
        while True:
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            for connection in list(self.connections.values()):
                self.met(connection)

    # --- answering -----------------------------------------------------------------------------

    def take(self, connection: Connection, frame: bytes) -> bool:
        """Take a frame that is between the nodes; False if it is for the machine."""
        if not frame or frame[0] not in _MINE | _SHARED:
            return False
        try:
            packet = unpack(frame)
        except MalformedError:
            return False  # the machine counts it against the connection
        self._on_packet(connection, packet)
        return True

    def _on_packet(self, connection: Connection, packet: Packet) -> None:
        peer, now = connection.peer_id, asyncio.get_running_loop().time()
        match packet:
            case AskAbout(port) if self._questions.take(peer, now):
                told = connection.address.encode()[:WORDS_SIZE_MAX]
                software = __version__.encode()[:VERSION_SIZE_MAX]
                connection.send(pack(About(int(self.wall() * 1_000), software, told)))
                if port:
                    self.spawn(self._call_back(connection, port))
            case Sample(data) if self._samples.take(peer, now):
                connection.send(pack(Sampled(len(data))))
            case About(milliseconds):
                asked = self._asked_at.get(peer)
                if asked is not None:
                    between = (asked + self.wall()) / 2  # it answered somewhere in the middle
                    self.clocks.behind[peer] = milliseconds / 1_000 - between
            case ReachedBack(address, b"") if peer in self._called_at and self._is_mine(address):
                self._reached = {a: self._reached[a] for a in self.reached_at}
                if len(self._reached) < REACHED_MAX:
                    self._reached[address.decode()] = now
            case Farewell() | Presented():
                self.on_packet(peer, packet)

    def _is_mine(self, address: bytes) -> bool:
        """Whether an address may be mine: it will be shown to people, and stand in tickets."""
        host, _, port = address.decode("ascii", "replace").rpartition(":")
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        return port == str(self.port)

    async def _call_back(self, connection: Connection, port: int) -> None:
        """Find out whether whoever asks is reached where it comes from, and tell it."""
        peer, now = connection.peer_id, asyncio.get_running_loop().time()
        host, _, _ = connection.address.rpartition(":")
        address, fault = f"{host}:{port}", ""
        if self._calls >= CALLS_AT_ONCE_MAX or not self._call_backs.take(peer, now):
            fault = "busy with others: ask again in a minute"
        else:
            self._calls += 1
            try:
                await self.transport.knock(address, peer)
            except DialError as error:
                fault = str(error) or "no answer"
            finally:
                self._calls -= 1
        words = fault.encode("ascii", "replace")[:WORDS_SIZE_MAX]
        connection.send(pack(ReachedBack(address.encode()[:WORDS_SIZE_MAX], words)))
