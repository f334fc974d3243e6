"""What `robustness` found: a table as Markdown, and a heat map."""

import math
import os
import platform
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from robustness_cells import PLAIN, Grid, Row

from peerformer.errors import DataError
from peerformer.interface.progress import duration
from peerformer.simulate.cell import NO_ATTACK, Cell

WITHSTOOD = 0.02  # above the run that nobody attacks
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"  # of a grid's table


@dataclass(frozen=True)
class Loss:
    """Bits per byte over the seeds, and how much more than without an attack, as a share."""

    bits: float
    above_own: tuple[float, ...]  # the same rule with nobody attacking, by seed
    above_plain: float  # the plain mean without a filter, nobody attacking
    broke: str

    @property
    def above(self) -> float:
        """The mean over the seeds."""
        return mean(self.above_own)

    @property
    def is_withstood(self) -> bool:
        """Whether it is no worse than what is allowed; false if it came to nothing."""
        return self.above <= WITHSTOOD

    def __str__(self) -> str:
        """In a cell of the table; bold if it is not withstood."""
        if all(map(math.isfinite, (self.bits, self.above, self.above_plain))):
            spread = f" ± {100 * stdev(self.above_own):.1f}" if len(self.above_own) > 1 else ""
            text = f"{self.bits:.3f} ({percent(self.above)}{spread}; {percent(self.above_plain)})"
        else:
            text = f"broke: {self.broke}" if self.broke else "diverged"
        return text if self.is_withstood else f"**{text}**"


def percent(share: float) -> str:
    """Return a share in percent, with its sign and without a negative zero."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def loss_of(cell: Cell, seeds: tuple[int, ...], rows: dict[Cell, Row]) -> Loss | None:
    """Return the loss of a cell over all seeds; None if one of them was not run."""
    try:
        told = [rows[replace(cell, seed=seed)] for seed in seeds]
        own = replace(cell, attack=NO_ATTACK)
        calm = [rows[replace(own, seed=seed)].bits_per_byte for seed in seeds]
        plain = replace(own, rule=PLAIN, filters=False)
        plain_calm = [rows[replace(plain, seed=seed)].bits_per_byte for seed in seeds]
    except KeyError:
        return None
    bits = [row.bits_per_byte for row in told]
    return Loss(
        mean(bits),
        tuple(one / other - 1 for one, other in zip(bits, calm, strict=True)),
        mean(one / other - 1 for one, other in zip(bits, plain_calm, strict=True)),
        next((row.broke for row in told if row.broke), ""),
    )


def table(grid: Grid, rows: dict[Cell, Row]) -> str:
    """Return all losses as Markdown, a table for each number of peers, codec and filter."""
    lines = []
    for (peers, liars), codec, filters in product(grid.swarms, grid.codecs, grid.filters):
        how = "with the score filter" if filters else "without the score filter"
        lines += [f"### {peers} peers, {liars} of them liars, `{codec}`, {how}", ""]
        lines += ["| attack | " + " | ".join(f"`{rule}`" for rule in grid.rules) + " | counted |"]
        lines += ["|---|" + "--:|" * (len(grid.rules) + 1)]
        for attack in grid.attacks:
            cells = [
                Cell(attack, rule, codec, filters, peers, liars, grid.seeds[0])
                for rule in grid.rules
            ]
            losses = [loss_of(cell, grid.seeds, rows) for cell in cells]
            words = [str(loss or "not run") for loss in losses]
            lines.append(
                f"| {attack} | " + " | ".join([*words, _counted(grid, cells, rows)]) + " |"
            )
        mine = [
            row
            for cell, row in rows.items()
            if (cell.peers, cell.codec, cell.filters) == (peers, codec, filters)
        ]
        refused = sum(row.honest_refused for row in mine)
        lines += ["", f"Honest contributions refused in these {len(mine)} runs: {refused}.", ""]
    seconds = sum(row.seconds for row in rows.values())
    lines += [
        f"`peerformer bench robustness --{grid.name}`: {len(rows)} runs of {grid.rounds} rounds of"
        f" {grid.inner_steps} steps, seeds {', '.join(map(str, grid.seeds))},"
        f" {duration(seconds)} on one core each; {platform.machine()}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}, grid {grid.version()}.",
        "",
    ]
    return "\n".join(lines)


def _counted(grid: Grid, cells: list[Cell], rows: dict[Cell, Row]) -> str:
    """Return how much of what the liars sent was accepted, over the rules and seeds."""
    told = [replace(cell, seed=seed) for cell, seed in product(cells, grid.seeds)]
    counted = [rows[cell].liars_counted for cell in told if cell in rows]
    sent = sum(cell.liars for cell in told if cell in rows) * grid.rounds
    return f"{sum(counted) / sent:.0%}" if sent and cells[0].attack != NO_ATTACK else ""


def heat_map(grid: Grid, rows: dict[Cell, Row], out: Path) -> None:
    """Draw what attacks cost, in percent above the run without: a panel a swarm and codec."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = list(product(grid.filters, grid.rules))
    size = (2.5 + 0.8 * len(columns) * len(grid.codecs), 1.5 + 0.32 * len(grid.attacks))
    figure = Figure((size[0], size[1] * len(grid.swarms) + 1), layout="constrained")
    panels = figure.subplots(len(grid.swarms), len(grid.codecs), squeeze=False, sharey=True)
    drawn = None
    for (row, (peers, liars)), (column, codec) in product(
        enumerate(grid.swarms), enumerate(grid.codecs)
    ):
        panel = panels[row][column]
        shares = []
        for attack in grid.attacks:
            cells = [Cell(attack, r, codec, f, peers, liars, grid.seeds[0]) for f, r in columns]
            losses = [loss_of(cell, grid.seeds, rows) for cell in cells]
            shares.append([math.nan if loss is None else 100 * loss.above for loss in losses])
        drawn = panel.imshow(shares, cmap="cividis", vmin=0, vmax=10, aspect="auto")
        for y, x in product(range(len(grid.attacks)), range(len(columns))):
            share = shares[y][x]
            text = percent(share / 100) if math.isfinite(share) else "–"
            worse = not share <= 100 * WITHSTOOD
            colour = "black" if share > 5 else "white"
            weight = "bold" if worse else "normal"
            panel.text(x, y, text, ha="center", va="center", color=colour, weight=weight, size=8)
        names = [f"{rule}\n{'filter' if filters else 'no filter'}" for filters, rule in columns]
        panel.set_xticks(range(len(columns)), names, rotation=60, ha="right", size=8)
        panel.set_yticks(range(len(grid.attacks)), grid.attacks, size=8)
        panel.set_title(f"{peers} peers, {liars} liars, {codec}", size=9)
    figure.colorbar(drawn, ax=panels, label="loss above the run without liars, %", extend="max")
    figure.savefig(out / "heatmap.png", dpi=120)
    with rc_context({"svg.fonttype": "none"}):  # words stay words: to be searched and read aloud
        figure.savefig(out / "heatmap.svg", metadata={"Date": None})


def write_docs(page: Path, grid: str, text: str) -> None:
    """Put the table of a grid between its two markers of a page.

    Raises:
        DataError: the page has not both of them.
    """
    begin, end = BEGIN.format(grid), END.format(grid)
    before, begun, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise DataError("the table has no place", where=str(page), hint=f"write {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")
