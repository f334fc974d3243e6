"""From wherever the text comes to a tokenizer and two shard sets, once; then only reopened.

Documents are held out by the hash of their text, so the same document is on the same side
wherever it is found. What was prepared is reopened as long as the settings and the files' names,
sizes and times are the same.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from peerformer.config import DataConfig
from peerformer.data.documents import (
    Document,
    Skipped,
    cut,
    default_documents,
    default_text_cache,
    read_documents,
    text_files,
)
from peerformer.data.shards import ShardSet, open_shards, write_shards
from peerformer.data.sources import Source, by_source, line_of
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import FILE_NAME, Tokenizer, load_tokenizer, train_tokenizer
from peerformer.errors import DataError

RECORD = "prepared.json"
VERSION = 3
SYNTHETIC = "synthetic"
SYNTHETIC_DOCUMENTS = 2_000
SEED_DIGITS_MAX = 20
TOKENIZER_CHARACTERS_MAX = 20_000_000  # more text hardly changes a vocabulary
HELD_OUT_CHARACTERS_MIN = 8_192  # else a window does not fit in what little text holds out


@dataclass(frozen=True, slots=True)
class Prepared:
    """Text ready to be trained on, and a line that says which."""

    tokenizer: Tokenizer
    train: ShardSet
    validation: ShardSet
    description: str
    sources: str = ""  # whose the held-out tokens are; see `sources`
    skipped: tuple[tuple[str, str], ...] = ()


def prepare(
    config: DataConfig, directory: Path, *, report: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Prepare the text of `config` under `directory`, or reopen what was prepared there.

    Raises:
        DataError: if there is nothing to learn from, or what was prepared is damaged.
    """
    fingerprint = _fingerprint(config)
    known = _record(directory)
    if known is not None and known["fingerprint"] == fingerprint:
        return _reopen(directory, known)
    skipped: Skipped = []
    documents = list(_documents(config, skipped))
    if config.held_out is None:
        train, held_out = split(documents, config.validation_fraction)
    else:
        held_out_path = Path(config.held_out)
        train = documents
        held_out = list(read_documents(held_out_path, max_bytes=config.max_bytes, skipped=skipped))
    size = sum(len(document.text.encode()) for document in documents)
    description = f"{_named(config)}, {size / 1e6:.1f} MB in {len(documents)} documents"
    report(f"data        {description}")
    for name, reason in skipped[:5]:
        report(f"skipped     {name}: {reason}")
    if len(skipped) > 5:
        report(f"skipped     {len(skipped) - 5} more files")
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        tokenizer = train_tokenizer(_sample(train), config.vocab_size)
    groups = by_source(held_out, config.held_out or config.path)
    sources = _write(directory, tokenizer, train, groups)
    record: dict[str, object] = {
        "fingerprint": fingerprint,
        "description": description,
        "sources": line_of(sources),
        "skipped": skipped,
    }
    temporary = directory / f".{RECORD}.{os.getpid()}"
    with temporary.open("w") as file:
        file.write(json.dumps(record))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / RECORD)
    return _reopen(directory, record)


