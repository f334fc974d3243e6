"""Time blobs over our transport and over bare streams: `python benchmarks/transport.py [--json]`.

Both over TLS with the same identities, on loopback, sender and receiver in one process, taken in
turns in one run; the median and the slowest are shown. The bare way is `asyncio` with `ssl` and a
`StreamReader`, which copies what arrives.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from peerformer.node.blobs import BlobStore
from peerformer.node.certificate import tls_contexts
from peerformer.node.transport import Transport
from peerformer.protocol.identity import KeyPair

SEEDS = (b"\x01" * 32, b"\x02" * 32)
KEY = b"\x03" * 32
REPEATS = 5
PIECE_SIZE_BYTES = 256 * 1024


async def measure(size: int, directory: Path) -> dict[str, list[float]]:
    """Return megabytes a second of each way, one value a repeat."""
    data = bytes(size)
    server, client = Transport(SEEDS[0]), Transport(SEEDS[1])
    server.store = BlobStore(directory, bytes_max=2 * size)
    server.store.put(KEY, data, durable=False)
    server.may_fetch = lambda _: True
    host, port = await server.listen("127.0.0.1", 0, lambda _: None)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1):
            for start in range(0, size, PIECE_SIZE_BYTES):
                writer.write(data[start : start + PIECE_SIZE_BYTES])
                await writer.drain()
        writer.close()

    contexts = [tls_contexts(KeyPair.from_seed(seed).private_key) for seed in SEEDS]
    bare = await asyncio.start_server(send, host, 0, ssl=contexts[0][0])
    reader, writer = await asyncio.open_connection(
        *bare.sockets[0].getsockname(), ssl=contexts[1][1], server_hostname="peerformer"
    )
    into = memoryview(bytearray(size))
    rates: dict[str, list[float]] = {"transport": [], "bare streams": []}
    for repeat in range(REPEATS + 1):  # the first one of each also connects: it is not counted
        start = time.perf_counter()
        await client.fetch(
            f"{host}:{port}",
            server.peer_id,
            KEY,
            into,
            deadline_seconds=60,
            rate_min_bytes_per_second=1e5,
        )
        middle = time.perf_counter()
        writer.write(b"?")
        await reader.readexactly(size)
        end = time.perf_counter()
        if repeat:
            rates["transport"].append(size / (middle - start) / 1e6)
            rates["bare streams"].append(size / (end - middle) / 1e6)
    writer.close()
    bare.close()
    await client.close()
    await server.close()
    return rates


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--size", type=int, default=32 * 1024 * 1024, help="bytes of the blob")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    factory = asyncio.new_event_loop
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner(loop_factory=factory) as runner:
        rates = runner.run(measure(options.size, Path(directory)))
    results = [
        {"way": way, "loop": options.loop, "median_mb_per_s": round(statistics.median(found))}
        | {"slowest_mb_per_s": round(min(found))}
        for way, found in rates.items()
    ]
    if options.json:
        sys.stdout.write(json.dumps({"size": options.size, "results": results}) + "\n")
        return
    for result in results:
        sys.stdout.write(
            f"{result['way']:<13} {result['loop']:<8} {result['median_mb_per_s']:>6} MB/s median,"
            f" {result['slowest_mb_per_s']:>6} slowest\n"
        )


if __name__ == "__main__":
    main()
