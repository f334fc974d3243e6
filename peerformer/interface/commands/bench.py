"""`peerformer bench robustness`: which attacks are withstood, by the scripts beside the package."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

from cyclopts import Parameter

import peerformer
from peerformer.errors import ConfigError

FOLDER = Path(peerformer.__file__).resolve().parents[1] / "benchmarks"


def robustness(
    *,
    small: Annotated[bool, Parameter(negative=(), help="A grid of minutes (the default).")] = False,
    shipped: Annotated[
        bool, Parameter(negative=(), help="The default rule and filter, 8 to 16 peers, 3 seeds.")
    ] = False,
    full: Annotated[bool, Parameter(negative=(), help="All of it: days of one core.")] = False,
    jobs: Annotated[int, Parameter(help="Processes, a core each.")] = 1,
    out: Annotated[
        Path | None, Parameter(help="Folder of the results; else runs/robustness-GRID.")
    ] = None,
    docs: Annotated[
        bool, Parameter(negative=(), help="Put the table into docs/robustness.md.")
    ] = False,
) -> None:
    """Attacks on learning against rules and codecs; the same command goes on where it stopped."""
    if small + shipped + full > 1:
        raise ConfigError("--small, --shipped and --full are three grids", hint="one of them")
    if jobs < 1:
        raise ConfigError("--jobs is 1 or more")
    script = _script("robustness")
    grid = script.FULL if full else script.SHIPPED if shipped else script.SMALL
    folder = out or Path("runs") / f"robustness-{grid.name}"
    script.run(grid, folder, jobs=jobs, docs=script.DOCS if docs else None)
    print(folder / "table.md", folder / "heatmap.png", folder / "heatmap.svg", sep="\n")


def _script(name: str) -> ModuleType:
    """Return a benchmark of the source tree.

    Raises:
        ConfigError: this package was installed without it.
    """
    if not (FOLDER / f"{name}.py").is_file():
        raise ConfigError(
            "the benchmarks are not part of the installed package",
            where=str(FOLDER),
            hint="run this in the source tree, in the environment that `make` sets up there",
        )
    sys.path.append(str(FOLDER))  # by name, so that other processes find it too
    return import_module(name)
