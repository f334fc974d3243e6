"""`peerformer bench robustness`: nothing lost, nothing repeated, nothing withstood that is not."""

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from peerformer.errors import ConfigError, DataError
from peerformer.interface.cli import main
from peerformer.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import robustness  # noqa: E402
from robustness_cells import Grid, Results, Row  # noqa: E402
from robustness_report import BEGIN, END, heat_map, table, write_docs  # noqa: E402

TINY = Grid(
    "tiny",
    ("mean", "robust"),
    ("dense-int8",),
    ((4, 1),),
    (1,),
    rounds=1,
    attacks=("none", "sign-flip-10"),
    inner_steps=1,
)
PROGRAM = f"""
import sys
sys.path.append({str(ROOT / "benchmarks")!r})
from pathlib import Path
import robustness
from robustness_cells import Grid
robustness.run(eval(sys.argv[1]), Path(sys.argv[2]))
"""


def rows_for(grid, bits):
    """Rows as if the grid had been run; `bits` of a cell are what a function says."""
    return {cell: Row(bits(cell), 1e6, 0, 0, 1.0, "") for cell in grid.cells()}


def line_of(text, attack):
    return [line for line in text.splitlines() if line.startswith(f"| {attack} |")]


def test_a_run_that_is_killed_goes_on_without_losing_or_repeating_a_cell(tmp_path, capsys):
    command = [sys.executable, "-c", PROGRAM, repr(TINY), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as first:
        for _ in range(2):  # a line for each finished cell
            assert re.match(r"\d+/8 ", line := first.stderr.readline()), line
        first.send_signal(signal.SIGKILL)
    kept = (tmp_path / "cells.csv").read_bytes()
    with (tmp_path / "cells.csv").open("ab") as file:
        file.write(kept.splitlines()[-1][:20])  # the kill struck in the middle of a row
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    before = len(kept.splitlines()) - 1
    assert before >= 2 and done.stderr.startswith(f"{before} of 8 cells are there already")
    assert len(re.findall(r"^\d+/8 ", done.stderr, re.MULTILINE)) == 8 - before
    whole = (tmp_path / "cells.csv").read_bytes()
    assert whole.startswith(kept)
    told = [tuple(line[1:8]) for line in csv.reader(whole.decode().splitlines()[1:])]
    assert len(told) == len(set(told)) == len(TINY.cells()) == 8
    assert "not run" not in (tmp_path / "table.md").read_text()
    robustness.run(TINY, tmp_path)
    assert capsys.readouterr().err.splitlines() == ["8 of 8 cells are there already"]
    assert (tmp_path / "cells.csv").read_bytes() == whole


def test_two_processes_find_what_one_finds(tmp_path):
    few = replace(TINY, rules=("mean",), filters=(False,), seeds=(1,))
    one, two = (robustness.run(few, tmp_path / str(n), jobs=n) for n in (1, 2))
    losses = [{cell: row.bits_per_byte for cell, row in r.rows.items()} for r in (one, two)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    assert len(set(losses[0].values())) == 2  # the liar was heard


def test_results_of_another_grid_are_refused_and_left_as_they_are(tmp_path):
    path = tmp_path / "cells.csv"
    Results(path, TINY.version()).add(TINY.cells()[0], Row(3.0, 1.0, 0, 0, 1.0, ""))
    before = path.read_bytes()
    other = replace(TINY, rounds=2)
    with pytest.raises(ConfigError, match="another version") as refused:
        robustness.run(other, tmp_path)
    assert "cells.csv:2" in str(refused.value) and "--out" in str(refused.value)
    path.write_text("some,other,table\n")
    with pytest.raises(ConfigError, match="another version"):
        Results(path, TINY.version())
    path.write_bytes(before)
    assert list(Results(path, TINY.version()).rows) == TINY.cells()[:1]


def test_what_is_not_withstood_is_bold_and_what_is_compared_is_said():
    def bits(cell):
        calm = 3.0 if cell.rule == "mean" else 3.03
        above = {"none": 1.0, "sign-flip-10": 1.501 if cell.rule == "mean" else 1.019}[cell.attack]
        return calm * above + 0.003 * (cell.seed - 1) * (cell.attack != "none")

    twice = replace(TINY, seeds=(1, 2))
    rows = rows_for(twice, bits)
    calm, told = line_of(table(twice, rows), "none"), line_of(table(twice, rows), "sign-flip-10")
    assert calm[0] == "| none | 3.000 (+0.0 ± 0.0; +0.0) | 3.030 (+0.0 ± 0.0; +1.0) |  |"
    assert told[0].startswith("| sign-flip-10 | **4.505 (+50.2 ± 0.1; +50.2)** | 3.089 (+1.9 ± 0.1")
    worse = rows_for(twice, lambda cell: bits(cell) * (1.002 if cell.attack != "none" else 1))
    assert line_of(table(twice, worse), "sign-flip-10")[0].count("**") == 4


def test_what_broke_diverged_or_was_not_run_is_not_called_withstood():
    rows = rows_for(TINY, lambda cell: 3.0)
    attacked = [cell for cell in rows if cell.attack != "none" and cell.filters]
    first, second = (next(c for c in attacked if c.rule == rule) for rule in TINY.rules)
    rows[first] = replace(rows[first], bits_per_byte=math.nan)
    rows[second] = replace(rows[second], bits_per_byte=math.nan, broke="one decision per round")
    told = line_of(table(TINY, rows), "sign-flip-10")
    assert told[0].startswith("| sign-flip-10 | **diverged** | **broke: one decision per round** |")
    del rows[first]
    assert "| not run |" in line_of(table(TINY, rows), "sign-flip-10")[0]


def test_the_heat_map_is_an_image_and_a_drawing_with_words(tmp_path):
    rows = rows_for(TINY, lambda cell: 3.0 if cell.attack == "none" else 3.3)
    del rows[next(cell for cell in rows if cell.attack != "none")]
    heat_map(TINY, rows, tmp_path)
    pixels = imread(tmp_path / "heatmap.png")
    assert pixels.shape[0] > 100 and pixels.shape[1] > 100 and pixels.std() > 0.05
    drawing = ElementTree.parse(tmp_path / "heatmap.svg").getroot()
    assert drawing.tag.endswith("svg")
    words = "".join(drawing.itertext())
    assert "sign-flip-10" in words and "no filter" in words and "+10.0" in words


def test_the_table_goes_between_its_markers_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    begin, end = BEGIN.format("small"), END.format("small")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for text in ("new", "newer"):
        write_docs(page, "small", text)
    assert page.read_text() == f"before\n{begin}\n\nnewer\n{end}\nafter\n"
    page.write_text(f"{end}\n{begin}\n")
    for grid in ("small", "full"):
        with pytest.raises(DataError, match="no place"):
            write_docs(page, grid, "new")
    for grid in (robustness.SMALL, robustness.SHIPPED, robustness.FULL):
        assert robustness.DOCS.read_text().count(BEGIN.format(grid.name)) == 1


def test_every_attack_on_learning_is_in_every_grid():
    from peerformer.train import poison

    zoo = {*poison.UPDATES, *poison.DATA}
    assert len(zoo) == 18
    for grid in (robustness.SMALL, robustness.FULL):
        assert {"none", "sign-flip+lying-scorer", *zoo - {"backdoor"}} == set(grid.attacks)
        assert {True, False} == set(grid.filters) and "mean" in grid.rules
    shipped, default = robustness.SHIPPED, resolve(size="nano").config.swarm
    assert shipped.rules == (default.rule,) and set(shipped.attacks) == set(robustness.FULL.attacks)
    assert robustness.FULL.swarms == shipped.swarms == ((8, 2), (13, 4), (16, 5))


def test_the_unattacked_plain_mean_is_run_for_whatever_is_compared_with_it():
    few = replace(TINY, rules=("robust",), filters=(True,))
    plain = [cell for cell in few.cells() if cell.rule == "mean"]
    assert plain == [
        c for c in TINY.cells() if c.rule == "mean" and c.attack == "none" and not c.filters
    ]
    assert len(few.cells()) == len(plain) + len(few.attacks) * len(few.seeds)
    assert len(TINY.cells()) == len(set(TINY.cells()))


def test_the_command_refuses_what_it_cannot_do(tmp_path, capsys):
    for words in ("--small --full", "--small --shipped", "--jobs 0"):
        assert main(["bench", "robustness", *words.split()]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    shutil.copytree(ROOT / "peerformer", tmp_path / "peerformer")
    done = subprocess.run(
        [sys.executable, "-m", "peerformer", "bench", "robustness"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "not part of the installed package" in done.stderr
    assert "try:" in done.stderr and "Traceback" not in done.stderr
