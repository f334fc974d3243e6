"""Token shards: documents one after the other as small integers, memory-mapped, with digests.

A folder of shards is one logical array of tokens. `index.json` lists each file with its BLAKE3
digest, so that damage is found and named. Where the loss counts on a part of the text only (the
completions of pairs, say), a mask of one bit a token lies beside a shard; a shard without one is
learned whole. A small set also travels as bytes: the held-out set that a swarm ships is one
content-addressed blob.
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peerformer.errors import DataError

SHARD_TOKENS = 32_000_000
INDEX = "index.json"
FORMAT = "peerformer-shards-1"
_BLOB = struct.Struct("<8sIQQ")  # magic, vocabulary, bytes of text, tokens
_MAGIC = b"pfshard1"
_MAGIC_MASKED = b"pfshard2"  # the mask, a bit a token, follows the tokens

Mask = NDArray[np.uint8]  # one bit a token, the first in the highest bit


class Encoded(NamedTuple):
    """The tokens of a document, the bytes of its text, and on which of them the loss counts.

    `learned` is one truth value a token and one more for the end of the text; None: on all.
    """

    tokens: Sequence[int] | NDArray[np.uint32]
    num_bytes: int
    learned: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class ShardSet:
    """Tokens of one split. `num_bytes` is the length of the text that they stand for.

    `masks` has a mask for each part, or None for one that is learned whole; or nothing at all.
    """

    parts: tuple[NDArray[np.unsignedinteger], ...]
    vocab_size: int
    num_bytes: int
    digest: str
    tokenizer_digest: str = ""  # which tokenizer made the tokens, if that is written down
    masks: tuple[Mask | None, ...] = ()

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

    @property
    def is_masked(self) -> bool:
        """Tell whether the loss counts on a part of the tokens only."""
        return any(mask is not None for mask in self.masks)

    def learned(self, start: int, length: int) -> NDArray[np.bool_]:
        """Return on which of `length` tokens from `start` on the loss counts, (length,)."""
        assert 0 <= start and start + length <= self.num_tokens
        found = np.ones(length, dtype=np.bool_)
        if not self.is_masked:
            return found
        first = 0  # the part's first token, in the whole
        for part, mask in zip(self.parts, self.masks, strict=True):
            low, high = max(start, first), min(start + length, first + len(part))
            if mask is not None and low < high:
                bits = mask[(low - first) // 8 : (high - first + 7) // 8]
                skipped = (low - first) % 8
                piece = np.unpackbits(bits)[skipped : skipped + high - low]
                found[low - start : high - start] = piece
            first += len(part)
        return found

    def to_bytes(self) -> bytes:
        """Return the set as canonical bytes."""
        kind = _kind(self.vocab_size)
        magic = _MAGIC_MASKED if self.is_masked else _MAGIC
        tokens = b"".join(np.asarray(part, dtype=kind).tobytes() for part in self.parts)
        header = _BLOB.pack(magic, self.vocab_size, self.num_bytes, self.num_tokens)
        mask = np.packbits(self.learned(0, self.num_tokens)) if self.is_masked else None
        return header + tokens + (b"" if mask is None else mask.tobytes())

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
        if magic not in (_MAGIC, _MAGIC_MASKED) or not vocab_size:
            raise DataError("this is no token set")
        mask_size = (num_tokens + 7) // 8 if magic == _MAGIC_MASKED else 0
        if len(data) != _BLOB.size + num_tokens * kind.itemsize + mask_size:
            raise DataError("the token set is cut short or too long")
        tokens = np.frombuffer(data, dtype=kind, offset=_BLOB.size, count=num_tokens)
        if num_tokens and int(tokens.max()) >= vocab_size:
            raise DataError("the token set holds tokens outside its vocabulary")
        mask = np.frombuffer(data[len(data) - mask_size :], np.uint8) if mask_size else None
        digest = blake3(data).hexdigest()
        return cls((tokens,), vocab_size, num_bytes, digest, masks=(mask,))


def _kind(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


def write_shards(
    documents: Iterable[Encoded | tuple[Sequence[int] | NDArray[np.uint32], int]],
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
    masks: list[NDArray[np.bool_] | None] = []
    held = num_bytes = 0

    def flush() -> None:
        nonlocal pending, masks, held
        data = np.concatenate(pending).tobytes()
        name = f"shard-{len(entries):05d}.bin"
        write_file(directory / name, data)
        entry: dict[str, object] = {
            "file": name,
            "tokens": held,
            "digest": blake3(data).hexdigest(),
        }
        if any(learned is not None for learned in masks):
            mask_data = _packed(pending, masks).tobytes()
            entry["mask"] = f"mask-{len(entries):05d}.bin"
            entry["mask_digest"] = blake3(mask_data).hexdigest()
            write_file(directory / str(entry["mask"]), mask_data)
        entries.append(entry)
        pending, masks, held = [], [], 0

    for document in documents:
        tokens, size, learned = Encoded(*document)
        assert learned is None or len(learned) == len(tokens) + 1
        pending.append(np.append(np.asarray(tokens, dtype=kind), kind.type(end_of_text_id)))
        masks.append(learned)
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
    write_file(directory / INDEX, json.dumps(index, indent=1).encode())
    return open_shards(directory, verify=False)


def shards_of(documents: Iterable[Encoded], *, vocab_size: int, end_of_text_id: int) -> ShardSet:
    """Return the tokens of documents as a set that is kept in memory."""
    kind = _kind(vocab_size)
    parts: list[NDArray[np.unsignedinteger]] = []
    masks: list[NDArray[np.bool_] | None] = []
    num_bytes = 0
    for tokens, size, learned in documents:
        parts.append(np.asarray([*tokens, end_of_text_id], dtype=kind))
        masks.append(learned)
        num_bytes += size
    is_masked = any(mask is not None for mask in masks)
    whole = np.concatenate(parts) if parts else np.empty(0, dtype=kind)
    mask = _packed(parts, masks) if is_masked else None
    return ShardSet((whole,), vocab_size, num_bytes, "", masks=(mask,))


def _packed(
    parts: list[NDArray[np.unsignedinteger]], masks: list[NDArray[np.bool_] | None]
) -> Mask:
    """Return the masks of documents that follow each other, a bit a token."""
    whole = [
        np.ones(len(part), np.bool_) if mask is None else mask
        for part, mask in zip(parts, masks, strict=True)
    ]
    return np.packbits(np.concatenate(whole))


def write_file(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
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
        files = [_listed(entry) for entry in index["shards"]]
        vocab_size, num_bytes = int(index["vocab_size"]), int(index["bytes"])
        tokenizer_digest = str(index.get("tokenizer", ""))
        if vocab_size < 1 or num_bytes < 0 or any(shard.length < 1 for shard, _ in files):
            raise ValueError("a size in it is impossible")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(index_file, f"its index cannot be read: {error}") from error
    parts, masks = [], []
    for shard, mask in files:
        parts.append(shard.mapped(directory, _kind(vocab_size), verify=verify))
        masks.append(mask and mask.mapped(directory, np.dtype(np.uint8), verify=verify))
    digests = "".join(file.digest for pair in files for file in pair if file is not None)
    joined = blake3(digests.encode()).hexdigest()
    return ShardSet(tuple(parts), vocab_size, num_bytes, joined, tokenizer_digest, tuple(masks))


class _File(NamedTuple):
    """A file as the index lists it, with the number of values in it."""

    name: str
    length: int
    digest: str

    def mapped(self, directory: Path, kind: np.dtype, *, verify: bool) -> NDArray:
        """Return its content.

        Raises:
            DataError: it is missing, or not what the index says.
        """
        path = directory / self.name
        if Path(self.name).name != self.name or not path.is_file():
            raise _damaged(path, "it is missing")
        if path.stat().st_size != self.length * kind.itemsize:
            raise _damaged(path, "it is cut short or too long")
        if verify and blake3(path.read_bytes()).hexdigest() != self.digest:
            raise _damaged(path, "its digest is another one")
        return np.memmap(path, dtype=kind, mode="r")


def _listed(entry: dict) -> tuple[_File, _File | None]:
    """Return the file of tokens that an entry of the index names, and that of their mask."""
    tokens = int(entry["tokens"])
    shard = _File(str(entry["file"]), tokens, str(entry["digest"]))
    if "mask" not in entry:
        return shard, None
    return shard, _File(str(entry["mask"]), (tokens + 7) // 8, str(entry["mask_digest"]))


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        "prepared text is damaged",
        where=str(path),
        why=why,
        hint=f"delete {path.parent} and run the command again: it prepares the text anew",
    )
