"""The journal of a run: its events on disk, one JSON line each, stamped with the time.

It is appended to line by line, so that a crash can tear at most its last line; opening it again
mends that line, and reading skips it. One with a bound goes on in a new file when it is full, and
keeps the last few: reading begins with the oldest. On a full disk events wait in memory until there
is room. Knows nothing about who writes records or who shows them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from peerformer.errors import DataError
from peerformer.events import Event, decode_event, encode_event
from peerformer.full_disk import is_full

# No record comes near this; a longer line is another file, and is not read into memory whole.
LINE_BYTES_MAX = 1_048_576
PARTS_KEPT = 4  # full files beside the one that is written
LINES_WAITING_MAX = 1_000  # for room on a full disk; then the oldest are lost


class Journal:
    """An append-only file of events, stamped with `clock` and flushed line by line.

    One process writes a journal. A line torn by an earlier crash is completed or cut off on
    opening, so that the next event starts a line of its own.

    Args:
        path: the file; it and its folder are made if they do not exist.
        clock: the time now, with its zone.
        bytes_max: of one file; at most `PARTS_KEPT` full ones are kept. None: no bound.

    Raises:
        DataError: the file cannot be opened for writing.
    """

    def __init__(
        self, path: Path, clock: Callable[[], datetime], bytes_max: int | None = None
    ) -> None:
        self.path, self._clock, self._bytes_max = path, clock, bytes_max
        self._waiting: deque[bytes] = deque(maxlen=LINES_WAITING_MAX)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _mend(path)
            self._open()
        except OSError as error:
            raise DataError(
                "the journal cannot be written", where=str(path), why=error.strerror
            ) from error

    def append(self, event: Event) -> Event:
        """Write one event; returns it with its time."""
        now = self._clock().astimezone(UTC)
        stamped = msgspec.structs.replace(
            event, time=now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )
        self._waiting.append(encode_event(stamped) + b"\n")
        while self._waiting:
            if not self._write(self._waiting[0]):
                break
            self._waiting.popleft()
        return stamped

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)

    def _write(self, line: bytes) -> bool:
        """Write one line, whole or not at all; False if the disk is full."""
        if self._bytes_max is not None and self._size and self._size + len(line) > self._bytes_max:
            self._file.close()
            _shift(self.path)
            self._open()
        try:
            written = self._file.write(line)  # unbuffered: one write, one line
        except OSError as error:
            if not is_full(error):
                raise
            written = 0
        if written < len(line):
            self._file.truncate(self._size)
            return False
        self._size += written
        return True

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_journal(path: Path) -> Iterator[Event]:
    """The events of a journal, oldest first; a torn last line is skipped.

    Raises:
        DataError: there is no such file, or a line before the last is no event.
    """
    with ExitStack() as stack:
        try:
            # The newest first: what is renamed meanwhile is met twice, and not left out.
            files = {os.fstat(file.fileno()).st_ino: file for file in _files(path, stack)}
        except OSError as error:
            raise DataError(
                "the journal cannot be read", where=str(path), why=error.strerror
            ) from error
        for file in reversed(files.values()):
            yield from _events_of(file, path)


def parts_of(path: Path) -> list[Path]:
    """The full files of a journal, the newest first."""
    parts = [_part(path, number) for number in range(1, PARTS_KEPT + 1)]
    return [part for part in parts if part.exists()]


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def _shift(path: Path) -> None:
    """Rename a full journal and those before it; the oldest is lost."""
    for number in range(PARTS_KEPT, 1, -1):
        before = _part(path, number - 1)
        if before.exists():
            before.replace(_part(path, number))
    path.replace(_part(path, 1))


def _files(path: Path, stack: ExitStack) -> Iterator[BinaryIO]:
    yield stack.enter_context(path.open("rb"))
    for part in parts_of(path):
        try:
            yield stack.enter_context(part.open("rb"))
        except FileNotFoundError:
            return  # it has just been the oldest


def _events_of(file: BinaryIO, path: Path) -> Iterator[Event]:
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        try:
            event = decode_event(line)
        except msgspec.DecodeError as error:
            if not line.endswith(b"\n") and len(line) <= LINE_BYTES_MAX:
                return  # torn by a crash, or still being written
            raise DataError(
                f"line {number} of the journal is no event known to this version",
                where=str(path),
                why=str(error),
            ) from error
        yield event


def _mend(path: Path) -> None:
    """Complete a whole last line that lacks its newline; cut off one that is torn."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - LINE_BYTES_MAX))
        kept, newline, tail = file.read().rpartition(b"\n")
        if not tail:
            return
        try:
            decode_event(tail)
            file.write(b"\n")
        except msgspec.DecodeError:
            file.truncate(start + len(kept) + len(newline))
