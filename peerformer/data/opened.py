"""The bytes of a file, unpacked as they are read, and its lines, none longer than a limit.

gz and zst are known by the end of a file's name and unpacked piece by piece, so what a small file
unpacks to may be without end and still takes a few megabytes of memory. Whatever is wrong with a
file becomes one exception, `UnreadableError`, whose text is a reason that can be counted.

It knows nothing about what the bytes mean.
"""

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peerformer.errors import DataError

BLOCK_BYTES = 1 << 20
# A zst block of 4 bytes may stand for 128 KiB: so much of a packed file is unpacked at once.
PACKED_BYTES = 1 << 10
RECORD_BYTES_MAX = 32 << 20  # of one line or one JSON value; a book has a few megabytes
LINE_TOO_LONG = f"a line of more than {RECORD_BYTES_MAX >> 20} MiB"
PACKINGS = (".gz", ".zst")


class UnreadableError(Exception):
    """Why a file, or the rest of it, cannot be read."""


def packing_of(path: Path) -> str:
    """Return how a file is packed, `.gz` or `.zst`, or nothing."""
    return path.suffix.lower() if path.suffix.lower() in PACKINGS else ""


def kind_of(path: Path) -> str:
    """Return the end of a file's name, such as `.jsonl`, that of its packing left out."""
    return (path.with_suffix("") if packing_of(path) else path).suffix.lower()


def needed(module: str, path: Path) -> DataError:
    """Return the error that says which package would read a file."""
    return DataError(
        f"{path.name} is read by {module}, which is not installed",
        where=str(path),
        hint="pip install 'peerformer[data]'",
    )


def blocks_of(path: Path) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file, none of the blocks empty.

    Raises:
        UnreadableError: it is no file, may not be read, or its packing is damaged or cut short.
        DataError: the package that unpacks it is not installed.
    """
    if not path.is_file():
        raise UnreadableError("not a regular file")
    try:
        match packing_of(path):
            case ".gz":
                with gzip.open(path) as unpacked:
                    while block := unpacked.read(BLOCK_BYTES):
                        yield block
            case ".zst":
                yield from _unpacked_zst(path)
            case _:
                with path.open("rb") as file:
                    while block := file.read(BLOCK_BYTES):
                        yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableError(f"damaged or cut short: {_one_line(error)}") from error
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or _one_line(error)}") from error


def _unpacked_zst(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise needed("zstandard", path) from error
    unpacker: Any = None
    try:
        with path.open("rb") as file:
            while packed := file.read(PACKED_BYTES):
                while packed:  # several frames may follow each other
                    unpacker = unpacker or zstandard.ZstdDecompressor().decompressobj()
                    if block := unpacker.decompress(packed):
                        yield block
                    packed = unpacker.unused_data
                    unpacker = None if unpacker.eof else unpacker
    except zstandard.ZstdError as error:
        raise UnreadableError(f"damaged or cut short: {_one_line(error)}") from error
    if unpacker is not None:
        raise UnreadableError("damaged or cut short: the last frame has no end")


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def decoded(blocks: Iterable[bytes]) -> Iterator[str]:
    """Yield the text of blocks of bytes.

    Raises:
        UnreadableError: there is a zero byte in it, or it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        for block in blocks:
            if b"\x00" in block:
                raise UnreadableError("binary")
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UnreadableError("not UTF-8 text") from error


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line of a file with its number, counted from 1, and its line end.

    A line above RECORD_BYTES_MAX is None: it is passed over without being held.

    Raises:
        UnreadableError, DataError: as `blocks_of`, or because of a zero byte.
    """
    number, held, too_long = 1, bytearray(), False
    for block in blocks_of(path):
        if b"\x00" in block:
            raise UnreadableError("binary")
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            line = bytes(held) + block[start : end + 1] if held else block[start : end + 1]
            yield number, None if too_long or len(line) > RECORD_BYTES_MAX else line
            number, too_long, start = number + 1, False, end + 1
            held.clear()
        held += block[start:]
        if len(held) > RECORD_BYTES_MAX:
            held.clear()
            too_long = True
    if held or too_long:
        yield number, None if too_long else bytes(held)
