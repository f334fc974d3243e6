"""Saving and loading a model that ranks divide: each rank its part, rank 0 what is beside it.

The directory appears whole or not at all, as an ordinary checkpoint does: all ranks write beside
its place, and rank 0 renames it and names it in `latest`. All ranks must see the same directory.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
from torch.distributed.tensor import DTensor, distribute_tensor

from peerformer.config import OptimizerConfig
from peerformer.model.convert import save_configuration
from peerformer.model.transformer import Transformer
from peerformer.train.average import Average
from peerformer.train.checkpoint import kept_numbers, load_checkpoint, save_whole, verify
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica
from peerformer.train.sharded_checkpoint import (
    OPTIMIZER_PREFIX,
    is_sharded,
    read,
    take,
    tensors_of,
)

if TYPE_CHECKING:
    from peerformer.cluster.group import Group


def save_sharded(
    group: "Group",
    run: Path,
    *,
    replica: Replica,
    tokenizer_bytes: bytes,
    position: dict[str, Any],
    keep: int,
    spared: Path | None = None,
) -> Path:
    """Save a divided replica under its step; see `checkpoint.save_checkpoint`.

    Raises:
        CheckpointError: on a rank that cannot write; earlier checkpoints stay as they are.
    """
    tensors = tensors_of(replica)

    def write(folder: Path) -> None:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))

    def fill(folder: Path) -> None:
        group.told(str(folder))
        write(folder)
        assert isinstance(replica.model, Transformer)
        save_configuration(folder, replica.model, tokenizer_bytes)

    if group.rank == 0:
        made = save_whole(run, fill, replica=replica, position=position, keep=keep, spared=spared)
        return Path(group.told(str(made)))
    write(Path(group.told(None)))
    return Path(group.told(None))


def load_sharded(group: "Group", path: Path, replica: Replica) -> dict[str, Any]:
    """Load a checkpoint, sharded on any number of ranks or ordinary, into a divided replica.

    Raises:
        CheckpointError: if it is damaged, or of another model or optimizer.
    """
    if not is_sharded(path):
        return _load_ordinary(group, path, replica)
    state = group.told(verify(path) if group.rank == 0 else None)
    parameters = dict(replica.model.named_parameters())

    def target(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        _, _, owner = name.partition(".")
        if name.startswith(OPTIMIZER_PREFIX):
            owner = owner.rpartition("/")[0]
        parameter = parameters.get(owner)
        if parameter is None or parameter.shape != size:  # a scalar, or refused when it is taken
            return torch.empty(size, dtype=dtype)
        return torch.empty_like(parameter, dtype=dtype)

    return take(replica, read(path, target), state)


def _load_ordinary(group: "Group", path: Path, replica: Replica) -> dict[str, Any]:
    """Read all of it on every rank, and keep what falls to this one."""
    model = Transformer(replica.model.config)  # type: ignore[arg-type]
    settings: OptimizerConfig = replica.optimizer.config
    optimizer = build_optimizer(model, settings)
    whole = Replica(
        model,
        optimizer,
        clip_norm=replica.clip_norm,
        average=Average(optimizer.named, replica.average.decay) if replica.average else None,
        loss_scale=replica.loss_scale,
    )
    position = load_checkpoint(path, whole)
    like = dict(replica.model.named_parameters())

    def divided(name: str, tensor: Tensor) -> Tensor:
        parameter = like[name]
        if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
            return tensor
        # From what this rank has read itself: nothing is sent.
        mesh, places = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor.to(parameter.device), mesh, places, src_data_rank=None)

    tensors = {
        key: divided(key.partition(".")[2].partition("/")[0], tensor)
        for key, tensor in tensors_of(whole).items()
    }
    state = {"step": whole.step, "replica": kept_numbers(whole), "position": position}
    return take(replica, tensors, state)
