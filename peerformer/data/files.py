"""Text files, tables and folders of both, as cleaned documents, however large the files are.

A document is a piece of text that is held out or trained on as a whole, so a big file is cut, and
each record of a table or a JSON file is a text of its own. What cannot be read is counted and
named, never guessed at; if nothing is left, that is an error.

A text file is looked through before it is read: one zero byte or one bad character at its end,
and nothing of it is taken. Memory depends on the longest document alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from peerformer.config import DataConfig
from peerformer.data import pairs
from peerformer.data.chat import ChatRefusedError, ChatTemplate, chat_document, is_chat
from peerformer.data.cleaning import (
    DOCUMENT_CHARACTERS_MAX,
    clean,
    clean_stream,
    cut,
    cut_stream,
)
from peerformer.data.documents import Document, counted
from peerformer.data.opened import (
    LINE_TOO_LONG,
    UnreadableError,
    blocks_of,
    decoded,
    kind_of,
    lines_of,
)
from peerformer.data.readers import TEXT, Record, format_of, records
from peerformer.data.tally import Tally
from peerformer.errors import DataError

COLUMNS_SHOWN_MAX = 12
NO_COLUMN = "no column"
HALF_A_CHARACTER = "half a character (a lone surrogate)"
PAIRS = "pairs"  # the format of a text file that holds them
MARKDOWN = (".md", ".markdown")


@dataclass(frozen=True, slots=True)
class Form:
    """What the text of files looks like: settings of `data`, and the template of chats."""

    column: str = DataConfig.column
    pairs: str = DataConfig.pairs
    template: ChatTemplate = field(default_factory=ChatTemplate)


def nothing_found(path: str, tally: Tally, column: str) -> DataError:
    """Return the error that says why no text was found."""
    columns = ", ".join(tally.columns)
    if columns and all(reason.startswith(NO_COLUMN) for reason in tally.left_out):
        return DataError(
            f"{path} has no column {column!r}",
            where=path,
            hint=f"choose one of: {columns}  (--data.column {tally.columns[0]})",
        )
    reasons = "; ".join(
        f"{Path(entry.examples[0]).name}: {reason}" for reason, entry in tally.reasons[:3]
    )
    return DataError(
        f"no text was found in {path}",
        where=path,
        why=reasons or "it is empty",
        hint="give a text file, or a folder with text files: --data PATH",
    )


def file_documents(
    file: Path, form: Form, tally: Tally, *, bytes_wanted: int
) -> Iterator[Document]:
    """Yield the documents of one file; what is wrong with it is counted.

    Args:
        file: a text file, packed or not, or one that holds records.
        form: what its text looks like.
        tally: where documents, and what is left out, are counted.
        bytes_wanted: how much text will be taken: a text file is looked through no further.
    """
    kind = format_of(file)
    try:
        if kind == TEXT:
            _look_through(file, bytes_wanted + 4 * DOCUMENT_CHARACTERS_MAX)
            yield from _text_documents(file, form.pairs, tally)
        else:
            found = records(file, note=tally.leave_out)
            yield from record_documents(found, str(file), form, tally, name=kind)
    except UnreadableError as error:
        tally.leave_out(str(file), str(error))


def record_documents(
    found: Iterable[Record], source: str, form: Form, tally: Tally, *, name: str
) -> Iterator[Document]:
    """Yield the documents of records; those without text are counted by reason.

    Where the column holds no text, a record with messages is a chat, and one with a prompt and a
    completion a pair.
    """

    def documents() -> Iterator[Document]:
        for number, record in enumerate(found, 1):
            place = f"{source}:record {number}"
            if _is_structured(record, form.column):
                yield from _structured(source, record, form, partial(tally.leave_out, place))
                continue
            text, reason = text_of(record, form.column, tally)
            if text := clean(text):
                yield from (Document(source, piece) for piece in cut(text))
            else:
                tally.leave_out(place, reason or "an empty text")

    return counted(documents(), name, tally)


def _is_structured(record: Record, column: str) -> TypeGuard[Mapping[str, Any]]:
    return (
        not isinstance(record, str)
        and not isinstance(record.get(column), str)
        and (is_chat(record) or pairs.is_pair(record))
    )


def _structured(
    source: str, record: Mapping[str, Any], form: Form, refuse: Callable[[str], None]
) -> Iterator[Document]:
    """Yield the document of a chat or a pair, or say why there is none."""
    try:
        document = (
            chat_document(source, record, form.template)
            if is_chat(record)
            else pairs.record_document(source, record)
        )
        if document is not None:
            document.text.encode()
    except ChatRefusedError as error:
        refuse(str(error))
    except UnicodeEncodeError:
        refuse(HALF_A_CHARACTER)
    else:
        if document is None:
            refuse(pairs.NOTHING_BESIDE)
        else:
            yield document


def _text_documents(file: Path, chosen: str, tally: Tally) -> Iterator[Document]:
    """Yield the documents of a text file, which is known to be text: its pairs, or pieces of it."""
    delimiter = chosen if chosen in pairs.DELIMITERS else None
    if chosen == pairs.AUTO and kind_of(file) in pairs.SUFFIXES:
        delimiter = pairs.delimiter_of(_text_lines(file, Tally()))
    if delimiter is not None:
        lines = _text_lines(file, tally)
        found = pairs.line_documents(str(file), lines, delimiter, tally.leave_out)
        return counted(found, PAIRS, tally)
    name = "md" if kind_of(file) in MARKDOWN else TEXT
    pieces = cut_stream(clean_stream(decoded(blocks_of(file))))
    return counted((Document(str(file), piece) for piece in pieces), name, tally)


def _text_lines(file: Path, tally: Tally) -> Iterator[str]:
    """Yield the lines of a text file; one that is too long to be held is counted, and empty."""
    for number, line in lines_of(file):
        if line is None:
            tally.leave_out(f"{file}:{number}", LINE_TOO_LONG)
        try:
            text = (line or b"").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:  # behind what was looked through
            raise UnreadableError("not UTF-8 text") from error
        yield text.rstrip("\r\n")


def _look_through(file: Path, bytes_max: int) -> None:
    """Refuse a file that is not text from beginning to end, or to where it will be read."""

    def some() -> Iterator[bytes]:
        taken = 0
        for block in blocks_of(file):
            yield block
            taken += len(block)
            if taken >= bytes_max:
                # The middle of a character, maybe: only a whole file must end with one.
                raise _EnoughError

    is_empty = True
    try:
        for text in decoded(some()):
            is_empty = is_empty and not text.strip()
    except _EnoughError:
        pass
    if is_empty:
        raise UnreadableError("empty")


class _EnoughError(Exception):
    """As much of a file was looked through as will be read."""


def text_of(record: Record, column: str, tally: Tally) -> tuple[str, str]:
    """Return the text of a record, or nothing and the reason."""
    if isinstance(record, str):
        record = {column: record}
    if column not in record:
        columns = [str(name)[:40] for name in record][:COLUMNS_SHOWN_MAX]
        tally.columns = tally.columns or columns
        return "", f"{NO_COLUMN} {column!r}, but {', '.join(columns) or 'none'}"
    value: Any = record[column]
    if value is None:
        return "", "an empty text"
    if not isinstance(value, str):
        return "", f"column {column!r} is no text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "", HALF_A_CHARACTER
    return value, ""


def text_files(path: Path, tally: Tally | None = None) -> Iterator[Path]:
    """Yield the files of a folder in order of their names, without hidden ones; or the one file.

    Raises:
        DataError: if there is no such file or folder, or it cannot be looked into.
    """
    try:
        if path.is_file():
            yield path
            return
        os.listdir(path)
    except FileNotFoundError as error:
        raise DataError(
            f"there is no {path}",
            where=str(path.absolute()),
            why=error.strerror,
            hint="check the path of --data",
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read",
            where=str(path),
            why=getattr(error, "strerror", None) or str(error),
            hint="give a text file or a folder that you may read: --data PATH",
        ) from error
    noted = Tally() if tally is None else tally

    def note(error: OSError) -> None:
        noted.leave_out(str(error.filename), f"cannot be read: {error.strerror}")

    for folder, folders, names in os.walk(path, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))
