"""Real sockets: a newcomer comes to a chain that begins at a base, past whoever lies to it."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from peerformer.errors import SwarmError
from peerformer.journal import Journal
from peerformer.node.anchor import anchor
from peerformer.node.assemble import wall_clock
from peerformer.node.connection import Connection
from peerformer.node.directory import PeerDirectory
from peerformer.node.journal import DurableStore
from peerformer.node.keyring import load_or_create_key
from peerformer.node.transport import ConnectionClosed, Transport
from peerformer.protocol.checkpoint import Checkpoint
from peerformer.protocol.effects import Connected, Event, Received, Send
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import pack
from peerformer.protocol.stored_chain import stored_base
from peerformer.protocol.ticket import Invitation, Place
from tests.protocol.test_chain import GENESIS, PEERS
from tests.protocol.test_checkpoint import (
    SEED_OF,
    TIP,
    Liar,
    base_of,
    checkpoint,
    grown,
    records_of,
)


class Server:
    """A machine that holds the true chain, and answers whoever connects."""

    def __init__(self, peer: bytes, kind: type[Machine]) -> None:
        seed = SEED_OF[peer]
        self.peer, self.transport = peer, Transport(seed)
        self.connections: dict[bytes, Connection] = {}
        self.machine = kind(
            GENESIS, seed, hash_chain=HashChain.from_seed(seed, 2), state_round=-1,
            records=dict(records_of(grown())), now=0.0,
        )  # fmt: skip

    async def listen(self) -> Place:
        host, port = await self.transport.listen("127.0.0.1", 0, self.on_connection)
        return Place(self.peer, f"{host}:{port}".encode())

    def on_connection(self, connection: Connection) -> None:
        self.connections[connection.peer_id] = connection
        self.do(Connected(connection.peer_id, connection.address, outbound=False))
        self.task = asyncio.get_running_loop().create_task(self.receive(connection))

    async def receive(self, connection: Connection) -> None:
        try:
            while True:
                self.do(Received(connection.peer_id, await connection.receive()))
        except ConnectionClosed:
            return

    def do(self, event: Event) -> None:
        for effect in self.machine.handle(event, 0.0):
            if isinstance(effect, Send):
                self.connections[effect.peer].send(pack(effect.packet))


def go(path: Path, kinds: tuple[type[Machine], ...], point: Checkpoint) -> list[str]:
    """Go from an empty directory to the checkpoint; returns what the operator was told."""
    told: list[str] = []

    async def run() -> None:
        servers = [Server(peer, kind) for peer, kind in zip(PEERS, kinds, strict=False)]
        places = tuple([await server.listen() for server in servers])
        now = int(time.time())
        invitation = Invitation(GENESIS.chain_id, point, now, now + 60, places)
        with Journal(path / "journal.jsonl", wall_clock) as journal:
            try:
                async with asyncio.timeout(30):
                    directory = PeerDirectory(path)
                    await anchor(directory, GENESIS, invitation, told.append, journal)
            finally:
                for server in servers:
                    await server.transport.close()

    asyncio.run(run())
    return told


def test_the_store_begins_at_the_base_though_the_first_peer_lies(tmp_path: Path) -> None:
    told = go(tmp_path, (Liar, Machine), checkpoint())
    print(*told, sep="\n")
    assert told[-1] == f"checked     the ticket's round {TIP}, on headers since round 100"
    seed = load_or_create_key(tmp_path / "key")
    me = KeyPair.from_seed(seed).peer_id
    store = DurableStore.open(tmp_path, peer_id=me, chain_id=GENESIS.chain_id)
    records = store.load()
    store.close()
    assert stored_base(records) == base_of()
    assert Machine(GENESIS, seed, records=records, now=0.0).chain.head == grown().head
    assert go(tmp_path, (), checkpoint()) == []  # it is there: nobody is asked


def test_when_all_places_were_refused_it_ends_in_words(tmp_path: Path) -> None:
    false = replace(checkpoint(), digest=b"\1" * 32)
    with pytest.raises(SwarmError, match="has the round that it names"):
        go(tmp_path, (Machine, Liar), false)
