"""`peerformer evaluate`: how well a model predicts a text, or the completions of pairs."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.allowed import SETTINGS, Given, parse
from peerformer.config import DataConfig
from peerformer.data.batches import Window, window_of
from peerformer.data.chat import TEMPLATE_FILE
from peerformer.data.encode import encoded
from peerformer.data.origins import documents_of
from peerformer.data.pair_tokens import PairTokens, pairs_of
from peerformer.data.prepare import REASONS_SHOWN_MAX, floor_beside, floor_line
from peerformer.data.shards import ShardSet, open_shards, shards_of
from peerformer.data.tally import Tally
from peerformer.data.tokenizer import RUN_FOLDER, load_tokenizer
from peerformer.errors import DataError
from peerformer.interface.pair_table import PairTable, pair_table
from peerformer.model.convert import load_model
from peerformer.model.find import resolve_checkpoint
from peerformer.train.evaluate import Evaluation, evaluate_windows

NATS_SHOWN_MAX = 700.0  # e to the power of more is no number
TOLD_SECONDS = 2.0  # between two lines about how far it is


def evaluate(
    source: Annotated[str, Parameter(help="A run, the end of its name, or a checkpoint.")],
    /,
    *,
    data: Annotated[
        Path | None, Parameter(help="File or folder of text; none: what the run held out.")
    ] = None,
    pairs: Annotated[
        str, Parameter(help="What divides pairs in --data: auto, off, |, * or #.")
    ] = DataConfig.pairs,
    baseline_data: Annotated[
        Path | None,
        Parameter(help="Pairs for the baselines to learn; none: those that the run learned."),
    ] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object on stdout.")
    ] = False,
) -> None:
    """Tell how well a model predicts a text; of pairs, how often the next word is among the first.

    Beside the model's ranks stand those of a unigram and an n-gram baseline.
    """
    checkpoint = resolve_checkpoint(source)
    tokenizer_file = checkpoint / "tokenizer.json"
    tokenizer = load_tokenizer(tokenizer_file)
    model = load_model(checkpoint)
    shards = _held_out(checkpoint) if data is None else _tokens(data, tokenizer_file, pairs)
    length = model.config.max_positions
    found_pairs = list(pairs_of(shards, tokenizer.end_of_text_id))
    windows: Iterable[Window]
    if found_pairs:
        windows = _pair_windows(found_pairs, length + 1)
        total = sum(len(pair.completion) + 1 for pair in found_pairs)
    else:
        total = shards.num_tokens - 1
        # Each token but the first is predicted once; the last window is what remains.
        windows = (
            window_of(shards, start, min(length, total - start) + 1)
            for start in range(0, total, length)
        )
    found = evaluate_windows(
        model, windows, tokenizer.byte_lengths_V(), on_tokens=_teller(total, checkpoint)
    )
    table = None
    if found_pairs:
        learned = _baseline_pairs(checkpoint, baseline_data, pairs)
        table = pair_table(model, tokenizer, found_pairs, learned)
    floor = floor_beside(checkpoint) if data is None else None
    _show(found, checkpoint, floor, table, json_output=json_output)


def _pair_windows(pairs: list[PairTokens], tokens_max: int) -> list[Window]:
    """Each pair by itself, those of one length after each other."""
    windows = [pair.window(tokens_max) for pair in pairs]
    return sorted(windows, key=lambda window: len(window.tokens))


def _baseline_pairs(checkpoint: Path, data: Path | None, pairs: str) -> list[PairTokens]:
    """The pairs that the baselines learn; none where the run's are not beside the checkpoint."""
    tokenizer_file = checkpoint / "tokenizer.json"
    if data is not None:
        shards = _tokens(data, tokenizer_file, pairs)
    else:
        prepared = checkpoint.parent.parent / "data" / "train"
        if not prepared.is_dir():
            return []
        shards = open_shards(prepared, verify=False)
    return list(pairs_of(shards, load_tokenizer(tokenizer_file).end_of_text_id))


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


def _tokens(path: Path, tokenizer_file: Path, pairs: str) -> ShardSet:
    setting = parse(SETTINGS["data.pairs"], Given(pairs, "--pairs", is_text=True))
    template = tokenizer_file.parent.parent.parent / RUN_FOLDER / TEMPLATE_FILE
    config = DataConfig(
        path=str(path),
        pairs=setting,
        tokenizer=str(tokenizer_file),
        chat_template=str(template) if template.is_file() else None,
    )
    tokenizer, tally = load_tokenizer(tokenizer_file), Tally()
    documents = list(encoded(tokenizer, documents_of(config, tally)))
    for reason, entry in tally.reasons[:REASONS_SHOWN_MAX]:
        places = ", ".join(entry.examples[:2])
        print(f"skipped     {entry.count} × {reason}: {places}", file=sys.stderr)
    shards = shards_of(
        documents, vocab_size=tokenizer.vocab_size, end_of_text_id=tokenizer.end_of_text_id
    )
    if shards.num_tokens < 2:
        raise DataError("the text is too short to predict anything", where=str(path))
    return shards


def _show(
    found: Evaluation,
    checkpoint: Path,
    floor: float | None,
    table: PairTable | None,
    *,
    json_output: bool,
) -> None:
    perplexity = math.exp(min(found.loss_nats_per_token, NATS_SHOWN_MAX))
    if json_output:
        fields: dict[str, object] = {
            "validation_bits_per_byte": found.bits_per_byte,
            "loss": found.loss_nats_per_token,
            "perplexity": perplexity,
            "bytes": found.bytes,
            "tokens": found.tokens,
            "floor_bits_per_byte": floor,
        }
        if table is not None:
            fields["pairs"] = {name: asdict(scores) for name, scores in table.rows}
        print(json.dumps(fields))
        return
    print(f"{checkpoint}")
    print(f"{found.bits_per_byte:.4f} bits per byte, {found.loss_nats_per_token:.4f} nats a token")
    print(f"perplexity {perplexity:.2f} a token")
    print(f"over {found.bytes} bytes, {found.tokens} tokens")
    if floor is not None:
        print(f"{floor_line(floor)} on this text")
    if table is not None:
        print()
        print("\n".join(table.lines()))
