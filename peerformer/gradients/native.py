"""The inner loops in C, for long vectors: compiled at first use, and never needed.

`native.c` holds what takes most of a round's time with tens of millions of parameters. The system's
C compiler makes a library of it for this very processor, once, in the user's cache; where there is
none, or anything is odd, NumPy does the same, bit for bit, some times more slowly. Short vectors
are NumPy's in any case: a small swarm never waits for a compiler. `PEERFORMER_NATIVE=0` turns
it off.

Knows which bytes a codec has where, and nothing of rules: what to compute comes as numbers.
"""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from platformdirs import user_cache_path

from peerformer.gradients.codec import Bytes, Codec, Float32, Int32, Parts

SWITCH = "PEERFORMER_NATIVE"
CACHE_VARIABLE = "PEERFORMER_CACHE"
COORDINATES_LEAST = 1 << 20  # below, NumPy takes milliseconds
COMPILE_SECONDS_MAX = 120.0  # it takes two; a compiler that hangs is none
ROWS_MAX = 64  # what `native.c` has space for
SOURCE = Path(__file__).with_name("native.c")
# No contraction of a product and a sum: a float is rounded as often as in NumPy.
FLAGS = ("-O3", "-march=native", "-std=c11", "-ffp-contract=off", "-fwrapv", "-fPIC", "-shared")

_BITS = {"dense-int8": 8, "dense-int4": 4}
_SPARSE = "sparse-2bit"


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


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops, compiling them if need be; None where that cannot be."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        path = _compiled()
        return ctypes.CDLL(str(path)) if path is not None else None
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled() -> Path | None:
    """Return the library's file in a folder that nobody else may write to."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None
    chosen = os.environ.get(CACHE_VARIABLE)
    folder = (Path(chosen) if chosen else user_cache_path("peerformer")) / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        return None
    kind = f"{platform.machine()} {_processor()} {FLAGS} {compiler}".encode()
    name = blake3(SOURCE.read_bytes() + kind).hexdigest()[:16]
    path = folder / f"{name}.so"
    if not path.exists():
        temporary = folder / f".{name}.{os.getpid()}"
        command = [compiler, *FLAGS, "-o", str(temporary), str(SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS_MAX)
        temporary.replace(path)
    return path


def _processor() -> str:
    """Return what the compiler's choice of instructions depends on, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


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
) -> bool:
    """Encode a range by a dense codec, and write what was not sent; False: one is not finite."""
    fault: int = loops.dense_encode(
        _at(delta), _at(residual), ctypes.c_float(float(factor)), _at(left),
        ctypes.c_int64(len(delta)),
        _BITS[codec.name], exponent_max, _at(parts[0]), _at(parts[1]),
    )  # fmt: skip
    return not fault


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
