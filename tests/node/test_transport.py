"""Connections over real sockets: who is let in, what is carried, and what ends it."""

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from peerformer.errors import SwarmError
from peerformer.node.blobs import BlobStore
from peerformer.node.certificate import issue_leaf, load_identity, network_authority
from peerformer.node.fetching import Fetcher
from peerformer.node.iroh_carrier import Iroh
from peerformer.node.limits import TransportLimits
from peerformer.node.transport import (
    Connection,
    ConnectionClosed,
    DialError,
    FetchError,
    Transport,
)
from peerformer.protocol.effects import FetchBlob
from peerformer.protocol.identity import blob_hash

SERVER, CLIENT = b"\x01" * 32, b"\x02" * 32
KEY = b"\x07" * 32
LIMITS = TransportLimits(handshake_seconds_max=2.0, hold_seconds_max=0.3, close_seconds_max=0.5)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    """Run a story on one kind of loop; what escapes from a task or callback fails it."""
    return go_on(LOOPS[request.param])


def go_on(factory: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[Awaitable[None]], None]:
    """What runs a story on a loop of this kind."""

    def go(story: Awaitable[None]) -> None:
        escaped: list[dict] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, what: escaped.append(what))
            async with asyncio.timeout(40):
                await story

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(watched())
        assert not escaped

    return go


@pytest.fixture(params=["asyncio", "uvloop", "iroh"])
def run_any(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Awaitable[None]], None]:
    """Run a story over TLS on each kind of loop, and over iroh: the interface is the same."""
    monkeypatch.setattr(Pair, "by_iroh", request.param == "iroh")
    return go_on(LOOPS.get(request.param, uvloop.new_event_loop))


class Pair:
    """A listening transport and one that dials it."""

    by_iroh = False

    def __init__(self, limits: TransportLimits) -> None:
        self.server, self.client = Transport(SERVER, limits=limits), Transport(CLIENT)
        self.arrived: asyncio.Queue[Connection] = asyncio.Queue()
        self.address = ""

    async def connect(self) -> tuple[Connection, Connection]:
        """Return both ends of a new connection: the dialler's first."""
        dialled = await self.client.dial(self.address, expect=self.server.peer_id)
        return dialled, await self.arrived.get()

    async def fetch(self, into: bytearray, *, seconds: float = 20.0) -> None:
        """Fetch the blob under KEY."""
        await self.client.fetch(
            self.address,
            self.server.peer_id,
            KEY,
            memoryview(into),
            deadline_seconds=seconds,
            rate_min_bytes_per_second=1e5,
        )


@asynccontextmanager
async def pair(limits: TransportLimits = LIMITS) -> AsyncIterator[Pair]:
    both = Pair(limits)
    host, port = await both.server.listen("127.0.0.1", 0, both.arrived.put_nowait)
    both.address = f"{host}:{port}"
    if both.by_iroh:
        served = await Iroh.open(both.server, SERVER, (host, 0), None)
        await Iroh.open(both.client, CLIENT, (host, 0), None)
        (both.address,) = served.addresses((host,))
    try:
        yield both
    finally:
        await both.client.close()
        await both.server.close()


def test_frames_flow_both_ways_and_each_end_knows_the_other_by_its_key(run_any) -> None:
    async def story() -> None:
        async with pair() as both:
            dialled, accepted = await both.connect()
            assert dialled.peer_id == both.server.peer_id and not dialled.inbound
            assert accepted.peer_id == both.client.peer_id and accepted.inbound
            assert dialled.send(b"ping") and await accepted.receive() == b"ping"
            assert accepted.send(b"x" * 65_536) and len(await dialled.receive()) == 65_536
            accepted.allow_large_frames()
            size = 1 << 18 if both.by_iroh else 4 << 20  # iroh's binding copies byte by byte
            assert dialled.send(b"y" * size) and len(await accepted.receive()) == size

    run_any(story())


def test_all_strangers_share_one_way_in_and_members_never_wait_for_them(run_any) -> None:
    slow = replace(LIMITS, strangers_bytes_per_second_max=32_768.0)  # 16 small frames a second

    async def story() -> None:
        async with pair(slow) as both:
            (stranger, from_stranger), (member, from_member) = [
                await both.connect() for _ in range(2)
            ]
            from_stranger.waits_its_turn = True
            for _ in range(40):
                assert stranger.send(b"junk") and member.send(b"vote")
            taken: list[bytes] = []

            async def take_from(connection: Connection) -> None:
                for _ in range(40):
                    taken.append(await connection.receive())

            began = asyncio.get_running_loop().time()
            strangers = asyncio.ensure_future(take_from(from_stranger))
            await take_from(from_member)
            assert taken.count(b"vote") == 40 and taken.count(b"junk") < 20  # a burst is let in
            await strangers
            assert asyncio.get_running_loop().time() - began > 1.0 and taken.count(b"junk") == 40

    run_any(story())


