"""Documents on their way from files to tokens, on disk: so memory does not grow with the text.

`gather` reads an origin once, leaves out what the rules of quality refuse, and writes the rest in
parts of some megabytes; beside each part lie the facts of its documents (hash of the text, number
of characters and bytes). After each part it notes where it was, so a reading that was killed goes
on from there and ends with the same bytes. Who comes after works part by part.
"""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peerformer.config import DataConfig
from peerformer.data.cleaning import cut
from peerformer.data.documents import Document
from peerformer.data.files import nothing_found
from peerformer.data.origins import parts_of
from peerformer.data.quality import fault_of
from peerformer.data.shards import write_file
from peerformer.data.tally import Tally
from peerformer.errors import DataError

PART_BYTES = 16_000_000  # of text: large enough to encode at speed, small enough to hold a few
STATE = "spool.json"
CHOICE = "choice.npy"
TRAINED, HELD_OUT, LEFT_OUT = 0, 1, 2
FACTS = np.dtype([("hash", "<u8"), ("rank", "<u8"), ("characters", "<u4"), ("bytes", "<u4")])

OnBytes = Callable[[int], None]


@dataclass(slots=True)
class _State:
    """How far a reading is.

    Attributes:
        origin: which text under which settings this is.
        parts: so many parts are written.
        documents, bytes: of what was kept.
        taken_bytes: of what was read, with what was left out.
        place: parts of the origin that are done, and documents of the next.
        place_bytes: how much had been read when that part of the origin began.
        ended: nothing more is to be read.
        control: the special tokens that documents hold.
        tally: the counts, as JSON.
    """

    origin: str
    parts: int = 0
    documents: int = 0
    bytes: int = 0
    taken_bytes: int = 0
    place: tuple[int, int] = (0, 0)
    place_bytes: int = 0
    ended: bool = False
    control: list[str] = field(default_factory=list)
    tally: dict[str, Any] = field(default_factory=lambda: Tally().to_json())


