"""Where text may come from, as one stream: everything that `--data` understands.

A file, a folder of files, a data set of Hugging Face, stories or letters of our own making, or the
documentation found on this machine. Each origin gives parts (the files of a folder, or one part),
and each part documents, in an order that is the same at every reading: a reading that was broken
off goes on at a part and a number of documents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peerformer.config import DataConfig
from peerformer.data import huggingface
from peerformer.data.chat import OWN_TOKENS, ChatTemplate, read_template, template_beside
from peerformer.data.default_text import default_documents, default_text_cache
from peerformer.data.documents import Document, counted
from peerformer.data.files import (
    Form,
    file_documents,
    nothing_found,
    record_documents,
    text_files,
)
from peerformer.data.markov import MarkovSource, markov_documents
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tally import Tally
from peerformer.data.tokenizer import load_tokenizer
from peerformer.errors import DataError

DOCUMENTATION, STORIES, MARKOV, DATASET = "documentation", "synthetic", "markov", "hf"
STORIES_COUNT = 2_000
SEED_DIGITS_MAX = 20


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an origin: its documents, given where to count and how many bytes are wanted."""

    name: str
    documents: Callable[[Tally, int], Iterator[Document]]


def parts_of(path: str | None, config: DataConfig, tally: Tally) -> Iterator[Part]:
    """Yield the parts of an origin, in order.

    Args:
        path: what `--data` was given; None: the documentation found on this machine.
        config: which column, split and so on.
        tally: where folders that cannot be looked into are counted.

    Raises:
        DataError: there is no such origin, or the chat template is none.
    """
    kind, rest = _kind_of(path)
    if kind == "path":
        form = form_of(config)
        for file in text_files(Path(rest), tally):
            yield Part(str(file), partial(_of_file, file, form))
    else:
        _seed_of(kind, rest)  # refused before anything is read
        yield Part(path or kind, partial(_of_one, kind, rest, config))


def documents_of(config: DataConfig, tally: Tally) -> Iterator[Document]:
    """Yield the documents that the settings name, up to `data.max_bytes`; none is left out.

    Raises:
        DataError: there is no such origin, or no text in it.
    """
    taken = 0
    for part in parts_of(config.path, config, tally):
        for document in part.documents(tally, config.max_bytes - taken):
            taken += len(document.text.encode())
            yield document
            if taken >= config.max_bytes:
                return
    if not taken:
        raise nothing_found(str(config.path), tally, config.column)


def _kind_of(path: str | None) -> tuple[str, str]:
    if path is None:
        return DOCUMENTATION, ""
    kind, _, rest = path.partition(":")
    if kind in (STORIES, MARKOV) or (kind == DATASET and rest):
        return kind, rest
    return (DATASET, path) if huggingface.is_saved(Path(path)) else ("path", path)


def _seed_of(kind: str, text: str) -> int:
    """Return the seed of a text of our own making; 0 for other origins.

    Raises:
        DataError: it is no whole number, or a very long one.
    """
    if kind not in (STORIES, MARKOV) or not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= SEED_DIGITS_MAX):
        raise DataError(
            f"{kind}:{text} has no usable seed",
            where="--data",
            why="a seed is a whole number",
            hint=f"--data {kind}:1",
        )
    return int(text)


def _of_file(file: Path, form: Form, tally: Tally, bytes_wanted: int) -> Iterator[Document]:
    return file_documents(file, form, tally, bytes_wanted=bytes_wanted)


def _of_one(
    kind: str, rest: str, config: DataConfig, tally: Tally, bytes_wanted: int
) -> Iterator[Document]:
    match kind:
        case "documentation":
            return counted(default_documents(max_bytes=bytes_wanted), kind, tally)
        case "synthetic":
            return counted(synthetic_documents(_seed_of(kind, rest), STORIES_COUNT), kind, tally)
        case "markov":
            return counted(markov_documents(_seed_of(kind, rest)), kind, tally)
    rows = huggingface.dataset_records(rest, config.dataset_config, config.dataset_split)
    return record_documents(rows, rest, form_of(config), tally, name="dataset")


def form_of(config: DataConfig) -> Form:
    """Return what the text of files looks like by the settings.

    Raises:
        DataError: the chat template cannot be read, or is none.
    """
    return Form(config.column, config.pairs, template_of(config))


def template_of(config: DataConfig) -> ChatTemplate:
    """Return the template of chats: the one that is named, the tokenizer's, or our own.

    Raises:
        DataError: it cannot be read, or is none.
    """
    tokenizer = None if config.tokenizer is None else Path(config.tokenizer)
    if tokenizer is None:
        if config.chat_template is None:
            return ChatTemplate()
        file = Path(config.chat_template)
        special = (*OWN_TOKENS, *filter(None, map(str.strip, config.special_tokens.split(","))))
        return ChatTemplate(read_template(file), special, where=str(file)).checked()
    tokens = tuple(load_tokenizer(tokenizer).special_tokens)
    found = template_beside(tokenizer, tokens)
    if config.chat_template is not None:
        file = Path(config.chat_template)
        names = () if found is None else found.names
        return ChatTemplate(read_template(file), tokens, names, str(file)).checked()
    return ChatTemplate(tokens=tuple({*OWN_TOKENS, *tokens})) if found is None else found


def name_of(path: str | None) -> str:
    """Return an origin in words."""
    kind, _ = _kind_of(path)
    match kind:
        case "documentation":
            return "the documentation of Python, NumPy and PyTorch found here"
        case "synthetic":
            return "synthetic stories"
        case "markov":
            return f"letters of the Markov source {path}"
    return str(path)


def floor_of(path: str | None) -> float | None:
    """Return the bits per byte below which no model can get, where that is known."""
    kind, rest = _kind_of(path)
    return (
        MarkovSource.from_seed(_seed_of(kind, rest)).floor_bits_per_byte()
        if kind == MARKOV
        else None
    )


def state_of(path: str | None) -> Iterator[object]:
    """Yield what tells whether an origin is still the same: names, sizes and times of files."""
    kind, rest = _kind_of(path)
    if kind == DOCUMENTATION:
        yield default_text_cache().name
    folder = Path(rest)
    if kind not in ("path", DATASET) or not (kind == "path" or folder.exists()):
        return
    for file in text_files(folder):
        try:
            status = file.stat()
        except OSError:
            continue  # a link to nowhere, say: nothing is read from it
        yield str(file), status.st_size, status.st_mtime_ns
