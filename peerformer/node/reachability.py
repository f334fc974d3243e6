"""Where others reach this peer, kept true: its own addresses, relays if it needs them, its offers.

A peer that is told so, that listens nowhere, or that no peer could dial back to is unreachable: it
registers with up to two relays among the peers that it is connected with, and tells others the
relayed addresses. A relay that ends is replaced by another. Whoever relays says so in its record,
until its quota of the day is spent.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from peerformer.node.connection import Connection
from peerformer.node.dialling import DialError, parted
from peerformer.node.iroh_carrier import Iroh
from peerformer.node.listening import told_addresses
from peerformer.node.probing import is_reached_from
from peerformer.node.reach import Reach
from peerformer.node.registration import Registration
from peerformer.node.relay import Relay
from peerformer.node.transport import Transport
from peerformer.protocol.addresses import relay_offer
from peerformer.protocol.backoff import Backoff
from peerformer.protocol.messages import ADDRESSES_MAX

RELAYS_MAX = 2  # one may die without a gap
OFFERS_MAX = 2  # one of each family
IROH_MAX = 2  # iroh's relay, if there is one, and a place
LOOK_SECONDS = 1.0
PROBE_SECONDS, PROBE_AGAIN_SECONDS = 5.0, 300.0
PROBERS_MAX = 3


@dataclass(slots=True)
class Reachability:
    """What one node knows of its own reachability."""

    transport: Transport
    reach: Reach
    connections: Callable[[], dict[bytes, Connection]]  # that are up, by peer
    relays_of: Callable[[bytes], tuple[str, ...]]  # where a peer says that it relays
    on_change: Callable[[tuple[str, ...]], None]  # of the addresses
    relay: Relay | None = None
    iroh: Iroh | None = None
    registrations: dict[bytes, Registration] = field(default_factory=dict)  # by relay
    reachable: bool | None = None  # what those said who dialled back
    _backoffs: dict[bytes, tuple[Backoff, float]] = field(default_factory=dict)
    _probe_at: float = 0.0
    _told: tuple[str, ...] = ()

    # --- what is told --------------------------------------------------------------------------

    def addresses(self) -> tuple[str, ...]:
        """Return what a record of this peer says, the best first."""
        direct = (*self.reach.announced, *told_addresses(self.transport.listening))
        if self.needs_relay:
            direct = tuple(address for address in direct if not is_loopback(address))
        relayed = tuple(one.address for one in self.registrations.values())
        relays = self.relay is not None and self.relay.is_open()
        offers = tuple(map(relay_offer, direct[:OFFERS_MAX])) if relays else ()
        hosts = tuple(parted(address)[0] for address in direct)
        by_iroh = self.iroh.addresses(hosts)[-IROH_MAX:] if self.iroh is not None else ()
        rest = ADDRESSES_MAX - len(relayed) - len(by_iroh) - len(offers)
        return (*dict.fromkeys(direct[:rest]), *relayed, *by_iroh, *offers)

    @property
    def needs_relay(self) -> bool:
        """Whether others cannot dial this peer."""
        return (
            self.reach.behind_nat
            or self.reachable is False
            or not (self.transport.listening or self.reach.announced)
        )

    def status(self) -> dict[str, object]:
        """Return it for a status object."""
        relay = self.relay
        return {
            "addresses": list(self.addresses()),
            "reachable": None if self.needs_relay and self.reachable is None else self.reachable,
            "needs_relay": self.needs_relay,
            "registered_at": [one.relay for one in self.registrations.values()],
            "relaying": relay.status() if relay is not None else None,
        }

    # --- what is done --------------------------------------------------------------------------

    async def run(self) -> None:
        """Look again and again, for ever."""
        self._told = self.addresses()
        while True:
            await self._probe()
            if self.needs_relay:
                await self._register()
            told = self.addresses()
            if told != self._told:
                self._told = told
                self.on_change(told)
            await asyncio.sleep(LOOK_SECONDS)

    async def _probe(self) -> None:
        """Ask some whom I dialled to dial back, if there is anything to find out."""
        listening = [port for host, port in self.transport.listening if not is_loopback_host(host)]
        now = asyncio.get_running_loop().time()
        if not listening or self.reach.behind_nat or now < self._probe_at:
            return
        dialled = [c for c in self.connections().values() if not (c.inbound or c.relayed)]
        answers = []
        for connection in random.sample(dialled, min(PROBERS_MAX, len(dialled))):
            try:
                answer = await is_reached_from(
                    self.transport, connection.address, connection.peer_id, listening[0]
                )
            except DialError:
                continue  # it may not serve this, or be asked too often
            answers.append(answer)
        if answers:
            self.reachable = any(answers)
        self._probe_at = now + (PROBE_AGAIN_SECONDS if answers else PROBE_SECONDS)

    async def _register(self) -> None:
        now = asyncio.get_running_loop().time()
        offering = [
            (peer, place)
            for peer in self.connections()
            if peer not in self.registrations
            for place in self.relays_of(peer)
        ]
        random.shuffle(offering)
        for peer, place in offering:
            backoff, not_before = self._backoffs.setdefault(peer, (Backoff(), 0.0))
            if len(self.registrations) >= RELAYS_MAX:
                return
            if peer in self.registrations or now < not_before:
                continue
            try:
                made = await Registration.make(self.transport, place, peer)
            except DialError:
                self._backoffs[peer] = (backoff, now + backoff.failed(random.random()))
                continue
            backoff.succeeded()
            self.registrations[peer] = made
            self.transport.spawn(self._keep(peer, made))

    async def _keep(self, peer: bytes, made: Registration) -> None:
        try:
            await made.keep()
        finally:
            if self.registrations.get(peer) is made:
                del self.registrations[peer]
        backoff = Backoff()
        again = asyncio.get_running_loop().time() + backoff.failed(random.random())
        self._backoffs[peer] = (backoff, again)


def is_loopback(address: str) -> bool:
    """Whether an address leads back to the machine that dials it."""
    return is_loopback_host(parted(address)[0])


def is_loopback_host(host: str) -> bool:
    """Whether a host is the machine itself."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
