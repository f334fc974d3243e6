"""The directory of a run: found again by the same command, refused to another model's settings.

runs/2026-11-24-brave-otter/  run.json  journal.jsonl  metrics.csv  checkpoints/  latest
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from peerformer.config import Config
from peerformer.errors import ConfigError
from peerformer.settings import from_json, to_json
from peerformer.train.checkpoint import latest

RUN_FILE, LOCK = "run.json", "lock"
KIND = "train"
ADJECTIVES = (
    "amber brave calm deep eager fair gentle hardy keen lively mellow noble quick rapid".split()
)
ANIMALS = "badger beaver otter hare lynx marten mole newt seal shrew stoat vole weasel wolf".split()
# What may differ when a run is taken up again: nothing of it changes what was learned so far.
FREE = (
    "training.steps",
    "training.validate_every",
    "training.validation_sequences",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.dtype",
    "training.threads",
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run on disk; `resumed` if it was there before."""

    path: Path
    resumed: bool

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def journal(self) -> Path:
        """What happened, one JSON line each."""
        return self.path / "journal.jsonl"

    @property
    def metrics(self) -> Path:
        """Loss and speed, one row a step."""
        return self.path / "metrics.csv"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            ConfigError: if another process trains in it.
        """
        with (self.path / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    "another process is training in this run",
                    where=str(self.path),
                    hint="wait for it, or start another: --run NAME",
                ) from error
            yield


def open_run(
    name: str | None, config: Config, *, root: Path = Path("runs"), today: date | None = None
) -> RunDirectory:
    """Open a run, new or old.

    Args:
        name: a run's name or the end of it; None takes up the newest unfinished run of the very
            same settings, or begins a new one.
        config: the settings.
        root: where runs are kept.
        today: the date in a new run's name.

    Raises:
        ConfigError: if the run of that name has other settings, or is no training run.
    """
    if name is None:
        unfinished = [path for path in _runs(root) if _can_go_on(path, config)]
        if unfinished:
            newest = max(unfinished, key=lambda path: (path / RUN_FILE).stat().st_mtime)
            return RunDirectory(newest, resumed=True)
        return _create(root / _new_name(today or date.today()), config)
    found = _find(name, root)
    if found is None:
        if Path(name).name != name:
            raise ConfigError(f"{name} is not a name for a run", hint="--run my-run")
        return _create(root / name, config)
    differing = _differences(found, config)
    if differing:
        raise ConfigError(
            f"the run {found.name} has other settings",
            where=str(found / RUN_FILE),
            why="; ".join(differing[:4]),
            hint="use the same settings, or another --run name",
        )
    _write(found, config)
    return RunDirectory(found, resumed=True)


def _runs(root: Path) -> list[Path]:
    return [path.parent for path in root.glob(f"*/{RUN_FILE}")]


def _find(name: str, root: Path) -> Path | None:
    exact = root / name
    if (exact / RUN_FILE).exists():
        return exact
    ending = [path for path in _runs(root) if path.name.endswith(f"-{name}")]
    if len(ending) > 1:
        raise ConfigError(
            f"{name} is the end of several runs",
            why=", ".join(sorted(path.name for path in ending)),
            hint="give the whole name",
        )
    return ending[0] if ending else None


def _create(path: Path, config: Config) -> RunDirectory:
    path.mkdir(parents=True, exist_ok=True)
    _write(path, config)
    return RunDirectory(path, resumed=False)


def _write(path: Path, config: Config) -> None:
    temporary = path / f".{RUN_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps({"kind": KIND, "config": to_json(config)}, indent=1))
    temporary.replace(path / RUN_FILE)


def _new_name(today: date) -> str:
    return f"{today}-{secrets.choice(ADJECTIVES)}-{secrets.choice(ANIMALS)}"


def _stored(path: Path) -> Config | None:
    try:
        content = json.loads((path / RUN_FILE).read_bytes())
        return from_json(content["config"], where=str(path)) if content["kind"] == KIND else None
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def _flat(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in to_json(config).items():
        if isinstance(value, dict):
            flat |= {f"{section}.{key}": item for key, item in value.items()}
        else:
            flat[section] = value
    return {name: value for name, value in flat.items() if not name.startswith("swarm.")}


def _differences(path: Path, config: Config) -> list[str]:
    stored = _stored(path)
    if stored is None:
        return ["it is no training run of this version"]
    before, now = _flat(stored), _flat(config)
    return [
        f"{name} was {before.get(name)}, now {now[name]}"
        for name in now
        if name not in FREE and before.get(name) != now[name]
    ]


def _can_go_on(path: Path, config: Config) -> bool:
    stored = _stored(path)
    if stored is None or _flat(stored) != _flat(config):
        return False
    newest = latest(path)
    return newest is None or int(newest.name.rpartition("-")[2]) < config.training.steps
