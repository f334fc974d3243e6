"""Token shards: documents one after the other as small integers, memory-mapped, with digests.

A folder of shards is one logical array of tokens. `index.json` lists each file with its BLAKE3
digest, so that damage is found and named. A small set also travels as bytes: the held-out set
that a swarm ships is one content-addressed blob.
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peerformer.errors import DataError

SHARD_TOKENS = 32_000_000
INDEX = "index.json"
FORMAT = "peerformer-shards-1"
_BLOB = struct.Struct("<8sIQQ")  # magic, vocabulary, bytes of text, tokens
_MAGIC = b"pfshard1"


@dataclass(frozen=True)
class ShardSet:
    """Tokens of one split. `num_bytes` is the length of the text that they stand for."""

    parts: tuple[NDArray[np.unsignedinteger], ...]
    vocab_size: int
    num_bytes: int
    digest: str
    tokenizer_digest: str = ""  # which tokenizer made the tokens, if that is written down

    @property
    def num_tokens(self) -> int:
        """The number of tokens."""
        return sum(len(part) for part in self.parts)

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Return `length` tokens from `start` on, across shards, (length,)."""
        assert 0 <= start and start + length <= self.num_tokens
        pieces = []
        for part in self.parts:
            if length and start < len(part):
                piece = part[start : start + length]
                pieces.append(piece)
                length -= len(piece)
                start = len(part)
            start -= len(part)
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)

    def to_bytes(self) -> bytes:
        """Return the set as canonical bytes."""
        kind = _kind(self.vocab_size)
        tokens = b"".join(np.asarray(part, dtype=kind).tobytes() for part in self.parts)
        return _BLOB.pack(_MAGIC, self.vocab_size, self.num_bytes, self.num_tokens) + tokens

    @classmethod
    def from_bytes(cls, data: bytes) -> "ShardSet":
        """Read what `to_bytes` wrote.

        Raises:
            DataError: if it is anything else.
        """
        if len(data) < _BLOB.size:
            raise DataError("the token set is cut short")
        magic, vocab_size, num_bytes, num_tokens = _BLOB.unpack_from(data)
        kind = _kind(vocab_size)
        if magic != _MAGIC or not vocab_size:
            raise DataError("this is no token set")
        if len(data) != _BLOB.size + num_tokens * kind.itemsize:
            raise DataError("the token set is cut short or too long")
        tokens = np.frombuffer(data, dtype=kind, offset=_BLOB.size)
        if num_tokens and int(tokens.max()) >= vocab_size:
            raise DataError("the token set holds tokens outside its vocabulary")
        return cls((tokens,), vocab_size, num_bytes, blake3(data).hexdigest())


def _kind(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


def write_shards(
    documents: Iterable[tuple[Sequence[int] | NDArray[np.uint32], int]],
    directory: Path,
    *,
    vocab_size: int,
    end_of_text_id: int,
    shard_tokens: int = SHARD_TOKENS,
    tokenizer_digest: str = "",
) -> ShardSet:
    """Write (tokens, bytes of text) of each document, each ended by the end-of-text token.

    The index is written last: a folder without one is not a shard set.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kind = _kind(vocab_size)
    entries: list[dict[str, object]] = []
    pending: list[NDArray[np.unsignedinteger]] = []
    held = num_bytes = 0

    def flush() -> None:
        nonlocal pending, held
        data = np.concatenate(pending).tobytes()
        name = f"shard-{len(entries):05d}.bin"
        _write(directory / name, data)
        entries.append({"file": name, "tokens": held, "digest": blake3(data).hexdigest()})
        pending, held = [], 0

    for tokens, size in documents:
        pending.append(np.asarray([*tokens, end_of_text_id], dtype=kind))
        held += len(pending[-1])
        num_bytes += size
        if held >= shard_tokens:
            flush()
    if held:
        flush()
    index = {
        "format": FORMAT,
        "vocab_size": vocab_size,
        "bytes": num_bytes,
        "tokenizer": tokenizer_digest,
        "shards": entries,
    }
    _write(directory / INDEX, json.dumps(index, indent=1).encode())
    return open_shards(directory, verify=False)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def open_shards(directory: Path, *, verify: bool) -> ShardSet:
    """Open a folder of shards, memory-mapped.

    Args:
        directory: where `write_shards` wrote.
        verify: read all of it once and compare the digests.

    Raises:
        DataError: if it is not a shard set, or a file is damaged; it names the file.
    """
    index_file = directory / INDEX
    try:
        index = json.loads(index_file.read_bytes())
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}")
        entries = [(str(e["file"]), int(e["tokens"]), str(e["digest"])) for e in index["shards"]]
        vocab_size, num_bytes = int(index["vocab_size"]), int(index["bytes"])
        tokenizer_digest = str(index.get("tokenizer", ""))
        if vocab_size < 1 or num_bytes < 0 or any(tokens < 1 for _, tokens, _ in entries):
            raise ValueError("a size in it is impossible")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(index_file, f"its index cannot be read: {error}") from error
    kind = _kind(vocab_size)
    parts = []
    for name, tokens, digest in entries:
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise _damaged(path, "it is missing")
        if path.stat().st_size != tokens * kind.itemsize:
            raise _damaged(path, "it is cut short or too long")
        if verify and blake3(path.read_bytes()).hexdigest() != digest:
            raise _damaged(path, "its digest is another one")
        parts.append(np.memmap(path, dtype=kind, mode="r"))
    joined = blake3("".join(digest for _, _, digest in entries).encode()).hexdigest()
    return ShardSet(tuple(parts), vocab_size, num_bytes, joined, tokenizer_digest)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        "prepared text is damaged",
        where=str(path),
        why=why,
        hint=f"delete {path.parent} and run the command again: it prepares the text anew",
    )
