"""FSDP2: parameters, gradients and optimizer divided among ranks, for models larger than one.

`fully_shard` (PyTorch FSDP2; ZeRO-3 of Rajbhandari et al., arXiv 1910.02054) gathers one layer at a
time for its forward and backward pass and scatters its gradient, averaged, when it is done. In
bfloat16 it gathers in that type and adds gradients up in float32.

Muon works on whole matrices. Of those of one shape each rank is sent some (all-to-all), works on
them alone, and sends the updates back: as much is sent as a gradient is long, and nothing is
computed twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Replicate, Shard

from peerformer.cluster.engines import TorchNumbers
from peerformer.train.muon import Muon

if TYPE_CHECKING:
    from peerformer.train.replica import Replica


class Sharded(TorchNumbers):
    """FSDP2 over all ranks."""

    name = "fsdp"

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Shard on a device; `dtype` is the type of computation, None float32."""
        self.device = device
        self._policy = MixedPrecisionPolicy(
            param_dtype=dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # rotary angles stay as exact as they are
        )
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self._model: Any = None

    def place(self, model: nn.Module) -> None:
        """Shard each layer by itself, and what is outside of layers with the whole."""
        model.to(self.device)
        layers = [m for m in model.children() if isinstance(m, nn.ModuleList)]
        for layer in (layer for group in layers for layer in group):
            fully_shard(layer, mesh=self._mesh, mp_policy=self._policy)
        fully_shard(model, mesh=self._mesh, mp_policy=self._policy)
        register_fsdp_forward_method(model, "loss")
        assert isinstance(model, FSDPModule)
        self._model = model

    def attach(self, replica: "Replica", loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Leave the loss; let Muon have its matrices whole."""
        for part in replica.optimizer.parts:
            if isinstance(part, Muon):
                part.matrices = whole_matrices
        return loss

    @contextmanager
    def passing(self, *, last: bool) -> Iterator[None]:
        """Scatter gradients in the last pass only; before it they add up unsharded."""
        self._model.set_requires_gradient_sync(last)
        yield

    def averaged(self) -> None:
        """Do nothing: the backward pass ends when all gradients are scattered."""


def whole_matrices(stacked: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the matrices of a stack that fall to this rank, and what puts updates back.

    Args:
        stacked: (N, …), each of N parameters divided among ranks.
    """
    assert isinstance(stacked, DTensor)
    mesh, before = stacked.device_mesh, stacked.placements
    # Gloo has no all-to-all: there all of it is gathered, and the rest dropped.
    by_way_of = [Replicate()] if mesh.device_type == "cpu" else before
    mine = stacked.redistribute(mesh, by_way_of).redistribute(mesh, [Shard(0)]).to_local()

    def put_back(updates: Tensor) -> Tensor:
        moved = DTensor.from_local(
            updates.contiguous(),
            mesh,
            [Shard(0)],
            run_check=False,
            shape=stacked.shape,
            stride=stacked.stride(),
        )
        if mesh.device_type == "cpu":
            moved = moved.redistribute(mesh, [Replicate()])
        return moved.redistribute(mesh, before)

    return mine, put_back
