"""What a training step needs of memory, found by taking one without memory.

A model of a few layers takes a step on fake tensors, which have shapes and no values, and a ledger
counts what is alive after each operation. All of it grows by the same amount with each further
layer, so that two small models tell the large one: weights, gradients and the optimizer's state
exactly, the peak as well as the allocator would count it, the temporary tensors of each operation
included.

What is not in it: Python and the libraries, buffers inside of a kernel, the text, and what other
parts of a run keep beside the replica, such as averaged weights.

Source: none; shape propagation is PyTorch's `FakeTensorMode`.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from peerformer.config import ModelConfig, OptimizerConfig, TrainingConfig
from peerformer.model.recompute import recompute
from peerformer.model.transformer import Transformer, parameter_shapes
from peerformer.train.optimizer import build_optimizer, optimizer_tensors

PASSES_MAX = 2  # accumulation: the second pass has gradients beside it, and so have all later ones


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step; `peak_bytes` is None where the model's shapes depend on its data.

    Attributes:
        weights_bytes: all parameters.
        gradients_bytes: one for each parameter.
        optimizer_bytes: the optimizer's state.
        peak_bytes: the most that is alive at once, weights, gradients and state included.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    peak_bytes: int | None


def step_memory(
    model: ModelConfig,
    training: TrainingConfig,
    optimizer: OptimizerConfig,
    autocast_dtype: torch.dtype | None = None,
) -> StepMemory:
    """What a step of training needs; `model.vocab_size` must be known."""
    kinds = list(dict.fromkeys(model.layer_kinds))
    few = max(2, len(kinds))  # the first layer and the last differ: one is freed last

    def traced(layers: int) -> _Marks:
        shape = replace(model, num_layers=layers, attention_layers=",".join(kinds))
        return _trace(shape, training, optimizer, autocast_dtype)

    weights = 4 * sum(math.prod(shape) for shape in parameter_shapes(model).values())

    def without_peak() -> StepMemory:
        state = _trace(model, training, optimizer, autocast_dtype, computes=False).optimizer
        return StepMemory(weights, weights, state, None)

    if model.sparse_layers:
        return without_peak()  # how many tokens each expert gets is known with the text only
    try:
        if model.num_layers <= few + 1:
            marks = _trace(model, training, optimizer, autocast_dtype)
        else:
            marks = _extrapolate(traced(few), traced(few + 1), model.num_layers - few)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return without_peak()
    peak = max(marks.first_backward, marks.last_backward, marks.step)
    return StepMemory(weights, weights, marks.optimizer, peak)


@dataclass(frozen=True)
class _Marks:
    """Bytes that are linear in the number of layers: the state, and the peaks of three phases."""

    optimizer: int
    first_backward: int  # up to the last layer's backward pass, which comes first
    last_backward: int
    step: int


def _extrapolate(small: _Marks, larger: _Marks, layers: int) -> _Marks:
    pairs = zip(astuple(small), astuple(larger), strict=True)
    return _Marks(*(one + layers * (other - one) for one, other in pairs))


class _Ledger(TorchDispatchMode):
    """Counts the bytes of the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self.bytes = 0
        self.peak_bytes = 0

    def enter(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._alive:
            return
        self._alive[storage._cdata] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._leave, storage._cdata)

    def _leave(self, key: int) -> None:
        self.bytes -= self._alive.pop(key)

    def take_peak(self) -> int:
        """The peak since the last call."""
        peak, self.peak_bytes = self.peak_bytes, self.bytes
        return peak

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.enter, output)
        return output


def _trace(
    shape: ModelConfig,
    training: TrainingConfig,
    config: OptimizerConfig,
    autocast_dtype: torch.dtype | None,
    *,
    computes: bool = True,
) -> _Marks:
    """Take one step of a model without memory; without `computes`, of the optimizer alone."""
    with torch.device("meta"):
        model = Transformer(shape)
    recompute(model, training.checkpoint_activations)
    rows = training.batch_size // training.accumulation
    with FakeTensorMode(), _Ledger() as ledger:
        _materialise(model, ledger.enter)
        optimizer = build_optimizer(model, config)
        first_backward = last_backward = 0
        peaks: list[int] = []

        def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            inputs[0].register_hook(lambda gradient: peaks.append(ledger.take_peak()))

        model.layers[-1].register_forward_pre_hook(watch)
        for _ in range(min(training.accumulation, PASSES_MAX) if computes else 0):
            tokens_BT = torch.zeros(rows, training.sequence_length, dtype=torch.long)
            ledger.take_peak()
            with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
                loss = model.loss(tokens_BT, tokens_BT)
            loss.backward()
            first_backward, last_backward = peaks[-1], ledger.take_peak()
            del loss, tokens_BT
        for parameter in model.parameters() if not computes else ():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step(1.0, autocast_dtype)
        step = ledger.take_peak()
        state = sum(tensor.nbytes for tensor in optimizer_tensors(optimizer).values())
    return _Marks(state, first_backward, last_backward, step)


def _materialise(model: nn.Module, enter: Callable[[Tensor], None]) -> None:
    """Give a model of the meta device fake tensors of the CPU, whose kernels will be asked."""
    for module in model.modules():
        named: dict[str, Any] = {**module._parameters, **module._buffers}
        for name, old in named.items():
            if old is None:
                continue
            new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
            enter(new)
            if isinstance(old, nn.Parameter):
                module._parameters[name] = nn.Parameter(new)
            else:
                module._buffers[name] = new
