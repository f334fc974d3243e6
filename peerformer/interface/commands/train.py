"""`peerformer train`: a model on this machine; Ctrl-C stops it safely, the same command resumes."""

import json
import math
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
from peerformer.config import SIZES, Config
from peerformer.errors import Interrupted
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.progress import ProgressLine, si
from peerformer.settings import DEFAULT, from_json, to_json
from peerformer.train.loop import TrainResult
from peerformer.train.loop import train as run_training
from peerformer.train.run_directory import stored_config


class _Stop:
    """Ctrl-C once: stop after this step. Twice: leave now.

    It listens only while steps are made: before that there is nothing to save, and Ctrl-C ends
    the program as it always does.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.asked

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
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
        str | None, Parameter(help="Name of the run; one that exists goes on, with its settings.")
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
    config = _settings(options, overrides, run)
    memory = psutil.virtual_memory().total / 1e9
    _note(
        f"peerformer {__version__}   {platform.machine()}, {psutil.cpu_count()} cores, "
        f"{memory:.0f} GB"
    )
    settings = config.training
    progress = ProgressLine(settings.steps, settings.batch_size * settings.sequence_length)
    stop = _Stop()

    def on_event(event: Any) -> None:
        if isinstance(event, events.RunStarted):
            _introduce(event, config)
            stop.listen()
        progress.on_event(event)

    try:
        result = run_training(config, run=run, on_event=on_event, report=_note, should_stop=stop)
    finally:
        progress.close()
        stop.close()
    _conclude(result, json_output=json_output)


def _settings(options: ConfigOptions, overrides: dict[str, Any], run: str | None) -> Config:
    """The settings of a run: those it was last trained with, and what is given now over them."""
    resolved = resolve_options(options, overrides)
    stored = stored_config(run) if run is not None else None
    if stored is None:
        return resolved.config
    now, merged = to_json(resolved.config), to_json(stored)
    for name, origin in resolved.origins.items():
        if origin.startswith(DEFAULT):
            continue
        section, _, key = name.rpartition(".")
        (merged[section] if section else merged)[key] = (now[section] if section else now)[key]
    training = merged["training"]
    training["warmup_steps"] = min(training["warmup_steps"], training["steps"])
    return from_json(merged, where=f"the run {run} and the command line")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _introduce(event: events.RunStarted, config: Config) -> None:
    model = config.model
    bigger = list(SIZES)[list(SIZES).index(config.size) + 1 :]
    _note(
        f"model       {config.size}: {model.num_layers} layers, {model.hidden_size} wide, "
        f"{si(event.parameters)} parameters, {event.dtype}"
        + (f"   (bigger: --size {bigger[0]})" if bigger else "")
    )
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
        for name in ("loss", "validation_bits_per_byte"):
            if not math.isfinite(fields[name]):
                fields[name] = None  # JSON has no NaN
        print(json.dumps(fields), flush=True)
    if result.stopped:
        raise Interrupted(
            f"stopped after step {result.steps}, saved",
            where=result.checkpoint,
            hint=f"peerformer train --run {result.run}",
        )
    _note(
        f"done        {result.validation_bits_per_byte:.3f} bits per byte after "
        f"{result.steps} steps   {result.checkpoint}"
    )
    _note(f'next        peerformer generate "Once" --from {result.run}')
