"""Fetching contributions and states from whoever has them, verified before they count.

A contribution is checked against its keyed hash, a state chunk against the certified root; a
source that gives anything else is left for the next one. Every request has a deadline and a least
rate; how a state comes together from many is told in `syncing`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from peerformer import events
from peerformer.node.blobs import BlobStore
from peerformer.node.syncing import KeptChunks, StateFetch
from peerformer.node.transport import FetchError, Transport
from peerformer.protocol.effects import FetchBlob, FetchState
from peerformer.protocol.identity import blob_hash

BLOB_SECONDS_MAX = 30.0  # and
SECONDS_PER_BYTE = 1 / (1 << 20)
FILE_SECONDS_MAX = 120.0
STILL_SECONDS_MAX = 60.0  # without a chunk of a state: whoever has it is gone
RATE_MIN_BYTES_PER_SECOND = 16_384.0
PAUSE_SECONDS = 0.25  # before all sources are asked again


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches for one node. `addresses_of` says where a peer is reached."""

    transport: Transport
    store: BlobStore
    chain_id: bytes
    addresses_of: Callable[[bytes], Sequence[str]]
    on_lie: Callable[[bytes, str], None]

    async def blob(self, work: FetchBlob) -> bool:
        """Fetch a contribution into the store for good; False if nobody gave it in time.

        What is attested must outlive a restart: should its author be gone, a locked header could
        never be proved valid again.
        """
        if self.store.has(work.blob_hash):
            return True
        buffer = bytearray(work.size)

        def genuine() -> bool:
            made = blob_hash(self.chain_id, work.round, work.author, [bytes(buffer)])
            return made == work.blob_hash

        found = await self._from_any(
            work.sources,
            work.blob_hash,
            buffer,
            genuine,
            BLOB_SECONDS_MAX + work.size * SECONDS_PER_BYTE,
        )
        if found:
            await asyncio.to_thread(self.store.put, work.blob_hash, bytes(buffer), durable=True)
        return found

    async def file(
        self, key: bytes, size: int, sources: Sequence[bytes], hash_of: Callable[[bytes], bytes]
    ) -> bytes | None:
        """Fetch a file by its hash; None if nobody gave it in time."""
        buffer = bytearray(size)
        found = await self._from_any(
            sources, key, buffer, lambda: hash_of(bytes(buffer)) == key, FILE_SECONDS_MAX
        )
        return bytes(buffer) if found else None

    async def state(
        self, work: FetchState, kept: KeptChunks, tell: Callable[[events.Event], None]
    ) -> bytes | None:
        """Fetch a state from several sources at once; None if it cannot be had, or stands still.

        While chunks come it may take as long as it takes: a limit on all of it would be one on
        the size of the model or the least rate of a link.
        """
        last = time.monotonic()

        def tell_and_note(event: events.Event) -> None:
            nonlocal last
            last = time.monotonic()
            tell(event)

        def ask(peer: bytes, key: bytes, into: bytearray) -> Awaitable[str]:
            return self._ask(peer, key, into, wait=False)

        fetch = StateFetch(work, ask, kept, tell_and_note, self.on_lie)
        running = asyncio.ensure_future(fetch.run())
        try:
            while not running.done():
                await asyncio.wait((running,), timeout=STILL_SECONDS_MAX / 4)
                if time.monotonic() - last > STILL_SECONDS_MAX:
                    return None
            return running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _from_any(
        self,
        sources: Sequence[bytes],
        key: bytes,
        buffer: bytearray,
        genuine: Callable[[], bool],
        seconds_max: float,
    ) -> bool:
        """Try the sources in order, again and again until the deadline; liars only once."""
        liars: set[bytes] = set()
        try:
            async with asyncio.timeout(seconds_max):
                while set(sources) - liars:
                    for peer in sources:
                        if peer not in liars and await self._once(peer, key, buffer):
                            if genuine():
                                return True
                            liars.add(peer)
                            self.on_lie(peer, "it served other bytes than it was asked for")
                    await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            return False
        return False

    async def _once(self, peer: bytes, key: bytes, buffer: bytearray) -> bool:
        return not await self._ask(peer, key, buffer, wait=True)

    async def _ask(self, peer: bytes, key: bytes, buffer: bytearray, *, wait: bool) -> str:
        """Ask one peer for a blob; returns why it did not give it, or nothing."""
        try:
            await self.transport.fetch(
                self.addresses_of(peer),
                peer,
                key,
                memoryview(buffer),
                deadline_seconds=BLOB_SECONDS_MAX,
                rate_min_bytes_per_second=RATE_MIN_BYTES_PER_SECOND,
                wait=wait,
            )
        except FetchError as error:
            return str(error)
        return ""
