"""Which layer it was: where a forward or backward pass first gives what is no finite number.

A pass is made once more with hooks on every module and parameter, so that training itself carries
none. The first module in the order of computation is named whose output is not finite though its
input is; if the whole forward pass is finite, the parameter nearest to the loss whose gradient is
not. Costs a pass, and the gradients that were there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def first_not_finite(model: nn.Module, run_pass: Callable[[], object]) -> str | None:
    """Say what is not finite first in a pass, or None if all of it is finite.

    Args:
        model: the module that `run_pass` computes with.
        run_pass: makes the forward and the backward pass.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the parameter {name}"
    outputs: list[str] = []
    gradients: list[str] = []
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(partial(_look, outputs, name)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hook = partial(_look_at_gradient, gradients, name)
            handles.append(parameter.register_hook(hook))
    try:
        run_pass()
    finally:
        for handle in handles:
            handle.remove()
    if outputs:
        return f"the output of {outputs[0]}"
    return f"the gradient of {gradients[0]}" if gradients else None


def _look(found: list[str], name: str, module: nn.Module, given: Any, output: Any) -> None:
    if not found and not all(_is_finite(tensor) for tensor in _tensors(output)):
        found.append(name)


def _look_at_gradient(found: list[str], name: str, gradient: Tensor) -> None:
    if not _is_finite(gradient):
        found.append(name)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
