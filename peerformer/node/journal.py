"""What a peer must not forget: its signed statements, locks and decided rounds, in SQLite.

A record is durable when `persist` returns, before anything that rests on it is sent. The store is
bound to one key and one chain, and to an epoch file beside it that grows at every start: a store
that is missing, older (restored from a backup) or damaged would let the key sign twice for one
slot, so it is refused, and no vote is ever cast from it.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from peerformer.errors import IdentityError

SLOT_PREFIX = "slot/"  # written once: these are what was signed
DATABASE, EPOCH = "protocol.db", "epoch"
NEW_KEY = "move this peer's directory away and join again under a new key"


def _no_fault(point: str) -> None:
    """Nothing goes wrong here, unless a test makes it."""


class DurableStore:
    """The records of one peer in one swarm. `fault` is called at named points, for kill tests."""

    def __init__(
        self, connection: sqlite3.Connection, fault: Callable[[str], None] = _no_fault
    ) -> None:
        self._connection, self._fault = connection, fault

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
        database, epoch = directory / DATABASE, _read_epoch(directory / EPOCH)
        if epoch and not database.exists():
            raise IdentityError(
                "the protocol store of this key is gone",
                where=str(database),
                why="without it the key could sign a second vote for a slot that it used",
                hint=NEW_KEY,
            )
        try:
            connection = _connect(database)
            _bind(connection, database, epoch, peer_id, chain_id)
            _write_epoch(directory / EPOCH, epoch + 1)
            with connection:
                connection.execute("UPDATE bound SET epoch = ?", (epoch + 1,))
        except sqlite3.DatabaseError as error:
            raise IdentityError(
                "the protocol store is damaged",
                where=str(database),
                why=f"{error}; what this key signed can no longer be known",
                hint=NEW_KEY,
            ) from error
        return cls(connection, fault)

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
            self._fault("before-commit")
        self._fault("after-commit")

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


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    found = connection.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    return connection


def _bind(
    connection: sqlite3.Connection, database: Path, epoch: int, peer_id: bytes, chain_id: bytes
) -> None:
    with connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, data BLOB) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS bound (peer BLOB, chain BLOB, epoch INTEGER)"
        )
    row = connection.execute("SELECT peer, chain, epoch FROM bound").fetchone()
    if row is None and not epoch:
        with connection:
            connection.execute("INSERT INTO bound VALUES (?, ?, 0)", (peer_id, chain_id))
        return
    if row is None or (bytes(row[0]), bytes(row[1])) != (peer_id, chain_id):
        raise IdentityError(
            "the protocol store belongs to another key or swarm", where=str(database), hint=NEW_KEY
        )
    if row[2] < epoch - 1:  # one less: killed between writing the epoch file and the database
        raise IdentityError(
            "the protocol store is older than it should be",
            where=str(database),
            why=f"it is of start {row[2]}, the last was {epoch}: restored from a backup?",
            hint=NEW_KEY,
        )


def _read_epoch(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise IdentityError(
            "the epoch of this peer cannot be read", where=str(path), hint=NEW_KEY
        ) from error


def _write_epoch(path: Path, epoch: int) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("w") as file:
        file.write(str(epoch))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
