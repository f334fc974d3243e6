"""`peerformer tokenizer`: train, import, show, merge and trim vocabularies."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from peerformer.data.encode import encoded
from peerformer.data.origins import documents_of
from peerformer.data.prepare import TOKENIZER_CHARACTERS_MAX, tokenizer_of
from peerformer.data.sentencepiece_model import from_sentencepiece
from peerformer.data.tally import Tally
from peerformer.data.tiktoken_ranks import PATTERNS, from_ranks, looks_like_ranks, read_ranks
from peerformer.data.tokenizer import FILE_BYTES_MAX, FILE_NAME, Tokenizer, load_tokenizer
from peerformer.data.vocabulary import Entry, entries, kind_of
from peerformer.data.vocabulary import merge as merged
from peerformer.data.vocabulary import trim as trimmed
from peerformer.errors import ConfigError, DataError
from peerformer.interface.options import ConfigOptions, resolve_options

SHOWN = 20  # tokens, where not all are asked for
DataPath = Annotated[
    str | None, Parameter(help="File or folder of text; none: documentation found here.")
]
To = Annotated[Path, Parameter(help="The tokenizer.json to write, or the directory of one.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="One JSON object on stdout.")]


def train(*, to: To, data: DataPath = None, options: ConfigOptions = ConfigOptions()) -> None:
    """Train a vocabulary on a text, by the settings that `peerformer train` obeys."""
    config = resolve_options(options, {"data.path": data}).config.data
    if config.tokenizer is not None:
        raise ConfigError(
            "data.tokenizer is given, so that none is trained", hint="--data.tokenizer none"
        )
    config = replace(config, max_bytes=min(config.max_bytes, TOKENIZER_CHARACTERS_MAX))
    control = {
        token for document in documents_of(config, Tally()) for token in document.special_tokens
    }
    _save(tokenizer_of(config, documents_of(config, Tally()), sorted(control)), to)


def import_tokenizer(
    source: Annotated[Path, Parameter(help="A .tiktoken or .model file, or a tokenizer.json.")],
    /,
    *,
    to: To,
    pattern: Annotated[
        str, Parameter(help=f"How tiktoken cuts words: {', '.join(PATTERNS)}, or an expression.")
    ] = "cl100k",
    special: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="A special token of a .tiktoken file, as TOKEN=ID."),
    ] = (),
) -> None:
    """Make a tokenizer.json of a file of tiktoken's ranks or of a SentencePiece model."""
    data, ids = _content(source), _ids_of(special)
    if ids and not looks_like_ranks(data):
        raise ConfigError(
            f"{source.name} is no file of ranks, and has its special tokens in it",
            where="--special",
            hint="leave --special out",
        )
    try:
        if data[:1] == b"{":
            made = Tokenizer.from_bytes(data)
        elif looks_like_ranks(data):
            made = from_ranks(read_ranks(data), pattern=pattern, special_tokens=ids)
        else:
            made = from_sentencepiece(data)
    except DataError as error:
        raise DataError(error.what, where=str(source), why=error.why, hint=error.hint) from error
    _save(made, to)


def show(
    source: Annotated[str, Parameter(help="A tokenizer.json, or a directory that holds one.")],
    /,
    *,
    all_tokens: Annotated[
        bool, Parameter(name="--all", negative=(), help="Every token of the vocabulary.")
    ] = False,
    text: Annotated[str | None, Parameter(help="A text to cut into tokens.")] = None,
    json_output: Json = False,
) -> None:
    """What a vocabulary holds, and how it cuts a text."""
    tokenizer = load_tokenizer(source)
    listed = entries(tokenizer)
    by_id = {entry.token: entry for entry in listed}
    tokens = None if text is None else tokenizer.encode(text)
    if json_output:
        content = {
            "kind": kind_of(tokenizer),
            "vocab_size": tokenizer.vocab_size,
            "end_of_text_id": tokenizer.end_of_text_id,
            "special_tokens": tokenizer.special_tokens,
        }
        if all_tokens:
            content["tokens"] = [_row(entry) for entry in listed]
        if tokens is not None:
            content["text"] = [_row(by_id[token]) for token in tokens]
        print(json.dumps(content, ensure_ascii=False))
        return
    print(f"{kind_of(tokenizer)}, {tokenizer.vocab_size} tokens, digest {tokenizer.digest()[:16]}")
    for name, token in tokenizer.special_tokens.items():
        print(
            f"special {token:>7}  {name}" + "  (ends a text)" * (token == tokenizer.end_of_text_id)
        )
    shown = listed if all_tokens else [] if tokens is not None else listed[-SHOWN:]
    if tokens is not None:
        shown = [*shown, *(by_id[token] for token in tokens)]
    for entry in shown:
        print(f"{entry.token:>15}  {_written(entry)}")
    if tokens is not None:
        size = sum(len(by_id[token].data) for token in tokens)
        print(f"{len(tokens)} tokens, {size / max(1, len(tokens)):.2f} bytes a token")


