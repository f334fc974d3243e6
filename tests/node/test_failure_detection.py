"""Who is cut off: the silent, the stopped and those who take nothing; and who is not: the slow."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from peerformer.node.limits import TransportLimits
from peerformer.node.transport import Connection, ConnectionClosed, Transport
from tests.node.virtual_time import run_in_no_time

LIMITS = TransportLimits()
SERVER, CLIENT = b"\x01" * 32, b"\x02" * 32
CHILD = """
import asyncio
from peerformer.node.limits import TransportLimits
from peerformer.node.transport import Transport

async def main():
    transport = Transport(b"\\x01" * 32)
    _, port = await transport.listen("127.0.0.1", 0, lambda connection: None)
    print(port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def ends(
    limits: TransportLimits = LIMITS,
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Both ends of a connection, the dialler's first."""
    server, client = Transport(SERVER, limits=limits), Transport(CLIENT, limits=limits)
    arrived: asyncio.Queue[Connection] = asyncio.Queue()
    host, port = await server.listen("127.0.0.1", 0, arrived.put_nowait)
    yield await client.dial(f"{host}:{port}", expect=server.peer_id), await arrived.get()
    await client.close()
    await server.close()


async def keep_talking(connection: Connection) -> None:
    while True:
        connection._writer.write(bytes(4))
        await asyncio.sleep(3.0)


async def why_closed(connection: Connection) -> str:
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            await connection.receive()
    return str(caught.value)


def test_a_stopped_process_is_noticed_though_its_system_still_answers() -> None:
    """SIGSTOP: the kernel acknowledges every byte, and nothing ever comes."""
    limits = TransportLimits(silence_seconds_max=0.8, idle_seconds_max=0.2, look_seconds=0.1)

    async def story(port: int, child: subprocess.Popen) -> None:
        client = Transport(CLIENT, limits=limits)
        connection = await client.dial(f"127.0.0.1:{port}", expect=None)
        child.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20):
            assert await why_closed(connection) == "silent"
        await client.close()

    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            asyncio.run(story(int(child.stdout.readline()), child))
        finally:
            child.kill()


def test_two_idle_peers_stay_connected() -> None:
    async def story() -> None:
        async with ends() as (dialled, accepted):
            listening = [asyncio.ensure_future(end.receive()) for end in (dialled, accepted)]
            await asyncio.sleep(300)
            assert not dialled.ended and not accepted.ended
            for task in listening:
                task.cancel()

    run_in_no_time(story())


def test_a_frame_that_crawls_in_for_minutes_is_a_sign_of_life() -> None:
    """32 KiB at a hundred bytes a second: longer than the silence limit, never silent."""

    async def story() -> None:
        async with ends() as (dialled, accepted):
            frame = b"x" * 32_768
            receiving = asyncio.ensure_future(accepted.receive())
            hearing = asyncio.ensure_future(dialled.receive())
            dialled._writer.write(len(frame).to_bytes(4, "little"))
            for start in range(0, len(frame), 100):
                dialled._spoke_at = asyncio.get_running_loop().time()  # no keep-alive within it
                dialled._writer.write(frame[start : start + 100])
                await asyncio.sleep(1.0)
            assert await receiving == frame
            hearing.cancel()
            assert asyncio.get_running_loop().time() > 5 * 60

    run_in_no_time(story())


def test_a_peer_of_which_nothing_comes_is_cut_within_the_stated_time() -> None:
    async def story() -> None:
        async with ends() as (dialled, accepted):
            accepted._keeper.cancel()  # it says nothing from now on, and closes nothing
            loop = asyncio.get_running_loop()
            begun = loop.time()
            assert await why_closed(dialled) == "silent"
            assert 15 < loop.time() - begun <= dialled.silence.detection_seconds_max == 16

    run_in_no_time(story())


def test_a_peer_that_takes_nothing_is_cut() -> None:
    limits = LIMITS

    async def story() -> None:
        async with ends(limits) as (lazy, slow):
            lazy._keeper.cancel()
            living = asyncio.ensure_future(keep_talking(lazy))  # and never receives
            while slow.send(b"x" * 65_536):
                await asyncio.sleep(0)
            assert 0 < slow.queued_bytes <= limits.queue_bytes_max
            receiving = asyncio.ensure_future(why_closed(slow))
            waited = asyncio.get_running_loop().time()
            assert await receiving == "it takes nothing of what it is sent"
            living.cancel()
            assert asyncio.get_running_loop().time() - waited <= limits.stall_seconds_max + 2

    run_in_no_time(story())


def test_the_queues_of_all_together_are_bounded_and_short_ones_exempt() -> None:
    limits = replace(LIMITS, queues_bytes_max=1 << 20)

    async def story() -> None:
        server = Transport(SERVER, limits=limits)
        arrived: asyncio.Queue[Connection] = asyncio.Queue()
        host, port = await server.listen("127.0.0.1", 0, arrived.put_nowait)
        clients = [Transport(bytes([number]) * 32) for number in range(2, 8)]
        for client in clients:
            await client.dial(f"{host}:{port}", expect=server.peer_id)
        slow = [await arrived.get() for _ in clients]
        for connection in slow[:-1]:
            while connection.send(b"x" * 65_536):
                await asyncio.sleep(0)
        spared = sum(connection.queued_bytes for connection in slow[:-1])
        assert 1 << 19 < spared <= (1 << 20) + 65_536 * len(clients)
        assert slow[-1].send(b"a vote")
        assert not all(slow[0].send(b"x" * 65_536) for _ in range(100))
        for transport in (server, *clients):
            await transport.close()

    run_in_no_time(story())


def test_unfinished_frames_of_all_together_are_bounded_and_the_largest_is_cut() -> None:
    limits = replace(LIMITS, frames_bytes_max=1 << 20)

    async def story() -> None:
        async with ends(limits) as (greedy, accepted):
            accepted.allow_large_frames()
            receiving = asyncio.ensure_future(why_closed(accepted))
            greedy._writer.write((4 << 20).to_bytes(4, "little"))
            while not receiving.done():
                greedy._writer.write(b"x" * 65_536)
                await asyncio.sleep(0.01)
            assert await receiving == "too much of unfinished frames"

    run_in_no_time(story())
