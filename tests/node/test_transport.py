"""Real sockets: who may connect, what strangers cost, and blobs that arrive whole or not at all."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from peerformer.errors import SwarmError
from peerformer.node.blobs import BlobStore
from peerformer.node.limits import TransportLimits
from peerformer.node.transport import (
    Connection,
    ConnectionClosed,
    DialError,
    FetchError,
    Transport,
)

LIMITS = TransportLimits(
    handshake_seconds_max=0.6,
    half_open_per_address_max=8,
    idle_seconds_max=0.2,
    silence_seconds_max=0.8,
    queue_bytes_max=1 << 20,
    hold_seconds_max=0.3,
    close_seconds_max=0.3,
)
SERVER, CLIENT = b"\x01" * 32, b"\x02" * 32


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a story on either event loop."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


@asynccontextmanager
async def pair(
    on_connection: Callable[[Connection], None] = lambda _: None,
) -> AsyncIterator[tuple[Transport, Transport, str]]:
    """A listening transport, another one, and the address."""
    server = Transport(SERVER, limits=LIMITS)
    client = Transport(CLIENT, limits=LIMITS)
    host, port = await server.listen("127.0.0.1", 0, on_connection)
    try:
        yield server, client, f"{host}:{port}"
    finally:
        await client.close()
        await server.close()


async def closing_reason(connection: Connection) -> str:
    """Read until the connection ends; returns why."""
    try:
        async with asyncio.timeout(5):
            while True:
                await connection.receive()
    except ConnectionClosed as closed:
        return str(closed)


def test_both_ends_know_each_other_and_frames_arrive_in_order(run: Any) -> None:
    async def story() -> None:
        met: asyncio.Queue[Connection] = asyncio.Queue()
        async with pair(met.put_nowait) as (server, client, address):
            outbound = await client.dial(address, expect=server.peer_id)
            inbound = await met.get()
            assert outbound.peer_id == server.peer_id and not outbound.inbound
            assert inbound.peer_id == client.peer_id and inbound.inbound
            for index in range(50):
                assert outbound.send(bytes([index]) * (index + 1))
            for index in range(50):
                assert await inbound.receive() == bytes([index]) * (index + 1)
            assert inbound.send(b"back") and await outbound.receive() == b"back"

    run(story())


def test_another_key_than_the_one_meant_is_refused(run: Any) -> None:
    async def story() -> None:
        async with pair() as (_, client, address):
            with pytest.raises(DialError, match="another key"):
                await client.dial(address, expect=b"\x07" * 32)
            with pytest.raises(DialError):
                await client.dial("127.0.0.1:1", expect=None)
            for nonsense in ("", "nowhere", "127.0.0.1:port", "127.0.0.1:99999"):
                with pytest.raises(DialError):
                    await client.dial(nonsense, expect=None)

    run(story())


def test_a_key_that_is_not_ed25519_gets_nowhere(run: Any, tmp_path: Path) -> None:
    from peerformer.node import certificate

    key = ec.generate_private_key(ec.SECP256R1())
    leaf = certificate.issue_leaf(certificate.network_authority(), key.public_key())
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(pem) + secret)

    async def story() -> None:
        met: list[Connection] = []
        async with pair(met.append) as (_, _, address):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_cert_chain(tmp_path / "leaf.pem")
            host, port = address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"M")
            with pytest.raises((asyncio.IncompleteReadError, OSError)):
                await reader.readexactly(1)
            writer.close()
        assert not met

    run(story())


def test_silent_and_noisy_strangers_are_dropped_and_others_get_through(run: Any) -> None:
    async def story() -> None:
        met: asyncio.Queue[Connection] = asyncio.Queue()
        async with pair(met.put_nowait) as (server, client, address):
            host, port = address.split(":")
            strangers = [await asyncio.open_connection(host, int(port)) for _ in range(30)]
            for index, (_, writer) in enumerate(strangers):
                if index % 2:
                    writer.write(b"\x16\x03\x01 not a handshake" * 10)
            async with asyncio.timeout(6):
                for reader, _ in strangers:
                    try:
                        while await reader.read(1_000):
                            pass
                    except OSError:
                        continue
            connection = await client.dial(address, expect=server.peer_id)
            assert (await met.get()).peer_id == client.peer_id and connection.send(b"x")
            for _, writer in strangers:
                writer.close()

    run(story())


def test_a_stranger_may_send_small_frames_only(run: Any) -> None:
    async def story() -> None:
        met: asyncio.Queue[Connection] = asyncio.Queue()
        async with pair(met.put_nowait) as (server, client, address):
            big = b"x" * (LIMITS.stranger_frame_bytes_max + 1)
            first = await client.dial(address, expect=server.peer_id)
            first.send(big)
            assert "a frame of" in await closing_reason(await met.get())
            second = await client.dial(address, expect=server.peer_id)
            known = await met.get()
            known.allow_large_frames()
            second.send(big)
            assert await known.receive() == big

    run(story())


def test_a_reader_that_does_not_read_costs_bounded_memory(run: Any) -> None:
    async def story() -> None:
        met: asyncio.Queue[Connection] = asyncio.Queue()
        async with pair(met.put_nowait) as (server, client, address):
            connection = await client.dial(address, expect=server.peer_id)
            await met.get()
            frame = b"x" * 60_000
            sent = sum(connection.send(frame) for _ in range(2_000))
            assert sent < 2_000 and connection.frames_dropped == 2_000 - sent

    run(story())


def test_a_peer_that_falls_silent_is_noticed_and_one_that_idles_is_not(run: Any) -> None:
    async def story() -> None:
        met: asyncio.Queue[Connection] = asyncio.Queue()
        async with pair(met.put_nowait) as (server, client, address):
            connection = await client.dial(address, expect=server.peer_id)
            inbound = await met.get()
            reading = asyncio.create_task(closing_reason(connection))
            there = asyncio.create_task(closing_reason(inbound))
            done, _ = await asyncio.wait([reading, there], timeout=2 * LIMITS.silence_seconds_max)
            assert not done  # both only idle: keep-alives hold the connection up
            connection._keeper.cancel()
            assert await there == "silent"
            await reading

    run(story())


def test_a_port_in_use_is_said_plainly(run: Any) -> None:
    async def story() -> None:
        async with pair() as (_, client, address):
            port = int(address.split(":")[1])
            with pytest.raises(SwarmError) as refused:
                await client.listen("127.0.0.1", port, lambda _: None)
            assert str(port) in str(refused.value) and f"--port {port + 1}" in str(refused.value)

    run(story())


async def fetched(
    client: Transport, server: Transport, address: str, key: bytes, size: int
) -> bytes:
    """Fetch a blob."""
    buffer = bytearray(size)
    await client.fetch(
        address,
        server.peer_id,
        key,
        memoryview(buffer),
        deadline_seconds=5,
        rate_min_bytes_per_second=1e5,
    )
    return bytes(buffer)


def test_a_blob_arrives_once_it_is_revealed(run: Any, tmp_path: Path) -> None:
    async def story() -> None:
        async with pair() as (server, client, address):
            server.store = BlobStore(tmp_path / "blobs", bytes_max=1 << 30)
            server.may_fetch = lambda peer: peer == client.peer_id
            key, data = b"k" * 32, bytes(range(256)) * 20_000
            server.store.put(key, data, durable=True, hidden=True)
            with pytest.raises(FetchError, match="absent"):
                await fetched(client, server, address, key, len(data))
            waiting = asyncio.create_task(fetched(client, server, address, key, len(data)))
            await asyncio.sleep(0)
            server.store.reveal(key)
            assert await waiting == data
            with pytest.raises(FetchError, match="absent"):
                await fetched(client, server, address, b"z" * 32, 10)
            with pytest.raises(FetchError, match="absent"):
                await fetched(client, server, address, key, len(data) + 1)
            assert await fetched(client, server, address, key, len(data)) == data

    run(story())


def test_a_stranger_gets_no_blob(run: Any, tmp_path: Path) -> None:
    async def story() -> None:
        async with pair() as (server, client, address):
            server.store = BlobStore(tmp_path / "blobs", bytes_max=1 << 30)
            server.store.put(b"k" * 32, b"secret", durable=False)
            with pytest.raises(FetchError, match="refused|closed"):
                await fetched(client, server, address, b"k" * 32, 6)

    run(story())


@pytest.mark.parametrize("lie", [b"", b"\x00" * 3, b"\x00" + b"\xff" * 8, b"\x05" + bytes(8)])
def test_a_source_that_answers_nonsense_is_left(run: Any, lie: bytes) -> None:
    async def story() -> None:
        server = Transport(SERVER, limits=LIMITS)
        client = Transport(CLIENT, limits=LIMITS)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            writer.write(b"+")
            await reader.readexactly(48)
            writer.write(lie)
            writer.close()

        listener = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server._server_context)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(FetchError):
            await fetched(client, server, f"127.0.0.1:{port}", b"k" * 32, 1_000)
        listener.close()
        await client.close()

    run(story())