def merge(
    first: Annotated[str, Parameter(help="The tokenizer whose ids stay.")],
    second: Annotated[str, Parameter(help="The tokenizer whose further tokens are added.")],
    /,
    *,
    to: To,
) -> None:
    """Put the tokens of two vocabularies of one kind together."""
    _save(merged(load_tokenizer(first), load_tokenizer(second)), to)


def trim(
    source: Annotated[str, Parameter(help="A tokenizer.json, or a directory that holds one.")],
    /,
    *,
    to: To,
    data: DataPath = None,
    model: Annotated[
        str | None, Parameter(help="A run or checkpoint whose embedding is trimmed alike.")
    ] = None,
    model_to: Annotated[
        Path | None, Parameter(help="The directory for that model, with the new tokenizer.")
    ] = None,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Keep the tokens that a text uses, numbered anew."""
    if (model is None) != (model_to is None):
        raise ConfigError("--model and --model-to go together", hint="--model RUN --model-to DIR")
    tokenizer = load_tokenizer(source)
    config = resolve_options(options, {"data.path": data}).config.data
    used: set[int] = set()
    for document in encoded(tokenizer, documents_of(config, Tally())):
        used.update(np.unique(document.tokens).tolist())
    smaller = trimmed(tokenizer, used)
    if model is not None and model_to is not None:
        _trim_model(model, tokenizer, smaller.tokenizer, smaller.kept, model_to)
    _save(smaller.tokenizer, to)
    _note(f"kept {len(smaller.kept)} of {tokenizer.vocab_size} tokens")


def _trim_model(
    source: str, before: Tokenizer, after: Tokenizer, kept: tuple[int, ...], to: Path
) -> None:
    from peerformer.model.convert import load_model, save_model
    from peerformer.model.find import resolve_checkpoint
    from peerformer.model.trim import with_tokens

    checkpoint = resolve_checkpoint(source)
    if load_tokenizer(checkpoint / FILE_NAME).digest() != before.digest():
        raise DataError(
            "the model was trained with another tokenizer",
            where=str(checkpoint),
            hint=f"peerformer tokenizer trim {checkpoint} …",
        )
    if to.exists() and any(to.iterdir()):
        raise ConfigError("the directory is not empty", where=str(to), hint="--model-to ANOTHER")
    model = with_tokens(load_model(checkpoint), kept)
    to.mkdir(parents=True, exist_ok=True)
    save_model(to, model, after.to_bytes())
    _note(f"wrote {to}")


def _content(source: Path) -> bytes:
    try:
        if source.stat().st_size > FILE_BYTES_MAX:
            raise DataError("the file is too large to be a tokenizer", where=str(source))
        return source.read_bytes()
    except OSError as error:
        raise DataError(
            "the tokenizer cannot be read", where=str(source), why=error.strerror
        ) from error


def _ids_of(special: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for text in special:
        name, _, token = text.rpartition("=")
        if not name or not token.isdecimal():
            raise ConfigError(
                f"--special {text} has no id", hint="--special '<|endoftext|>=100257'"
            )
        found[name] = int(token)
    return found


def _save(tokenizer: Tokenizer, to: Path) -> None:
    path = to / FILE_NAME if to.is_dir() else to
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
    except OSError as error:
        raise ConfigError(
            "the tokenizer cannot be written", where=str(path), why=error.strerror
        ) from error
    _note(f"wrote {path}: {kind_of(tokenizer)}, {tokenizer.vocab_size} tokens")


def _row(entry: Entry) -> dict[str, object]:
    text = entry.data.decode(errors="replace")
    return {"token": entry.token, "text": text, "bytes": entry.data.hex(), "piece": entry.piece}


def _written(entry: Entry) -> str:
    if entry.is_special:
        return f"{entry.piece}  (special)"
    try:
        return repr(entry.data.decode())
    except UnicodeDecodeError:
        return f"bytes {entry.data.hex(' ')}"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
