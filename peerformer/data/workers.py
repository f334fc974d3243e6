"""Parts of a spool turned into tokens, by as many processes as there are cores.

Each part becomes one file of tokens beside it, whole or not at all, so what a killed preparation
had encoded is not encoded again. Workers are processes of this module (`python -m`), which read
parts from disk and write to disk; through the pipes go the numbers of parts only. Where there is
little text the work is done right here.
"""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import msgspec
import numpy as np
from numpy.typing import NDArray

import peerformer
from peerformer.data.duplicates import KIND as MINIMA
from peerformer.data.duplicates import minima_of
from peerformer.data.encode import encoded
from peerformer.data.shards import Encoded, write_file
from peerformer.data.sources import source_of
from peerformer.data.spool import (
    CHOICE,
    HELD_OUT,
    LEFT_OUT,
    file_of,
    read_part,
    write_array,
)
from peerformer.data.tokenizer import PARALLELISM_VARIABLE, load_tokenizer
from peerformer.data.word_cache import WordEncoder
from peerformer.errors import DataError

TOKENS = "tokens.npz"
WORKERS_MAX = 16  # each holds some 200 MB, and one disk feeds them all
ALONE_PARTS = 2  # so few parts are done sooner than processes are started
DONE = "done\n"
MODULE = "peerformer.data.workers"


@dataclass(frozen=True, slots=True)
class Task:
    """A part of a spool, and what is to be made of it.

    Attributes:
        folder, part: which part of which spool.
        makes: its TOKENS or its MINIMA.
        path: the folder of text whose sources are told apart in what is held out.
    """

    folder: str
    part: int
    makes: str
    path: str | None = None

    def file(self, kind: str) -> Path:
        """Return where something of the part is."""
        return file_of(Path(self.folder), self.part, kind)

    @property
    def is_done(self) -> bool:
        """Whether it is made already."""
        return self.file(self.makes).exists()


def do_all(
    tasks: Sequence[Task],
    tokenizer_file: Path | None,
    *,
    workers: int,
    on_done: Callable[[Task], None],
) -> None:
    """Do what of the tasks is not done yet.

    Args:
        tasks: what is to be made.
        tokenizer_file: a tokenizer.json, if there are tokens to be made.
        workers: processes; 0 takes all cores.
        on_done: called for every task that is done, those done before included.

    Raises:
        DataError: a worker failed.
    """
    left = []
    for task in tasks:
        if task.is_done:
            on_done(task)
        else:
            left.append(task)
    workers = min(workers or min(_cores(), WORKERS_MAX), len(left))
    if workers > 1 and len(left) > ALONE_PARTS:
        _spread(left, tokenizer_file, workers, on_done)
        return
    encoder = _encoder(tokenizer_file)
    for task in left:
        do(task, encoder)
        on_done(task)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encoder(tokenizer_file: Path | None) -> WordEncoder | None:
    return None if tokenizer_file is None else WordEncoder(load_tokenizer(tokenizer_file))


def do(task: Task, encoder: WordEncoder | None) -> None:
    """Do one task."""
    documents = read_part(task.file("documents"))
    if task.makes == MINIMA:
        minima = np.stack([minima_of(document.text) for document in documents])
        write_array(task.file(MINIMA), minima)
        return
    assert encoder is not None
    choice = np.load(task.file(CHOICE))
    used = [documents[row] for row in np.flatnonzero(choice != LEFT_OUT)]
    is_held_out = choice[choice != LEFT_OUT] == HELD_OUT
    names = [
        source_of(document, task.path) if held_out else ""
        for document, held_out in zip(used, is_held_out, strict=True)
    ]
    write_tokens(task.file(TOKENS), list(encoded(encoder, used)), is_held_out, names)


