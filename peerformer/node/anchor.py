"""A newcomer's way to the chain that its ticket names, over real connections.

Each place of the ticket is dialled again and again, its key pinned; what `Anchoring` then asks and
believes is its own affair. What it comes to is in the peer's store when this is over.
"""

import asyncio
import random
from collections.abc import Callable

from peerformer import events
from peerformer.errors import SwarmError
from peerformer.journal import Journal
from peerformer.node.certificate import Group
from peerformer.node.directory import PeerDirectory
from peerformer.node.journal import DurableStore
from peerformer.node.keyring import load_or_create_key
from peerformer.node.transport import Connection, ConnectionClosed, DialError, Transport
from peerformer.protocol.anchoring import Anchoring
from peerformer.protocol.backoff import Backoff
from peerformer.protocol.checkpoint import BASE_KEY, HEADER_PREFIX
from peerformer.protocol.effects import (
    Command,
    Connected,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Persist,
    Received,
    Report,
    Send,
    SetTimer,
    TimerFired,
)
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.messages import pack
from peerformer.protocol.ticket import Invitation, Place


async def anchor(
    directory: PeerDirectory,
    genesis: Genesis,
    invitation: Invitation,
    note: Callable[[str], None],
    journal: Journal,
    group: Group | None = None,
    seed: bytes | None = None,
) -> None:
    """Bring the chain up to an invitation's checkpoint into a peer's store, if it holds none yet.

    It waits for as long as one of the places may still give it.

    Raises:
        SwarmError: if all places sent what the checkpoint does not vouch for.
        IdentityError: if the store or the key cannot be used.
    """
    seed = seed or load_or_create_key(directory.key)
    me = KeyPair.from_seed(seed).peer_id
    store = DurableStore.open(directory.path, peer_id=me, chain_id=genesis.chain_id)
    try:
        if store.load(BASE_KEY) or store.load(HEADER_PREFIX):
            return
        transport = Transport(seed, group=group)
        way = _Way(genesis, invitation, transport, store, note, journal)
        await way.go(invitation.places)
    finally:
        store.close()


class _Way:
    """The IO around one `Anchoring`; everything happens on one event loop."""

    def __init__(
        self,
        genesis: Genesis,
        invitation: Invitation,
        transport: Transport,
        store: DurableStore,
        note: Callable[[str], None],
        journal: Journal,
    ) -> None:
        self.anchoring = Anchoring(genesis, invitation.checkpoint)
        self.transport, self.store, self.note, self.journal = transport, store, note, journal
        self.connections: dict[bytes, Connection] = {}
        self.loop = asyncio.get_running_loop()
        self.arrived: asyncio.Future[None] = self.loop.create_future()

    async def go(self, places: tuple[Place, ...]) -> None:
        """Raises SwarmError if no place is left that may lead there."""
        self.post(Command("start"))
        tries = [self.loop.create_task(self._keep_dialling(place)) for place in places]
        given_up = asyncio.gather(*tries)
        try:
            await asyncio.wait((self.arrived, given_up), return_when=asyncio.FIRST_COMPLETED)
            if not self.arrived.done():
                given_up.result()
                raise SwarmError(
                    "nobody at this ticket's addresses has the round that it names",
                    why="whoever answered sent what the ticket does not vouch for",
                    hint="ask for a new ticket; compare the chain with whoever gave you this one",
                )
            self.arrived.result()
        finally:
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            await self.transport.close()

    def post(self, event: Event) -> None:
        """Handle an event and what it brings, in order."""
        if self.arrived.done():
            return
        try:
            for effect in self.anchoring.handle(event, self.loop.time()):
                self._carry_out(effect)
        except Exception as error:  # a bug of ours, or a disk that failed
            self.arrived.set_exception(error)
            return
        if self.anchoring.chain is not None:
            self.arrived.set_result(None)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Persist(records):
                self.store.persist(records)
            case Send(peer, packet):
                if peer in self.connections:
                    self.connections[peer].send(pack(packet))
            case Disconnect(peer):
                connection = self.connections.pop(peer, None)
                if connection is not None:
                    self.loop.create_task(connection.close("what it sent does not fit"))
            case SetTimer(name, seconds):
                self.loop.call_later(seconds, self.post, TimerFired(name))
            case Report(event):
                self.journal.append(event)
                self._tell(event)

    def _tell(self, event: events.Event) -> None:
        match event:
            case events.CheckpointReached(round=number, from_round=begin):
                since = f"round {begin}" if begin else "the genesis"
                self.note(f"checked     the ticket's round {number}, on headers since {since}")
            case events.CheckpointAwaited(round=number, reason=reason):
                self.note(f"waiting     for the ticket's round {number}: {reason}")
            case events.Misbehaved(name=name, reason=reason):
                self.note(f"refused     {name}: {reason}")

    async def _keep_dialling(self, place: Place) -> None:
        backoff = Backoff()
        while place.peer not in self.anchoring.refused:
            try:
                address = place.address.decode()
                connection = await self.transport.dial(address, expect=place.peer)
            except (DialError, UnicodeDecodeError):
                await asyncio.sleep(backoff.failed(random.random()))
                continue
            backoff.succeeded()
            connection.allow_large_frames()
            self.connections[place.peer] = connection
            self.post(Connected(place.peer, connection.address, outbound=True))
            try:
                while True:
                    self.post(Received(place.peer, await connection.receive()))
            except ConnectionClosed:
                self.connections.pop(place.peer, None)
                self.post(Disconnected(place.peer))
                await asyncio.sleep(backoff.failed(random.random()))
