"""What a peer must not forget: its signed statements, locks and decided rounds, in SQLite.

A record is durable when `persist` returns, before anything that rests on it is sent. The store is
bound to one key and one chain, and to an epoch file beside it: the number of starts, and of
transactions since. The database counts both too and is always written first, so a database that
is behind the file was restored from a backup or lost its newest part; with it the key could sign
twice for one slot. It is refused, like one that is missing, damaged or open elsewhere, and no vote
is ever cast from it.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from peerformer.errors import IdentityError, PeerformerError
from peerformer.events import KeyUsedElsewhere
from peerformer.full_disk import is_full

SLOT_PREFIX = "slot/"  # written once: these are what was signed
DATABASE, EPOCH = "protocol.db", "epoch"
LOST_EPOCH = 10**18  # later than any
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510  # the bytes that SQLite locks: sqlite.org/src, os.h
NEW_KEY = "move this peer's directory away and join again under a new key"


def _no_fault(point: str) -> None:
    """Nothing goes wrong here, unless a test makes it."""


class DurableStore:
    """The records of one peer in one swarm. `fault` is called at named points, for kill tests."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        epoch_file: Path,
        epoch: int,
        fault: Callable[[str], None] = _no_fault,
    ) -> None:
        self._connection, self._fault = connection, fault
        self._epoch, self._transactions = epoch, 0
        self._epoch_descriptor = os.open(epoch_file, os.O_WRONLY)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        peer_id: bytes,
        chain_id: bytes,
        fault: Callable[[str], None] = _no_fault,
    ) -> "DurableStore":
        """Open the store of a directory, or make a new one where there never was any.

        Raises:
            IdentityError: if the store must not be voted with; it says why and what to do.
            PeerformerError: if the disk is full.
        """
        database, epoch_file = directory / DATABASE, directory / EPOCH
        known = _read_epoch(epoch_file)
        if known is not None and not database.exists():
            raise IdentityError(
                "the protocol store of this key is gone",
                where=str(database),
                why="without it the key could sign a second vote for a slot that it used",
                hint=NEW_KEY,
            )
        with contextlib.ExitStack() as refused:
            try:
                connection = _connect(database)
                refused.callback(connection.close)
                epoch = _bind(connection, database, known, peer_id, chain_id)
                with connection:  # the database first: the file may be behind, never ahead
                    connection.execute("UPDATE bound SET epoch = ?, transactions = 0", (epoch,))
            except sqlite3.DatabaseError as error:
                raise _refused(database, error) from error
            refused.pop_all()
        _write_epoch(epoch_file, epoch)
        return cls(connection, epoch_file, epoch, fault)

    def persist(self, records: Sequence[tuple[str, bytes]], deleted: Iterable[str] = ()) -> None:
        """Write and forget records in one transaction; all of it is durable on return.

        Raises:
            IdentityError: if a signed slot holds other bytes; nothing is written then.
        """
        self._fault("before-begin")
        with self._connection as connection:
            for key, data in records:
                if key.startswith(SLOT_PREFIX):
                    row = connection.execute("SELECT data FROM records WHERE key = ?", (key,))
                    before = row.fetchone()
                    if before is not None and before[0] != data:
                        raise IdentityError(f"refused to sign twice for {key}")
                connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (key, data))
            connection.executemany("DELETE FROM records WHERE key = ?", ((k,) for k in deleted))
            connection.execute("UPDATE bound SET transactions = ?", (self._transactions + 1,))
            self._fault("before-commit")
        self._fault("after-commit")
        self._transactions += 1
        os.pwrite(self._epoch_descriptor, _epoch_line(self._epoch, self._transactions), 0)

    def load(self, prefix: str = "") -> dict[str, bytes]:
        """Return the records whose key begins with `prefix`."""
        rows = self._connection.execute("SELECT key, data FROM records ORDER BY key")
        return {key: bytes(data) for key, data in rows if key.startswith(prefix)}

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
        os.close(self._epoch_descriptor)


