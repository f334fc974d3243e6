"""One end of the story in test_nat.py, run in a network namespace: ROLE PLACE PEER ADDRESS..."""

import asyncio
import sys
import tempfile
from pathlib import Path

from peerformer.node.blobs import BlobStore
from peerformer.node.connection import Connection, ConnectionClosed
from peerformer.node.limits import RelayLimits
from peerformer.node.probing import Prober
from peerformer.node.reach import Reach
from peerformer.node.reachability import Reachability
from peerformer.node.relay import Relay
from peerformer.node.transport import Transport

SEEDS = {"public": b"\x01" * 32, "called": b"\x02" * 32, "caller": b"\x03" * 32}
KEY, DATA = b"\x07" * 32, bytes(range(256)) * 4_096
PORT = 8_888


async def echo(connection: Connection) -> None:
    try:
        while True:
            connection.send(await connection.receive())
    except ConnectionClosed:
        return


async def fetch(transport: Transport, peer: bytes, addresses: list[str]) -> None:
    into = bytearray(len(DATA))
    await transport.fetch(
        addresses,
        peer,
        KEY,
        memoryview(into),
        deadline_seconds=20,
        rate_min_bytes_per_second=1e4,
    )
    assert into == DATA


async def be_public(transport: Transport) -> None:
    """Relay, answer probes, and fetch from whoever says that it is ready."""
    relay = Relay(transport.budget, RelayLimits(), lambda _: True)
    transport.services |= relay.services | Prober(transport).services

    async def serve(connection: Connection) -> None:
        if await connection.receive() == b"fetch from me":
            await fetch(transport, connection.peer_id, [])
            say(f"fetched, with {relay.bytes_passed} bytes relayed")
        await echo(connection)

    await transport.listen("0.0.0.0", PORT, lambda c: transport.spawn(serve(c)))
    say("up")
    await asyncio.Event().wait()


async def be_called(transport: Transport, place: str, directory: Path) -> None:
    """Find out that nobody gets in, register, and serve."""
    transport.store = BlobStore(directory, bytes_max=1 << 24)
    transport.store.put(KEY, DATA, durable=False)
    transport.may_fetch = lambda _: True
    await transport.listen("0.0.0.0", PORT, lambda c: transport.spawn(echo(c)))
    public = await transport.dial(place, expect=None)
    found = Reachability(
        transport,
        Reach(),
        lambda: {public.peer_id: public},
        lambda _: (place,),
        on_change=lambda told: say(f"reachable {found.reachable} at {' '.join(told)}"),
    )
    transport.spawn(found.run())
    public.send(b"fetch from me")
    await echo(public)


async def be_caller(transport: Transport, peer: bytes, addresses: list[str]) -> None:
    """Dial all addresses of the called one, talk, and fetch."""
    await transport.listen("0.0.0.0", PORT, lambda c: transport.spawn(echo(c)))
    connection = await transport.dial(addresses, expect=peer)
    connection.send(b"hello")
    assert await connection.receive() == b"hello"
    await fetch(transport, peer, addresses)
    say(f"talked and fetched at {connection.address}")
    await transport.close()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main(role: str, place: str, peer: str, *addresses: str) -> None:
    transport = Transport(SEEDS[role])
    with tempfile.TemporaryDirectory() as directory:
        match role:
            case "public":
                await be_public(transport)
            case "called":
                await be_called(transport, place, Path(directory))
            case "caller":
                await be_caller(transport, bytes.fromhex(peer), list(addresses))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
