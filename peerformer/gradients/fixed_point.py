"""The agreed state: 32-bit fixed point, so that every peer computes the same bits.

A parameter is a signed 32-bit integer in units of 2^-24 and saturates at its limits. Floating-point
sums depend on their order, and so on threads and processors; integer sums do not. Hence everything
that peers must agree on is integer arithmetic with one rounding rule, floor (an arithmetic shift).
Floats appear only at the border: `to_fixed` when a run is founded, `to_float` to train from the
state. The outer step is SGD with (Nesterov) momentum on pseudo-gradients, as in DiLoCo (Douillard
et al., arXiv 2311.08105). This module knows neither models nor messages.

Shape suffix: `P` parameters, flattened in the order of the layout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peerformer.gradients.threads import shared_out

FRACTION_BITS = 24  # a parameter reaches 128 and has the resolution of a float32 near 1
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
NORMS_MAX = 16  # accepted update norms that the state remembers; enough for a steady median
CHUNK = 16_384  # coordinates worked on at once: the few arrays in use stay in a core's cache

_HALF_BITS = 31  # a product of two int32 is summed in two halves, neither of which overflows


@dataclass(frozen=True)
class Layout:
    """How a model's parameters lie in one flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, named_parameters: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of these parameters, in the mapping's order."""
        shapes = tuple(tuple(parameter.shape) for parameter in named_parameters.values())
        return cls(tuple(named_parameters), shapes)

    @property
    def size(self) -> int:
        """The number of parameters, P."""
        return sum(prod(shape) for shape in self.shapes)

    def split(self, flat_P: Tensor) -> dict[str, Tensor]:
        """Return a view of each parameter, by name.

        Raises:
            ValueError: the vector has not P elements.
        """
        if flat_P.shape != (self.size,):
            raise ValueError(f"expected {self.size} parameters, got shape {tuple(flat_P.shape)}")
        pieces = torch.split(flat_P, [prod(shape) for shape in self.shapes])
        shaped = zip(self.names, pieces, self.shapes, strict=True)
        return {name: piece.view(shape) for name, piece, shape in shaped}


def to_fixed(value_P: Tensor) -> Tensor:
    """Return floats as int32 in units of 2^-24: half to even, saturating.

    Raises:
        ValueError: a value is not a number.
    """
    flat = value_P.detach().reshape(-1)
    fixed = torch.empty(flat.shape, dtype=torch.int32)
    for start in range(0, len(flat), CHUNK):
        part = slice(start, start + CHUNK)
        wide = flat[part].double().mul_(2.0**FRACTION_BITS)
        if bool(wide.isnan().any()):
            raise ValueError("a parameter is not a number")
        fixed[part] = wide.round_().clamp_(INT32_MIN, INT32_MAX)
    return fixed.view(value_P.shape)


def to_float(fixed_P: Tensor) -> Tensor:
    """Return fixed point as float32, rounded to nearest."""
    return fixed_P.to(torch.float32).mul_(2.0**-FRACTION_BITS)


def dot(a_P: Tensor, b_P: Tensor) -> int:
    """Return the exact inner product of two int32 vectors, of any size and sign."""
    a, b = a_P.numpy(), b_P.numpy()
    assert a.dtype == b.dtype == np.int32 and a.shape == b.shape
    return sum(shared_out(lambda start, stop: _dot(a[start:stop], b[start:stop]), len(a), CHUNK))


def square_sum(value_P: NDArray[np.int32]) -> int:
    """Return the exact sum of squares."""
    return _dot(value_P, value_P)


def _dot(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    product = np.empty(min(len(a), CHUNK), np.int64)
    half = np.empty_like(product)
    high, low = 0, 0
    for start in range(0, len(a), CHUNK):
        part = slice(start, start + CHUNK)
        size = len(a[part])
        np.copyto(product[:size], a[part])
        np.multiply(product[:size], b[part], out=product[:size])
        high += int(np.right_shift(product[:size], _HALF_BITS, out=half[:size]).sum())
        low += int(np.bitwise_and(product[:size], 2**_HALF_BITS - 1, out=half[:size]).sum())
    return (high << _HALF_BITS) + low


def dot_reference(a_P: Tensor, b_P: Tensor) -> int:
    """The same in Python's unbounded integers."""
    return sum(x * y for x, y in zip(a_P.tolist(), b_P.tolist(), strict=True))


def norm(fixed_P: Tensor) -> int:
    """Return the Euclidean norm of an int32 vector in its own units, rounded down."""
    return isqrt(dot(fixed_P, fixed_P))