def split(
    documents: list[Document], validation_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Split into training and held-out documents by the hash of their text.

    Both sides hold something: a single document is cut in two, and if too little falls on one side
    the documents nearest to the border change sides. Held out are at least some thousand
    characters, or a tenth of the text where there is little.
    """
    if len(documents) == 1:
        text, source = documents[0].text, documents[0].source
        pieces = list(cut(text, max(64, len(text) // 10)))
        if len(pieces) < 2:
            pieces = [text[: len(text) // 2], text[len(text) // 2 :]]
        documents = [Document(source, piece) for piece in pieces]
    ranked = sorted(documents, key=_rank)
    count = sum(_rank(d) < validation_fraction * 2**64 for d in ranked)
    wanted = min(HELD_OUT_CHARACTERS_MIN, sum(len(d.text) for d in documents) // 10)
    while count < 1 or sum(len(d.text) for d in ranked[:count]) < wanted:
        count += 1
    held_out = ranked[: min(count, len(ranked) - 1)]
    chosen = {id(document) for document in held_out}
    return [d for d in documents if id(d) not in chosen], held_out


def _rank(document: Document) -> int:
    return int.from_bytes(blake3(document.text.encode()).digest()[:8], "little")


def _named(config: DataConfig) -> str:
    if config.path is None:
        return "the documentation of Python, NumPy and PyTorch found here"
    if config.path.split(":")[0] == SYNTHETIC:
        return "synthetic stories"
    return config.path


def _documents(config: DataConfig, skipped: Skipped) -> Iterator[Document]:
    if config.path is None:
        return default_documents(max_bytes=config.max_bytes)
    kind, _, seed = config.path.partition(":")
    if kind == SYNTHETIC:
        if seed and not (seed.isdecimal() and len(seed) <= SEED_DIGITS_MAX):
            raise DataError(
                f"{config.path} has no usable seed",
                where="--data",
                why="a seed is a whole number",
                hint=f"--data {SYNTHETIC}:1",
            )
        return _limited(synthetic_documents(int(seed or 0), SYNTHETIC_DOCUMENTS), config.max_bytes)
    return read_documents(Path(config.path), max_bytes=config.max_bytes, skipped=skipped)


def _limited(documents: Iterator[Document], max_bytes: int) -> Iterator[Document]:
    taken = 0
    for document in documents:
        yield document
        taken += len(document.text.encode())
        if taken >= max_bytes:
            return


def _fingerprint(config: DataConfig) -> str:
    """Return what the prepared text depends on: settings, and the files as they are now."""
    parts: list[object] = [
        VERSION,
        config.path,
        config.vocab_size,
        config.validation_fraction,
        config.max_bytes,
        config.held_out,
    ]
    if config.tokenizer is not None:
        parts.append(load_tokenizer(config.tokenizer).digest())
    if config.path is None:
        parts.append(default_text_cache().name)
    elif config.path.split(":")[0] != SYNTHETIC:
        parts += _files(config.path)
    if config.held_out is not None:
        parts += _files(config.held_out)
    return blake3(json.dumps(parts).encode()).hexdigest()


def _files(path: str) -> list[object]:
    """Return the files of a path as they are now: names, sizes and times."""
    found: list[object] = []
    for file in text_files(Path(path)):
        try:
            status = file.stat()
        except OSError:
            continue  # a link to nowhere, say: nothing is read from it
        found.append((str(file), status.st_size, status.st_mtime_ns))
    return found


def _record(directory: Path) -> dict[str, object] | None:
    try:
        record = json.loads((directory / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "fingerprint" in record else None


def _sample(documents: list[Document]) -> Iterator[str]:
    taken = 0
    for document in documents:
        if taken > TOKENIZER_CHARACTERS_MAX:
            return
        taken += len(document.text)
        yield document.text


def _write(
    directory: Path,
    tokenizer: Tokenizer,
    train: list[Document],
    held_out: list[tuple[str, list[Document]]],
) -> list[Source]:
    """Write both sets; returns how many of the held-out tokens are of which source."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RECORD).unlink(missing_ok=True)  # what stands there is about to change
    encoded = [(name, list(_encoded(tokenizer, documents))) for name, documents in held_out]
    in_order = (pair for _, pairs in encoded for pair in pairs)
    for name, pairs in (("train", _encoded(tokenizer, train)), ("validation", in_order)):
        shutil.rmtree(directory / name, ignore_errors=True)
        write_shards(
            pairs,
            directory / name,
            vocab_size=tokenizer.vocab_size,
            end_of_text_id=tokenizer.end_of_text_id,
            tokenizer_digest=tokenizer.digest(),
        )
    tokenizer.save(directory / FILE_NAME)
    return [Source(name, sum(len(tokens) + 1 for tokens, _ in pairs)) for name, pairs in encoded]


def _encoded(
    tokenizer: Tokenizer, documents: Iterable[Document]
) -> Iterator[tuple[list[int], int]]:
    texts = [document.text for document in documents]
    for text, tokens in zip(texts, tokenizer.encode_documents(texts), strict=True):
        yield tokens.tolist(), len(text.encode())


def _reopen(directory: Path, record: dict[str, object]) -> Prepared:
    skipped = record.get("skipped") or []
    tokenizer = load_tokenizer(directory / FILE_NAME)
    train = open_shards(directory / "train", verify=True)
    validation = open_shards(directory / "validation", verify=True)
    if {train.tokenizer_digest, validation.tokenizer_digest} != {tokenizer.digest()}:
        raise DataError(
            "prepared text is of another tokenizer",
            where=str(directory / FILE_NAME),
            why="the tokenizer was replaced after the text was turned into tokens",
            hint=f"delete {directory} and run the command again: it prepares the text anew",
        )
    return Prepared(
        tokenizer,
        train,
        validation,
        str(record.get("description", "")),
        str(record.get("sources", "")),
        tuple((str(name), str(reason)) for name, reason in skipped),  # type: ignore[attr-defined]
    )
