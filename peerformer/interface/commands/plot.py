"""`peerformer plot`: the metrics of some runs as curves, to compare them."""

import math
import sys
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from peerformer.errors import ConfigError, DataError
from peerformer.train.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNS = Path("runs")
METRICS = "metrics.csv"
FORMATS = (".png", ".svg")
AXES = ("step", "tokens", "seconds")
LABELS = {
    "loss": "loss (nats per token)",
    "bits_per_byte": "bits per byte",
    "validation_loss": "held-out loss (nats per token)",
    "validation_bits_per_byte": "held-out bits per byte",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "flop_utilisation": "share of the machine's peak",
    "memory_bytes": "peak memory (bytes)",
    "seconds_left": "time left (s)",
    "tokens": "tokens",
    "seconds": "seconds",
}
MARKED_MAX = 50  # points of a curve that are marked
LISTED_MAX = 8  # runs named in an error


def plot(
    runs: Annotated[
        list[str], Parameter(help="Runs: names, the ends of names, or directories.", negative=())
    ],
    /,
    *,
    metric: Annotated[
        list[str],
        Parameter(negative=(), help="A column of metrics.csv; once for each curve wanted."),
    ] = ["loss"],  # noqa: B006 (cyclopts never changes it)
    against: Annotated[str, Parameter(help="step, tokens or seconds.")] = "step",
    smooth: Annotated[int, Parameter(help="Mean over so many steps; the raw curve is faint.")] = 1,
    to: Annotated[Path, Parameter(help="The picture: a .png or .svg file.")] = Path("plot.png"),
) -> None:
    """Draw the metrics of runs, one panel a metric, one curve a run."""
    if to.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{to.name} is no picture that can be drawn",
            where="--to",
            hint=f"--to {to.with_suffix('.png')}, or {to.with_suffix('.svg')}",
        )
    if against not in AXES:
        raise ConfigError(f"--against {against} is no axis", hint="--against step, tokens, seconds")
    if smooth < 1:
        raise ConfigError(f"--smooth {smooth} is no number of steps", hint="--smooth 10")
    if not runs:
        raise ConfigError("no run is named", hint="peerformer plot RUN [RUN …]")
    paths = [_metrics_of(name) for name in dict.fromkeys(runs)]
    names = [path.parent.name for path in paths]
    labels = [
        n if names.count(n) == 1 else str(p.parent) for n, p in zip(names, paths, strict=True)
    ]
    tables = {label: read_metrics(path) for label, path in zip(labels, paths, strict=True)}
    for path, table in zip(paths, tables.values(), strict=True):
        for name in (*metric, against):
            _check_column(name, table, path)
    _draw(tables, list(dict.fromkeys(metric)), against, smooth, to)
    print(to)
    print(f"drawn       {', '.join(tables)}", file=sys.stderr, flush=True)


def _metrics_of(name: str) -> Path:
    """The metrics of a run that is named by its path, its name, or the end of its name."""
    for path in (Path(name), RUNS / name):
        if (path / METRICS).is_file():
            return path / METRICS
    known = sorted(path.parent.name for path in RUNS.glob(f"*/{METRICS}"))
    ending = [run for run in known if run.endswith(f"-{name}")]
    if len(ending) == 1:
        return RUNS / ending[0] / METRICS
    shown = ending or known
    more = f" and {len(shown) - LISTED_MAX} more" if len(shown) > LISTED_MAX else ""
    raise DataError(
        f"{name} is the end of several runs"
        if ending
        else f"there is no run {name!r} with metrics",
        where=str(RUNS),
        why=f"runs there: {', '.join(shown[:LISTED_MAX]) or 'none'}{more}",
        hint="peerformer train" if not known else "name one of them",
    )


def _check_column(name: str, table: dict[str, list[float]], path: Path) -> None:
    drawable = [column for column, values in table.items() if not all(map(math.isnan, values))]
    if name in drawable:
        return
    raise DataError(
        f"the run has no numbers for {name!r}",
        where=str(path),
        why="it was never measured" if name in table else "there is no such column",
        hint=f"--metric with one of: {', '.join(drawable)}",
    )


def _draw(
    tables: dict[str, dict[str, list[float]]],
    metrics: Sequence[str],
    against: str,
    smooth: int,
    to: Path,
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib", hint="pip install 'peerformer[plot]'"
        ) from error
    figure = Figure(figsize=(8, 3.6 * len(metrics) + 0.4), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        for index, (run, table) in enumerate(tables.items()):
            _curve(axes, table[against], table[metric], run, smooth, f"C{index % 10}")
        axes.set_xlabel(against)
        axes.set_ylabel(LABELS.get(metric, metric))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    try:
        figure.savefig(to, dpi=150)
    except OSError as error:
        raise DataError(
            "the picture cannot be written", where=str(to), why=error.strerror
        ) from error


def _curve(
    axes: "Axes", x: list[float], y: list[float], label: str, smooth: int, colour: str
) -> None:
    rows = [i for i, (a, b) in enumerate(zip(x, y, strict=True)) if math.isfinite(a + b)]
    xs, ys = [x[row] for row in rows], [y[row] for row in rows]
    # A few points, such as validations, are marked: a line alone would claim what was between.
    marker = "o" if len(rows) <= MARKED_MAX else ""
    if smooth > 1:
        axes.plot(xs, ys, color=colour, alpha=0.25, linewidth=1)
        ys = [
            mean(y[n] for n in rows[bisect(rows, row - smooth) : i + 1])
            for i, row in enumerate(rows)
        ]
    axes.plot(xs, ys, color=colour, label=label, marker=marker, markersize=3, linewidth=1.5)