def test_two_may_close_a_connection_at_once_though_the_other_end_does_not_answer(run) -> None:
    async def story() -> None:
        async with pair(replace(LIMITS, close_seconds_max=0.0)) as both:
            _, accepted = await both.connect()
            closing = (accepted.close("one"), accepted.close("another"))
            assert await asyncio.gather(*closing, return_exceptions=True) == [None, None]

    run(story())


def test_whoever_calls_while_it_closes_leaves_no_exception_behind(run) -> None:
    async def story() -> None:
        for turns in range(8):
            async with pair() as both:
                await both.connect()  # to say goodbye to it takes a while
                host, _, port = both.address.rpartition(":")
                with socket.create_connection((host, int(port))):
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await both.server.close()
        gc.collect()  # what nobody retrieved is told of now

    run(story())


def test_another_key_than_the_one_meant_is_refused(run_any) -> None:
    async def story() -> None:
        async with pair() as both:
            with pytest.raises(DialError, match="another key"):
                await both.client.dial(both.address, expect=b"\x09" * 32)
            assert (await both.client.dial(both.address, expect=None)).peer_id
            with pytest.raises(FetchError, match="closed"):
                await both.client.fetch(
                    both.address,
                    b"\x09" * 32,
                    KEY,
                    memoryview(bytearray(1)),
                    deadline_seconds=2,
                    rate_min_bytes_per_second=1,
                )

    run_any(story())


def test_a_leaf_of_the_network_over_another_kind_of_key_is_refused(run) -> None:
    async def story() -> None:
        private_key = ec.generate_private_key(ec.SECP256R1())
        leaf = issue_leaf(network_authority(), private_key.public_key())
        context = Transport(CLIENT).client_context
        load_identity(context, private_key, leaf)
        async with pair() as both:
            host, port = both.address.split(":")
            reader, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname="any"
            )
            writer.write(b"M")
            try:
                assert await reader.read() == b""
            except ConnectionError:
                pass
            writer.transport.abort()
            assert both.arrived.empty()

    run(story())


def test_a_client_without_a_certificate_is_not_connected(run) -> None:
    async def story() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with pair() as both:
            host, port = both.address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"M")
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.transport.abort()
            assert both.arrived.empty()

    run(story())


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" * 99])
def test_garbage_in_place_of_tls_harms_nobody(run, data: bytes) -> None:
    async def story() -> None:
        async with pair() as both:
            host, port = both.address.split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            writer.close()
            assert await both.connect()

    run(story())


def test_half_open_connections_are_capped_and_leave_room_when_they_end(run) -> None:
    async def story() -> None:
        limits = replace(LIMITS, half_open_per_address_max=3, handshake_seconds_max=60.0)
        async with pair(limits) as both:
            host, port = both.address.split(":")
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
            reader, writer = await asyncio.open_connection(host, int(port))
            async with asyncio.timeout(20):  # long before the handshake's own limit
                assert await reader.read() == b""  # one too many
            for _, other in [*silent, (reader, writer)]:
                other.transport.abort()
            while both.server._half_open:
                await asyncio.sleep(0)
            assert await both.connect()

    run(story())


@pytest.mark.parametrize("limit", ["connections_per_key_max", "connections_per_address_max"])
def test_a_key_and_an_address_hold_so_many_connections_and_leave_room_when_they_end(
    run, limit: str
) -> None:
    async def story() -> None:
        async with pair(replace(LIMITS, **{limit: 2})) as both:
            held = [await both.connect() for _ in range(2)]
            with pytest.raises(DialError):
                await both.connect()
            await held[0][0].close("done")
            with pytest.raises(ConnectionClosed):
                await held[0][1].receive()
            while both.server._sources.total() > 1:
                await asyncio.sleep(0.01)
            assert await both.connect()

    run(story())


def test_a_stranger_may_not_send_large_frames(run_any) -> None:
    async def story() -> None:
        async with pair() as both:
            dialled, accepted = await both.connect()
            dialled.send(b"x" * 65_537)
            with pytest.raises(ConnectionClosed, match="65537 bytes"):
                await accepted.receive()
            with pytest.raises(ConnectionClosed):
                await dialled.receive()

    run_any(story())


def test_a_truncated_frame_and_a_graceful_end_are_told(run_any) -> None:
    async def story() -> None:
        async with pair() as both:
            dialled, accepted = await both.connect()
            dialled.send(b"last words")
            dialled._writer.write(b"\x10\x00\x00\x00half")
            await dialled.close("done")
            assert await accepted.receive() == b"last words"
            with pytest.raises(ConnectionClosed):
                await accepted.receive()
            assert not dialled.send(b"too late")
            assert await both.connect()  # and it can come back

    run_any(story())


