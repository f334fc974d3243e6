"""`peerformer data`: look at what is read of some text and why not more, and prepare it."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.data.documents import Document
from peerformer.data.looking import Look
from peerformer.data.looking import look as look_at
from peerformer.data.prepare import Prepared
from peerformer.data.prepare import prepare as prepare_text
from peerformer.data.tally import Tally
from peerformer.errors import ConfigError
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.progress import StepProgress
from peerformer.settings import DEFAULT

SAMPLES = 3
SAMPLE_CHARACTERS = 400
SAMPLE_LINES = 6
ALL_BYTES = 1 << 60  # `prepare` takes all of a text unless it is told otherwise

Json = Annotated[bool, Parameter(name="--json", negative=(), help="One JSON object on stdout.")]
Text = Annotated[str | None, Parameter(help="As for --data; none: the documentation found here.")]


def look(
    path: Text = None,
    /,
    *,
    samples: Annotated[int, Parameter(help="Documents that are shown.")] = SAMPLES,
    json_output: Json = False,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Show what is read of some text, what is left out and why, and some documents."""
    if samples < 0:
        raise ConfigError(f"--samples is {samples}, but must be at least 0", where="command line")
    config = resolve_options(options, {"data.path": path}).config.data
    progress = StepProgress()
    with tempfile.TemporaryDirectory(prefix="peerformer-look-") as folder:
        try:
            found = look_at(config, Path(folder), samples=samples, on_progress=progress.tell)
        finally:
            progress.close()
    if json_output:
        print(json.dumps(found.to_json()))
        return
    print(f"{found.description}")
    _show_tally(found.tally)
    _show_kept(found, config.max_bytes)
    for document in found.samples:
        _show_document(document)


def _show_tally(tally: Tally) -> None:
    print("\nread        files  documents          bytes")
    for name in sorted(tally.documents):
        counts = (tally.files[name], tally.documents[name], tally.bytes[name])
        print(f"{name:<11} {counts[0]:>5} {counts[1]:>10} {counts[2]:>14,}")
    if tally.left_out:
        print("\nleft out    count          bytes")
    for reason, entry in tally.reasons:
        print(f"{'':<11} {entry.count:>5} {entry.bytes:>14,}  {reason}")
        if entry.examples:
            print(f"{'':<34}{', '.join(entry.examples[:2])}")


def _show_kept(found: Look, max_bytes: int) -> None:
    share = found.held_out_bytes / max(1, found.bytes)
    print(
        f"\nkept        {found.documents} documents, {found.bytes:,} bytes; held out: "
        f"{found.held_out_documents} documents, {share:.1%}"
    )
    if found.is_limited:
        print(f"            reading stopped at --data.max_bytes {max_bytes}")


def _show_document(document: Document) -> None:
    lines = document.text[:SAMPLE_CHARACTERS].splitlines()
    shown = lines[:SAMPLE_LINES]
    print(f"\n--- {document.source}, {len(document.text)} characters")
    print("\n".join(shown) + ("" if document.text == "\n".join(shown) + "\n" else " …"))


def prepare(
    path: Text = None,
    /,
    *,
    to: Annotated[Path, Parameter(help="Folder for the tokenizer and the shards.")],
    json_output: Json = False,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Turn text of any size into shards of tokens, which `train --data` takes as they are.

    The same command again goes on where it was stopped. All of the text is taken, unless
    --data.max_bytes is given.
    """
    resolved = resolve_options(options, {"data.path": path})
    config = resolved.config.data
    if resolved.origins["data.max_bytes"].startswith(DEFAULT):
        config = replace(config, max_bytes=ALL_BYTES)
    progress = StepProgress()
    try:
        made = prepare_text(config, to, report=progress.note, on_progress=progress.tell)
    finally:
        progress.close()
    _conclude(made, to, json_output=json_output)


def _conclude(made: Prepared, to: Path, *, json_output: bool) -> None:
    if json_output:
        fields = {
            "path": str(to),
            "vocab_size": made.tokenizer.vocab_size,
            "train_tokens": made.train.num_tokens,
            "train_bytes": made.train.num_bytes,
            "held_out_tokens": made.validation.num_tokens,
            "held_out_bytes": made.validation.num_bytes,
            "digest": made.train.digest,
            "tally": made.tally.to_json(),
        }
        print(json.dumps(fields))
        return
    print(
        f"prepared    {made.train.num_tokens:,} tokens to train on, "
        f"{made.validation.num_tokens:,} held out, vocabulary {made.tokenizer.vocab_size:,}"
    )
    print(f"next        peerformer train --data {to}")
