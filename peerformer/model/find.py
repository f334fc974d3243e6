"""Where a checkpoint is: by its directory, by its run, or by the end of a run's name.

A run's file `latest` holds the relative path of its newest checkpoint; a swarm's run on one
machine holds its peers' runs under `peers/`. Nothing outside the run is followed.

Knows nothing about what a checkpoint holds, but that a `config.json` is in it, or the configuration
of an adapter, whose model then lies in the run's folder `base`.
"""

import re
from pathlib import Path, PurePosixPath

from peerformer.allowed import shown
from peerformer.errors import CheckpointError

RUNS = Path("runs")
LATEST = "latest"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
BASE = "base"  # of a run: the model that its training started from
LATEST_BYTES_MAX = 4_096  # the longest path that Linux takes
LISTED_MAX = 8  # runs or checkpoints named in an error


def resolve_checkpoint(path_or_run_name: Path | str | None, runs: Path = RUNS) -> Path:
    """The directory of a checkpoint.

    Args:
        path_or_run_name: a checkpoint, a run, or the name of a run under `runs`, in full or its
            end ("brave-otter" for "2026-11-24-brave-otter"); None takes the newest run.
        runs: where runs are.

    Raises:
        CheckpointError: there is none, or several fit; what is there is listed.
    """
    names = _run_names(runs)
    if path_or_run_name is None:
        if not names:
            raise CheckpointError(
                "no run has saved a checkpoint yet", where=str(runs), hint="peerformer train"
            )
        return _newest_of_run(runs / names[0])
    path, name = Path(path_or_run_name), str(path_or_run_name)
    try:
        if _is_checkpoint(path):
            return path
        if path.is_dir():
            return _newest_of_run(path)
    except OSError as error:  # a name that is too long, or a directory that may not be read
        raise CheckpointError(
            f"{shown(name)} cannot be opened as a checkpoint", why=error.strerror
        ) from error
    fitting = [n for n in names if n == name] or [n for n in names if n.endswith(f"-{name}")]
    if len(fitting) == 1:
        return _newest_of_run(runs / fitting[0])
    raise CheckpointError(
        f"{len(fitting)} runs are named {name!r}" if fitting else f"there is no run {name!r}",
        where=str(runs),
        why=_listed("the runs there", fitting or names),
        hint="name a run, or the directory of a checkpoint",
    )


def base_of_adapter(directory: Path) -> Path:
    """The directory of the model that a run's adapter belongs to.

    Raises:
        CheckpointError: the adapter does not lie in a run.
    """
    base = directory.absolute().parent.parent / BASE
    if not (base / CONFIG).is_file():
        raise CheckpointError(
            "this is an adapter, and the model that it adapts is not beside it",
            where=str(directory),
            why=f"in a run it lies in {BASE}/",
            hint=f"peerformer export {directory} --base MODEL --to DIRECTORY",
        )
    return base


def _is_checkpoint(path: Path) -> bool:
    return (path / CONFIG).is_file() or (path / ADAPTER_CONFIG).is_file()


def _newest_of_run(run: Path) -> Path:
    """The newest checkpoint of a run, or of any peer of a swarm's run."""
    found = [(run, text) for text in [_latest(run)] if text is not None]
    if not found:
        peers = sorted((run / "peers").iterdir()) if (run / "peers").is_dir() else []
        found = [(peer, text) for peer in peers if (text := _latest(peer)) is not None]
    present = sorted(p.name for p in run.glob("checkpoints/*") if _is_checkpoint(p))
    if not found:
        raise CheckpointError(
            "this is neither a checkpoint nor a run that has saved one",
            where=str(run),
            why=_listed("checkpoints there", present),
            hint=f"{run}/checkpoints/{present[-1]}" if present else "name another run",
        )
    owner, text = max(found, key=lambda item: int((re.findall(r"\d+", item[1]) or [0])[-1]))
    relative = PurePosixPath(text)
    checkpoint = owner / relative
    outside = relative.is_absolute() or ".." in relative.parts
    if outside or not text or not _is_checkpoint(checkpoint):
        raise CheckpointError(
            f"the newest checkpoint that the run names ({shown(text)}) is not there",
            where=str(owner / LATEST),
            why=_listed("checkpoints there", present),
            hint=f"{run}/checkpoints/{present[-1]}" if present else None,
        )
    return checkpoint


def _latest(run: Path) -> str | None:
    """What a run's `latest` says; None where there is none."""
    try:
        with (run / LATEST).open("rb") as file:
            return file.read(LATEST_BYTES_MAX).decode().strip()
    except UnicodeDecodeError as error:
        raise CheckpointError("`latest` is damaged", where=str(run / LATEST)) from error
    except OSError:
        return None


def _run_names(runs: Path) -> list[str]:
    """Runs with a checkpoint, the newest first."""
    saved = {
        latest.relative_to(runs).parts[0]: latest.stat().st_mtime_ns
        for pattern in (f"*/{LATEST}", f"*/peers/*/{LATEST}")
        for latest in runs.glob(pattern)
    }
    return sorted(saved, key=lambda name: (saved[name], name), reverse=True)


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return f"{what}: {', '.join(names[:LISTED_MAX]) or 'none'}{more}"
