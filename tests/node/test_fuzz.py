"""Whatever bytes come on a connection, it carries what a plain reading of them gives, or ends.

Real sockets, without TLS: what is tried is what stands inside it. One slice of the deep test alone:

    PEERFORMER_SEEDS=17:18 python -m pytest -m deep tests/node/test_fuzz.py
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest

from peerformer.node.blobs import BlobStore
from peerformer.node.connection import COME_WORD, Budget, Connection, ConnectionClosed, Traffic
from peerformer.node.limits import TransportLimits
from peerformer.node.transfer import ANSWER, REQUEST, BlobReceiver, FetchError, Server, Servings
from tests.mutations import mutate, seeds

FRAME_MAX = 300
LIMITS = TransportLimits(stranger_frame_bytes_max=FRAME_MAX, hold_seconds_max=0.0)
KEY, BLOB = b"\x07" * 32, bytes(range(256)) * 3
SECONDS_MAX = 30.0
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[str, int]]:
    """A server, whose address this is; every connection is carried to its end."""
    tasks = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        await serve(reader, writer)

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    async with server, asyncio.timeout(SECONDS_MAX):
        yield server.sockets[0].getsockname()
        await asyncio.gather(*tasks)


async def sent_through(serve: Serve, streams: list[bytes]) -> list[bytes]:
    """Send each stream on a connection of its own, and its end; return what came back."""
    answers = []
    async with serving(serve) as address:
        for stream in streams:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(stream)
            writer.write_eof()
            answers.append(await reader.read())
            writer.close()
    return answers


def run(story: Awaitable[None]) -> None:
    """Run a story; what escapes from a task or callback fails it."""
    escaped: list[dict[str, object]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: escaped.append(what))
        await story

    asyncio.run(watched())
    assert not escaped


# --- frames --------------------------------------------------------------------------------------


def frames_in(stream: bytes) -> list[bytes]:
    """The frames of a stream up to the first that is too long or cut; empty ones say nothing."""
    frames = []
    while len(stream) >= 4:
        size, rest = int.from_bytes(stream[:4], "little"), stream[4:]
        if size == COME_WORD:  # no frame, but a request to come
            stream = rest
            continue
        if size > FRAME_MAX or size > len(rest):
            break
        frames.append(rest[:size])
        stream = rest[size:]
    return [frame for frame in frames if frame]


def frame_stream(random: Random) -> bytes:
    sizes = [
        random.choice((0, 1, 40, FRAME_MAX, FRAME_MAX + 1)) for _ in range(random.randint(1, 5))
    ]
    come = [COME_WORD.to_bytes(4, "little")] * (random.random() < 0.3)
    frames = [size.to_bytes(4, "little") + random.randbytes(size) for size in sizes]
    return b"".join(frames[:1] + come + frames[1:])


def try_frames(seed: int, count: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    streams = [mutate(frame_stream(random), frame_stream(random), random) for _ in range(count)]
    received: list[list[bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(KEY, reader, writer, Budget(LIMITS), inbound=True)
        received.append([])
        with contextlib.suppress(ConnectionClosed):
            while True:
                received[-1].append(await connection.receive())

    async def story() -> None:
        await sent_through(serve, streams)

    run(story())
    for stream, frames in zip(streams, received, strict=True):
        assert frames == frames_in(stream), (seed, stream.hex())


# --- requests for blobs --------------------------------------------------------------------------


def answers_to(stream: bytes) -> bytes:
    """What a server of one blob answers to a stream of requests."""
    answers = b""
    while len(stream) >= 49:
        key, (offset, length) = stream[:32], struct.unpack("<QQ", stream[32:48])
        if key == KEY and offset + length <= len(BLOB):
            answers += b"\0" + struct.pack("<Q", length) + BLOB[offset : offset + length]
        else:
            answers += b"\1" + bytes(8)
        stream = stream[49:]
    return answers


def request_stream(random: Random) -> bytes:
    edges = (0, 1, len(BLOB) - 1, len(BLOB), len(BLOB) + 1, 2**63, 2**64 - 1)
    return b"".join(
        random.choice((KEY, KEY, bytes(32)))
        + struct.pack("<QQ?", random.choice(edges), random.choice(edges), random.random() < 0.5)
        for _ in range(random.randint(1, 4))
    )


def try_requests(seed: int, count: int, directory: Path) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    streams = [mutate(request_stream(random), request_stream(random), random) for _ in range(count)]
    store = BlobStore(directory, bytes_max=1 << 20)
    store.put(KEY, BLOB, durable=False)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        servings = Servings(LIMITS)
        server = Server(KEY, store, Budget(LIMITS), servings, lambda: True, lambda: False)
        with pytest.raises((OSError, EOFError, TimeoutError)):  # as it says
            await server.serve(reader, writer)
        assert not servings.under_way
        writer.close()

    async def story() -> None:
        for stream, answers in zip(streams, await sent_through(serve, streams), strict=True):
            assert answers == answers_to(stream), (seed, stream.hex())

    run(story())


# --- answers -------------------------------------------------------------------------------------


def blob_in(stream: bytes) -> bytes | None:
    """The blob that the first answer gives, if it is of the length asked for."""
    wanted = b"+\0" + struct.pack("<Q", len(BLOB))
    body = stream[len(wanted) :][: len(BLOB)]
    return body if stream.startswith(wanted) and len(body) == len(BLOB) else None


def answer_stream(random: Random) -> bytes:
    status, length = random.choice((0, 0, 1, 2, 3)), random.choice((0, len(BLOB), len(BLOB) + 1))
    body = BLOB if status == 0 else b""
    return b"+" + struct.pack("<BQ", status, length) + random.choice((body, body * 2))


def try_answers(seed: int, count: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    good = b"+\0" + struct.pack("<Q", len(BLOB)) + BLOB
    streams = []
    for _ in range(count):
        stream = random.choice((good, answer_stream(random)))
        head = random.choice((1, 1 + ANSWER.size, len(stream)))
        streams.append(mutate(stream[:head], good[:head], random) + stream[head:])
    asked = iter(streams)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = next(asked)
        with contextlib.suppress(OSError):  # the fetching end may be gone by now
            writer.write(stream[:1])
            if stream:
                await reader.read(REQUEST.size)
            writer.write(stream[1:])
        writer.close()

    async def fetched(address: tuple[str, int]) -> bytes | None:
        receiver, into = BlobReceiver(Traffic()), bytearray(len(BLOB))
        await asyncio.get_running_loop().create_connection(lambda: receiver, *address)
        try:
            await receiver.until_done()
            receiver.request(KEY, memoryview(into), wait=False)
            await receiver.until_done()
        except FetchError:
            return None
        finally:
            assert receiver.transport is not None
            receiver.transport.abort()
        return bytes(into)

    async def story() -> None:
        async with serving(serve) as address:
            for stream in streams:
                assert await fetched(address) == blob_in(stream), (seed, stream.hex())

    run(story())


def test_a_damaged_stream_carries_the_frames_that_are_whole_and_then_ends() -> None:
    try_frames(1_000_000, 150)


def test_damaged_requests_get_what_they_ask_for_or_are_told_that_it_is_absent(
    tmp_path: Path,
) -> None:
    try_requests(1_000_000, 150, tmp_path)


def test_a_damaged_answer_fills_the_buffer_or_fails_the_fetch() -> None:
    try_answers(1_000_000, 150)


@pytest.mark.deep
@pytest.mark.parametrize("seed", seeds("0:100"))
@pytest.mark.parametrize("what", ["frames", "requests", "answers"])
def test_a_slice_of_damaged_streams(what: str, seed: int, tmp_path: Path) -> None:
    tries = {
        "frames": try_frames,
        "requests": partial(try_requests, directory=tmp_path),
        "answers": try_answers,
    }
    tries[what](seed, 200)
