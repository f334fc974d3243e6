"""Becoming able to join: from one address to the genesis and the files it names.

The newcomer learns the key of whoever answers at the address (trust on first use, remembered),
asks for the genesis, and fetches what the genesis names by hash. After this it is a peer like any
other, only not a member yet.
"""

import asyncio
from collections.abc import Callable

from peerformer.errors import SwarmError
from peerformer.node.blobs import BlobStore
from peerformer.node.directory import SwarmDirectory, write_durably
from peerformer.node.fetching import Fetcher
from peerformer.node.founding import file_hash
from peerformer.node.keyring import KnownPeers
from peerformer.node.transport import Connection, ConnectionClosed, DialError, Transport
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import name_of
from peerformer.protocol.messages import (
    PROTOCOL_VERSION,
    Hello,
    pack,
    unpack,
)
from peerformer.protocol.newcomer_packets import AskGenesis, GenesisBytes

ANSWER_SECONDS_MAX = 20.0


async def fetch_swarm(
    swarm: SwarmDirectory,
    seed: bytes,
    address: str,
    note: Callable[[str], None],
    pinned: tuple[bytes, bytes] | None = None,
) -> None:
    """Fetch the genesis and its files from the peer at `address`.

    With a ticket, `pinned` are the key that must answer and the chain that it must serve.

    Raises:
        SwarmError: if nobody answers there, its key has changed, or it does not give what it
        should.
    """
    swarm.path.mkdir(parents=True, exist_ok=True)
    transport = Transport(seed)
    try:
        connection = await transport.dial(address, expect=pinned[0] if pinned else None)
    except DialError as error:
        await transport.close()
        raise SwarmError(
            f"no peer can be reached at {address}",
            why=str(error),
            hint="check the address, and that the peer is running",
        ) from error
    try:
        peer = connection.peer_id
        if pinned is None:
            _know(KnownPeers(swarm.path.parent / "known-peers"), address, peer, note)
        genesis = await _genesis(connection, address)
        if pinned is not None and genesis.chain_id != pinned[1]:
            raise SwarmError(
                f"the peer at {address} is of another swarm than the ticket",
                hint="ask for a new ticket: peerformer invite",
            )
        connection.send(pack(Hello(PROTOCOL_VERSION, genesis.chain_id, 0, None)))
        store = BlobStore(swarm.path / "fetched", bytes_max=1 << 30)
        fetcher = Fetcher(transport, store, genesis.chain_id, lambda _: (address,), lambda *_: None)
        for what, key, size, path in (
            ("tokenizer", genesis.tokenizer_hash, genesis.tokenizer_size, swarm.tokenizer),
            ("held-out set", genesis.validation_hash, genesis.validation_size, swarm.validation),
        ):
            data = await fetcher.file(key, size, (peer,), file_hash)
            if data is None:
                raise SwarmError(
                    f"{name_of(peer)} did not give the swarm's {what}",
                    where=address,
                    hint="try the address of another peer",
                )
            write_durably(path, data)
        write_durably(swarm.genesis_file, genesis.to_bytes())
        chain = genesis.chain_id.hex()[:16]
        note(f"joining     swarm {genesis.name.decode(errors='replace')}, chain {chain}")
    finally:
        await transport.close()


def _know(known: KnownPeers, address: str, peer: bytes, note: Callable[[str], None]) -> None:
    match known.check(address, peer):
        case "changed":
            raise SwarmError(
                f"the peer at {address} shows another key than before",
                why=f"now {name_of(peer)} ({peer.hex()[:16]}…): a new installation, or an impostor",
                hint=f"ask its owner; if that is right, take {address} out of {known.path}",
            )
        case "new":
            known.remember(address, peer)
            note(
                f"first use   {address} is {name_of(peer)}, key {peer.hex()}; "
                "it is remembered, compare it with its owner"
            )


async def _genesis(connection: Connection, address: str) -> Genesis:
    connection.send(pack(AskGenesis(0)))
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            while True:
                packet = unpack(await connection.receive())
                if isinstance(packet, GenesisBytes):
                    return Genesis.from_bytes(packet.data)
    except (TimeoutError, ConnectionClosed, MalformedError) as error:
        raise SwarmError(
            f"the peer at {address} did not give a genesis",
            why=str(error) or "no answer in time",
            hint="try the address of another peer",
        ) from error
