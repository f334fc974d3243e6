"""From wherever the text comes to a tokenizer and two shard sets, once; then only reopened.

In steps, each of which keeps what it has done on disk: read the text into a spool, leave out
duplicates, hold out documents by the hash of their text, train a tokenizer, turn the parts of the
spool into tokens, join them to shards. A preparation that was killed goes on where it was and ends
with the same bytes; memory does not grow with the text. What was prepared is reopened as long as
the settings and the files' names, sizes and times are the same. A folder that was prepared before
is taken as it is.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from peerformer.config import DataConfig
from peerformer.data.chat import TEMPLATE_FILE, read_template
from peerformer.data.documents import Document
from peerformer.data.encode import special_id, uncontrolled
from peerformer.data.origins import floor_of, name_of, state_of, template_of
from peerformer.data.selection import sample, select
from peerformer.data.shards import Encoded, ShardSet, open_shards, write_file, write_shards
from peerformer.data.sources import Source, groups_of, line_of
from peerformer.data.spool import Spool, gather
from peerformer.data.tally import Tally
from peerformer.data.tokenizer import (
    FILE_NAME,
    RUN_FOLDER,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from peerformer.data.workers import (
    MINIMA,
    TOKENS,
    Task,
    do_all,
    held_out_names,
    read_tokens,
)
from peerformer.errors import DataError

RECORD = "prepared.json"
WORK = "unfinished"  # where it is all kept until it is done
VERSION = 6
TOKENIZER_CHARACTERS_MAX = 20_000_000  # more text hardly changes a vocabulary
REASONS_SHOWN_MAX = 5

OnProgress = Callable[[str, int, int], None]  # step, bytes of text done, bytes in all


@dataclass(frozen=True, slots=True)
class Prepared:
    """Text ready to be trained on, and a line that says which."""

    tokenizer: Tokenizer
    train: ShardSet
    validation: ShardSet
    description: str
    sources: str = ""  # whose the held-out tokens are; see `sources`
    tally: Tally = field(default_factory=Tally)  # what was read and what was left out


def prepare(
    config: DataConfig,
    directory: Path,
    *,
    report: Callable[[str], None] = lambda _: None,
    on_progress: OnProgress = lambda step, done, total: None,
) -> Prepared:
    """Prepare the text of `config` under `directory`, or reopen what was prepared there.

    Args:
        config: which text, and how.
        directory: where the tokenizer and the shards are written.
        report: called with lines for a person.
        on_progress: called now and then while it works.

    Raises:
        DataError: if there is nothing to learn from, or what was prepared is damaged.
    """
    fingerprint = _fingerprint(config)
    known = record_of(directory)
    if known is not None and known["fingerprint"] == fingerprint:
        return _reopen(directory, known)
    if config.path is not None and (record := record_of(Path(config.path))) is not None:
        return _adopt(config, Path(config.path), record, directory, fingerprint)
    work = _work_folder(directory, fingerprint)
    spools = gathered(config, work, fingerprint, on_progress)
    tally, description = spools[0].tally, described(config, spools[0])
    report(f"data        {description}")
    for reason, entry in tally.reasons[:REASONS_SHOWN_MAX]:
        report(f"skipped     {entry.count} × {reason}: {', '.join(entry.examples[:2])}")
    if len(tally.reasons) > REASONS_SHOWN_MAX:
        report(f"skipped     for {len(tally.reasons) - REASONS_SHOWN_MAX} more reasons")
    tokenizer = _kept_tokenizer(config, work, spools, on_progress)
    _do(config, spools, TOKENS, work / FILE_NAME, on_progress)
    sources = _write(directory, tokenizer, spools, on_progress)
    if any(spool.control for spool in spools):  # there are chats: what put them into one text
        write_file(directory / TEMPLATE_FILE, template_of(config).source.encode())
    record = {
        "fingerprint": fingerprint,
        "description": description,
        "sources": line_of(sources),
        "tally": tally.to_json(),
        "floor_bits_per_byte": floor_of(config.path),
    }
    write_file(directory / RECORD, json.dumps(record).encode())
    shutil.rmtree(work, ignore_errors=True)
    return _reopen(directory, record)


# --- which text ----------------------------------------------------------------------------------

# What changes how the work is done, and not what comes out of it.
_WITHOUT_EFFECT = ("workers",)


def _fingerprint(config: DataConfig) -> str:
    """Return what the prepared text depends on: settings, and the files as they are now."""
    hasher = blake3(f"prepared text {VERSION}".encode())

    def take(value: object) -> None:
        hasher.update(json.dumps(value).encode() + b"\n")

    for name in sorted(config.__dataclass_fields__):
        if name not in _WITHOUT_EFFECT:
            take([name, getattr(config, name)])
    if config.tokenizer is not None:
        take(load_tokenizer(config.tokenizer).digest())
    if config.chat_template is not None:
        take(read_template(Path(config.chat_template)))
    for path in (config.path, *([] if config.held_out is None else [config.held_out])):
        for fact in state_of(path):
            take(fact)
    return hasher.hexdigest()


def record_of(directory: Path) -> dict[str, Any] | None:
    """Return what is written about prepared text in a folder; None where there is none."""
    try:
        record = json.loads((directory / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "fingerprint" in record else None


# --- the steps -----------------------------------------------------------------------------------


def _work_folder(directory: Path, fingerprint: str) -> Path:
    """Return the folder of unfinished work; what is of another text or other settings goes."""
    work = directory / WORK
    mark = work / "fingerprint"
    if not mark.is_file() or mark.read_text() != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_file(mark, fingerprint.encode())
    return work


def gathered(
    config: DataConfig, work: Path, fingerprint: str, on_progress: OnProgress
) -> list[Spool]:
    """Read the text, and the text to hold out where it is given by itself; choose documents."""
    origins = [("text", config.path)]
    if config.held_out is not None:
        origins.append(("held-out", config.held_out))
    spools = []
    for name, path in origins:
        spool = gather(
            path,
            config,
            work / name,
            origin=fingerprint,
            divide_alone=config.held_out is None,
            on_bytes=lambda size: on_progress("reading", size, 0),
        )

        def make_minima(spool: Spool = spool) -> None:
            _do(config, [spool], MINIMA, None, on_progress)

        is_held_out = name != "text"
        select(spool, config, is_held_out=is_held_out, make_minima=make_minima)
        spools.append(spool)
    return spools


def _do(
    config: DataConfig,
    spools: list[Spool],
    makes: str,
    tokenizer_file: Path | None,
    on_progress: OnProgress,
) -> None:
    """Let workers make something of all parts."""
    step = "encoding" if makes == TOKENS else "comparing"
    path = config.held_out or config.path
    tasks = [
        Task(str(spool.directory), part, makes, path)
        for spool in spools
        for part in range(spool.num_parts)
    ]
    total, done = sum(spool.size[1] for spool in spools), 0
    sizes = {spool.directory: spool.size[1] // spool.num_parts for spool in spools}

    def on_done(task: Task) -> None:
        nonlocal done
        done += sizes[Path(task.folder)]
        on_progress(step, done, total)

    do_all(tasks, tokenizer_file, workers=config.workers, on_done=on_done)


def _kept_tokenizer(
    config: DataConfig, work: Path, spools: list[Spool], on_progress: OnProgress
) -> Tokenizer:
    """Return the tokenizer; it is kept with the work, so it is trained once.

    Raises:
        DataError: there can be no such tokenizer, or it lacks a special token of the chats.
    """
    if config.tokenizer is None and (work / FILE_NAME).exists():
        return load_tokenizer(work / FILE_NAME)
    if config.tokenizer is None:
        on_progress("training the tokenizer", 0, 0)
    control = sorted({token for spool in spools for token in spool.control})
    tokenizer = tokenizer_of(config, sample(spools[0], TOKENIZER_CHARACTERS_MAX), control)
    for token in control:
        special_id(tokenizer, token, config.path or "")
    tokenizer.save(work / FILE_NAME)
    return tokenizer


def tokenizer_of(
    config: DataConfig, documents: Iterable[Document], control: Iterable[str]
) -> Tokenizer:
    """Return the tokenizer that the settings name, or train one on documents.

    Args:
        config: which tokenizer.
        documents: what it is trained on.
        control: the special tokens that occur in the text, besides those of the settings.

    Raises:
        DataError: it cannot be read, or cannot be trained as the settings want it.
    """
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    chosen = filter(None, (token.strip() for token in config.special_tokens.split(",")))
    return train_tokenizer(
        (text for document in documents for text in uncontrolled(document)),
        config.vocab_size,
        kind=config.tokenizer_kind,
        special_tokens=(*chosen, *control),
    )


def described(config: DataConfig, spool: Spool) -> str:
    """Return the text in a line, with the least loss on it where that is known."""
    documents, size = spool.size
    text = f"{name_of(config.path)}, {size / 1e6:.1f} MB in {documents} documents"
    floor = floor_of(config.path)
    return text if floor is None else f"{text}; {floor_line(floor)}"


def floor_line(floor: float) -> str:
    """Return a line that says where a loss must end."""
    return f"no model can get below {floor:.4f} bits per byte"


def _write(
    directory: Path, tokenizer: Tokenizer, spools: list[Spool], on_progress: OnProgress
) -> list[Source]:
    """Join the tokens to both sets; returns how many of the held-out tokens are of which source."""
    on_progress("writing", 0, 0)
    _forget(directory)
    files = [s.file(part, TOKENS) for s in spools for part in range(s.num_parts)]
    names = groups_of(name for file in files for name in held_out_names(file))
    sources: list[Source] = []

    def trained() -> Iterator[Encoded]:
        for file in files:
            yield from read_tokens(file, held_out=False)

    def held_out() -> Iterator[Encoded]:
        for name in names or (None,):
            count = 0
            for file in files:
                for document in read_tokens(file, held_out=True, name=name):
                    count += len(document.tokens) + 1
                    yield document
            sources.append(Source(name or "", count))

    for name, documents in (("train", trained()), ("validation", held_out())):
        clear(directory / name)
        write_shards(
            documents,
            directory / name,
            vocab_size=tokenizer.vocab_size,
            end_of_text_id=tokenizer.end_of_text_id,
            tokenizer_digest=tokenizer.digest(),
        )
    tokenizer.save(directory / FILE_NAME)
    return sources


def _forget(directory: Path) -> None:
    """Remove what is written about the text that stands in a folder and is about to change."""
    for name in (RECORD, TEMPLATE_FILE):
        (directory / name).unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove a folder of shards; where it is a link, the link alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


# --- what was prepared ---------------------------------------------------------------------------


def _adopt(
    config: DataConfig, prepared: Path, record: dict[str, Any], directory: Path, fingerprint: str
) -> Prepared:
    """Take a folder that was prepared before as it is: its shards are linked to, not copied.

    Raises:
        DataError: it was prepared with another tokenizer than the settings name, or whole, and
            a fold is asked for.
    """
    if config.folds:
        raise DataError(
            "this text was prepared with other documents held out than those of a fold",
            where=str(prepared),
            hint="give the text itself with --data",
        )
    tokenizer = load_tokenizer(prepared / FILE_NAME)
    if config.tokenizer is not None and load_tokenizer(config.tokenizer).digest() != (
        tokenizer.digest()
    ):
        raise DataError(
            "this text was prepared with another tokenizer",
            where=str(prepared),
            why=f"the settings name {config.tokenizer}",
            hint=f"peerformer data prepare TEXT --to DIR --data.tokenizer {config.tokenizer}",
        )
    directory.mkdir(parents=True, exist_ok=True)
    _forget(directory)
    for name in ("train", "validation"):
        clear(directory / name)
        (directory / name).symlink_to((prepared / name).resolve(), target_is_directory=True)
    tokenizer.save(directory / FILE_NAME)
    if (prepared / TEMPLATE_FILE).is_file():
        write_file(directory / TEMPLATE_FILE, (prepared / TEMPLATE_FILE).read_bytes())
    record = record | {"fingerprint": fingerprint}
    write_file(directory / RECORD, json.dumps(record).encode())
    return _reopen(directory, record)


def floor_beside(checkpoint: Path) -> float | None:
    """Return the least bits per byte on the text that a checkpoint's run holds out, if known."""
    record = record_of(checkpoint.parent.parent / RUN_FOLDER)
    floor = None if record is None else record.get("floor_bits_per_byte")
    return floor if isinstance(floor, float) else None


def _reopen(directory: Path, record: dict[str, Any]) -> Prepared:
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
    try:
        tally = Tally.from_json(record["tally"])
    except (KeyError, TypeError, ValueError):
        tally = Tally()  # of another version; the shards are what counts
    return Prepared(
        tokenizer,
        train,
        validation,
        str(record.get("description", "")),
        str(record.get("sources", "")),
        tally,
    )