class Spool:
    """The documents of one origin in a folder, part by part."""

    def __init__(self, directory: Path, state: _State) -> None:
        self.directory, self._state = directory, state
        self.tally = Tally.from_json(state.tally)
        self.size = state.documents, state.bytes  # of what is kept
        self.control = state.control

    @property
    def num_parts(self) -> int:
        """The number of parts."""
        return self._state.parts

    @property
    def taken_bytes(self) -> int:
        """The number of bytes of text that were read, with what was left out."""
        return self._state.taken_bytes

    def file(self, part: int, kind: str) -> Path:
        """Return where a part's documents, facts and so on are."""
        return file_of(self.directory, part, kind)

    def documents(self, part: int) -> list[Document]:
        """Return the documents of a part."""
        return read_part(self.file(part, "documents"))

    def facts(self, part: int) -> NDArray[np.void]:
        """Return the facts of a part's documents, of the type FACTS."""
        return np.load(self.file(part, "facts.npy"))

    def choice(self, part: int) -> NDArray[np.uint8]:
        """Return which of a part's documents are TRAINED on, HELD_OUT or LEFT_OUT."""
        return np.load(self.file(part, CHOICE))

    def leave_out(self, where: str, reason: str, *, size_bytes: int) -> None:
        """Count a document that was kept so far and is not any more."""
        self.tally.leave_out(where, reason, size_bytes=size_bytes)
        documents, size = self.size
        self.size = documents - 1, size - size_bytes

    def all_facts(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Yield the facts of each part with the number of its first document."""
        first = 0
        for part in range(self.num_parts):
            facts = self.facts(part)
            yield first, facts
            first += len(facts)


def gather(
    path: str | None,
    config: DataConfig,
    directory: Path,
    *,
    origin: str,
    divide_alone: bool = True,
    on_bytes: OnBytes = lambda _: None,
) -> Spool:
    """Read an origin into a spool, or go on with a reading that was broken off.

    Args:
        path: what `--data` was given.
        config: how it is read and what is left out.
        directory: where the spool is.
        origin: which text under which settings this is; another one is read from the beginning.
        divide_alone: cut a document that is the only one, so that some of it can be held out.
        on_bytes: called now and then with the bytes of text read so far.

    Raises:
        DataError: there is no such origin, or no text in it.
    """
    state = _known(directory, origin)
    if not state.ended:
        directory.mkdir(parents=True, exist_ok=True)
        _Reading(path, config, directory, state, on_bytes).run(divide_alone=divide_alone)
    spool = Spool(directory, state)
    if not state.documents:
        raise nothing_found(str(path), spool.tally, config.column)
    return spool


def _known(directory: Path, origin: str) -> _State:
    """Return how far a reading of this origin is; the beginning where there is none."""
    try:
        state = msgspec.json.decode((directory / STATE).read_bytes(), type=_State)
        if state.origin == origin:
            Tally.from_json(state.tally)
            return state
    except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError):
        pass  # nothing that could be gone on with
    return _State(origin)


class _Reading:
    """A reading in progress: what is held for the next part, and the place."""

    def __init__(
        self,
        path: str | None,
        config: DataConfig,
        directory: Path,
        state: _State,
        on_bytes: OnBytes,
    ) -> None:
        self.path, self.config, self.directory, self.state = path, config, directory, state
        self.on_bytes = on_bytes
        self.tally = Tally()
        self.held: list[Document] = []
        self.held_bytes = 0
        self.writer = ThreadPoolExecutor(1)  # a disk takes its time, and lets us read meanwhile
        self.writing: Future[None] | None = None

    def run(self, *, divide_alone: bool) -> None:
        """Read to the end, or to `max_bytes`."""
        with self.writer:
            self._read(divide_alone=divide_alone)

    def _read(self, *, divide_alone: bool) -> None:
        state, most = self.state, self.config.max_bytes
        done, count = state.place
        is_resumed, before = bool(done or count), Tally.from_json(state.tally)
        for number, part in enumerate(parts_of(self.path, self.config, self.tally)):
            if number < done:
                continue
            if number > done or not is_resumed:
                count, state.place_bytes = 0, state.taken_bytes
            documents = part.documents(self.tally, most - state.place_bytes)
            if number == done and is_resumed:
                for _ in islice(documents, count):
                    pass
                self.tally.become(before)  # what was counted up to here was counted before
            for document in documents:
                count += 1
                state.place = (number, count)
                self._take(document)
                if state.taken_bytes >= most:
                    break
            if state.taken_bytes >= most:
                break
        if divide_alone and state.documents == 1 and self.held:
            self.held = divided(self.held[0])
            state.documents = len(self.held)
        self._write(ended=True)

    def _take(self, document: Document) -> None:
        size, state = len(document.text.encode()), self.state
        state.taken_bytes += size
        fault = fault_of(document.text, self.config)
        if fault is not None:
            self.tally.leave_out(document.source, fault, size_bytes=size)
        else:
            state.documents += 1
            state.bytes += size
            if document.control:
                state.control = sorted({*state.control, *document.special_tokens})
            self.held.append(document)
            self.held_bytes += size
        if self.held_bytes >= PART_BYTES:
            self._write(ended=False)

    def _write(self, *, ended: bool) -> None:
        """Write what is held as a part, and then the place: in this order it may be killed.

        One part is being written while the next is read; the end waits for all.
        """
        state, held = self.state, self.held
        spool, part = Spool(self.directory, state), state.parts
        state.parts += bool(held)
        self.held, self.held_bytes = [], 0
        state.ended, state.tally = ended, self.tally.to_json()
        place = msgspec.json.encode(state)

        def write() -> None:
            if held:
                write_file(spool.file(part, "documents"), msgspec.msgpack.encode(held))
                write_array(spool.file(part, "facts.npy"), facts_of(held))
            write_file(self.directory / STATE, place)

        if self.writing is not None:
            self.writing.result()
        self.writing = self.writer.submit(write)
        if ended:
            self.writing.result()
        self.on_bytes(state.taken_bytes)


def divided(document: Document) -> list[Document]:
    """Return a document in pieces: some ten of them, two at least.

    Raises:
        DataError: it is a pair or a chat, which cannot be cut.
    """
    if document.learned is not None:
        raise DataError(
            "there is a single pair or chat, and one has to be held out",
            where=document.source,
            hint="give more of them, or --data.held_out FILE",
        )
    text = document.text
    pieces = list(cut(text, max(64, len(text) // 10)))
    if len(pieces) < 2:
        pieces = [text[: len(text) // 2], text[len(text) // 2 :]]
    return [Document(document.source, piece) for piece in pieces]


def facts_of(documents: list[Document]) -> NDArray[np.void]:
    """Return the facts of each document; the rank is the hash of what decides on holding it out."""
    rows = []
    for document in documents:
        data, key = document.text.encode(), document.key
        number = _number_of(data)
        rank = number if key is document.text else _number_of(key.encode())
        rows.append((number, rank, len(document.text), len(data)))
    return np.array(rows, FACTS)


def _number_of(data: bytes) -> int:
    return int.from_bytes(blake3(data).digest()[:8], "little")


def file_of(directory: Path, part: int, kind: str) -> Path:
    """Return where something of a part of a spool is."""
    return directory / f"{part:06d}.{kind}"


def read_part(file: Path) -> list[Document]:
    """Return the documents of one file."""
    return msgspec.msgpack.decode(file.read_bytes(), type=list[Document])


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array, whole or not at all."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_file(path, data.getvalue())
