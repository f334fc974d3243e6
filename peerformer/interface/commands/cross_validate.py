"""`peerformer cross-validate`: how well a model does on text it did not see, with its deviation."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from peerformer import events
from peerformer.errors import ConfigError, Interrupted
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.progress import ProgressLine
from peerformer.interface.stop import Stop
from peerformer.model.find import RUNS
from peerformer.train.folds import CrossValidation, cross_validate
from peerformer.train.start import settings_of_base

MEASURES = ("loss", "bits_per_byte")


def validate(
    *,
    folds: Annotated[int, Parameter(help="Parts of the documents, and models to train.")] = 5,
    data: Annotated[
        str | None, Parameter(help="File or folder of text; none: documentation found here.")
    ] = None,
    steps: Annotated[int | None, Parameter(help="Optimizer steps of each model.")] = None,
    seed: Annotated[int | None, Parameter(help="Seed of weights and order of data.")] = None,
    batch_size: Annotated[int | None, Parameter(help="Sequences a step.")] = None,
    base: Annotated[
        str | None,
        Parameter(name="--from", help="Run, checkpoint or Hugging Face directory to start from."),
    ] = None,
    run: Annotated[
        str, Parameter(help="Name; the same command with the same name goes on.")
    ] = "cross-validation",
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="End with one JSON object on stdout.")
    ] = False,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Train a model for each part of the documents, on all the others, and judge it on that part.

    The same command again goes on where it stopped.
    """
    if folds < 2:
        raise ConfigError(f"--folds {folds} are too few", hint="--folds 5")
    if Path(run).name != run or run in ("", ".."):
        raise ConfigError(f"{run!r} is not a name for a run", hint="--run my-folds")
    overrides = {
        "data.folds": folds,
        "data.path": data,
        "training.steps": steps,
        "training.seed": seed,
        "training.batch_size": batch_size,
        "training.base": base,
    }
    config = resolve_options(options, overrides, settings_of_base).config
    progress = ProgressLine(config.training.steps)
    stop = Stop()

    def on_event(event: Any) -> None:
        if isinstance(event, events.RunStarted):
            stop.listen()
            progress.bits_per_byte = None  # the fold before has nothing to do with it
        progress.on_event(event)

    try:
        found = cross_validate(
            config, RUNS / run, on_event=on_event, report=_note, should_stop=stop
        )
    finally:
        progress.close()
        stop.close()
    if found.stopped:
        raise Interrupted(
            f"stopped after {len(found.folds)} of {folds} folds, saved", hint="the same command"
        )
    if json_output:
        print(json.dumps(_as_json(found)))
    else:
        _show(found)


def _as_json(found: CrossValidation) -> dict[str, Any]:
    spread = {
        name: dict(zip(("mean", "deviation"), found.spread(name), strict=True)) for name in MEASURES
    }
    return {"folds": [asdict(fold) for fold in found.folds], **spread}


def _show(found: CrossValidation) -> None:
    print("fold      loss  bits per byte      bytes  checkpoint")
    for fold in found.folds:
        print(
            f"{fold.fold:4}  {fold.loss:8.4f}  {fold.bits_per_byte:13.4f}  {fold.bytes:9}"
            f"  {fold.checkpoint}"
        )
    for word, index in (("mean", 0), ("dev.", 1)):
        loss, bits = (found.spread(name)[index] for name in MEASURES)
        print(f"{word:>4}  {loss:8.4f}  {bits:13.4f}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
