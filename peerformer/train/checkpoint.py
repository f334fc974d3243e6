"""Checkpoints: loadable models at every step, written whole or not at all, verified on loading.

    checkpoints/step-00000100/   model.safetensors config.json generation_config.json tokenizer.json
                                 optimizer.safetensors  state.json
    latest                       the newest one's path, relative to the run

`state.json` holds the position and a BLAKE3 digest of every other file and of itself. A checkpoint
is written beside its place, fsynced, renamed, and named by `latest` last; only then are older ones
removed. Loading changes nothing before all of it is known to be whole and to fit.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peerformer.errors import CheckpointError
from peerformer.model.convert import from_hf_state, save_model
from peerformer.train.optimizer import load_optimizer_tensors, optimizer_tensors
from peerformer.train.replica import Replica

FOLDER, LATEST, STATE, OPTIMIZER = "checkpoints", "latest", "state.json", "optimizer.safetensors"
MODEL = "model.safetensors"


def save_checkpoint(
    run: Path, *, replica: Replica, tokenizer_bytes: bytes, position: dict[str, Any], keep: int
) -> Path:
    """Save a replica under its step.

    Args:
        run: the run directory.
        replica: model and optimizer.
        tokenizer_bytes: the content of tokenizer.json.
        position: what resuming needs besides; JSON values.
        keep: how many checkpoints stay, the newest first.

    Returns:
        the checkpoint's directory.

    Raises:
        CheckpointError: if it cannot be written; earlier ones stay as they are.
    """
    final = run / FOLDER / f"step-{replica.step:08d}"
    temporary, replaced = (run / FOLDER / f".{final.name}.{kind}" for kind in ("part", "old"))
    try:
        for left in (run / FOLDER).glob(".step-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_model(temporary, replica.model, tokenizer_bytes)  # type: ignore[arg-type]
        tensors = {k: v.contiguous() for k, v in optimizer_tensors(replica.optimizer).items()}
        save_file(tensors, temporary / OPTIMIZER)
        files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        kept = {"norms": list(replica.norms), "skipped": replica.skipped}
        state = {"step": replica.step, "replica": kept, "position": position, "files": files}
        state["digest"] = _state_digest(state)
        (temporary / STATE).write_text(json.dumps(state, indent=1))
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        _sync(final.parent)
        write_latest(run, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        raise CheckpointError(
            f"the checkpoint of step {replica.step} could not be saved",
            where=str(final),
            why=getattr(error, "strerror", None) or str(error),
            hint="make room on the disk; earlier checkpoints are untouched",
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)
    for old in checkpoints(run)[keep:]:
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    return sorted((run / FOLDER).glob("step-*"), reverse=True)


def latest(run: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None if it has none."""
    try:
        return run / (run / LATEST).read_text().strip()
    except OSError:
        return None


def write_latest(run: Path, checkpoint: Path) -> None:
    """Name the newest checkpoint."""
    temporary = run / f".{LATEST}.{os.getpid()}"
    temporary.write_text(f"{checkpoint.relative_to(run)}\n")
    _sync(temporary)
    temporary.replace(run / LATEST)
    _sync(run)


def load_checkpoint(path: Path, replica: Replica) -> dict[str, Any]:
    """Load a checkpoint into a replica, after all of it has been verified.

    Returns:
        the position that was saved with it.

    Raises:
        CheckpointError: if a file is missing, cut, changed or of another model; it names the file
            and, if an older checkpoint is whole, how to go on from that.
    """
    state = verify(path)
    try:
        parameters = load_file(path / MODEL)
        loaded = from_hf_state(parameters, replica.model.config)  # type: ignore[arg-type]
        load_optimizer_tensors(replica.optimizer, load_file(path / OPTIMIZER))
        replica.model.load_state_dict(loaded.state_dict())
    except (CheckpointError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            "the checkpoint cannot be used",
            where=str(path),
            why=f"it is of another model or optimizer: {getattr(error, 'what', error)}",
            hint="use the settings that it was trained with, or another --run NAME",
        ) from error
    replica.step, replica.skipped = state["step"], state["replica"]["skipped"]
    replica.norms.clear()
    replica.norms.extend(state["replica"]["norms"])
    position: dict[str, Any] = state["position"]
    return position


def verify(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint all of whose files are as they were written.

    Raises:
        CheckpointError: if one is not.
    """
    try:
        return _whole_state(path)
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error


def _whole_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state; ValueError says which file is not as it was written."""
    try:
        state = json.loads((path / STATE).read_bytes())
        is_whole = state["digest"] == _state_digest(state)
    except FileNotFoundError as error:
        raise ValueError(f"{STATE} is missing") from error
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{STATE} cannot be read: {error}") from error
    if not is_whole:
        raise ValueError(f"{STATE} is not as it was written: changed")
    if not _is_complete(state):
        raise ValueError(f"{STATE} does not hold what a checkpoint holds")
    for name, digest in state["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise ValueError(f"{name} is missing")
        if _digest(file) != digest:
            raise ValueError(f"{name} is not as it was written: cut short or changed")
    return dict(state)


def _is_complete(state: dict[str, Any]) -> bool:
    """Whether all that loading reads is there and of its kind; anybody can make a digest fit."""
    match state:
        case {
            "step": int(),
            "replica": {"norms": list(norms), "skipped": int()},
            "position": dict(),
            "files": dict(files),
        }:
            numbers = all(isinstance(norm, int | float) for norm in norms)
            return numbers and {MODEL, OPTIMIZER} <= files.keys()
    return False


def _unusable(path: Path, why: str) -> CheckpointError:
    run = path.parent.parent
    hint = None
    for older in checkpoints(run):
        if older.name < path.name and _is_whole(older):
            hint = f"echo {older.relative_to(run)} > {run / LATEST}   (goes on from there)"
            break
    return CheckpointError(
        "the checkpoint cannot be used",
        where=str(path),
        why=why,
        hint=hint or "no older checkpoint is whole: train anew under another --run name",
    )


def _is_whole(path: Path) -> bool:
    try:
        return bool(_whole_state(path))
    except (ValueError, OSError):
        return False


def _state_digest(state: dict[str, Any]) -> str:
    rest = {key: value for key, value in state.items() if key != "digest"}
    return blake3(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    hasher = blake3()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
