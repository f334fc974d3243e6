"""The grid of `robustness`: its cells, and the file that keeps the finished ones."""

import csv
import io
import json
import os
from dataclasses import asdict, astuple, dataclass, fields
from itertools import product
from pathlib import Path

from blake3 import blake3

from peerformer.adversary import POISONS
from peerformer.errors import ConfigError
from peerformer.simulate import texts
from peerformer.simulate.cell import NO_ATTACK, Cell
from peerformer.simulate.learning import Learning
from peerformer.train.recipe import recipe_bytes

VERSION = 2  # of what a row means; also to be raised when rules, codecs or attacks change
# What a backdoor does is not seen in the loss: `backdoor.py` measures it.
ATTACKS = (NO_ATTACK, *(name for name in POISONS if name != "backdoor"), "sign-flip+lying-scorer")
PLAIN = "mean"


@dataclass(frozen=True)
class Grid:
    """All cells, and how long each learns."""

    name: str
    rules: tuple[str, ...]
    codecs: tuple[str, ...]
    swarms: tuple[tuple[int, int], ...]  # (peers, liars among them)
    seeds: tuple[int, ...]
    rounds: int
    attacks: tuple[str, ...] = ATTACKS
    filters: tuple[bool, ...] = (True, False)
    inner_steps: int = 10

    def cells(self) -> list[Cell]:
        """Return the cells; all of one seed first, so that a part of the time is a whole table.

        What all is compared with is among them: the plain mean, unfiltered and unattacked.
        """
        cells = []
        for seed, (peers, liars), codec in product(self.seeds, self.swarms, self.codecs):
            kinds = product(self.filters, self.rules, self.attacks)
            cells += [
                Cell(attack, rule, codec, filters, peers, liars, seed)
                for filters, rule, attack in kinds
            ]
            plain = Cell(NO_ATTACK, PLAIN, codec, False, peers, liars, seed)
            cells += [plain] if plain not in cells else []
        return cells

    def version(self) -> str:
        """Return what names these cells, their model and their text."""
        recipe = recipe_bytes(Learning(inner_steps=self.inner_steps).config()).decode()
        parts = [VERSION, asdict(self), recipe, texts.digest()]
        return blake3(json.dumps(parts).encode()).hexdigest()[:12]


SMALL = Grid("small", (PLAIN, "robust"), ("dense-int8",), ((8, 2),), (1, 2), rounds=10)
SHIPPED = Grid(  # what a swarm has where nothing else was chosen
    "shipped",
    ("robust",),
    ("dense-int8",),
    ((8, 2), (13, 4), (16, 5)),
    (1, 2, 3),
    10,
    filters=(True,),
)
FULL = Grid(
    "full",
    (
        PLAIN,
        "cheap",
        "robust",
        "coordinate-median",
        "trimmed-mean",
        "multi-krum",
        "geometric-median",
        "centred-clipping",
    ),
    ("dense-int8", "dense-int4", "sparse-2bit"),
    ((8, 2), (13, 4), (16, 5)),
    (1, 2, 3),
    rounds=20,
)


@dataclass(frozen=True)
class Row:
    """A finished cell."""

    bits_per_byte: float  # not a number where it broke or came to nothing
    bytes_sent_a_peer: float
    honest_refused: int
    liars_counted: int
    seconds: float
    broke: str


HEADER = ["grid", *(field.name for field in (*fields(Cell), *fields(Row)))]


class Results:
    """The rows of `cells.csv`: read once, then appended to, each whole and durable."""

    def __init__(self, path: Path, version: str) -> None:
        """Read what is there.

        Raises:
            ConfigError: it is of another grid.
        """
        self.path, self.version = path, version
        self.rows: dict[Cell, Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a row cut short by a kill is made again
        if whole != text:
            os.truncate(path, len(whole.encode()))
        for number, line in enumerate(csv.reader(io.StringIO(whole))):
            if line[:1] != ["grid" if number == 0 else version] or len(line) != len(HEADER):
                raise ConfigError(
                    "these results are of another version of the grid",
                    where=f"{path}:{number + 1}",
                    why="of other cells, another model, or the text of another Python",
                    hint=f"--out with a new folder, or move {path.name} away and begin anew",
                )
            if number:
                cell, row = _parsed(line[1:])
                self.rows[cell] = row
        if not whole:
            self._append(HEADER)

    def add(self, cell: Cell, row: Row) -> None:
        """Keep a finished cell."""
        self._append([self.version, *astuple(cell), *astuple(row)])
        self.rows[cell] = row

    def _append(self, values: list[object] | list[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        with self.path.open("ab") as file:
            file.write(line.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: list[str]) -> tuple[Cell, Row]:
    attack, rule, codec, filters, peers, liars, seed, bits, sent, refused, counted, took, broke = (
        line
    )
    cell = Cell(attack, rule, codec, filters == "True", int(peers), int(liars), int(seed))
    return cell, Row(float(bits), float(sent), int(refused), int(counted), float(took), broke)
