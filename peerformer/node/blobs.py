"""Content-addressed bytes that a peer holds and serves: contributions, state chunks, files.

Keys are 32 opaque bytes; whoever fetches verifies. A contribution is held hidden until it is
revealed: a request for it waits, so that the fetching peer need not ask again and again. Bytes are
kept on disk, under a name that says whether they are durable and whether they are hidden, so that
a restart neither serves what was not revealed nor trusts what may be torn; views are made on
demand. Safe to call from the bench's thread.
"""

import asyncio
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peerformer.node.faults import reach
from peerformer.node.room import Room

READ_BYTES = 64 * 1024
KEY_SIZE_BYTES = 32
DURABLE, HIDDEN, CACHED = "durable", "hidden", "cached"  # how a file's name ends
Read = Callable[[int, int], bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that can be read piece by piece: `read(start, length)`."""

    size: int
    read: Read


@dataclass(slots=True)
class Mapped:
    """A file whose bytes are handed out where the system has them, uncopied; opened on first use.

    What was opened can be read to its end even if the file is discarded meanwhile.
    """

    path: Path
    view: memoryview | None = None

    def read(self, start: int, length: int) -> memoryview:
        """Return `length` bytes from `start`."""
        if self.view is None:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            self.view = memoryview(whole)
        return self.view[start : start + length]


@dataclass(frozen=True, slots=True)
class Held:
    """A file that is held: its size, and how its name ends."""

    size: int
    kind: str


def _parsed(name: str) -> tuple[bytes | None, str]:
    stem, _, kind = name.partition(".")
    try:
        key = bytes.fromhex(stem)
    except ValueError:
        return None, kind
    return (key if len(key) == KEY_SIZE_BYTES else None), kind


class BlobStore:
    """The blobs of one peer, under a directory; the oldest go when `bytes_max` is exceeded."""

    def __init__(self, directory: Path, *, bytes_max: int, room: Room | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._room = room or Room()
        self._directory, self._bytes_max = directory, bytes_max
        self._lock = threading.Lock()
        self._views: dict[bytes, Blob] = {}
        self._files: OrderedDict[bytes, Held] = OrderedDict()  # oldest first
        self._waiting: dict[bytes, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime):
            key, kind = _parsed(path.name)
            if key is not None and kind in (DURABLE, HIDDEN):
                self._files[key] = Held(path.stat().st_size, kind)
            else:
                path.unlink()  # cut short by a crash, or never meant to outlive it

    def _path(self, key: bytes, kind: str) -> Path:
        return self._directory / f"{key.hex()}.{kind}"

    def put(self, key: bytes, data: bytes, *, durable: bool, hidden: bool = False) -> None:
        """Hold bytes; on disk for good when it returns if `durable`, served unless `hidden`."""
        kind = HIDDEN if hidden else DURABLE if durable else CACHED
        # Two threads may put the same bytes: each writes a file of its own.
        temporary = self._directory / f".{key.hex()}.{threading.get_ident()}.part"

        def write() -> None:
            with temporary.open("wb") as file:
                file.write(data)
                if durable or hidden:
                    file.flush()
                    reach("blob.before-fsync")
                    os.fsync(file.fileno())

        self._room.write(write)
        reach("blob.before-rename")
        temporary.replace(self._path(key, kind))
        if durable or hidden:
            reach("blob.before-directory")
            self._sync()
        with self._lock:
            before = self._files.pop(key, None)
            self._files[key] = Held(len(data), kind)
            dropped = self._make_room(key)
        if before is not None and before.kind != kind:
            dropped.append((key, before.kind))
        for old, old_kind in dropped:
            self._path(old, old_kind).unlink(missing_ok=True)
        if not hidden:
            self._wake(key)

    def _sync(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _make_room(self, newest: bytes) -> list[tuple[bytes, str]]:
        """Choose the oldest files to go; what waits to be revealed stays."""
        total, dropped = sum(held.size for held in self._files.values()), []
        for key, held in list(self._files.items()):
            if total <= self._bytes_max:
                break
            if key != newest and held.kind != HIDDEN:
                del self._files[key]
                total -= held.size
                dropped.append((key, held.kind))
        return dropped

    def put_view(self, key: bytes, size: int, read: Read) -> None:
        """Serve bytes that `read(start, length)` gives."""
        with self._lock:
            self._views[key] = Blob(size, read)
        self._wake(key)

    def reveal(self, key: bytes) -> None:
        """Serve a hidden blob from now on."""
        with self._lock:
            held = self._files.get(key)
            if held is not None and held.kind == HIDDEN:
                self._path(key, HIDDEN).replace(self._path(key, DURABLE))
                self._files[key] = Held(held.size, DURABLE)
        self._wake(key)

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes held under a key, hidden or not."""
        with self._lock:
            view, held = self._views.get(key), self._files.get(key)
        if view is not None:
            return bytes(view.read(0, view.size))
        if held is None:
            return None
        try:
            return self._path(key, held.kind).read_bytes()
        except OSError:
            return None

    def has(self, key: bytes) -> bool:
        """Tell whether anything is held under a key."""
        with self._lock:
            return key in self._files or key in self._views

    def discard(self, key: bytes) -> None:
        """Hold a blob no longer."""
        with self._lock:
            self._views.pop(key, None)
            held = self._files.pop(key, None)
        if held is not None:
            self._path(key, held.kind).unlink(missing_ok=True)

    def served(self, key: bytes) -> Blob | None:
        """Return a blob that others may have now."""
        with self._lock:
            view, held = self._views.get(key), self._files.get(key)
        if view is not None:
            return view
        if held is None or held.kind == HIDDEN:
            return None
        return Blob(held.size, Mapped(self._path(key, held.kind)).read)

    async def await_served(self, key: bytes, seconds: float) -> Blob | None:
        """Return a blob as soon as others may have it, or None after so many seconds."""
        blob = self.served(key)
        if blob is not None:
            return blob
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.setdefault(key, []).append(entry)
        try:
            async with asyncio.timeout(seconds):
                while (blob := self.served(key)) is None:
                    await entry[1].wait()
                    entry[1].clear()
        except TimeoutError:
            return None
        finally:
            with self._lock:
                rest = [other for other in self._waiting.get(key, []) if other is not entry]
                if rest:
                    self._waiting[key] = rest
                else:
                    self._waiting.pop(key, None)
        return blob

    def _wake(self, key: bytes) -> None:
        with self._lock:
            waiting = list(self._waiting.get(key, ()))
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)
