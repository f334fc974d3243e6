"""Contributions as bytes: one of four codecs, and error feedback around all of them.

| codec | bytes a parameter | |
|---|--:|---|
| `none` | 4 | 32-bit integers, for comparison |
| `dense-int8` | 1.004 | every value, 8 bits (see `dense`) |
| `dense-int4` | 0.504 | every value, 4 bits |
| `sparse-2bit` | 0.029 | the loudest 64 of 4,096, 2 bits and a place each (see `sparse`) |

What was not sent is kept by the sender and added to its next update (error feedback: Karimireddy et
al., arXiv 1901.09847). Encoding starts from floats and is a peer's own affair; decoding yields
integers exactly. The length is a function of P alone, and every vector of integers has at most one
encoding: anything else is refused before memory is spent on it. This module knows neither who sent
a blob nor what it is good for.

Shape suffixes: `P` parameters, `N` rows of a codec, `B` values of a row.
"""

from ctypes import CDLL
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peerformer.gradients import native
from peerformer.gradients.codec import VALUE_MAX, BlobError, Codec, Float32, Parts
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.dense import Dense
from peerformer.gradients.fixed_point import FRACTION_BITS
from peerformer.gradients.plain import Plain
from peerformer.gradients.sparse import Sparse
from peerformer.gradients.threads import shared_out

__all__ = [
    "CODECS",
    "RESIDUAL_SHARE_MAX",
    "VALUE_MAX",
    "BlobError",
    "Encoded",
    "check",
    "decode",
    "decode_reference",
    "encode",
    "encoded_size",
    "read",
]

