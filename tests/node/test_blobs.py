"""What a peer holds: files, views, and blobs that wait to be revealed."""

import asyncio
import threading
from pathlib import Path

from peerformer.node.blobs import BlobStore

KEY, OTHER = b"\x01" * 32, b"\x02" * 32


def store_in(path: Path, bytes_max: int = 1 << 20) -> BlobStore:
    return BlobStore(path / "blobs", bytes_max=bytes_max)


def test_what_is_put_is_held_and_served_also_after_a_restart(tmp_path: Path) -> None:
    store_in(tmp_path).put(KEY, b"content", durable=True)
    store = store_in(tmp_path)
    assert store.has(KEY) and store.get(KEY) == b"content"
    blob = store.served(KEY)
    assert blob is not None and blob.size == 7 and blob.read(2, 3) == b"nte"
    store.discard(KEY)
    assert not store.has(KEY) and store.get(KEY) is None and store.served(KEY) is None
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_a_crash_cut_short_is_removed(tmp_path: Path) -> None:
    store_in(tmp_path)
    part = tmp_path / "blobs" / f".{KEY.hex()}.part"
    part.write_bytes(b"half")
    assert not store_in(tmp_path).has(KEY) and not part.exists()


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    store = store_in(tmp_path, bytes_max=10)
    store.put(KEY, b"a" * 6, durable=False)
    store.put(OTHER, b"b" * 6, durable=False)
    assert not store.has(KEY) and store.get(OTHER) == b"b" * 6


def test_a_view_is_read_on_demand(tmp_path: Path) -> None:
    asked = []

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return bytes(range(10))[start : start + length]

    store = store_in(tmp_path)
    store.put_view(KEY, 10, read)
    assert asked == [] and store.has(KEY)
    assert store.get(KEY) == bytes(range(10)) and asked == [(0, 10)]


def test_a_hidden_blob_is_served_to_those_who_wait_once_it_is_revealed(tmp_path: Path) -> None:
    async def story() -> None:
        store = store_in(tmp_path)
        store.put(KEY, b"secret", durable=False, hidden=True)
        assert store.get(KEY) == b"secret" and store.served(KEY) is None
        assert await store.await_served(KEY, 0.05) is None
        waiting = [asyncio.create_task(store.await_served(KEY, 5.0)) for _ in range(3)]
        await asyncio.sleep(0)
        store.reveal(KEY)
        assert [blob.size for blob in await asyncio.gather(*waiting) if blob] == [6, 6, 6]

    asyncio.run(story())


def test_a_blob_put_by_another_thread_wakes_whoever_waits(tmp_path: Path) -> None:
    async def story() -> None:
        store = store_in(tmp_path)
        waiting = asyncio.create_task(store.await_served(KEY, 5.0))
        await asyncio.sleep(0)
        thread = threading.Thread(target=store.put, args=(KEY, b"x"), kwargs={"durable": True})
        thread.start()
        blob = await waiting
        thread.join()
        assert blob is not None and blob.read(0, 1) == b"x"

    asyncio.run(story())


def test_a_restart_serves_nothing_that_was_not_revealed_and_trusts_nothing_that_may_be_torn(
    tmp_path: Path,
) -> None:
    store = store_in(tmp_path)
    store.put(KEY, b"mine", durable=True, hidden=True)
    store.put(OTHER, b"fetched", durable=False)
    (tmp_path / "blobs" / ("z" * 64)).write_bytes(b"no key")
    again = store_in(tmp_path)
    assert again.get(KEY) == b"mine" and again.served(KEY) is None
    assert not again.has(OTHER)
    again.reveal(KEY)
    assert store_in(tmp_path).served(KEY) is not None


def test_what_waits_to_be_revealed_is_never_dropped(tmp_path: Path) -> None:
    store = store_in(tmp_path, bytes_max=10)
    store.put(KEY, b"a" * 6, durable=True, hidden=True)
    store.put(OTHER, b"b" * 6, durable=False)
    assert store.has(KEY) and store.has(OTHER)
