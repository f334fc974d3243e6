"""Planted bugs, each an edit of a copy of the package: the simulator must find every one.

The table is `mutants.toml`; production code carries no switches. `make test` plants those that are
found fastest, `make check-deep` all of them. One by hand:

    pytest -m deep "tests/simulate/test_mutants.py" -k "needs_no_proof"
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import peerformer

PACKAGE = Path(peerformer.__file__).parent
TABLE = Path(__file__).parent / "mutants.toml"
SEEDS_MAX = 20_000
FOUND_IN_TIME = 10  # so many are planted by `make test`


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug."""

    name: str
    edits: tuple[tuple[str, str, str], ...]  # file, old text, new text
    quick: int  # worlds that are enough to find it; 0: it takes longer


def mutants() -> list[Mutant]:
    found = []
    for group, entries in tomllib.loads(TABLE.read_text()).items():
        for name, entry in entries.items():
            first = (entry["file"], entry["old"], entry["new"])
            more = [tuple(edit) for edit in entry.get("also", [])]
            found.append(Mutant(f"{group}: {name}", (first, *more), entry.get("quick", 0)))
    return found


def plant(mutant: Mutant, folder: Path) -> None:
    """Copy the package into a folder, with the bug."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "peerformer", ignore=ignored)
    for file, old, new in mutant.edits:
        path = folder / "peerformer" / file
        text = path.read_text()
        assert text.count(old) == 1, f"the edit of {mutant.name!r} no longer applies to {file}"
        path.write_text(text.replace(old, new))


def hunt(folder: Path, seeds: int, jobs: int) -> dict[str, object]:
    """Simulate the package in a folder; returns the command's object."""
    command = [sys.executable, "-P", "-m", "peerformer", "simulate", "--json"]
    done = subprocess.run(
        [*command, "--seeds", str(seeds), "--jobs", str(jobs)],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("{"), done.stderr[-2_000:]
    result: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == (1 if result["violations"] else 0), done.stderr[-2_000:]
    return result


def test_every_edit_applies_and_enough_are_planted(tmp_path: Path) -> None:
    planted = mutants()
    assert len(planted) >= 16 and len({mutant.name for mutant in planted}) == len(planted)
    assert sum(mutant.quick > 0 for mutant in planted) >= FOUND_IN_TIME
    for mutant in planted:
        for file, old, new in mutant.edits:
            text = (PACKAGE / file).read_text()
            assert text.count(old) == 1, f"{mutant.name}: no longer applies to {file}"
            assert old != new


def fastest() -> list[Mutant]:
    """Return those that take the fewest worlds."""
    return sorted((m for m in mutants() if m.quick), key=lambda m: m.quick)[:FOUND_IN_TIME]


@pytest.mark.parametrize("mutant", fastest(), ids=lambda m: m.name)
def test_a_planted_bug_is_found_quickly(mutant: Mutant, tmp_path: Path) -> None:
    plant(mutant, tmp_path)
    found = hunt(tmp_path, mutant.quick, jobs=1)
    print(mutant.name, found)
    assert found["violations"], f"{mutant.quick} worlds did not find: {mutant.name}"


@pytest.mark.deep
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("mutant", mutants(), ids=lambda m: m.name)
def test_every_planted_bug_is_found(mutant: Mutant, tmp_path: Path) -> None:
    plant(mutant, tmp_path)
    found = hunt(tmp_path, SEEDS_MAX, jobs=2)
    print(f"{mutant.name}: after {found['seeds']} worlds, {found['violations']}")
    assert found["violations"], f"{SEEDS_MAX} worlds did not find: {mutant.name}"
