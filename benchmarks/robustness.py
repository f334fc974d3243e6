"""Which attacks on learning are withstood, by which rule, codec and number of peers.

    peerformer bench robustness [--small | --shipped | --full] [--jobs N] [--out FOLDER] [--docs]

Each cell of the grid is a real world of the simulator (`peerformer.simulate.cell`): production
peers that train a small model on Python's own prose, the whole protocol, nothing wrong but the
liars. A finished cell is a row appended to `cells.csv` at once, so the same command goes on where
it was stopped. From the rows come a table (`table.md`) and a heat map (`heatmap.png`, `.svg`).

A loss is compared with that of the same rule, codec, filter, number of peers and seed without
liars, and with the plain mean that nobody attacks. What is more than 2 % above the former is not
withstood.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import astuple
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from robustness_cells import FULL, SHIPPED, SMALL, Grid, Results, Row
from robustness_report import heat_map, table, write_docs

from peerformer.errors import ConfigError, Interrupted
from peerformer.interface.progress import duration
from peerformer.simulate.cell import Cell, run_cell

__all__ = ["DOCS", "FULL", "SHIPPED", "SMALL", "run"]

DOCS = Path(__file__).resolve().parents[1] / "docs" / "robustness.md"


def run(grid: Grid, out: Path, *, jobs: int = 1, docs: Path | None = None) -> Results:
    """Run what is missing of a grid, then write the table and the heat map.

    Raises:
        ConfigError: there are results of another grid in `out`, or matplotlib is missing.
        Interrupted: the user stopped; the same call goes on.
    """
    try:
        import matplotlib  # noqa: F401  # before the hours, not after them
    except ImportError as error:
        raise ConfigError("the heat map needs matplotlib", hint="pip install matplotlib") from error
    results = Results(out / "cells.csv", grid.version())
    cells = grid.cells()
    missing = [cell for cell in cells if cell not in results.rows]
    if len(missing) < len(cells):
        _say(f"{len(cells) - len(missing)} of {len(cells)} cells are there already")
    try:
        with _progress(len(cells), len(missing)) as advance:
            for cell, row in _finished(missing, grid, jobs):
                results.add(cell, row)
                advance(cell, row)
    except KeyboardInterrupt:
        what = f"Stopped; {len(results.rows)} of {len(cells)} cells are kept"
        raise Interrupted(what, hint="the same command goes on") from None
    text = table(grid, results.rows)
    (out / "table.md").write_text(text)
    heat_map(grid, results.rows, out)
    if docs is not None:
        write_docs(docs, grid.name, text)
    return results


def _timed(cell: Cell, grid: Grid) -> Row:
    began = time.perf_counter()
    learned, broke = run_cell(cell, grid.rounds, grid.inner_steps)
    reached = len(learned.bits_per_byte) >= grid.rounds and not broke
    bits = learned.bits_per_byte[grid.rounds - 1] if reached else None
    return Row(
        math.nan if bits is None else round(bits, 6),
        round(learned.bytes_sent_a_peer),
        learned.honest_refused,
        learned.liars_counted,
        round(time.perf_counter() - began, 2),
        broke,
    )


def _finished(cells: list[Cell], grid: Grid, jobs: int) -> Iterator[tuple[Cell, Row]]:
    """Run cells in so many processes; yields each as soon as it is finished."""
    if jobs == 1:
        for cell in cells:
            yield cell, _timed(cell, grid)
        return
    # Ctrl-C reaches all processes: those that work end at once, and without a word.
    silent = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), **silent) as pool:
        running: dict[Future[Row], Cell] = {}
        waiting = list(reversed(cells))
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop()
                    running[pool.submit(_timed, cell, grid)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _progress(cells: int, missing: int) -> Iterator[Callable[[Cell, Row], None]]:
    """Show a bar with the time left, or a line for each cell where there is no terminal."""
    began, done = time.monotonic(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=3_600,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("cells", total=cells, completed=cells - missing)

        def advance(cell: Cell, row: Row) -> None:
            nonlocal done
            done += 1
            progress.update(task, advance=1, description=f"{cell.attack} {cell.rule}")
            if not console.is_terminal:
                left = duration((time.monotonic() - began) / done * (missing - done))
                words = " ".join(str(value) for value in astuple(cell))
                _say(f"{cells - missing + done}/{cells}  left {left}  {words}: {row.bits_per_byte}")

        yield advance


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
