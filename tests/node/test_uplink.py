"""The cap on what a node sends: kept over time, messages first, nobody starved of the rest."""

import asyncio
from pathlib import Path

from peerformer.node.blobs import BlobStore
from peerformer.node.transport import Connection, Transport
from peerformer.node.uplink import Uplink
from tests.node.virtual_time import run_in_no_time

CAP = 100_000.0  # bytes a second
KEY = b"\x07" * 32


def test_over_time_no_more_leaves_than_the_cap_says() -> None:
    async def story() -> None:
        loop, uplink, sent = asyncio.get_running_loop(), Uplink(), 0
        uplink.bytes_per_second = CAP
        for size in [1_000, 250_000, 40, 70_000, 9_000] * 20:
            await uplink.take(size, message=False)
            sent += size
            owed = 250_000  # the largest piece, granted once beyond what was there
            assert sent <= loop.time() * CAP + 16_384 + owed
        assert sent >= loop.time() * CAP  # and no less: the link is not left idle
        assert loop.time() > 60

    run_in_no_time(story())


def test_a_message_goes_before_blobs_that_have_waited_longer() -> None:
    async def story() -> None:
        uplink, order = Uplink(), []
        uplink.bytes_per_second = CAP

        async def send(what: str, *, message: bool) -> None:
            await uplink.take(50_000, message=message)
            order.append(what)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(send(f"blob {number}", message=False))
            await asyncio.sleep(0)
            for number in range(2):
                group.create_task(send(f"vote {number}", message=True))
        assert order == ["blob 0", "vote 0", "vote 1", "blob 1", "blob 2"]

    run_in_no_time(story())


def test_without_a_cap_nothing_waits_and_a_lifted_cap_lets_all_go() -> None:
    async def story() -> None:
        loop, uplink = asyncio.get_running_loop(), Uplink()
        for _ in range(100):
            await uplink.take(1 << 30, message=False)
        assert uplink.take_at_once(1 << 30) and loop.time() == 0
        uplink.bytes_per_second = 1.0
        waiting = [asyncio.ensure_future(uplink.take(1 << 30, message=False)) for _ in range(3)]
        await asyncio.sleep(0)
        uplink.bytes_per_second = None
        await asyncio.gather(*waiting)
        assert loop.time() < 1

    run_in_no_time(story())


def test_whoever_stops_waiting_takes_nothing() -> None:
    async def story() -> None:
        loop, uplink = asyncio.get_running_loop(), Uplink()
        uplink.bytes_per_second = CAP
        await uplink.take(100_000, message=False)
        gone = asyncio.ensure_future(uplink.take(10_000_000, message=False))
        await asyncio.sleep(0)
        gone.cancel()
        await uplink.take(1, message=False)
        assert loop.time() < 2

    run_in_no_time(story())


def test_messages_and_a_blob_share_the_cap_over_real_sockets(tmp_path: Path) -> None:
    """The blob is fetched whole meanwhile; what waited is sent in order."""

    async def story() -> None:
        server, client = Transport(b"\x01" * 32), Transport(b"\x02" * 32)
        arrived: asyncio.Queue[Connection] = asyncio.Queue()
        host, port = await server.listen("127.0.0.1", 0, arrived.put_nowait)
        server.upload_bytes_per_second = cap = 2e6
        server.store = BlobStore(tmp_path, bytes_max=1 << 24)
        server.may_fetch = lambda _: True
        data = bytes(range(256)) * 4_096
        server.store.put(KEY, data, durable=False)
        connection = await client.dial(f"{host}:{port}", expect=server.peer_id)
        theirs, into = await arrived.get(), bytearray(len(data))
        begun = asyncio.get_running_loop().time()
        fetched = asyncio.ensure_future(
            client.fetch(
                f"{host}:{port}",
                server.peer_id,
                KEY,
                memoryview(into),
                deadline_seconds=30,
                rate_min_bytes_per_second=1e4,
            )
        )
        frames = [number.to_bytes(4, "little") * 2_000 for number in range(40)]
        for frame in frames:
            assert theirs.send(frame)
        assert [await connection.receive() for _ in frames] == frames
        await fetched
        seconds = asyncio.get_running_loop().time() - begun
        assert into == data
        sent = len(data) + sum(len(frame) for frame in frames)
        assert sent <= seconds * cap + 0.1 * cap + 256 * 1_024
        await client.close()
        await server.close()

    asyncio.run(story())
