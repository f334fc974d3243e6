"""Blobs and messages against the machine's own TLS: `python benchmarks/transport.py [--quick]`.

Two processes on loopback with the same identities and ciphers, taken in turns in one run, so that
what slows the machine slows both; medians. Blobs: `Transport.fetch` against blocking sockets of the
`ssl` module that send and `recv_into` the same bytes, which is what this machine's TLS can do.
Messages: a frame of 1 kB there and back over a `Connection` against `asyncio` streams with `ssl`
on the same kind of loop. Passed: at least 60 % of the one, and at most 1.5 times the other.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from peerformer.node.blobs import BlobStore
from peerformer.node.certificate import tls_contexts
from peerformer.node.connection import Connection, ConnectionClosed
from peerformer.node.transport import Transport
from peerformer.protocol.identity import KeyPair

SEEDS = (b"\x01" * 32, b"\x02" * 32)
KEY = b"\x03" * 32
PIECE_SIZE_BYTES = 256 * 1024
MESSAGE_SIZE_BYTES = 1_000
BLOB_RATIO_MIN, ROUND_TRIP_RATIO_MAX = 0.6, 1.5
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    blob_bytes: int
    repeats: int
    round_trips: int  # a repeat


QUICK, FULL = Size(32 << 20, 7, 400), Size(128 << 20, 15, 2_000)


def contexts(seed: bytes) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS of an identity, as the transport makes it."""
    return tls_contexts(KeyPair.from_seed(seed).private_key)


def factory(loop: str) -> "type[asyncio.AbstractEventLoop] | object":
    """What makes a loop of this kind."""
    if loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


# --- the serving process ------------------------------------------------------------------------


def serve(pipe: Pipe, loop: str, size: Size) -> None:
    """Serve blobs and echoes both ways; says its ports, and ends with the pipe."""
    with (
        tempfile.TemporaryDirectory() as directory,
        asyncio.Runner(loop_factory=factory(loop)) as runner,
    ):
        runner.run(_serve(pipe, size, Path(directory)))


