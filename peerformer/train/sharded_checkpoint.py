"""Checkpoints of a model that ranks divide: read on any number of ranks, or made an ordinary one.

    checkpoints/step-00000100/   shard-….safetensors …   one a rank, of torch's distributed
                                                         checkpoint (DCP) as safetensors: no pickles
                                 config.json tokenizer.json  state.json

`state.json` is that of an ordinary checkpoint (see `checkpoint`). Tensors are named
`model.<parameter>` and `optimizer.<parameter>/<kind>`. `consolidate` puts the ordinary checkpoint
in its place, in one process. Writing one takes all ranks: see `cluster.saving`.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from peerformer.errors import CheckpointError
from peerformer.model.convert import config_from_hf
from peerformer.model.transformer import Transformer
from peerformer.model.weights import WEIGHTS_FILE
from peerformer.train.average import Average
from peerformer.train.checkpoint import (
    SHARD,
    checkpoints,
    latest,
    save_checkpoint,
    take_numbers,
    verify,
    write_latest,
)
from peerformer.train.loss_scale import LossScale
from peerformer.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from peerformer.train.replica import Replica

MODEL_PREFIX, OPTIMIZER_PREFIX, AVERAGE_PREFIX = "model.", "optimizer.", "average."


def is_sharded(path: Path) -> bool:
    """Tell whether a checkpoint is of a divided model."""
    return not (path / WEIGHTS_FILE).exists() and any(path.glob(f"{SHARD}*.safetensors"))


def tensors_of(replica: Replica) -> dict[str, Tensor]:
    """Return parameters and optimizer state by their names in the shards; not copies."""
    model = {MODEL_PREFIX + name: p.detach() for name, p in replica.model.named_parameters()}
    state = optimizer_tensors(replica.optimizer)
    average = replica.average.weights if replica.average is not None else {}
    return {
        **model,
        **{OPTIMIZER_PREFIX + name: tensor for name, tensor in state.items()},
        **{AVERAGE_PREFIX + name: tensor for name, tensor in average.items()},
    }


def read(path: Path, target: Callable[[str, torch.Size, torch.dtype], Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a verified checkpoint, each read into what `target` gives for it.

    Raises:
        CheckpointError: if the shards do not hold them.
    """
    try:
        reader = HuggingFaceStorageReader(str(path))
        entries = reader.read_metadata().state_dict_metadata
        tensors = {
            name: target(name, entry.size, entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        alone = not torch.distributed.is_initialized()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a single process is a single one
            load(tensors, storage_reader=reader, no_dist=alone)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            "the sharded checkpoint cannot be read", where=str(path), why=str(error).split("\n")[0]
        ) from error
    return tensors


def take(replica: Replica, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> dict[str, Any]:
    """Put what was read into a replica; returns the position that was saved with it.

    Raises:
        CheckpointError: if it is of another model or optimizer.
    """
    optimizer = {
        name.removeprefix(OPTIMIZER_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(OPTIMIZER_PREFIX)
    }
    try:
        load_optimizer_tensors(replica.optimizer, optimizer)
        with torch.no_grad():
            for name, parameter in replica.model.named_parameters():
                parameter.copy_(tensors[MODEL_PREFIX + name])
            if replica.average is not None:  # one that begins now begins with the parameters
                for name, weight in replica.average.weights.items():
                    weight.copy_(tensors.get(AVERAGE_PREFIX + name, tensors[MODEL_PREFIX + name]))
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "the sharded checkpoint is of another model or optimizer",
            why=str(error).split("\n")[0],
            hint="use the settings that it was trained with, or another --run NAME",
        ) from error
    take_numbers(replica, state["step"], state["replica"])
    position: dict[str, Any] = state["position"]
    return position


def consolidate(path: Path) -> Path:
    """Put the ordinary checkpoint in the place of a sharded one.

    Returns:
        where it is: the same path.

    Raises:
        CheckpointError: if it cannot be read, or the ordinary one not be written.
    """
    from peerformer.train.run_directory import stored_config

    state, run = verify(path), path.parent.parent
    config = stored_config(run.name, root=run.parent)
    if config is None:
        raise CheckpointError("the run's settings are missing", where=str(run / "run.json"))
    shape = config_from_hf(json.loads((path / "config.json").read_bytes()), str(path))
    model = Transformer(shape)
    optimizer = build_optimizer(model, config.optimizer)
    tensors = read(path, lambda _, size, dtype: torch.empty(size, dtype=dtype))
    averages = any(name.startswith(AVERAGE_PREFIX) for name in tensors)
    scaled = state["replica"].get("loss_scale")
    replica = Replica(
        model,
        optimizer,
        clip_norm=config.optimizer.clip_norm,
        loss_scale=LossScale(scaled[0]) if scaled else None,
        average=Average(optimizer.named, config.training.ema_decay) if averages else None,
    )
    position, newest = take(replica, tensors, state), latest(run)
    made = save_checkpoint(
        run,
        replica=replica,
        tokenizer_bytes=(path / "tokenizer.json").read_bytes(),
        position=position,
        keep=len(checkpoints(run)),
    )
    if newest is not None and newest != made:  # an older one was asked for
        write_latest(run, newest)
    return made