def test_a_slow_reader_fills_a_queue_that_is_bounded(run_any) -> None:
    async def story() -> None:
        limits = replace(LIMITS, queue_bytes_max=1 << 20)
        async with pair(limits) as both:
            _, accepted = await both.connect()  # whoever dialled never receives
            sent = 0
            while accepted.send(b"x" * 65_536):
                sent += 1
                assert sent < 1000
                await asyncio.sleep(0)
            assert accepted.frames_dropped == 1
            assert accepted._writer.transport.get_write_buffer_size() <= 1 << 20

    run_any(story())


def test_a_taken_port_is_told_with_a_cure(run) -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(SwarmError) as caught:
                await Transport(SERVER).listen("127.0.0.1", port, lambda _: None)
            assert str(port) in str(caught.value) and caught.value.hint

    run(story())


@pytest.mark.parametrize("address", ["", "a", "127.0.0.1:", ":x", "[::1]:99999", "a" * 300 + ":1"])
def test_an_address_that_is_none_is_only_a_failed_dial(run, address: str) -> None:
    async def story() -> None:
        transport = Transport(CLIENT)
        with pytest.raises(DialError):
            await transport.dial(address, expect=None)
        await transport.close()

    run(story())


def test_blobs_are_fetched_whole_on_connections_that_are_used_again(
    run_any, tmp_path: Path
) -> None:
    async def story() -> None:
        async with pair() as both:
            data = bytes(range(256)) * 2_048
            both.server.store = BlobStore(tmp_path, bytes_max=1 << 24)
            both.server.may_fetch = lambda peer: peer == both.client.peer_id
            into = bytearray(len(data))
            with pytest.raises(FetchError, match="absent"):
                await both.fetch(into)
            both.server.store.put(KEY, data, durable=False, hidden=True)
            waiting = asyncio.create_task(both.fetch(into))
            await asyncio.sleep(0)
            both.server.store.reveal(KEY)
            await waiting
            assert into == data
            await both.fetch(into)
            assert len(both.server._inbound) == 1 and both.server._inbound.total() == 1
            with pytest.raises(FetchError):
                await both.fetch(bytearray(len(data) + 1))

    run_any(story())


def test_a_fetched_contribution_outlives_a_restart(run_any, tmp_path: Path) -> None:
    """Whoever attested it may be the last to have it."""
    author, data, chain_id = b"\x07" * 32, b"contribution", b"\x08" * 32
    key = blob_hash(chain_id, 1, author, [data])

    async def story() -> None:
        async with pair() as both:
            both.server.store = BlobStore(tmp_path / "theirs", bytes_max=1 << 20)
            both.server.may_fetch = lambda peer: True
            both.server.store.put(key, data, durable=True)
            mine = BlobStore(tmp_path / "mine", bytes_max=1 << 20)
            fetcher = Fetcher(
                both.client, mine, chain_id, lambda peer: (both.address,), lambda peer, why: None
            )
            work = FetchBlob(1, author, key, len(data), (both.server.peer_id,))
            assert await fetcher.blob(work)
        assert BlobStore(tmp_path / "mine", bytes_max=1 << 20).get(key) == data

    run_any(story())


def test_strangers_get_no_blobs(run_any, tmp_path: Path) -> None:
    async def story() -> None:
        async with pair() as both:
            both.server.store = BlobStore(tmp_path, bytes_max=1 << 20)
            both.server.store.put(KEY, b"x", durable=False)
            with pytest.raises(FetchError, match="refused"):
                await both.fetch(bytearray(1))

    run_any(story())


LIES = {  # status, length and bytes, and what the fetch of 100 bytes is told
    "length": b"\x00" + (101).to_bytes(8, "little") + b"z" * 101,
    "closed": b"\x00" + (100).to_bytes(8, "little") + b"z" * 99,
    "refused": b"\x07" + bytes(8),
}


@pytest.mark.parametrize("told", LIES)
def test_a_lying_answer_fails_the_fetch_and_touches_nothing_else(run, told: str) -> None:
    async def story() -> None:
        liar = Transport(SERVER)

        async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            writer.write(b"+")
            await reader.readexactly(48)
            writer.write(LIES[told])
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(lie, "127.0.0.1", 0, ssl=liar.server_context)
        client, whole = Transport(CLIENT), bytearray(b"a" * 120)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(FetchError, match=told):
            await client.fetch(
                f"127.0.0.1:{port}",
                liar.peer_id,
                KEY,
                memoryview(whole)[10:110],
                deadline_seconds=5,
                rate_min_bytes_per_second=1,
            )
        assert whole[:10] == b"a" * 10 and whole[110:] == b"a" * 10
        await client.close()
        server.close()
        await server.wait_closed()

    run(story())