async def _serve(pipe: Pipe, size: Size, directory: Path) -> None:
    data = bytes(size.blob_bytes)
    transport, tasks = Transport(SEEDS[0]), set()
    transport.store = BlobStore(directory, bytes_max=2 * size.blob_bytes)
    transport.store.put(KEY, data, durable=False)
    transport.may_fetch = lambda _: True

    async def echo(connection: Connection) -> None:
        try:
            while True:
                connection.send(await connection.receive())
        except ConnectionClosed:
            return

    def on_connection(connection: Connection) -> None:
        tasks.add(asyncio.get_running_loop().create_task(echo(connection)))

    async def echo_bare(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                header = await reader.readexactly(4)
                writer.write(header + await reader.readexactly(int.from_bytes(header, "little")))
        except (EOFError, OSError):
            writer.close()

    _, port = await transport.listen(HOST, 0, on_connection)
    bare = await asyncio.start_server(echo_bare, HOST, 0, ssl=contexts(SEEDS[0])[0])
    listener = socket.create_server((HOST, 0))
    threading.Thread(target=_send_bare, args=(listener, data), daemon=True).start()
    pipe.send((port, bare.sockets[0].getsockname()[1], listener.getsockname()[1]))
    await asyncio.to_thread(pipe.poll, None)
    await transport.close()
    bare.close()


def _send_bare(listener: socket.socket, data: bytes) -> None:
    """Send the blob once for every byte that comes, by blocking calls."""
    tcp, _ = listener.accept()
    with contexts(SEEDS[0])[0].wrap_socket(tcp, server_side=True) as tls:
        view = memoryview(data)
        while tls.recv(1):
            for start in range(0, len(data), PIECE_SIZE_BYTES):
                tls.sendall(view[start : start + PIECE_SIZE_BYTES])


# --- the measuring process ----------------------------------------------------------------------


async def measure(ports: tuple[int, int, int], size: Size) -> dict[str, list[float]]:
    """Return MB a second, and seconds of a round trip, of each way."""
    ours, echo_port, blocking_port = ports
    address, transport = f"{HOST}:{ours}", Transport(SEEDS[1])
    peer = KeyPair.from_seed(SEEDS[0]).peer_id
    connection = await transport.dial(address, expect=peer)
    client = contexts(SEEDS[1])[1]
    reader, writer = await asyncio.open_connection(
        HOST, echo_port, ssl=client, server_hostname="peerformer"
    )
    tls = client.wrap_socket(
        socket.create_connection((HOST, blocking_port)), server_hostname="peerformer"
    )
    into, frame = memoryview(bytearray(size.blob_bytes)), bytes(MESSAGE_SIZE_BYTES)
    framed = len(frame).to_bytes(4, "little") + frame
    found: dict[str, list[float]] = {"blob": [], "tls": [], "round trip": [], "bare": []}
    for repeat in range(size.repeats + 1):  # the first one of each also warms up: not counted
        marks = [time.perf_counter()]
        await transport.fetch(
            address, peer, KEY, into, deadline_seconds=120, rate_min_bytes_per_second=1e5
        )
        marks.append(time.perf_counter())
        tls.send(b"?")
        received = 0
        while received < size.blob_bytes:
            received += tls.recv_into(into[received:])
        marks.append(time.perf_counter())
        for _ in range(size.round_trips):
            connection.send(frame)
            await connection.receive()
        marks.append(time.perf_counter())
        for _ in range(size.round_trips):
            writer.write(framed)
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "little"))
        marks.append(time.perf_counter())
        if repeat:
            spans = [end - start for start, end in zip(marks, marks[1:], strict=False)]
            found["blob"].append(size.blob_bytes / spans[0] / 1e6)
            found["tls"].append(size.blob_bytes / spans[1] / 1e6)
            found["round trip"].append(spans[2] / size.round_trips)
            found["bare"].append(spans[3] / size.round_trips)
    tls.close()
    writer.close()
    await transport.close()
    return found


def result_of(found: dict[str, list[float]], loop: str, size: Size) -> dict[str, object]:
    """Return the figures, and whether they pass."""
    middle = {what: statistics.median(values) for what, values in found.items()}
    ratios = [blob / tls for blob, tls in zip(found["blob"], found["tls"], strict=True)]
    slower = [one / bare for one, bare in zip(found["round trip"], found["bare"], strict=True)]
    blob_ratio, trip_ratio = statistics.median(ratios), statistics.median(slower)
    return {
        "loop": loop,
        "blob_size": size.blob_bytes,
        "blob_mb_per_s": round(middle["blob"]),
        "tls_mb_per_s": round(middle["tls"]),
        "blob_to_tls": round(blob_ratio, 3),
        "round_trip_us": round(middle["round trip"] * 1e6, 1),
        "bare_round_trip_us": round(middle["bare"] * 1e6, 1),
        "round_trip_to_bare": round(trip_ratio, 3),
        "passed": blob_ratio >= BLOB_RATIO_MIN and trip_ratio <= ROUND_TRIP_RATIO_MAX,
    }


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    server = spawning.Process(target=serve, args=(theirs, options.loop, size), daemon=True)
    server.start()
    with asyncio.Runner(loop_factory=factory(options.loop)) as runner:
        found = runner.run(measure(ours.recv(), size))
    ours.send("done")
    server.join(10)
    result = result_of(found, options.loop, size)
    sys.stdout.write(
        f"blobs     {result['blob_mb_per_s']} MB/s, {result['blob_to_tls']:.0%} of"
        f" {result['tls_mb_per_s']} MB/s by blocking TLS sockets\n"
        f"messages  {result['round_trip_us']} µs there and back, {result['round_trip_to_bare']:.2f}"
        f" times the {result['bare_round_trip_us']} µs of bare streams\n"
    )
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
