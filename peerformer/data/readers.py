"""Records out of files of every format: one small function a format, all of them streaming.

`records(path)` yields what a structured file holds, one after the other: a mapping of columns, or
a text by itself. Formats are known by the end of the name (`formats` has the table; `.gz` and
`.zst` may follow): JSON Lines, JSON, CSV and TSV, Parquet, Arrow and Feather. A record that cannot
be read is told to `note` by its place and passed over; a file whose rest cannot be read ends with
an `UnreadableError`. Memory depends on the longest record, never on the file.

It knows nothing about which column is the text, nor about plain text files.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeAlias

from peerformer.data.opened import (
    LINE_TOO_LONG,
    RECORD_BYTES_MAX,
    UnreadableError,
    blocks_of,
    decoded,
    kind_of,
    lines_of,
    needed,
    packing_of,
)

Record: TypeAlias = Mapping[str, Any] | str
Note: TypeAlias = Callable[[str, str], None]  # (place, reason)

ROWS_AT_ONCE = 256
ROW_GROUP_BYTES_MAX = 1 << 30  # unpacked; writers make them of some hundred megabytes at most
UNPACKED_BYTES_MAX = 8 << 30  # of a packed Parquet file, which has to be put on disk to be read
DELIMITERS = ",;\t|"
TEXT = "text"


def format_of(path: Path) -> str:
    """Return the name of a file's format; what has no other is text."""
    return _NAMES.get(kind_of(path), TEXT)


def records(path: Path, *, note: Note = lambda place, reason: None) -> Iterator[Record]:
    """Yield the records of a structured file.

    Args:
        path: a file whose `format_of` is not TEXT.
        note: called with the place and the reason of each record that is passed over.

    Raises:
        UnreadableError: the file, or what follows the last record, cannot be read.
        DataError: a package that reads it is not installed.
    """
    return _READERS[format_of(path)](path, note)


# --- JSON ----------------------------------------------------------------------------------------


def _json_lines(path: Path, note: Note) -> Iterator[Record]:
    for number, line in lines_of(path):
        place = f"{path}:{number}"
        if line is None:
            note(place, LINE_TOO_LONG)
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            note(place, "a line that is not UTF-8")
        except (ValueError, RecursionError):
            note(place, "a line that is no JSON")
        else:
            yield from _if_record(value, place, note)


def _if_record(value: Any, place: str, note: Note) -> Iterator[Record]:
    if isinstance(value, dict | str):
        yield value
    else:
        note(place, "JSON that is neither an object nor a string")


def _json_values(path: Path, note: Note) -> Iterator[Record]:
    """Yield the members of a JSON array, or the values that stand in a file one by one."""
    for number, value in enumerate(_json_stream(decoded(blocks_of(path))), 1):
        yield from _if_record(value, f"{path}:value {number}", note)


def _json_stream(blocks: Iterator[str]) -> Iterator[Any]:
    """Decode value after value, of an array that need not fit in memory."""
    decoder, separators = json.JSONDecoder(), " \t\n\r"
    begun = (block.lstrip(separators) for block in blocks)
    held, at, wanted, ended = next(filter(None, begun), ""), 0, 0, False
    if held.startswith("["):
        at, separators = 1, " \t\n\r,]"
    while True:
        while at < len(held) and held[at] in separators:
            at += 1
        if at < len(held) and (ended or len(held) - at >= wanted):
            try:
                value, at = decoder.raw_decode(held, at)
            except (ValueError, RecursionError) as error:
                if ended:
                    reason = f"no JSON, or cut short: {str(error)[:80]}"
                    raise UnreadableError(reason) from error
                wanted = 2 * (len(held) - at)  # half a value: twice as much before the next try
                if wanted > 2 * RECORD_BYTES_MAX:
                    reason = f"a JSON value of more than {RECORD_BYTES_MAX >> 20} MiB, or none"
                    raise UnreadableError(reason) from error
            else:
                wanted = 0
                yield value
                continue
        elif ended:
            return
        block = next(blocks, None)
        held, at, ended = held[at:] + (block or ""), 0, block is None


