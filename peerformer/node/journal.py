"""What a peer must not forget: its signed statements, locks and decided rounds, in SQLite.

A record is durable when `persist` returns, before anything that rests on it is sent. The store is
bound to one key and one chain, and to an epoch file beside it: the number of starts, and of
transactions since. The database counts both too and is always written first, so a database that
is behind the file was restored from a backup or lost its newest part; with it the key could sign
twice for one slot. It is refused, like one that is missing, damaged or open elsewhere, and no vote
is ever cast from it.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from peerformer.errors import IdentityError

SLOT_PREFIX = "slot/"  # written once: these are what was signed
DATABASE, EPOCH = "protocol.db", "epoch"
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
        try:
            connection = _connect(database)
            epoch = _bind(connection, database, known, peer_id, chain_id)
            with connection:  # the database first: the file may be behind, never ahead
                connection.execute("UPDATE bound SET epoch = ?, transactions = 0", (epoch,))
        except sqlite3.DatabaseError as error:
            raise _refused(database, error) from error
        _write_epoch(epoch_file, epoch)
        return cls(connection, epoch_file, epoch, fault)

    def persist(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Write records in one transaction; all of them are durable on return.

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
            connection.execute("UPDATE bound SET transactions = ?", (self._transactions + 1,))
            self._fault("before-commit")
        self._fault("after-commit")
        self._transactions += 1
        os.pwrite(self._epoch_descriptor, _epoch_line(self._epoch, self._transactions), 0)

    def delete(self, keys: Iterable[str]) -> None:
        """Forget records that no restart needs."""
        with self._connection as connection:
            connection.executemany("DELETE FROM records WHERE key = ?", [(key,) for key in keys])

    def load(self, prefix: str = "") -> dict[str, bytes]:
        """Return the records whose key begins with `prefix`."""
        rows = self._connection.execute("SELECT key, data FROM records ORDER BY key")
        return {key: bytes(data) for key, data in rows if key.startswith(prefix)}

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
        os.close(self._epoch_descriptor)


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


def _refused(database: Path, error: sqlite3.DatabaseError) -> IdentityError:
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
