"""The numbers of a run, a row a step: `metrics.csv`, written as training goes and read for plots.

A run that was killed makes some steps again; their first rows are dropped when it is taken up, so
that each step has one row. A file with other columns, of an older version or of another model, is
kept: what it has is found by its header, and what it lacks stays empty. Knows nothing about models.
"""

import csv
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from peerformer.errors import DataError

COLUMNS = (
    "step",
    "loss",
    "bits_per_byte",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "flop_utilisation",
    "memory_bytes",
    "seconds_left",
    "tokens",
    "seconds",
    "validation_loss",
    "validation_bits_per_byte",
)
SPEED_STEPS = 20  # the speed shown is that of the last so many steps


@dataclass(slots=True)
class Pace:
    """How fast this session's steps are, looking and saving left out."""

    seconds: float = 0.0  # of all steps
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEED_STEPS))

    def add(self, seconds: float) -> None:
        """Take in what one step took."""
        self.seconds += seconds
        self.recent_seconds.append(seconds)

    @property
    def step_seconds(self) -> float:
        """What one of the last steps took on average."""
        return sum(self.recent_seconds) / len(self.recent_seconds)


@contextmanager
def metrics_file(
    path: Path, steps_done: int, columns: tuple[str, ...] = COLUMNS
) -> Iterator[Callable[[Mapping[str, float]], object]]:
    """Open the file of a run that has done so many steps.

    Yields what writes a row: a number by column; what is absent or no number stays empty.
    """
    before, rows = _rows(path)
    columns = (*columns, *(name for name in before if name and name not in columns))
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        table.writeheader()
        table.writerows(row for row in rows if _is_done(row, steps_done))
    temporary.replace(path)
    with path.open("a", newline="", buffering=1) as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        yield lambda row: table.writerow({k: v for k, v in row.items() if not math.isnan(v)})


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Return the columns of a file; NaN where a row has no number.

    Raises:
        DataError: if it cannot be read or has no steps.
    """
    try:
        columns, rows = _rows(path)
    except OSError as error:
        raise DataError(
            "the metrics cannot be read", where=str(path), why=error.strerror
        ) from error
    if not rows or "step" not in columns:
        raise DataError("there are no steps in the metrics", where=str(path))
    return {name: [_number(row.get(name)) for row in rows] for name in columns}


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and whole rows of a file; a last line without its end is torn."""
    if not path.exists():
        return [], []
    text = path.read_text(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    table = csv.DictReader(lines, restval="")
    columns = list(table.fieldnames or [])
    return columns, [{name: row[name] for name in columns} for row in table]


def _is_done(row: Mapping[str, str], steps_done: int) -> bool:
    step = row.get("step", "")
    return step.isdigit() and int(step) <= steps_done


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
