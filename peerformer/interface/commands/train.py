"""`peerformer train`: a model on this machine; Ctrl-C stops it safely, the same command resumes."""

import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import psutil
from cyclopts import Parameter

from peerformer import __version__, events
from peerformer.errors import Interrupted
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.progress import ProgressLine, si
from peerformer.train.loop import TrainResult
from peerformer.train.loop import train as run_training


class _Stop:
    """Ctrl-C once: stop after this step. Twice: leave now."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(Interrupted.exit_code)
        self.asked = True
        _note("\nStopping after this step … (Ctrl-C again: at once)")


def train(
    *,
    data: Annotated[
        str | None, Parameter(help="File or folder of text; none: documentation found here.")
    ] = None,
    steps: Annotated[int | None, Parameter(help="Optimizer steps.")] = None,
    seed: Annotated[int | None, Parameter(help="Seed of weights and order of data.")] = None,
    batch_size: Annotated[int | None, Parameter(help="Sequences a step.")] = None,
    run: Annotated[
        str | None, Parameter(help="Name of the run; one that exists is taken up.")
    ] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="End with one JSON object on stdout.")
    ] = False,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Train a model on this machine.

    The same command again goes on where it stopped.
    """
    overrides = {
        "data.path": data,
        "training.steps": steps,
        "training.seed": seed,
        "training.batch_size": batch_size,
    }
    config = resolve_options(options, overrides).config
    memory = psutil.virtual_memory().total / 1e9
    _note(
        f"peerformer {__version__}   {platform.machine()}, {psutil.cpu_count()} cores, "
        f"{memory:.0f} GB"
    )
    settings = config.training
    progress = ProgressLine(settings.steps, settings.batch_size * settings.sequence_length)
    stop = _Stop()
    before = {n: signal.signal(n, stop.on_signal) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_event(event: Any) -> None:
        if isinstance(event, events.RunStarted):
            _introduce(event, config.size)
        progress.on_event(event)

    try:
        result = run_training(config, run=run, on_event=on_event, report=_note, should_stop=stop)
    finally:
        progress.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    _conclude(result, json_output=json_output)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _introduce(event: events.RunStarted, size: str) -> None:
    _note(f"model       {size}: {si(event.parameters)} parameters, {event.dtype}")
    where = f"from step {event.step}   " if event.step else ""
    _note(
        f"run         {Path('runs') / event.run}   {where}"
        "Ctrl-C stops safely; the same command resumes"
    )


def _conclude(result: TrainResult, *, json_output: bool) -> None:
    if json_output:
        fields = asdict(result)
        for name in ("run", "stopped"):
            del fields[name]
        print(json.dumps(fields))
    if result.stopped:
        raise Interrupted(
            f"stopped after step {result.steps}, saved",
            hint=f"peerformer train --run {result.run}   (with the same settings) resumes",
        )
    _note(
        f"done        {result.validation_bits_per_byte:.3f} bits per byte after "
        f"{result.steps} steps   {result.checkpoint}"
    )
    _note(f'next        peerformer generate "Once" --from {result.run}')
