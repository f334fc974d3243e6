"""Contributions as bytes: blocks of 8-bit integers with a power-of-two scale each.

`dense-int8` cuts the flat update into blocks of 256 values and stores for each block an exponent
`e` and signed 8-bit `q`; a value is `q * 2^e` in units of 2^-24. The exponent is the smallest that
fits, rounding is half to even, and what was not sent is kept by the sender and added to its next
update (error feedback: Karimireddy et al., arXiv 1901.09847). Encoding starts from floats and is a
peer's own affair; decoding yields integers exactly. The length is a function of P alone, and every
vector of integers has at most one encoding: anything else is refused before memory is spent on it.

Layout: ceil(P / 256) exponents (u8), then as many blocks of 256 values (i8), the last one padded
with zeros. This module knows neither who sent a blob nor what it is good for.

Shape suffixes: `P` parameters, `N` blocks, `B` values of a block.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peerformer.gradients.fixed_point import FRACTION_BITS

CODECS = ("dense-int8",)
BLOCK = 256
LEVEL_MAX = 127  # -128 is refused: a symmetric range leaves one encoding for each value
LEVEL_LOUDEST_MIN = 64  # a block whose loudest value is below this would fit a smaller exponent
EXPONENT_MAX = 16  # half a unit a round; 64 contributions, each scaled by 4, sum within int32
VALUE_MAX = LEVEL_MAX << EXPONENT_MAX
RESIDUAL_SHARE_MAX = 0.5  # of the update's norm: a refused one, put back, must not double the next

_CHUNK = 64 * BLOCK  # values worked on at once, so that they stay in cache


class BlobError(ValueError):
    """A contribution that does not decode; `reason` is a slug for the header."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoded update, and what it left out.

    Attributes:
        blob: the bytes to send.
        residual_P: float32; what was not sent, for the next round.
    """

    blob: bytes
    residual_P: Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """A checked blob, not yet expanded: views into its bytes."""

    exponents_N: NDArray[np.uint8]
    levels_NB: NDArray[np.int8]


def encoded_size(P: int, codec: str) -> int:
    """Return the exact length of a contribution, in bytes."""
    _require_known(codec)
    return ceil(P / BLOCK) * (1 + BLOCK)


def encode(delta_P: Tensor, residual_P: Tensor, *, codec: str, feedback: float) -> Encoded:
    """Encode an update and what earlier rounds left unsent.

    The residual counts for at most `RESIDUAL_SHARE_MAX` of the update's norm.

    Args:
        delta_P: the update, float32.
        residual_P: what was not sent before, float32.
        codec: one of `CODECS`.
        feedback: share of the residual that is kept, from 0 to 1.

    Raises:
        ValueError: a value is not finite, or the codec is unknown.
    """
    _require_known(codec)
    assert delta_P.shape == residual_P.shape and delta_P.dim() == 1
    P, blocks = len(delta_P), ceil(len(delta_P) / BLOCK)
    factor = np.float32(feedback * _residual_share(delta_P, residual_P, feedback))
    delta, residual = delta_P.detach().numpy(), residual_P.numpy()
    blob = np.empty(encoded_size(P, codec), np.uint8)
    exponents_N, levels_NB = blob[:blocks], blob[blocks:].view(np.int8).reshape(-1, BLOCK)
    left_P = torch.empty(P)
    left = left_P.numpy()
    scratch = np.empty((2, _CHUNK), np.float32)
    for start in range(0, P, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = slice(start // BLOCK, min(blocks, (start + _CHUNK) // BLOCK))
        size, shape = len(delta[part]), levels_NB[rows].shape
        value, other = (row[: shape[0] * BLOCK] for row in scratch)
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(residual[part], factor, out=value[:size])
            value[:size] += delta[part]
            value[:size] *= np.float32(2**FRACTION_BITS)
        value[size:] = 0
        value_NB, other_NB = value.reshape(shape), other.reshape(shape)
        exponents_N[rows] = _exponents(value_NB, other_NB)
        scale_N1 = np.ldexp(np.float32(1), exponents_N[rows].astype(np.int32))[:, None]
        np.multiply(value_NB, 1 / scale_N1, out=other_NB)
        np.rint(other, out=other)
        np.clip(other, -LEVEL_MAX, LEVEL_MAX, out=other)
        np.copyto(levels_NB[rows], other_NB, casting="unsafe")
        other_NB *= scale_N1
        value -= other
        np.multiply(value[:size], np.float32(2**-FRACTION_BITS), out=left[part])
    return Encoded(blob.tobytes(), left_P)


def _residual_share(delta_P: Tensor, residual_P: Tensor, feedback: float) -> float:
    """Return the factor that bounds the residual by a share of the update."""
    allowed = RESIDUAL_SHARE_MAX * float(torch.linalg.vector_norm(delta_P.detach()))
    wanted = feedback * float(torch.linalg.vector_norm(residual_P))
    return allowed / wanted if wanted > allowed else 1.0


def _exponents(value_NB: NDArray[np.float32], scratch_NB: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the smallest exponent of each block at which no value rounds beyond `LEVEL_MAX`."""
    np.abs(value_NB, out=scratch_NB)
    loudest_N = torch.from_numpy(scratch_NB).amax(1).double().numpy()
    if not np.isfinite(loudest_N).all():
        raise ValueError("an update is not finite")
    # frexp: loudest < (LEVEL_MAX + 1/2) * 2^e, and not below for e - 1; a tie rounds to even, up.
    _, exponents_N = np.frexp(loudest_N / (LEVEL_MAX + 0.5))
    return np.clip(exponents_N, 0, EXPONENT_MAX).astype(np.uint8)


