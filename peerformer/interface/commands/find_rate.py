"""`peerformer find-rate`: try all learning rates once, and suggest one."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.train.find_rate import POINTS_MIN, Sweep, find_rate
from peerformer.train.start import settings_of_base

ROWS = 20  # of the table; all points are in the JSON
BAR_CHARACTERS = 40


def find(
    *,
    data: Annotated[
        str | None, Parameter(help="File or folder of text; none: documentation found here.")
    ] = None,
    base: Annotated[
        str | None,
        Parameter(name="--from", help="Run, checkpoint or Hugging Face directory to start from."),
    ] = None,
    least: Annotated[float, Parameter(help="The rate of the first step.")] = 1e-5,
    most: Annotated[float, Parameter(help="The rate of the last step.")] = 1.0,
    steps: Annotated[int, Parameter(help="Steps of the sweep.")] = 100,
    batch_size: Annotated[int | None, Parameter(help="Sequences a step.")] = None,
    to: Annotated[
        Path | None, Parameter(help="Draw the sweep into this file (.png, .svg).")
    ] = None,
    json_output: Annotated[
        bool, Parameter(name="--json", negative=(), help="One JSON object on stdout.")
    ] = False,
    options: ConfigOptions = ConfigOptions(),
) -> None:
    """Find a learning rate; nothing is kept of the model that it is tried on."""
    if not 0 < least < most or steps < POINTS_MIN:
        raise ConfigError(
            "the sweep must go from a smaller rate above 0 to a larger one, in"
            f" {POINTS_MIN} steps or more",
            where="command line",
            why=f"--least {least:g}, --most {most:g}, --steps {steps}",
        )
    if to is not None:
        _refuse_figure(to)
    overrides = {"data.path": data, "training.base": base, "training.batch_size": batch_size}
    config = resolve_options(options, overrides, settings_of_base).config
    sweep = find_rate(config, least=least, most=most, steps=steps, report=_note)
    if to is not None:
        _draw(sweep, to)
        _note(f"drawn       {to}")
    if json_output:
        print(json.dumps(asdict(sweep)))
        return
    _show(sweep)
    both = ""
    if sweep.setting == "optimizer.muon_learning_rate":
        both = f" --optimizer.learning_rate {sweep.factor * config.optimizer.learning_rate:.2g}"
    print(f"suggested   --{sweep.setting} {sweep.suggested:.2g}{both}")


def _show(sweep: Sweep) -> None:
    every = max(1, len(sweep.points) // ROWS)
    losses = [point.smooth_loss for point in sweep.points]
    lowest, spread = min(losses), max(max(losses) - min(losses), 1e-9)
    print("      rate     loss")
    for index, point in enumerate(sweep.points):
        is_chosen = point.rate == sweep.suggested
        if index % every == 0 or is_chosen:
            bar = "#" * round(BAR_CHARACTERS * (point.smooth_loss - lowest) / spread)
            mark = "  <- falls fastest" if is_chosen else ""
            print(f"{point.rate:10.2e} {point.smooth_loss:8.3f}  {bar}{mark}")
    end = "the loss rose again" if sweep.blew_up else "the largest rate was reached"
    print(f"ended at {sweep.points[-1].rate:.2e}: {end}")


def _refuse_figure(to: Path) -> None:
    if to.suffix not in (".png", ".svg"):
        raise ConfigError(f"{to} is no name for a figure", hint="--to rates.png, or rates.svg")
    if not to.absolute().parent.is_dir():
        raise ConfigError("there is no such directory", where=str(to.absolute().parent))
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib", hint="pip install matplotlib, or leave --to out"
        ) from error


def _draw(sweep: Sweep, to: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rates = [point.rate for point in sweep.points]
    axes.semilogx(rates, [point.loss for point in sweep.points], alpha=0.35, label="loss")
    axes.semilogx(rates, [point.smooth_loss for point in sweep.points], label="averaged")
    axes.axvline(sweep.suggested, linestyle="--", color="black", label=f"{sweep.suggested:.2g}")
    axes.set(xlabel=sweep.setting, ylabel="loss (nats a token)")
    axes.legend()
    figure.savefig(to)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