# --- CSV and TSV ---------------------------------------------------------------------------------


def _csv(path: Path, note: Note) -> Iterator[Record]:
    return _table(path, note, delimiter=None)


def _tsv(path: Path, note: Note) -> Iterator[Record]:
    return _table(path, note, delimiter="\t")


def _table(path: Path, note: Note, delimiter: str | None) -> Iterator[Record]:
    """Yield rows by the names in the first line; without a delimiter the first line tells it."""
    csv.field_size_limit(RECORD_BYTES_MAX)  # of the whole process, and alike for every table
    lines = _decoded_lines(path, note)
    header = next(lines, None)
    if header is None:
        raise UnreadableError("empty")
    delimiter = delimiter or max(DELIMITERS, key=lambda sign: (header.count(sign), sign == ","))
    try:
        rows = csv.reader(_chained(header, lines), delimiter=delimiter)
        names = next(rows)
        for row in rows:
            if len(row) == len(names):
                yield dict(zip(names, row, strict=True))
            elif row:
                note(f"{path}:{rows.line_num}", "a row of another length than the first line")
    except csv.Error as error:
        raise UnreadableError(f"no table after line {rows.line_num}: {error}") from error


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _decoded_lines(path: Path, note: Note) -> Iterator[str]:
    for number, line in lines_of(path):
        try:
            if line is None:
                note(f"{path}:{number}", LINE_TOO_LONG)
            else:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            note(f"{path}:{number}", "a line that is not UTF-8")


# --- Parquet, Arrow and Feather ------------------------------------------------------------------


def _parquet(path: Path, note: Note) -> Iterator[Record]:
    pa = _pyarrow(path)
    import pyarrow.parquet

    with ExitStack() as stack:
        try:
            file = pyarrow.parquet.ParquetFile(stack.enter_context(_seekable(path)))
            for number in range(file.metadata.num_row_groups):
                if file.metadata.row_group(number).total_byte_size > ROW_GROUP_BYTES_MAX:
                    note(f"{path}:row group {number}", "a row group of more than 1 GiB")
                    continue
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[number]):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise UnreadableError(f"damaged or no Parquet: {_short(error)}") from error


def _arrow(path: Path, note: Note) -> Iterator[Record]:
    """Yield the rows of an Arrow file or stream, which is what Feather is as well."""
    pa = _pyarrow(path)
    with ExitStack() as stack:
        opened = stack.enter_context(_seekable(path))
        try:
            try:
                file = pa.ipc.open_file(opened)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            except pa.ArrowInvalid:
                opened.seek(0)
                batches = iter(pa.ipc.open_stream(opened))
            for batch in batches:
                batch.validate(full=True)  # lengths inside a foreign file may point anywhere
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    yield from batch.slice(start, ROWS_AT_ONCE).to_pylist()
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise UnreadableError(f"damaged or no Arrow: {_short(error)}") from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise needed("pyarrow", path) from error
    return pyarrow


def _seekable(path: Path) -> IO[bytes]:
    """Open a file whose end must be read first; a packed one is unpacked to disk, up to a limit."""
    if not path.is_file():
        raise UnreadableError("not a regular file")
    if not packing_of(path):
        try:
            return path.open("rb")
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error
    with ExitStack() as stack:
        unpacked = stack.enter_context(tempfile.TemporaryFile())
        size = 0
        for block in blocks_of(path):
            size += len(block)
            if size > UNPACKED_BYTES_MAX:
                raise UnreadableError(f"unpacks to more than {UNPACKED_BYTES_MAX >> 30} GiB")
            unpacked.write(block)
        unpacked.seek(0)
        stack.pop_all()
    return unpacked


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


_READERS: Mapping[str, Callable[[Path, Note], Iterator[Record]]] = {
    "jsonl": _json_lines,
    "json": _json_values,
    "csv": _csv,
    "tsv": _tsv,
    "parquet": _parquet,
    "arrow": _arrow,
}
_NAMES: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
