"""The journal of a run: its events on disk, one JSON line each, stamped with the time.

It is appended to line by line, so that a crash can tear at most its last line; opening it again
mends that line, and reading skips it. Knows nothing about who writes records or who shows them.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from peerformer.errors import DataError
from peerformer.events import Event, decode_event, encode_event

# No record comes near this; a longer line is another file, and is not read into memory whole.
LINE_BYTES_MAX = 1_048_576


class Journal:
    """An append-only file of events, stamped with `clock` and flushed line by line.

    One process writes a journal. A line torn by an earlier crash is completed or cut off on
    opening, so that the next event starts a line of its own.

    Args:
        path: the file; it and its folder are made if they do not exist.
        clock: the time now, with its zone.

    Raises:
        DataError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self.path, self._clock = path, clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _mend(path)
            self._file = path.open("ab", buffering=0)
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
        self._file.write(encode_event(stamped) + b"\n")  # unbuffered: one write, one line
        return stamped

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
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            "the journal cannot be read", where=str(path), why=error.strerror
        ) from error
    with file:
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
