"""Content-addressed bytes that a peer holds and serves: contributions, state chunks, files.

Keys are 32 opaque bytes; whoever fetches verifies. A contribution is held hidden until it is
revealed: a request for it waits, so that the fetching peer need not ask again and again. Bytes are
kept on disk; views are made on demand. Safe to call from the bench's thread.
"""

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

READ_BYTES = 256 * 1024
Read = Callable[[int, int], bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that can be read piece by piece: `read(start, length)`."""

    size: int
    read: Read


class BlobStore:
    """The blobs of one peer, under a directory; the oldest go when `bytes_max` is exceeded."""

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._bytes_max = directory, bytes_max
        self._lock = threading.Lock()
        self._views: dict[bytes, Blob] = {}
        self._files: OrderedDict[bytes, int] = OrderedDict()  # key -> size, oldest first
        self._hidden: set[bytes] = set()
        self._waiting: dict[bytes, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime):
            if len(path.name) == 64:
                self._files[bytes.fromhex(path.name)] = path.stat().st_size
            else:
                path.unlink()  # cut short by a crash

    def _path(self, key: bytes) -> Path:
        return self._directory / key.hex()

    def put(self, key: bytes, data: bytes, *, durable: bool, hidden: bool = False) -> None:
        """Hold bytes; on disk for good when it returns if `durable`, served unless `hidden`."""
        temporary = self._directory / f".{key.hex()}.part"
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(self._path(key))
        if durable:
            directory = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        with self._lock:
            self._files[key] = len(data)
            if hidden:
                self._hidden.add(key)
            total, dropped = sum(self._files.values()), []
            while total > self._bytes_max and len(self._files) > 1:
                old, size = self._files.popitem(last=False)
                total -= size
                dropped.append(old)
        for old in dropped:
            self._path(old).unlink(missing_ok=True)
        if not hidden:
            self._wake(key)

    def put_view(self, key: bytes, size: int, read: Read) -> None:
        """Serve bytes that `read(start, length)` gives."""
        with self._lock:
            self._views[key] = Blob(size, read)
        self._wake(key)

    def reveal(self, key: bytes) -> None:
        """Serve a hidden blob from now on."""
        with self._lock:
            self._hidden.discard(key)
        self._wake(key)

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes held under a key, hidden or not."""
        with self._lock:
            view, held = self._views.get(key), key in self._files
        if view is not None:
            return bytes(view.read(0, view.size))
        if not held:
            return None
        try:
            return self._path(key).read_bytes()
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
            self._hidden.discard(key)
            held = self._files.pop(key, None)
        if held is not None:
            self._path(key).unlink(missing_ok=True)

    def served(self, key: bytes) -> Blob | None:
        """Return a blob that others may have now."""
        with self._lock:
            if key in self._hidden:
                return None
            if key in self._views:
                return self._views[key]
            size = self._files.get(key)
        if size is None:
            return None

        def read(start: int, length: int) -> bytes:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(length)

        return Blob(size, read)

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