def write_tokens(
    path: Path, documents: Sequence[Encoded], is_held_out: NDArray[np.bool_], names: Sequence[str]
) -> None:
    """Write the tokens of documents to one file, with what is held out and from which source."""
    tokens = [np.asarray(document.tokens, np.uint32) for document in documents]
    every = np.concatenate([np.empty(0, np.uint32), *tokens])
    narrow = np.uint16 if every.max(initial=0) < 1 << 16 else np.uint32  # half of the bytes
    masks = [document.learned for document in documents if document.learned is not None]
    data = io.BytesIO()
    np.savez(
        data,
        tokens=every.astype(narrow),
        lengths=np.array([len(one) for one in tokens], np.int64),
        sizes=np.array([document.num_bytes for document in documents], np.int64),
        learned=np.concatenate([np.empty(0, np.bool_), *masks]),
        is_masked=np.array([document.learned is not None for document in documents], np.bool_),
        is_held_out=is_held_out,
        names=np.array(names, np.str_),
    )
    write_file(path, data.getvalue())


def held_out_names(path: Path) -> list[str]:
    """Return the names of the sources of what is held out, document by document."""
    with np.load(path, allow_pickle=False) as arrays:
        return [str(name) for name in arrays["names"][arrays["is_held_out"]]]


def read_tokens(path: Path, *, held_out: bool, name: str | None = None) -> Iterator[Encoded]:
    """Yield what is held out or what is not, of one source or of all."""
    with np.load(path, allow_pickle=False) as arrays:
        is_wanted = arrays["is_held_out"] == held_out
        if name is not None:
            is_wanted &= arrays["names"] == name
        if not is_wanted.any():
            return
        tokens, lengths, sizes = arrays["tokens"], arrays["lengths"], arrays["sizes"]
        is_masked, learned = arrays["is_masked"], arrays["learned"]
    ends = np.cumsum(lengths)
    mask_ends = np.cumsum(np.where(is_masked, lengths + 1, 0))  # with the end of the text
    for row in np.flatnonzero(is_wanted).tolist():
        length, end, mask_end = int(lengths[row]), int(ends[row]), int(mask_ends[row])
        mask = learned[mask_end - length - 1 : mask_end] if is_masked[row] else None
        yield Encoded(tokens[end - length : end], int(sizes[row]), mask)


# --- workers -------------------------------------------------------------------------------------


def _spread(
    tasks: Sequence[Task],
    tokenizer_file: Path | None,
    workers: int,
    on_done: Callable[[Task], None],
) -> None:
    """Give every worker a task as soon as it has done one."""
    waiting = iter(tasks)
    answers: SimpleQueue[tuple[int, str]] = SimpleQueue()
    with ExitStack() as stack:
        processes = [stack.enter_context(_started(tokenizer_file)) for _ in range(workers)]
        for number, process in enumerate(processes):
            stack.callback(process.kill)  # the last task that it has is done by then, or lost
            Thread(target=_listen, args=(process, number, answers), daemon=True).start()
        working: dict[int, Task] = {}
        for number, process in enumerate(processes):
            _give(process, number, waiting, working)
        while working:
            number, answer = answers.get()
            if answer != DONE:
                raise DataError(
                    "a process that turns text into tokens has failed",
                    where=working[number].folder,
                    why=answer.strip() or "it ended, as it does where memory is short",
                    hint="the same command goes on; --data.workers 1 takes less memory",
                )
            on_done(working.pop(number))
            _give(processes[number], number, waiting, working)


def _give(
    process: "subprocess.Popen[str]",
    number: int,
    waiting: Iterator[Task],
    working: dict[int, Task],
) -> None:
    task = next(waiting, None)
    if task is not None:
        working[number] = task
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(task).decode() + "\n")
        process.stdin.flush()


def _listen(
    process: "subprocess.Popen[str]", number: int, answers: "SimpleQueue[tuple[int, str]]"
) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put((number, line))
    answers.put((number, ""))  # it has ended


def _started(tokenizer_file: Path | None) -> "subprocess.Popen[str]":
    root = Path(peerformer.__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *([] if tokenizer_file is None else [str(tokenizer_file)])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, PARALLELISM_VARIABLE: "false"},
    )


def _work(tokenizer_file: Path | None) -> None:
    """Do the tasks that stand in the lines of the standard input, until it ends."""
    encoder = _encoder(tokenizer_file)
    for line in sys.stdin:
        try:
            do(msgspec.json.decode(line, type=Task), encoder)
        except (OSError, MemoryError) as error:
            sys.stdout.write(f"{type(error).__name__}: {error}\n")
        else:
            sys.stdout.write(DONE)
        sys.stdout.flush()


if __name__ == "__main__":
    _work(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