def decode(blob: bytes | memoryview, P: int, codec: str) -> Tensor:
    """Return a contribution's values as int32 (P,) in units of 2^-24.

    Raises:
        BlobError: the bytes are not the encoding of P values.
    """
    blocks = read_blocks(blob, P, codec)
    factors_N1 = np.left_shift(1, blocks.exponents_N.astype(np.int32))[:, None]
    value_NB = np.empty(blocks.levels_NB.shape, np.int32)
    for start in range(0, len(value_NB), _CHUNK // BLOCK):
        rows = slice(start, start + _CHUNK // BLOCK)
        np.multiply(blocks.levels_NB[rows], factors_N1[rows], out=value_NB[rows])
    return torch.from_numpy(value_NB.reshape(-1)[:P])


def decode_reference(blob: bytes, P: int) -> list[int]:
    """The values of a well-formed blob, one by one."""
    blocks = ceil(P / BLOCK)
    levels = [byte - 256 if byte > LEVEL_MAX else byte for byte in blob[blocks:]]
    return [levels[i] << blob[i // BLOCK] for i in range(P)]


def read_blocks(blob: bytes | memoryview, P: int, codec: str) -> Blocks:
    """Check a contribution without expanding it.

    Raises:
        BlobError: `length`, `exponent` (out of range), `level` (-128), `canonical` (a smaller
            exponent would do) or `padding` (not zero).
    """
    if memoryview(blob).nbytes != encoded_size(P, codec):
        raise BlobError("length")
    data, count = np.frombuffer(blob, np.uint8), ceil(P / BLOCK)
    exponents_N, levels_NB = data[:count], data[count:].view(np.int8).reshape(-1, BLOCK)
    if (exponents_N > EXPONENT_MAX).any():
        raise BlobError("exponent")
    lowest_N, highest_N = levels_NB.min(1), levels_NB.max(1)
    if (lowest_N < -LEVEL_MAX).any():
        raise BlobError("level")
    quiet_N = (lowest_N > -LEVEL_LOUDEST_MIN) & (highest_N < LEVEL_LOUDEST_MIN)
    if (quiet_N & (exponents_N > 0)).any():
        raise BlobError("canonical")
    if levels_NB.reshape(-1)[P:].any():
        raise BlobError("padding")
    return Blocks(exponents_N, levels_NB)


def _require_known(codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}; choose one of: {', '.join(CODECS)}")
