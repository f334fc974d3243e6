"""What carries gradients and numbers between ranks: DDP or FSDP2 over torch, or MPI itself.

All three leave in every parameter the average of the ranks' gradients, and differ in how:

- *DDP* (Li et al., arXiv 2006.15704) all-reduces buckets of gradients while the rest of the
  backward pass goes on; every rank holds the whole model.
- *FSDP2* (`sharded`) divides parameters, gradients and optimizer among ranks.
- *MPI* fills the same kind of buckets and gives them to `MPI_Iallreduce`, for fabrics that an MPI
  knows best.

Passes of an accumulated step add up on each rank; only the last one is sent.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from peerformer.train.replica import Replica

BUCKET_BYTES = 25 << 20  # as DDP's: long enough for the wire's speed, short enough to overlap
MEGABYTE = 1 << 20


class Engine(Protocol):
    """How ranks train together."""

    name: str

    def mean(self, numbers: list[float]) -> list[float]:
        """Return the averages of numbers over all ranks."""

    def add_up(self, tensor: Tensor) -> None:
        """Put the sums over all ranks in the place of a tensor's values."""

    def broadcast(self, tensor: Tensor) -> None:
        """Give rank 0's values to all ranks, in place."""

    def place(self, model: nn.Module) -> None:
        """Put a model where it is trained."""

    def attach(self, replica: "Replica", loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the loss by which the replica's gradients become averages."""

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Surround a pass."""

    def averaged(self) -> None:
        """Return once all gradients are averages."""


class TorchNumbers:
    """Small collectives over torch's own process group, on the CPU."""

    def mean(self, numbers: list[float]) -> list[float]:
        """Return the averages of numbers over all ranks."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return [value / dist.get_world_size() for value in sums.tolist()]

    def add_up(self, tensor: Tensor) -> None:
        """Put the sums over all ranks in the place of a tensor's values."""
        dist.all_reduce(tensor)

    def broadcast(self, tensor: Tensor) -> None:
        """Give rank 0's values to all ranks, in place."""
        dist.broadcast(tensor, 0)


class _Loss(nn.Module):
    """A model whose forward is its loss: DDP looks after what goes through `forward`."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *batch: Tensor, **more: Tensor) -> Tensor:
        """The loss of a batch."""
        return self._loss(*batch, **more)


class DataParallel(TorchNumbers):
    """DDP, with its own bucketing and overlap."""

    name = "ddp"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def place(self, model: nn.Module) -> None:
        """Move the model to this rank's device."""
        model.to(self.device)

    def attach(self, replica: "Replica", loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap the loss."""
        self._wrapped = nn.parallel.DistributedDataParallel(
            _Loss(replica.model, loss),
            bucket_cap_mb=BUCKET_BYTES / MEGABYTE,
            forward_sync_buffers=False,  # none of ours is a statistic of the data
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )
        return self._wrapped

    def passing(self, *, last: bool) -> AbstractContextManager[object]:
        """Send in the last pass only."""
        return nullcontext() if last else self._wrapped.no_sync()

    def averaged(self) -> None:
        """Do nothing: the backward pass ends when all buckets have come."""


class MessagePassing:
    """Bucketed all-reduce over MPI."""

    name = "mpi"

    def __init__(self, comm: Any, device: torch.device, *, gpu_aware: bool = False) -> None:
        from mpi4py import MPI

        self._mpi, self.comm, self.device = MPI, comm, device
        self._gpu_aware = gpu_aware and device.type == "cuda"
        self._buckets: list[list[nn.Parameter]] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._waiting: list[int] = []  # parameters without a gradient yet, by bucket
        self._sent: list[tuple[Tensor, Tensor, Any]] = []
        self._is_last = False

    def mean(self, numbers: list[float]) -> list[float]:
        """Return the averages of numbers over all ranks."""
        sums = np.array(numbers, dtype=np.float64)
        self.comm.Allreduce(self._mpi.IN_PLACE, sums)
        return [float(value) / self.comm.Get_size() for value in sums]

    def add_up(self, tensor: Tensor) -> None:
        """Put the sums over all ranks in the place of a tensor's values."""
        data = tensor.detach().cpu().contiguous()
        self.comm.Allreduce(self._mpi.IN_PLACE, data.numpy())
        if data.data_ptr() != tensor.data_ptr():
            tensor.copy_(data)

    def broadcast(self, tensor: Tensor) -> None:
        """Give rank 0's values to all ranks, in place."""
        data = tensor.detach().cpu().contiguous()
        self.comm.Bcast(data.reshape(-1).view(torch.uint8).numpy(), root=0)
        tensor.detach().copy_(data)

    def place(self, model: nn.Module) -> None:
        """Move the model to this rank's device."""
        model.to(self.device)

    def attach(self, replica: "Replica", loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Fill buckets as gradients come, from the last layer to the first."""
        size = BUCKET_BYTES
        for parameter in reversed(list(replica.optimizer.named.values())):
            size += parameter.numel() * parameter.element_size()
            if size > BUCKET_BYTES or parameter.dtype != self._buckets[-1][0].dtype:
                self._buckets.append([])
                size = parameter.numel() * parameter.element_size()
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            parameter.register_post_accumulate_grad_hook(self._came)
        self._begin()
        for parameter in replica.model.parameters():
            self.broadcast(parameter)
        return loss

    @contextmanager
    def passing(self, *, last: bool) -> Iterator[None]:
        """Send in the last pass only."""
        self._is_last = last
        yield
        self._is_last = False

    def averaged(self) -> None:
        """Send what no gradient came for, wait for everything, and put it in its place."""
        for index in range(len(self._sent), len(self._buckets)):
            self._send(index)
        size = self.comm.Get_size()
        for bucket, (flat, staged, request) in zip(self._buckets, self._sent, strict=True):
            request.Wait()
            if staged is not flat:
                flat.copy_(staged)
            flat /= size
            pieces = flat.split([parameter.numel() for parameter in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)
        self._begin()

    def _begin(self) -> None:
        self._waiting, self._sent = [len(bucket) for bucket in self._buckets], []

    def _came(self, parameter: Tensor) -> None:
        if not self._is_last:
            return
        assert isinstance(parameter, nn.Parameter)
        self._waiting[self._bucket_of[parameter]] -= 1
        # In order, as every rank must send the same bucket next.
        while len(self._sent) < len(self._buckets) and not self._waiting[len(self._sent)]:
            self._send(len(self._sent))

    def _send(self, index: int) -> None:
        gradients = [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1)
            for p in self._buckets[index]
        ]
        flat = torch.cat(gradients)
        staged = flat if self._gpu_aware else flat.cpu()
        if self._gpu_aware:
            torch.cuda.current_stream().synchronize()  # MPI does not know of streams
        buffer = staged if self._gpu_aware else staged.numpy()
        self._sent.append((flat, staged, self.comm.Iallreduce(self._mpi.IN_PLACE, buffer)))
