"""Blobs on their way out: so many at once, strangers never before members, crawlers cut."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from peerformer.node.blobs import BlobStore
from peerformer.node.coming import COME
from peerformer.node.limits import TransportLimits
from peerformer.node.transfer import REQUEST, Servings
from peerformer.node.transport import (
    BLOBS,
    Connection,
    ConnectionClosed,
    DialError,
    FetchError,
    Transport,
)
from tests.node.test_transport import run
from tests.node.virtual_time import run_in_no_time

__all__ = ["run"]

LIMITS = TransportLimits()
KEY = b"\x07" * 32


def test_no_peer_and_no_crowd_of_strangers_takes_all_turns() -> None:
    async def story() -> None:
        servings, held = Servings(LIMITS), []

        async def hold(peer: int, *, stranger: bool) -> None:
            async with servings.turn(peer.to_bytes(32, "little"), stranger=stranger):
                held.append(peer)
                await asyncio.Event().wait()

        tasks = [asyncio.ensure_future(hold(1, stranger=False)) for _ in range(100)]
        await asyncio.sleep(0.1)
        assert held == [1] * LIMITS.served_per_peer_max
        crowd = [asyncio.ensure_future(hold(100 + n, stranger=True)) for n in range(100)]
        await asyncio.sleep(0.1)
        assert len(held) == LIMITS.served_per_peer_max + LIMITS.served_to_strangers_max
        members = [asyncio.ensure_future(hold(300 + n, stranger=False)) for n in range(100)]
        await asyncio.sleep(0.1)
        assert servings.under_way == len(held) == LIMITS.served_at_once_max
        tasks[0].cancel()
        await asyncio.sleep(0.1)
        assert servings.under_way == LIMITS.served_at_once_max  # the next in order has it
        for task in (*tasks, *crowd, *members):
            task.cancel()
        await asyncio.gather(*tasks, *crowd, *members, return_exceptions=True)
        assert servings.under_way == 0

    run_in_no_time(story())


def test_whoever_takes_a_blob_too_slowly_is_cut_and_its_turn_is_free_again(tmp_path: Path) -> None:
    async def story() -> None:
        server, client = Transport(b"\x01" * 32), Transport(b"\x02" * 32)
        host, port = await server.listen("127.0.0.1", 0, lambda _: None)
        server.store = BlobStore(tmp_path, bytes_max=1 << 26)
        server.may_fetch = lambda _: True
        size = 32 << 20
        server.store.put(KEY, bytes(size), durable=False)
        streams = await client.open(f"{host}:{port}", BLOBS, server.peer_id)
        streams.writer.write(REQUEST.pack(KEY, 0, size, False))  # and never reads
        while not server.servings.under_way:
            await asyncio.sleep(0.01)
        begun = asyncio.get_running_loop().time()
        while server.servings.under_way:
            await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - begun < 60
        streams.writer.transport.abort()
        await client.close()
        await server.close()

    run_in_no_time(story())


def test_a_peer_that_nobody_can_dial_comes_and_serves_when_it_is_asked(run, tmp_path: Path) -> None:
    """It listens nowhere and there is no relay: it dialled, and blobs flow both ways."""

    async def story() -> None:
        public, hidden = Transport(b"\x01" * 32), Transport(b"\x02" * 32)
        host, port = await public.listen("127.0.0.1", 0, lambda c: public.spawn(listen_to(c)))
        data = bytes(range(256)) * 4_096
        hidden.store = BlobStore(tmp_path, bytes_max=1 << 24)
        hidden.store.put(KEY, data, durable=False)
        hidden.may_fetch = lambda peer: peer == public.peer_id

        async def fetch(key: bytes, size: int) -> bytes:
            into = bytearray(size)
            await public.fetch(
                (),
                hidden.peer_id,
                key,
                memoryview(into),
                deadline_seconds=10,
                rate_min_bytes_per_second=1e4,
                wait=False,
            )
            return bytes(into)

        with pytest.raises(FetchError, match="closed"):
            await fetch(KEY, len(data))  # it holds no connection on which it could be asked
        dialled = await hidden.dial(f"{host}:{port}", expect=public.peer_id)
        hidden.spawn(listen_to(dialled))
        assert await fetch(KEY, len(data)) == data
        assert await fetch(KEY, len(data)) == data  # on the same connection
        assert public._inbound[hidden.peer_id] == 2
        at_once = await asyncio.gather(*(fetch(KEY, len(data)) for _ in range(4)))
        assert at_once == [data] * 4
        with pytest.raises(FetchError, match="absent"):
            await fetch(bytes(32), 1)
        hidden.may_fetch = lambda _: False
        with pytest.raises(FetchError, match="refused"):
            await fetch(KEY, len(data))
        await hidden.close()
        await public.close()

    run(story())


def test_whoever_comes_without_having_been_asked_is_sent_away(run) -> None:
    async def story() -> None:
        public, stranger = Transport(b"\x01" * 32), Transport(b"\x02" * 32)
        host, port = await public.listen("127.0.0.1", 0, lambda _: None)
        with pytest.raises(DialError):
            await stranger.open(f"{host}:{port}", COME, public.peer_id)
        await stranger.close()
        await public.close()

    run(story())


async def listen_to(connection: Connection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.receive()
