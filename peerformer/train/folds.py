"""k-fold cross-validation: k models, each judged on the part of the documents it never saw.

Documents are dealt into folds by the hash of their text, so that a document is never on both sides
and the folds are the same wherever and whenever they are made. Each fold is an ordinary run, with a
tokenizer of its own where one is trained, so it can be stopped, taken up, and looked into like any
other; what is measured is the whole of what it held out. Bits per byte compare across folds;
nats a token do so where all have one tokenizer.

Source: Stone, Cross-Validatory Choice and Assessment of Statistical Predictions, 1974.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.prepare import Prepared, prepare
from peerformer.model.convert import load_model
from peerformer.train.evaluate import evaluate
from peerformer.train.loop import train
from peerformer.train.start import start_of


@dataclass(frozen=True, slots=True)
class Fold:
    """How one model does on what it did not see."""

    fold: int
    loss: float  # nats a token
    bits_per_byte: float
    tokens: int
    bytes: int
    checkpoint: str


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """All folds that are done, and whether that is all of them."""

    folds: tuple[Fold, ...]
    stopped: bool

    def spread(self, name: str) -> tuple[float, float]:
        """Return mean and sample deviation of a number over the folds, of which there are two."""
        values = [float(getattr(fold, name)) for fold in self.folds]
        return mean(values), stdev(values)


def cross_validate(
    config: Config,
    root: Path,
    *,
    on_event: Callable[[Any], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CrossValidation:
    """Train and judge a model for each fold, or take up what was begun.

    Args:
        config: all settings; `data.folds` says how many.
        root: the directory of the folds' runs.
        on_event: called with every record of the folds' journals.
        report: called with lines for a person.
        should_stop: asked after every step; if true, the fold's run is saved and all ends.

    Raises:
        DataError: there are too few documents, or a fold holds too little text.
        ConfigError, CheckpointError, DivergedError.
    """
    count = config.data.folds
    configs = [replace(config, data=replace(config.data, fold=fold)) for fold in range(count)]
    names = [f"fold-{fold + 1}" for fold in range(count)]
    length = config.training.sequence_length
    prepared: list[Prepared] = []
    for each, name in zip(configs, names, strict=True):  # so that the last one fails now, if ever
        (root / name).mkdir(parents=True, exist_ok=True)
        start = start_of(each, root / name)
        prepared.append(prepare(start.data, root / name / "data"))
        Batches(prepared[-1].validation, length)
    done: list[Fold] = []
    for fold, (each, name) in enumerate(zip(configs, names, strict=True)):
        report(f"fold        {fold + 1} of {count}   {root / name}")
        result = train(
            each, run=name, root=root, on_event=on_event, report=report, should_stop=should_stop
        )
        if result.stopped:
            return CrossValidation(tuple(done), stopped=True)
        done.append(_judged(fold + 1, prepared[fold], result.checkpoint, length))
    return CrossValidation(tuple(done), stopped=False)


def _judged(fold: int, prepared: Prepared, checkpoint: str, length: int) -> Fold:
    held_out = Batches(prepared.validation, length)
    found = evaluate(
        load_model(checkpoint),
        held_out,
        sequences=held_out.num_windows,
        byte_lengths_V=prepared.tokenizer.byte_lengths_V(),
    )
    return Fold(
        fold,
        found.loss_nats_per_token,
        found.bits_per_byte,
        found.tokens,
        found.bytes,
        checkpoint,
    )
