"""The directory of a run: found again by the same command, refused to another model's settings.

runs/2026-11-24-brave-otter/  run.json  journal.jsonl  metrics.csv  checkpoints/  latest
"""

import fcntl
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from blake3 import blake3

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
# What must be as it was when a run is taken up again: the model, the text, and which of the text
# each step sees. Everything else may change, such as a run that goes on for more steps.
FIXED = (
    "size",
    "family",
    "model.",
    "data.",
    "optimizer.name",
    "training.seed",
    "training.batch_size",
    "training.sequence_length",
    "training.base",
    "training.quantise",
    "lora.",
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run on disk.

    Attributes:
        path: where it is.
        resumed: it was there before.
        finished: the name of the run of these settings that is done, if that is why this is new.
    """

    path: Path
    resumed: bool
    finished: str | None = None

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

    def record(self, config: Config) -> None:
        """Write the settings down; to be called by who holds the run."""
        settings = to_json(config)
        digest = blake3(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        temporary = self.path / f".{RUN_FILE}.{os.getpid()}"
        content = {"kind": KIND, "config": settings, "digest": digest}
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self.path / RUN_FILE)


def open_run(
    name: str | None,
    config: Config,
    *,
    root: Path = Path("runs"),
    today: date | None = None,
    chance: random.Random | None = None,
) -> RunDirectory:
    """Open a run, new or old.

    Args:
        name: a run's name or the end of it; None takes up the newest unfinished run of the very
            same settings, or begins a new one.
        config: the settings.
        root: where runs are kept.
        today: the date in a new run's name.
        chance: what chooses a new run's name.

    Raises:
        ConfigError: if the run of that name has other settings, or is no training run.
    """
    if name is None:
        same = [path for path in _runs(root) if _flat(_stored(path)) == _flat(config)]
        same.sort(key=lambda path: (path / RUN_FILE).stat().st_mtime_ns)
        unfinished = [path for path in same if _steps_done(path) < config.training.steps]
        if unfinished:
            return RunDirectory(unfinished[-1], resumed=True)
        path = _new_path(root, today or date.today(), chance or random.SystemRandom())
        return _create(path, config, finished=same[-1].name if same else None)
    found = _find(name, root)
    if found is None:
        return _create(root / name, config)
    differing = _differences(found, config)
    if differing:
        raise ConfigError(
            f"the run {found.name} has other settings",
            where=str(found / RUN_FILE),
            why="; ".join(differing[:4]),
            hint="use the same settings, or another --run name",
        )
    return RunDirectory(found, resumed=True)


def stored_config(name: str, *, root: Path = Path("runs")) -> Config | None:
    """Return the settings that a run was last trained with, or None if there is no such run.

    Raises:
        ConfigError: if the name is the end of several.
    """
    found = _find(name, root)
    return None if found is None else _stored(found)


def _runs(root: Path) -> list[Path]:
    return [path.parent for path in root.glob(f"*/{RUN_FILE}")]


def _find(name: str, root: Path) -> Path | None:
    if Path(name).name != name or name in ("", ".."):
        raise ConfigError(f"{name!r} is not a name for a run", hint="--run my-run")
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


def _create(path: Path, config: Config, finished: str | None = None) -> RunDirectory:
    path.mkdir(parents=True, exist_ok=True)
    created = RunDirectory(path, resumed=False, finished=finished)
    created.record(config)
    return created


def _new_path(root: Path, today: date, chance: random.Random) -> Path:
    """Return a name that is free: two words, and a number once a day has used them up."""
    free = [
        path
        for adjective in ADJECTIVES
        for animal in ANIMALS
        if not (path := root / f"{today}-{adjective}-{animal}").exists()
    ]
    if free:
        return chance.choice(free)
    return root / f"{today}-{chance.choice(ADJECTIVES)}-{chance.choice(ANIMALS)}-{len(_runs(root))}"


def _stored(path: Path) -> Config | None:
    try:
        content = json.loads((path / RUN_FILE).read_bytes())
        return from_json(content["config"], where=str(path)) if content["kind"] == KIND else None
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def _flat(config: Config | None) -> dict[str, Any]:
    if config is None:
        return {}
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
        f"{name} was {before[name]}, now {now[name]}"
        for name in now
        if name.startswith(FIXED) and before[name] != now[name]
    ]


def _steps_done(path: Path) -> int:
    newest = latest(path)
    digits = "" if newest is None else newest.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0
