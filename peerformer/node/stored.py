"""What a peer has on disk, read from outside while it may be running.

The node holds its database locked, and opening a database can change it. So its files are copied,
again until a copy is one moment's (nothing but the end of the write-ahead log was written
meanwhile), and the copy is opened. States and checkpoints are hashed where they lie. Every file
may be damaged or made by an enemy; whether it is the right one is for others to say.
"""

import json
import os
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from peerformer.errors import DataError
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.journal import DATABASE
from peerformer.protocol.anchors import BOOK_PREFIX
from peerformer.protocol.chain import Base
from peerformer.protocol.checkpoint import BASE_KEY, HEADER_PREFIX
from peerformer.protocol.codec import MalformedError, decode
from peerformer.protocol.merkle import MerkleTree
from peerformer.protocol.messages import PACKET_SIZE_MAX, Certified

LOG = DATABASE + "-wal"
COPIES_MAX = 20  # a node writes a few times a second, a copy takes milliseconds
STATE_JSON_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredHeaders:
    """The decided rounds in a peer's store, in order, and the chain the store is bound to."""

    chain_id: bytes
    records: list[tuple[str, bytes]]
    book: list[tuple[str, bytes]]  # where others were reached: hints, each signed by its subject
    base: Base | None = None  # where they begin, if not at the genesis


@dataclass(frozen=True, slots=True)
class StoredState:
    """A snapshot of an agreed state; `round` is None where its name tells none."""

    path: Path
    round: int | None
    root: bytes
    size_bytes: int

    def __str__(self) -> str:
        return f"state of round {self.round}"


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """What a checkpoint says of itself; its files are as it lists them."""

    path: Path
    round: int
    chain_id: bytes
    state_root: bytes
    certified: Certified | None

    def __str__(self) -> str:
        return f"certificate and files of {self.path.name}"


def stored_headers(directory: PeerDirectory) -> StoredHeaders:
    """Return the decided rounds in a peer's store.

    Raises:
        DataError: if the store is missing, damaged, or no store.
    """
    database = directory.path / DATABASE
    try:
        with tempfile.TemporaryDirectory(prefix="peerformer-") as scratch:
            copy = _copy(database, Path(scratch))
            connection = sqlite3.connect(copy)
            try:
                return _headers(connection)
            finally:
                connection.close()
    except FileNotFoundError as error:
        raise DataError("there is no protocol store here", where=str(directory.path)) from error
    except OSError as error:
        raise DataError(
            "the protocol store cannot be read", where=str(database), why=error.strerror
        ) from error
    except (sqlite3.Error, ValueError) as error:
        raise DataError(
            "the protocol store is damaged", where=str(database), why=str(error)
        ) from error


def _headers(connection: sqlite3.Connection) -> StoredHeaders:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, PACKET_SIZE_MAX)
    connection.execute("PRAGMA trusted_schema = OFF")
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise ValueError(found)
    # A view could compute for ever; a table only holds what is there.
    for table in ("bound", "records"):
        row = connection.execute("SELECT type FROM sqlite_master WHERE name = ?", (table,))
        if row.fetchone() != ("table",):
            raise ValueError(f"it has no table of {table}")
    bound = connection.execute("SELECT chain FROM bound").fetchone()
    if bound is None or not isinstance(bound[0], bytes):
        raise ValueError("it is bound to no chain")
    headers, book = (_records(connection, prefix) for prefix in (HEADER_PREFIX, BOOK_PREFIX))
    return StoredHeaders(bound[0], headers, book, _base(connection))


def _records(connection: sqlite3.Connection, prefix: str) -> list[tuple[str, bytes]]:
    rows = connection.execute(
        "SELECT key, data FROM records WHERE key >= ? AND key < ? ORDER BY key",
        (prefix, prefix + "~"),
    )
    records = []
    for key, data in rows:
        if not isinstance(key, str) or not isinstance(data, bytes):
            raise ValueError("a record is neither text nor bytes")
        records.append((key, data))
    return records