@dataclass(frozen=True, eq=False)
class AgreedState:
    """The training state that peers agree on, but for what the headers say.

    Attributes:
        theta_P: parameters, int32, in units of 2^-24.
        momentum_P: outer momentum, int32, in the same units.
        norms: norms of the latest accepted updates, oldest first, at most `NORMS_MAX`.
    """

    theta_P: Tensor
    momentum_P: Tensor
    norms: tuple[int, ...]

    def __post_init__(self) -> None:
        """Assert what every other function relies on."""
        assert self.theta_P.dtype == self.momentum_P.dtype == torch.int32
        assert self.theta_P.shape == self.momentum_P.shape and self.theta_P.dim() == 1
        assert len(self.norms) <= NORMS_MAX and all(0 <= n < 2**64 for n in self.norms)

    def to_bytes(self) -> bytes:
        """Return the one encoding: theta, momentum, count of norms, the norms, little-endian."""
        words = [len(self.norms), *self.norms, *[0] * (NORMS_MAX - len(self.norms))]
        tail = np.array(words, "<u8").tobytes()
        return _little_endian(self.theta_P) + _little_endian(self.momentum_P) + tail

    @classmethod
    def from_bytes(cls, data: bytes, size: int) -> "AgreedState":
        """Read what `to_bytes` wrote.

        Args:
            data: the bytes; not trusted.
            size: the number of parameters, P.

        Raises:
            ValueError: the length is not that of P parameters, or the norms are not canonical.
        """
        if len(data) != state_size_bytes(size):
            raise ValueError(f"a state of {size} parameters has not {len(data)} bytes")
        count, *norms = (int(word) for word in np.frombuffer(data, "<u8", offset=8 * size))
        if count > NORMS_MAX or any(norms[count:]):
            raise ValueError("the norms of a state are not canonical")
        fixed = np.frombuffer(data, "<i4", 2 * size).astype(np.int32)  # a copy of our own
        fixed_2P = torch.from_numpy(fixed)
        return cls(fixed_2P[:size], fixed_2P[size:], tuple(norms[:count]))


def _little_endian(fixed_P: Tensor) -> bytes:
    return bytes(fixed_P.numpy().astype("<i4", copy=False).tobytes())


def state_size_bytes(size: int) -> int:
    """Return the length of an encoded state of P parameters."""
    return 4 * size + 4 * size + 8 + 8 * NORMS_MAX


def parameters_of(state_bytes: int) -> int:
    """Return P, the number of parameters of an encoded state of this length.

    Raises:
        ValueError: no state is that long.
    """
    size = (state_bytes - state_size_bytes(0)) // 8
    if size <= 0 or state_size_bytes(size) != state_bytes:
        raise ValueError(f"no state has {state_bytes} bytes")
    return size


def outer_step(
    state: AgreedState,
    update_P: Tensor,
    *,
    learning_rate_q16: int,
    momentum_q16: int,
    nesterov: bool,
    update_norm: int,
) -> AgreedState:
    """Return the state after one outer step; floor is the only rounding, everything saturates.

    Args:
        state: the state before; not changed.
        update_P: the aggregated pseudo-gradient (start minus end), int32 or int64; parameters move
            against it.
        learning_rate_q16: outer learning rate in units of 2^-16.
        momentum_q16: outer momentum in units of 2^-16.
        nesterov: look ahead by one momentum step.
        update_norm: norm of the update; 0 is a null round, which changes nothing.
    """
    assert 0 <= learning_rate_q16 < 2**20 and 0 <= momentum_q16 <= 2**16
    assert update_P.shape == state.theta_P.shape and not update_P.is_floating_point()
    if update_norm == 0:
        return state
    theta_P, momentum_P = state.theta_P.clone(), state.momentum_P.clone()
    theta, momentum, update = theta_P.numpy(), momentum_P.numpy(), update_P.numpy()

    def step_range(first: int, end: int) -> None:
        for start in range(first, end, CHUNK):
            part = slice(start, min(end, start + CHUNK))
            pushed = _saturated(update[part])
            moved = _saturated(_scaled(momentum[part], momentum_q16) + pushed)
            step = pushed + _scaled(moved, momentum_q16) if nesterov else moved
            theta[part] = _saturated(theta[part] - _scaled(step, learning_rate_q16))
            momentum[part] = moved

    shared_out(step_range, len(theta), CHUNK)
    return AgreedState(theta_P, momentum_P, (*state.norms, update_norm)[-NORMS_MAX:])


def _scaled(values: NDArray[Any], factor_q16: int) -> NDArray[np.int64]:
    product = values.astype(np.int64)
    product *= factor_q16
    product >>= 16
    return product


def _saturated(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.clip(values.astype(np.int64), INT32_MIN, INT32_MAX)


def outer_step_reference(
    theta: int, momentum: int, update: int, *, rate_q16: int, momentum_q16: int, nesterov: bool
) -> tuple[int, int]:
    """The same step of one parameter in Python's unbounded integers: (theta, momentum)."""

    def saturate(value: int) -> int:
        return max(INT32_MIN, min(INT32_MAX, value))

    update = saturate(update)
    momentum = saturate((momentum_q16 * momentum >> 16) + update)
    step = update + (momentum_q16 * momentum >> 16) if nesterov else momentum
    return saturate(theta - (rate_q16 * step >> 16)), momentum