def holds_store_of(directory: Path, peer_id: bytes) -> bool:
    """Tell whether a directory holds a store bound to a key; whether it is good, `open` says.

    Raises:
        IdentityError: if a store of another key is there, or one that cannot be read.
    """
    database = directory / DATABASE
    if not database.exists():
        return False
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0)
        try:
            row = connection.execute("SELECT peer FROM bound").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise _refused(database, error) from error
    if row is not None and bytes(row[0]) != peer_id:
        raise IdentityError(
            "the protocol store here belongs to another key", where=str(database), hint=NEW_KEY
        )
    return row is not None


def mark_store_lost(directory: Path) -> None:
    """Say of a key that its store is gone: no new one is made for it here, no old one taken.

    The epoch file that belongs to a store takes the place of this mark.
    """
    if not (directory / EPOCH).exists():
        _write_epoch(directory / EPOCH, LOST_EPOCH)


def take_mark_back(directory: Path) -> None:
    """Undo `mark_store_lost`."""
    if _read_epoch(directory / EPOCH) == (LOST_EPOCH, 0):
        (directory / EPOCH).unlink()


def used_elsewhere(event: KeyUsedElsewhere, directory: Path) -> IdentityError:
    """Return the failure of a key that has signed what its store does not hold."""
    return IdentityError(
        f"this key, {event.name}, has signed for round {event.round} somewhere else",
        where=str(directory),
        why=f"the decided round shows {event.what} that is not in the store here: the key runs in a"
        " second place, or its store was lost",
        hint=f"stop the other one; if there is none, {NEW_KEY}",
    )


def is_in_use(directory: Path) -> bool:
    """Tell whether another process has the store of a directory open; changes nothing.

    Raises:
        IdentityError: if it cannot be read.
    """
    try:
        with (directory / DATABASE).open("rb") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
            except (BlockingIOError, PermissionError):
                return True
    except OSError as error:
        raise IdentityError(
            "the protocol store cannot be read", where=str(directory), why=error.strerror
        ) from error
    return False


def _refused(database: Path, error: sqlite3.DatabaseError) -> PeerformerError:
    if is_full(error):
        return PeerformerError(
            "the disk is full",
            where=str(database),
            why="what this key signs must be on disk before it is sent",
            hint="make room, then the same command again; nothing is lost",
        )
    if "locked" in str(error):
        return IdentityError(
            "another process uses this peer's protocol store",
            where=str(database),
            hint="stop it first: one key runs in one place",
        )
    return IdentityError(
        "the protocol store is damaged",
        where=str(database),
        why=f"{error}; what this key signed can no longer be known",
        hint=NEW_KEY,
    )


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, check_same_thread=False, timeout=0)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    found = connection.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    return connection


def _bind(
    connection: sqlite3.Connection,
    database: Path,
    known: tuple[int, int] | None,
    peer_id: bytes,
    chain_id: bytes,
) -> int:
    """Check that a database is this key's and the newest; returns the epoch that begins now."""
    with connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, data BLOB) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS bound "
            "(peer BLOB, chain BLOB, epoch INTEGER, transactions INTEGER)"
        )
    row = connection.execute("SELECT peer, chain, epoch, transactions FROM bound").fetchone()
    if row is None and known is None:
        with connection:
            connection.execute("INSERT INTO bound VALUES (?, ?, 0, 0)", (peer_id, chain_id))
        return 1
    if row is None or (bytes(row[0]), bytes(row[1])) != (peer_id, chain_id):
        raise IdentityError(
            "the protocol store belongs to another key or swarm", where=str(database), hint=NEW_KEY
        )
    counted = (int(row[2]), int(row[3]))
    first_start_was_cut_short = known is None and counted <= (1, 0)
    if not first_start_was_cut_short and (known is None or counted < known):
        raise IdentityError(
            "the protocol store is older than it should be",
            where=str(database),
            why=f"it counts {counted}, the epoch file {known}: restored from a backup?",
            hint=NEW_KEY,
        )
    return counted[0] + 1


def _epoch_line(epoch: int, transactions: int) -> bytes:
    return b"%020d %020d\n" % (epoch, transactions)


def _read_epoch(path: Path) -> tuple[int, int] | None:
    try:
        epoch, transactions = path.read_text().split()
        return int(epoch), int(transactions)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise IdentityError(
            "the epoch of this peer cannot be read", where=str(path), hint=NEW_KEY
        ) from error


def _write_epoch(path: Path, epoch: int) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(_epoch_line(epoch, 0))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