def _base(connection: sqlite3.Connection) -> Base | None:
    found = connection.execute("SELECT data FROM records WHERE key = ?", (BASE_KEY,)).fetchone()
    if found is None:
        return None
    if not isinstance(found[0], bytes):
        raise ValueError("its base is no bytes")
    return decode(Base, found[0])


def _copy(database: Path, into: Path) -> Path:
    """Copy a database and its log as they were at one moment; returns the copy."""
    log, copy, copied_log = database.with_name(LOG), into / DATABASE, into / LOG
    for _ in range(COPIES_MAX):
        shutil.copyfile(database, copy)
        try:
            shutil.copyfile(log, copied_log)
        except FileNotFoundError:
            copied_log.unlink(missing_ok=True)
        # A checkpoint writes the database, and only then is the log begun anew; commits meanwhile
        # lengthen the log, and SQLite leaves out what does not reach to a commit.
        log_grew = not copied_log.exists() or _begins_with(log, copied_log)
        same = database.stat().st_size == copy.stat().st_size and _begins_with(database, copy)
        if log_grew and same:
            return copy
    raise DataError("the protocol store changes too fast to be read", where=str(database))


def _begins_with(path: Path, beginning: Path) -> bool:
    """Tell whether a file still begins with all that was copied of it."""
    try:
        with path.open("rb") as now, beginning.open("rb") as then:
            while piece := then.read(1 << 20):
                if now.read(len(piece)) != piece:
                    return False
    except FileNotFoundError:
        return False
    return True


def states_of(directory: PeerDirectory) -> list[Path]:
    """Return a peer's snapshots of agreed states, the oldest first."""
    return sorted(path for path in directory.states.glob("*.state") if path.is_file())


def stored_state(path: Path, number: int | None = None) -> StoredState | None:
    """Return a snapshot, whose round is in its name if not given; None if it is gone meanwhile.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size

            def read(start: int, end: int) -> bytes:
                file.seek(start)
                return file.read(end - start)

            root = MerkleTree(size, read).root
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError("a state cannot be read", where=str(path), why=error.strerror) from error
    if number is None and path.stem.isascii() and path.stem.isdigit():
        number = int(path.stem)
    return StoredState(path, number, root, size)


def checkpoints_of(swarm: SwarmDirectory) -> list[Path]:
    """Return the checkpoints of agreed states, the oldest first."""
    found = swarm.path.glob("checkpoints/step-*/state.json")
    return sorted(path.parent for path in found if path.is_file())


def stored_checkpoint(path: Path) -> StoredCheckpoint:
    """Return what a checkpoint says of itself, after hashing the files that it lists.

    Raises:
        DataError: if its `state.json` or one of its files is damaged.
    """
    try:
        with (path / "state.json").open("rb") as file:
            state = json.loads(file.read(STATE_JSON_BYTES_MAX))
        checkpoint = StoredCheckpoint(
            path,
            _whole(state["round"]),
            bytes.fromhex(state["chain_id"]),
            bytes.fromhex(state["state_root"]),
            decode(Certified, bytes.fromhex(state["certified"])) if state["certified"] else None,
        )
        listed = {str(name): str(digest) for name, digest in state["files"].items()}
    except OSError as error:
        raise DataError(
            "a checkpoint cannot be read", where=str(path), why=error.strerror
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if isinstance(error, MalformedError) else type(error).__name__
        raise DataError("its state.json is damaged", where=str(path), why=why) from error
    for name in sorted(listed.keys() | {file.name for file in path.iterdir()} - {"state.json"}):
        if _digest(path, name) != listed.get(name):
            raise DataError(f"its {name!r:.80} is not the file that its state.json lists")
    return checkpoint


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _digest(directory: Path, name: str) -> str | None:
    """Return the hash of a file of a directory, and of none outside it."""
    path = directory / name
    if path.parent != directory or not path.is_file():
        return None
    return blake3().update_mmap(path).hexdigest()
