"""Checkpoints: loadable models at every step, written whole or not at all, verified on loading.

    checkpoints/step-00000100/   model.safetensors config.json generation_config.json tokenizer.json
                                 optimizer.safetensors  state.json  [live.safetensors]
    latest                       the newest one's path, relative to the run

Where weights are averaged, `model.safetensors` is their average, which is the better model, and
`live.safetensors` are the parameters that training goes on from.

`state.json` holds the position and a BLAKE3 digest of every other file and of itself. A checkpoint
is written beside its place, fsynced, renamed, and named by `latest` last; only then are older ones
removed. Loading changes nothing before all of it is known to be whole and to fit.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peerformer.errors import CheckpointError
from peerformer.train.optimizer import load_optimizer_tensors, optimizer_tensors
from peerformer.train.replica import Replica
from peerformer.train.weight_files import has_weights, read_trained, write_trained

FOLDER, LATEST, STATE, OPTIMIZER = "checkpoints", "latest", "state.json", "optimizer.safetensors"
LIVE = "live.safetensors"
SHARD = "shard-"  # a part of a divided model, see `sharded_checkpoint`


def save_checkpoint(
    run: Path,
    *,
    replica: Replica,
    tokenizer_bytes: bytes,
    position: dict[str, Any],
    keep: int,
    spared: Path | None = None,
) -> Path:
    """Save a replica under its step.

    Args:
        run: the run directory.
        replica: model and optimizer.
        tokenizer_bytes: the content of tokenizer.json.
        position: what resuming needs besides; JSON values.
        keep: how many checkpoints stay, the newest first.
        spared: one more that stays.

    Returns:
        the checkpoint's directory.

    Raises:
        CheckpointError: if it cannot be written; earlier ones stay as they are.
    """

    def fill(folder: Path) -> None:
        with replica.averaged():
            write_trained(folder, replica.model, tokenizer_bytes)  # type: ignore[arg-type]
        if replica.average is not None:
            save_file({n: p.data for n, p in replica.optimizer.named.items()}, folder / LIVE)
        tensors = {k: v.contiguous() for k, v in optimizer_tensors(replica.optimizer).items()}
        save_file(tensors, folder / OPTIMIZER)

    return save_whole(run, fill, replica=replica, position=position, keep=keep, spared=spared)


def save_whole(
    run: Path,
    fill: Callable[[Path], None],
    *,
    replica: Replica,
    position: dict[str, Any],
    keep: int,
    spared: Path | None = None,
) -> Path:
    """Save what `fill` writes into an empty directory, with its state; whole or not at all.

    Raises:
        CheckpointError: if it cannot be written; earlier ones stay as they are.
    """
    final = checkpoint_path(run, replica.step)
    temporary, replaced = (run / FOLDER / f".{final.name}.{kind}" for kind in ("part", "old"))
    try:
        for left in (run / FOLDER).glob(".step-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        kept = kept_numbers(replica)
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
        if old not in (final, spared):
            shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return run / FOLDER / f"step-{step:08d}"


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
        weights = read_trained(path, replica.model)  # type: ignore[arg-type]
        live = _live_weights(path, state, replica)
        load_optimizer_tensors(replica.optimizer, load_file(path / OPTIMIZER))
        replica.model.load_state_dict(weights, strict=False)
    except (CheckpointError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            "the checkpoint cannot be used",
            where=str(path),
            why=f"it is of another model or optimizer: {getattr(error, 'what', error)}",
            hint="use the settings that it was trained with, or another --run NAME",
        ) from error
    take_numbers(replica, state["step"], state["replica"])
    _take_up(replica, state["replica"], live)
    position: dict[str, Any] = state["position"]
    return position


def kept_numbers(replica: Replica) -> dict[str, Any]:
    """Return the numbers of a replica but its step, as JSON values."""
    scale, average = replica.loss_scale, replica.average
    return {
        "norms": list(replica.norms),
        "skipped": replica.skipped,
        "loss_scale": None if scale is None else [scale.scale, scale.good_steps],
        "average_steps": 0 if average is None else average.steps,
    }


def take_numbers(replica: Replica, step: int, kept: dict[str, Any]) -> None:
    """Take up the step, and what `kept_numbers` gave."""
    replica.step, replica.skipped = step, kept["skipped"]
    replica.norms.clear()
    replica.norms.extend(kept["norms"])
    if replica.loss_scale is not None and kept.get("loss_scale"):
        replica.loss_scale.scale, replica.loss_scale.good_steps = kept["loss_scale"]
    if replica.average is not None:
        replica.average.steps = kept.get("average_steps", 0)


def _live_weights(path: Path, state: dict[str, Any], replica: Replica) -> dict[str, Tensor]:
    """Return the parameters that training goes on from, where they are not those of the model.

    Raises:
        ValueError: if they are of another model.
    """
    if LIVE not in state["files"]:
        return {}
    live = load_file(path / LIVE)
    shapes = {name: parameter.shape for name, parameter in replica.optimizer.named.items()}
    if shapes != {name: tensor.shape for name, tensor in live.items()}:
        raise ValueError(f"{LIVE} holds other parameters")
    return live


def _take_up(replica: Replica, kept: dict[str, Any], live: dict[str, Tensor]) -> None:
    """Take up averaged and live parameters; the model holds what its file held."""
    if replica.average is not None:  # one that begins now begins with the parameters
        replica.average.restart(replica.optimizer.named, kept.get("average_steps", 0))
    with torch.no_grad():
        for name, tensor in live.items():
            replica.optimizer.named[name].copy_(tensor)


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
            numbers &= _is_kept(state["replica"])
            sharded = any(name.startswith(SHARD) for name in files)
            return numbers and (sharded or (OPTIMIZER in files and has_weights(set(files))))
    return False


def _is_kept(kept: dict[str, Any]) -> bool:
    """Whether what is kept of loss scale and average is of its kind; older versions kept none."""
    match kept.get("loss_scale"):
        case None | [int() | float(), int()]:
            return isinstance(kept.get("average_steps", 0), int)
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
