"""Fetching contributions and states from whoever has them, verified before they count.

A contribution is checked against its keyed hash, a state chunk against the certified root; a
source that gives anything else is left for the next one. Every fetch has a deadline and a least
rate.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peerformer.node.blobs import BlobStore
from peerformer.node.transport import FetchError, Transport
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.effects import FetchBlob, FetchState
from peerformer.protocol.identity import blob_hash
from peerformer.protocol.merkle import (
    check_leaf,
    chunk_key,
    leaf_count,
    leaf_span,
    proof_size_bytes,
)

BLOB_SECONDS_MAX = 30.0  # and
SECONDS_PER_BYTE = 1 / (1 << 20)
STATE_SECONDS_MAX = 120.0
RATE_MIN_BYTES_PER_SECOND = 16_384.0
CHUNKS_AT_ONCE = 4
PAUSE_SECONDS = 0.25  # before all sources are asked again


class _NobodyHasIt(Exception):
    """No source has a chunk: the state of a round that is over is not served for ever."""


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
            sources, key, buffer, lambda: hash_of(bytes(buffer)) == key, STATE_SECONDS_MAX
        )
        return bytes(buffer) if found else None

    async def state(self, work: FetchState) -> bytes | None:
        """Fetch a state chunk by chunk from several sources at once; None if it cannot be had."""
        data = bytearray(work.size)
        turns = asyncio.Semaphore(CHUNKS_AT_ONCE)

        async def chunk(index: int) -> None:
            start, end = leaf_span(work.size, index)
            proof_size = proof_size_bytes(work.size, index)
            buffer = bytearray(proof_size + end - start)

            def genuine() -> bool:
                proof, leaf = bytes(buffer[:proof_size]), bytes(buffer[proof_size:])
                try:
                    check_leaf(work.state_root, work.size, index, leaf, proof)
                except MalformedError:
                    return False
                return True

            shift = index % max(1, len(work.sources))
            sources = work.sources[shift:] + work.sources[:shift]
            async with turns:
                for peer in sources:
                    if await self._once(
                        peer, chunk_key(work.state_root, index), buffer, wait=False
                    ):
                        if genuine():
                            data[start:end] = buffer[proof_size:]
                            return
                        self.on_lie(peer, "it served a chunk that is not of the state")
            raise _NobodyHasIt

        complete = True
        try:
            async with asyncio.timeout(STATE_SECONDS_MAX), asyncio.TaskGroup() as group:
                for index in range(leaf_count(work.size)):
                    group.create_task(chunk(index))
        except* (TimeoutError, _NobodyHasIt):
            complete = False
        return bytes(data) if complete else None

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

    async def _once(self, peer: bytes, key: bytes, buffer: bytearray, *, wait: bool = True) -> bool:
        for address in self.addresses_of(peer):
            try:
                await self.transport.fetch(
                    address,
                    peer,
                    key,
                    memoryview(buffer),
                    deadline_seconds=BLOB_SECONDS_MAX,
                    rate_min_bytes_per_second=RATE_MIN_BYTES_PER_SECOND,
                    wait=wait,
                )
            except FetchError:
                continue
            return True
        return False
