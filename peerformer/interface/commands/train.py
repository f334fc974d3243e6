"""`peerformer train`: a model on this machine; Ctrl-C stops it safely, the same command resumes."""

import json
import math
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import psutil
from cyclopts import Parameter

from peerformer import __version__, events
from peerformer.cluster.training import this_launch
from peerformer.cluster.training import train as run_training
from peerformer.config import Config
from peerformer.data.prepare import floor_beside, floor_line
from peerformer.errors import Interrupted, ToldElsewhere
from peerformer.interface.cost import cost_line, cost_of
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.interface.overfit import check_overfit
from peerformer.interface.progress import ProgressLine, si
from peerformer.interface.stop import Stop
from peerformer.presets import SIZES
from peerformer.settings import DEFAULT, from_json, to_json
from peerformer.train.loop import TrainResult
from peerformer.train.run_directory import stored_config
from peerformer.train.start import settings_of_base


def train(
    *,
    data: Annotated[
        str | None, Parameter(help="File or folder of text; none: documentation found here.")
    ] = None,
    steps: Annotated[int | None, Parameter(help="Optimizer steps.")] = None,
    seed: Annotated[int | None, Parameter(help="Seed of weights and order of data.")] = None,
    batch_size: Annotated[int | None, Parameter(help="Sequences a step.")] = None,
    base: Annotated[
        str | None,
        Parameter(name="--from", help="Run, checkpoint or Hugging Face directory to start from."),
    ] = None,
    run: Annotated[
        str | None, Parameter(help="Name of the run; one that exists goes on, with its settings.")
    ] = None,
    overfit: Annotated[
        bool,
        Parameter(negative=(), help="Learn one batch by heart, as a check; nothing is kept."),
    ] = False,
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
        "training.base": base,
    }
    config, launch = _settings(options, overrides, run), this_launch()
    stop = Stop(launch)
    if launch.rank:  # rank 0 alone prints
        stop.listen()
        result = run_training(config, run=run, should_stop=stop)
        raise ToldElsewhere(Interrupted.exit_code if result.stopped else 0)
    memory = psutil.virtual_memory().total / 1e9
    _note(
        f"peerformer {__version__}   {platform.machine()}, {psutil.cpu_count()} cores, "
        f"{memory:.0f} GB"
    )
    if overfit:
        check_overfit(config, json_output=json_output)
        return
    _note(f"ranks       {launch.in_words()}")
    progress = ProgressLine(config.training.steps)

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
    resolved = resolve_options(options, overrides, settings_of_base)
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
    model, base = config.model, config.training.base
    bigger = [] if base else list(SIZES)[list(SIZES).index(config.size) + 1 :]
    _note(
        f"model       {base or config.size}: {model.num_layers} layers, {model.hidden_size} wide, "
        f"{si(event.parameters)} parameters, {event.dtype}"
        + (f"   (bigger: --size {bigger[0]})" if bigger else "")
    )
    _note(f"cost        {cost_line(cost_of(config, event.vocab_size, event.dtype))}")
    where = f"from step {event.step}   " if event.step else ""
    _note(
        f"run         {Path('runs') / event.run}   {where}"
        "Ctrl-C stops safely; the same command resumes"
    )


def _conclude(result: TrainResult, *, json_output: bool) -> None:
    if json_output:
        fields = asdict(result)
        for name in ("run", "stopped", "stalled"):
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
    if (floor := floor_beside(Path(result.checkpoint))) is not None:
        _note(f"floor       {floor_line(floor)} on this text")
    source = result.run
    if result.stalled:
        source = result.checkpoint
        _note(
            "stalled     validations were no better for as long as training.patience bears; "
            "that is the best checkpoint"
        )
    _note(f'next        peerformer generate "Once" --from {source}')
