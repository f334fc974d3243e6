"""The inner loops in C, for long vectors: compiled at first use, and never needed.

`native.c` holds what takes most of a round's time with tens of millions of parameters. Where it
cannot be compiled, NumPy does the same, bit for bit, some times more slowly. Short vectors are
NumPy's in any case: a small swarm never waits for a compiler.

Knows which bytes a codec has where, and nothing of rules: what to compute comes as numbers.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peerformer.gradients.codec import Bytes, Codec, Float32, Int32, Parts
from peerformer.kernels.compiled import library_of

COORDINATES_LEAST = 1 << 20  # below, NumPy takes milliseconds
ROWS_MAX = 64  # what `native.c` has space for
SOURCE = Path(__file__).with_name("native.c")

_BITS = {"dense-int8": 8, "dense-int4": 4}
_SPARSE = "sparse-2bit"
_FAULTS = ("exponent", "level", "canonical", "padding")  # bits of `dense_faults`


class Steps(ctypes.Structure):
    """What is computed of the rows, as `Plan` of `native.c`."""

    _fields_ = (
        ("rows", ctypes.c_int32),
        ("trim", ctypes.c_int32),
        ("divisor", ctypes.c_int64),
        ("buckets", ctypes.c_void_p),
        ("far", ctypes.c_void_p),
        ("network", ctypes.c_void_p),
        ("comparators", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
    )


def library_for(codec: Codec, P: int) -> ctypes.CDLL | None:
    """Return the compiled loops if they know this codec and pay for so many values."""
    known = codec.name in _BITS or codec.name == _SPARSE
    return library() if known and P >= COORDINATES_LEAST else None


def library() -> ctypes.CDLL | None:
    """Return the compiled loops, compiling them if need be; None where that cannot be."""
    return library_of(SOURCE)


# --- calls ---------------------------------------------------------------------------------------


def encode(
    loops: ctypes.CDLL,
    codec: Codec,
    delta: Float32,
    residual: Float32,
    factor: np.float32,
    left: Float32,
    parts: Parts,
    exponent_max: int,
) -> tuple[float, float] | None:
    """Encode a range by a dense codec, and write what was not sent.

    Returns about what the squares of the update and of the residual sum to; None: a value is not
    finite.
    """
    about = np.zeros(2)
    fault: int = loops.dense_encode(
        _at(delta), _at(residual), ctypes.c_float(float(factor)), _at(left),
        ctypes.c_int64(len(delta)),
        _BITS[codec.name], exponent_max, _at(parts[0]), _at(parts[1]), _at(about),
    )  # fmt: skip
    return None if fault else (float(about[0]), float(about[1]))


def fault(loops: ctypes.CDLL, codec: Codec, parts: Parts, exponent_max: int, P: int) -> str | None:
    """Return why these are not the rows of P values of a dense codec, or None."""
    rows, bits = len(parts[0]), _BITS[codec.name]
    used = P - (rows - 1) * codec.block
    ends = (bits, exponent_max, ctypes.c_int64(rows), used)
    found: int = loops.dense_faults(*map(_at, parts), *ends)
    return next((name for bit, name in enumerate(_FAULTS) if found >> bit & 1), None)


def decode(loops: ctypes.CDLL, codec: Codec, parts: Parts, out_NB: Int32) -> None:
    """Write the values of checked rows of a dense codec."""
    blocks = ctypes.c_int64(len(parts[0]))
    loops.dense_decode(*map(_at, parts), _BITS[codec.name], blocks, _at(out_NB))


def squares(loops: ctypes.CDLL, codec: Codec, parts: Parts) -> int:
    """Return the exact sum of the squares of rows of a dense codec."""
    out = np.zeros(2, np.uint64)
    blocks = ctypes.c_int64(len(parts[0]))
    loops.dense_squares(_at(parts[0]), _at(parts[1]), _BITS[codec.name], blocks, _at(out))
    return int(out[0]) + (int(out[1]) << 64)


def sketch(
    loops: ctypes.CDLL,
    codec: Codec,
    rows: Sequence[Parts],
    count: int,
    rotations: NDArray[np.int64],
    signs: Bytes,
    totals: Sequence[NDArray[np.int64]],
) -> None:
    """Add `count` coordinates of each contribution, with its sign, to a sketch of it."""
    columns, sums = [_pointers(column) for column in zip(*rows, strict=True)], _pointers(totals)
    ends = (ctypes.c_int64(count), _at(rotations), _at(signs), _at(sums))
    if codec.name == _SPARSE:
        loops.sparse_sketch(len(rows), *map(_at, columns), *ends)
    else:
        loops.dense_sketch(len(rows), *map(_at, columns), _BITS[codec.name], *ends)


def combine(
    loops: ctypes.CDLL,
    codec: Codec,
    rows: Sequence[Parts],
    factors: NDArray[np.int64],
    steps: Steps,
    out: Int32,
) -> int:
    """Write the combination of a range over zeros; return the exact sum of its squares."""
    columns = [_pointers(column) for column in zip(*rows, strict=True)]
    total = np.zeros(2, np.uint64)
    ends = (ctypes.c_int64(len(out)), _at(factors), ctypes.byref(steps), _at(out), _at(total))
    if codec.name == _SPARSE:
        loops.sparse_combine(len(rows), *map(_at, columns), *ends)
    else:
        loops.dense_combine(len(rows), *map(_at, columns), _BITS[codec.name], *ends)
    return int(total[0]) + (int(total[1]) << 64)


def _at(array: NDArray[Any]) -> ctypes.c_void_p:
    """Return where an array begins; the caller holds it until the call is over."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def _pointers(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uintp]:
    assert all(array.flags.c_contiguous for array in arrays)
    return np.array([array.ctypes.data for array in arrays], np.uintp)