CODECS: dict[str, Codec] = {codec.name: codec for codec in (Dense(8), Dense(4), Sparse(), Plain())}
RESIDUAL_SHARE_MAX = 0.5  # of the update's norm: a refused one, put back, must not double the next


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoded update, and what it left out.

    Attributes:
        blob: the bytes to send.
        residual_P: float32; what was not sent, for the next round.
    """

    blob: bytes
    residual_P: Tensor


def encoded_size(P: int, codec: str) -> int:
    """Return the exact length of a contribution, in bytes."""
    return _named(codec).size(P)


def encode(delta_P: Tensor, residual_P: Tensor, *, codec: str, feedback: float) -> Encoded:
    """Encode an update and what earlier rounds left unsent.

    The residual of a dense codec counts for at most `RESIDUAL_SHARE_MAX` of the update's norm: it
    is rounding, or an update that was refused. That of a sparse one is most of many updates.

    Args:
        delta_P: the update, float32.
        residual_P: what was not sent before, float32.
        codec: one of `CODECS`.
        feedback: share of the residual that is kept, from 0 to 1.

    Raises:
        ValueError: a value is not finite, or the codec is unknown.
    """
    chosen = _named(codec)
    assert delta_P.shape == residual_P.shape and delta_P.dim() == 1
    P = len(delta_P)
    # NumPy asks for large pages, and neither array is filled before it is written.
    blob, left = np.empty(chosen.size(P), np.uint8), np.empty(P, np.float32)
    job = _Encoding(
        delta_P.detach().numpy(), residual_P.numpy(), left, chosen.parts(blob, chosen.rows(P))
    )
    if isinstance(chosen, Sparse):
        job.plainly(chosen, feedback)
    elif not isinstance(chosen, Dense) or (loops := native.library_for(chosen, P)) is None:
        job.plainly(chosen, feedback * _residual_share(delta_P, residual_P, feedback))
    elif not _is_short(job.compiled(loops, chosen, feedback), feedback):
        share = _residual_share(delta_P, residual_P, feedback)
        if share < 1:  # rare, and then the work is done twice
            job.compiled(loops, chosen, feedback * share)
    return Encoded(blob.tobytes(), torch.from_numpy(left))


@dataclass(frozen=True, eq=False, slots=True)
class _Encoding:
    """What is encoded, P float32 each, and where to: what is not sent, and the parts of a blob."""

    delta: Float32
    residual: Float32
    left: Float32
    parts: Parts

    def plainly(self, codec: Codec, feedback: float) -> None:
        """Encode some rows at a time, while they are in cache."""
        many, factor = codec.rows_at_once * codec.block, np.float32(feedback)

        def encode_range(first: int, end: int) -> None:
            scratch = np.empty(many, np.float32)
            for start in range(first, end, many):
                part = slice(start, min(end, start + many))
                lines = slice(start // codec.block, codec.rows(part.stop))
                size, value = part.stop - start, scratch[: (lines.stop - lines.start) * codec.block]
                with np.errstate(over="ignore", invalid="ignore"):
                    np.multiply(self.residual[part], factor, out=value[:size])
                    value[:size] += self.delta[part]
                    value[:size] *= np.float32(2**FRACTION_BITS)
                    value[size:] = 0
                    if not np.isfinite(value.sum()):
                        raise ValueError("an update is not finite")
                codec.encode_rows(value.reshape(-1, codec.block), _lines(self.parts, lines), size)
                np.multiply(value[:size], np.float32(2**-FRACTION_BITS), out=self.left[part])

        shared_out(encode_range, len(self.delta), many)

    def compiled(self, loops: CDLL, codec: Dense, feedback: float) -> tuple[float, float]:
        """Encode by the loops in C; returns about the squared norms of update and residual."""
        factor = np.float32(feedback)

        def encode_range(first: int, end: int) -> tuple[float, float]:
            part, lines = slice(first, end), slice(first // codec.block, codec.rows(end))
            given = self.delta[part], self.residual[part], factor, self.left[part]
            rows = _lines(self.parts, lines)
            about = native.encode(loops, codec, *given, rows, codec.exponent_max)
            if about is None:
                raise ValueError("an update is not finite")
            return about

        many = codec.rows_at_once * codec.block
        delta, residual = zip(*shared_out(encode_range, len(self.delta), many), strict=True)
        return sum(delta), sum(residual)


def _is_short(about: tuple[float, float], feedback: float) -> bool:
    """Tell whether a residual is surely within its share, by roughly summed squares."""
    delta, residual = about
    sure = 1e-20 < delta < 1e30  # neither lost in rounding nor infinite
    return sure and feedback**2 * residual < 0.999 * RESIDUAL_SHARE_MAX**2 * delta


def _residual_share(delta_P: Tensor, residual_P: Tensor, feedback: float) -> float:
    """Return the factor that bounds the residual by a share of the update."""
    allowed = RESIDUAL_SHARE_MAX * float(torch.linalg.vector_norm(delta_P.detach()))
    wanted = feedback * float(torch.linalg.vector_norm(residual_P))
    return allowed / wanted if wanted > allowed else 1.0


def read(blob: bytes | memoryview, P: int, codec: str) -> Contribution:
    """Return a contribution that is expanded only where it is read.

    Raises:
        BlobError: the bytes are not the encoding of P values.
    """
    return Contribution(_named(codec), _checked(blob, P, codec), P)


def decode(blob: bytes | memoryview, P: int, codec: str) -> Tensor:
    """Return a contribution's values as int32 (P,) in units of 2^-24.

    Raises:
        BlobError: the bytes are not the encoding of P values.
    """
    chosen, parts = _named(codec), _checked(blob, P, codec)
    many = chosen.rows_at_once
    value_NB = np.empty((chosen.rows(P), chosen.block), np.int32)

    loops = native.library_for(chosen, P) if isinstance(chosen, Dense) else None

    def decode_range(first: int, end: int) -> None:
        rows = range(first // chosen.block, chosen.rows(end))
        all_rows = slice(rows.start, rows.stop)
        if loops is not None:
            native.decode(loops, chosen, _lines(parts, all_rows), value_NB[all_rows])
            return
        for start in range(rows.start, rows.stop, many):
            lines = slice(start, min(rows.stop, start + many))
            chosen.decode_rows(_lines(parts, lines), value_NB[lines])

    shared_out(decode_range, P, many * chosen.block)
    return torch.from_numpy(value_NB.reshape(-1)[:P])


def decode_reference(blob: bytes, P: int, codec: str) -> list[int]:
    """The values of a well-formed blob, one by one."""
    return _named(codec).reference(blob, P)


def check(blob: bytes | memoryview, P: int, codec: str) -> None:
    """Check a contribution without expanding it.

    Raises:
        BlobError: `length`; `level`, `exponent` or `loudness` (out of range); `order` or `range`
            (of places); `canonical` (not the one encoding of its values) or `padding` (not zero).
    """
    _checked(blob, P, codec)


def _checked(blob: bytes | memoryview, P: int, codec: str) -> Parts:
    chosen = _named(codec)
    if memoryview(blob).nbytes != chosen.size(P):
        raise BlobError("length")
    parts = chosen.parts(np.frombuffer(blob, np.uint8), chosen.rows(P))
    many = 16 * chosen.rows_at_once * chosen.block
    loops = native.library_for(chosen, P) if isinstance(chosen, Dense) else None

    def fault_in(lines: Parts, count: int) -> str | None:
        if loops is not None and isinstance(chosen, Dense):
            return native.fault(loops, chosen, lines, chosen.exponent_max, count)
        return chosen.fault(lines, count)

    def fault_of(first: int, end: int) -> str | None:
        for start in range(first, end, many):
            stop = min(end, start + many)
            lines = slice(start // chosen.block, chosen.rows(stop))
            if (fault := fault_in(_lines(parts, lines), stop - start)) is not None:
                return fault
        return None

    faults = [fault for fault in shared_out(fault_of, P, many) if fault is not None]
    if faults:
        raise BlobError(faults[0])
    return parts


def _lines(parts: Parts, lines: slice) -> Parts:
    return tuple(part[lines] for part in parts)


def _named(codec: str) -> Codec:
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}; choose one of: {', '.join(CODECS)}")
    return CODECS[codec]
