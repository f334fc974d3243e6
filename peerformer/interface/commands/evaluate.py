"""`peerformer evaluate`: loss and bits per byte of a model on a text."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from peerformer.config import DataConfig
from peerformer.data.documents import read_documents
from peerformer.data.shards import ShardSet, open_shards
from peerformer.data.tokenizer import Tokenizer, load_tokenizer
from peerformer.errors import DataError
from peerformer.model.convert import load_model
from peerformer.model.find import resolve_checkpoint
from peerformer.train.evaluate import Evaluation, evaluate_windows

TOLD_SECONDS = 2.0  # between two lines about how far it is


def evaluate(
    source: Annotated[str, Parameter(help="A run, the end of its name, or a checkpoint.")],
    /,
    *,
    data: Annotated[
        Path | None, Parameter(help="File or folder of text; none: what the run held out.")
    ] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object on stdout.")
    ] = False,
) -> None:
    """Tell how well a model predicts a text."""
    checkpoint = resolve_checkpoint(source)
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    model = load_model(checkpoint)
    shards = _held_out(checkpoint) if data is None else _tokens(data, tokenizer)
    length = model.config.max_positions
    total = shards.num_tokens - 1
    # Each token but the first is predicted once; the last window is what remains.
    windows = (
        shards.window(start, min(length, total - start) + 1) for start in range(0, total, length)
    )
    found = evaluate_windows(
        model, windows, tokenizer.byte_lengths_V(), on_tokens=_teller(total, checkpoint)
    )
    _show(found, checkpoint, json_output=json_output)


def _teller(total: int, checkpoint: Path) -> Callable[[int], None]:
    """What tells a person now and then how far a long evaluation is."""
    told_at = time.monotonic()

    def tell(tokens: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TOLD_SECONDS:
            told_at = time.monotonic()
            share = f"{tokens / total:.0%} of {total} tokens"
            print(f"evaluating  {checkpoint.name}: {share}", file=sys.stderr, flush=True)

    return tell


def _held_out(checkpoint: Path) -> ShardSet:
    run = checkpoint.parent.parent
    blob = run / "validation.bin"
    if blob.is_file():  # a swarm ships its held-out set as one file
        return ShardSet.from_bytes(blob.read_bytes())
    prepared = run / "data" / "validation"
    if not prepared.is_dir():
        raise DataError(
            "this checkpoint has no held-out text beside it",
            where=str(checkpoint),
            hint="give a text: --data FILE_OR_FOLDER",
        )
    return open_shards(prepared, verify=True)


def _tokens(path: Path, tokenizer: Tokenizer) -> ShardSet:
    documents = list(read_documents(path, max_bytes=DataConfig.max_bytes))
    texts = [document.text for document in documents]
    parts = [[*ids.tolist(), tokenizer.end_of_text_id] for ids in tokenizer.encode_documents(texts)]
    tokens = np.concatenate([np.asarray(part, dtype=np.uint32) for part in parts])
    if len(tokens) < 2:
        raise DataError("the text is too short to predict anything", where=str(path))
    size = sum(len(text.encode()) for text in texts)
    return ShardSet((tokens,), tokenizer.vocab_size, size, "")


def _show(found: Evaluation, checkpoint: Path, *, json_output: bool) -> None:
    if json_output:
        fields = {
            "validation_bits_per_byte": found.bits_per_byte,
            "loss": found.loss_nats_per_token,
            "bytes": found.bytes,
            "tokens": found.tokens,
        }
        print(json.dumps(fields))
        return
    print(f"{checkpoint}")
    print(f"{found.bits_per_byte:.4f} bits per byte, {found.loss_nats_per_token:.4f} nats a token")
    print(f"over {found.bytes} bytes, {found.tokens} tokens")
