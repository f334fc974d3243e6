"""Combine contributions into one update that a minority of liars cannot steer far.

The default rule brings every contribution to the median norm, up as well as down (a factor outside
1/4..4 is refused); replaces each by the mean of its nearest neighbours (Allouah et al., arXiv
2302.01772), near by a count-sketch drawn after the contributions are fixed (Charikar et al., 2002);
drops the `f` lowest and highest values of each coordinate and averages the rest (Yin et al., arXiv
1803.01498); and caps the norm of the result by those of recent rounds. `f = (K - 1) // 3`: fewer
than 4 contributions tolerate no liar, and the rule then is a mean of equal norms. Everything is
integer arithmetic rounded down, without a sum that could overflow, so threads, processors and the
order of summation cannot change a bit. Work goes through the coordinates in chunks that stay in
cache. This module does not know who contributed: the order given is the canonical one.

Shape suffixes: `P` parameters, `C` coordinates of a chunk, `S` buckets of a sketch; lists of arrays
have one entry for each of the `K` contributions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from peerformer.gradients.compress import VALUE_MAX
from peerformer.gradients.fixed_point import CHUNK, norm

CONTRIBUTIONS_MAX = 64  # scaled by 4, this many of the largest values still sum within int32
FACTOR_ONE = 1 << 16
SKETCH_BUCKETS = CHUNK  # a squared distance has a standard deviation of at most 1.1 %
NORMS_LEAST = 3  # fewer recent norms have no meaningful median
SKETCH_CONTEXT = "peerformer 2026 count-sketch of contributions"

_SKETCH_FLUSH = 256  # chunks: as many of the largest values sum within int32
_HALF_BITS = 21  # a bucket has at most 2^43: the squares of both halves sum within int64

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """How contributions are combined.

    Attributes:
        name: what genesis calls it.
        equal_norms: bring every contribution to the median norm.
        mixing: replace each by the mean of its nearest neighbours.
        trimming: drop the extremes of each coordinate.
        clip_low_q16: smallest factor to the median norm, in units of 2^-16.
        clip_high_q16: largest factor to the median norm, in units of 2^-16; at most 4.
        norm_cap: largest norm of the result, in medians of the recent norms; None is no cap.
    """

    name: str
    equal_norms: bool
    mixing: bool
    trimming: bool
    clip_low_q16: int = FACTOR_ONE // 4
    clip_high_q16: int = FACTOR_ONE * 4
    norm_cap: int | None = 2

    @classmethod
    def named(cls, name: str) -> "Rule":
        """Return the rule `robust` or `mean`.

        Raises:
            ValueError: there is no such rule.
        """
        if name == "robust":
            return cls(name, equal_norms=True, mixing=True, trimming=True)
        if name == "mean":
            return cls(name, equal_norms=False, mixing=False, trimming=False, norm_cap=None)
        raise ValueError(f"unknown rule {name!r}; choose one of: robust, mean")


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a round's contributions come to.

    Attributes:
        update_P: int32; zeros if every contribution was refused, empty if there was none.
        norm: norm of the update, rounded down.
        refused: (index, reason) of contributions that got no weight.
    """

    update_P: Tensor
    norm: int
    refused: tuple[tuple[int, str], ...]


def aggregate(
    contributions: Sequence[Tensor], *, rule: Rule, seed: bytes, recent_norms: Sequence[int]
) -> Aggregate:
    """Combine contributions.

    Args:
        contributions: decoded, int32 (P,), at most `CONTRIBUTIONS_MAX`, sorted by peer id.
        rule: how.
        seed: draws the sketch; must not be known before the contributions are fixed.
        recent_norms: norms of the latest accepted updates.
    """
    assert len(contributions) <= CONTRIBUTIONS_MAX
    if not contributions:
        return Aggregate(torch.zeros(0, dtype=torch.int32), 0, ())
    values = [_checked(contribution_P) for contribution_P in contributions]
    factors: list[int | None] = [FACTOR_ONE] * len(values)
    if rule.equal_norms:
        factors = scale_factors([norm(contribution) for contribution in contributions], rule)
    refused = tuple((index, "norm") for index, factor in enumerate(factors) if factor is None)
    kept = [(value, factor) for value, factor in zip(values, factors, strict=True) if factor]
    update = np.zeros(len(values[0]), np.int32)
    if kept:
        _combine([value for value, _ in kept], [factor for _, factor in kept], rule, seed, update)
    update_P = torch.from_numpy(update)
    length = norm(update_P)
    if rule.norm_cap is not None and len(recent_norms) >= NORMS_LEAST:
        limit = rule.norm_cap * _lower_median(recent_norms)
        if length > limit:
            _shrink(update, (limit << 32) // length)
            length = norm(update_P)
    return Aggregate(update_P, length, refused)


def _checked(contribution_P: Tensor) -> Int32:
    value: Int32 = contribution_P.numpy()
    assert value.dtype == np.int32 and value.ndim == 1
    assert not len(value) or max(-int(value.min()), int(value.max())) <= VALUE_MAX
    return value


def scale_factors(norms: Sequence[int], rule: Rule) -> list[int | None]:
    """Return each contribution's factor to the median norm, in units of 2^-16; None is refused."""
    assert rule.clip_high_q16 <= 4 * FACTOR_ONE
    median = _lower_median(norms)
    factors = [median * FACTOR_ONE // length if length else 0 for length in norms]
    low, high = max(1, rule.clip_low_q16), rule.clip_high_q16
    return [factor if low <= factor <= high else None for factor in factors]


def _lower_median(numbers: Sequence[int]) -> int:
    """Return the middle, the lower one of two: updates blow up more often than they collapse."""
    return sorted(numbers)[(len(numbers) - 1) // 2]


def _shrink(update_P: Int32, factor_q32: int) -> None:
    for start in range(0, len(update_P), CHUNK):
        part = slice(start, start + CHUNK)
        update_P[part] = (update_P[part].astype(np.int64) * factor_q32) >> 32


# --- distances ---------------------------------------------------------------------------------


def sketches(values: Sequence[Int32], seed: bytes) -> list[Int64]:
    """Return a count-sketch of each vector: int64 (S,), linear, of nearly the same norm.

    Coordinate p of chunk c gets a random sign and goes to bucket (p + rotation_c) mod S. Two
    coordinates of a chunk never collide, two of different chunks do with probability 1/S, which is
    all that the variance bound of a count-sketch asks for; and whole chunks are added at once.
    """
    P = len(values[0])
    rotations, packed_signs = _randomness(P, seed)
    totals = [np.zeros(SKETCH_BUCKETS, np.int64) for _ in values]
    sums = [np.zeros(SKETCH_BUCKETS, np.int32) for _ in values]
    signed = np.empty(CHUNK, np.int32)
    for chunk, rotation in enumerate(rotations):
        part = slice(chunk * CHUNK, min(P, (chunk + 1) * CHUNK))
        size = part.stop - part.start
        bits = np.unpackbits(packed_signs[part.start // 8 :][: CHUNK // 8], count=size)
        signs_C = 1 - 2 * bits.astype(np.int32)
        straight = min(size, SKETCH_BUCKETS - rotation)
        for value, bucket_sums in zip(values, sums, strict=True):
            np.multiply(value[part], signs_C, out=signed[:size])
            bucket_sums[rotation : rotation + straight] += signed[:straight]
            bucket_sums[: size - straight] += signed[straight:size]
        if (chunk + 1) % _SKETCH_FLUSH == 0 or part.stop == P:
            for total, bucket_sums in zip(totals, sums, strict=True):
                total += bucket_sums
                bucket_sums[:] = 0
    return totals


def _randomness(P: int, seed: bytes) -> tuple[list[int], NDArray[np.uint8]]:
    """Return a rotation for each chunk, and a sign bit for each coordinate (1 is minus)."""
    chunks = -(-P // CHUNK)
    stream = blake3(seed, derive_key_context=SKETCH_CONTEXT).digest(2 * chunks + -(-P // 8))
    rotations = np.frombuffer(stream, "<u2", chunks) % SKETCH_BUCKETS
    return rotations.tolist(), np.frombuffer(stream, np.uint8, offset=2 * chunks)


def sketch_reference(value: Sequence[int], seed: bytes) -> list[int]:
    """The sketch of one vector, coordinate by coordinate."""
    rotations, packed_signs = _randomness(len(value), seed)
    sketch = [0] * SKETCH_BUCKETS
    for p, number in enumerate(value):
        minus = packed_signs[p // 8] >> (7 - p % 8) & 1
        sketch[(p + rotations[p // CHUNK]) % SKETCH_BUCKETS] += -number if minus else number
    return sketch


def squared_distance(a_S: Int64, b_S: Int64) -> int:
    """Return the exact squared distance of two sketches whose entries are below 2^42."""
    difference = a_S - b_S
    high, low = difference >> _HALF_BITS, difference & (2**_HALF_BITS - 1)
    squares, mixed = int(high.dot(high)), int(high.dot(low))
    return (squares << 2 * _HALF_BITS) + (mixed << _HALF_BITS + 1) + int(low.dot(low))


def neighbours(sketches_of: Sequence[Int64], count: int) -> list[list[int]]:
    """Return, for each sketch, itself and its nearest others, `count` in all; ties by index."""
    K = len(sketches_of)
    distance = [[0] * K for _ in range(K)]
    for i in range(K):
        for j in range(i):
            distance[i][j] = distance[j][i] = squared_distance(sketches_of[i], sketches_of[j])
    near = []
    for i, row in enumerate(distance):
        ranked = sorted((j != i, row[j], j) for j in range(K))
        near.append(sorted(j for _, _, j in ranked[:count]))
    return near


# --- combination -------------------------------------------------------------------------------


def _combine(
    values: list[Int32], factors: list[int], rule: Rule, seed: bytes, update: Int32
) -> None:
    """Scale, mix, trim and average into `update`, chunk by chunk."""
    K = len(values)
    f = (K - 1) // 3
    near = [[i] for i in range(K)]
    if rule.mixing and f:  # without a liar to expect, the mean of means is the mean
        scaled = [
            s * factor >> 16 for s, factor in zip(sketches(values, seed), factors, strict=True)
        ]
        near = neighbours(scaled, K - f)
    trim = f if rule.trimming else 0
    network = selection_network(K, trim)
    divisor = len(near[0]) * (K - 2 * trim)
    # A scaled value is below VALUE_MAX * 4 < 2^25, and so many of them sum within int32.
    wide: NDArray[Any] = np.empty(CHUNK, np.int32 if divisor <= CONTRIBUTIONS_MAX else np.int64)
    product = np.empty(CHUNK, np.int64)
    buffers = np.empty((2 * K + 2, CHUNK), np.int32)
    for start in range(0, len(update), CHUNK):
        part = slice(start, start + CHUNK)
        size = len(update[part])
        rows = [row[:size] for row in buffers]
        scaled_C, mixed_C, (total_C, spare_C) = rows[:K], rows[K:-2], rows[-2:]
        for value, factor, out in zip(values, factors, scaled_C, strict=True):
            _scale(value[part], factor, product[:size], out)
        if len(near[0]) > 1:
            _mix(scaled_C, near, total_C, mixed_C)
        else:
            mixed_C = scaled_C
        sum_C = wide[:size]
        sum_C[:] = 0
        for row in _kept(mixed_C, spare_C, network, trim):
            sum_C += row
        np.floor_divide(sum_C, divisor, out=sum_C)
        np.copyto(update[part], sum_C, casting="same_kind")


def _scale(value_C: Int32, factor_q16: int, product_C: Int64, out_C: Int32) -> None:
    if factor_q16 == FACTOR_ONE:
        np.copyto(out_C, value_C)
        return
    np.copyto(product_C, value_C)
    np.multiply(product_C, factor_q16, out=product_C)
    np.right_shift(product_C, 16, out=product_C)
    np.copyto(out_C, product_C, casting="same_kind")


def _mix(
    scaled_C: list[Int32], near: list[list[int]], total_C: Int32, mixed_C: list[Int32]
) -> None:
    """Write the sum of each one's neighbours: the sum of all, less the few that are far."""
    np.copyto(total_C, scaled_C[0])
    for row in scaled_C[1:]:
        total_C += row
    for out, indices in zip(mixed_C, near, strict=True):
        first, *others = sorted(set(range(len(scaled_C))) - set(indices))
        np.subtract(total_C, scaled_C[first], out=out)
        for index in others:
            out -= scaled_C[index]


def _kept(
    rows: list[Int32], spare_C: Int32, network: list[tuple[int, int, bool, bool]], trim: int
) -> Iterator[Int32]:
    """Yield rows that sum to what is neither among the lowest nor the highest; overwrites them."""
    for i, j, needs_low, needs_high in network:
        if needs_low and needs_high:
            np.minimum(rows[i], rows[j], out=spare_C)
            np.maximum(rows[i], rows[j], out=rows[j])
            rows[i], spare_C = spare_C, rows[i]
        elif needs_low:
            np.minimum(rows[i], rows[j], out=rows[i])
        else:
            np.maximum(rows[i], rows[j], out=rows[j])
    yield from rows[trim : len(rows) - trim]


def selection_network(K: int, trim: int) -> list[tuple[int, int, bool, bool]]:
    """Return the comparators that leave the middle of K values, as a set, in the middle rows.

    Merge exchange (Batcher 1968; Knuth, vol. 3, algorithm 5.2.2M), less what only orders rows that
    are all dropped or all kept. Each is (low row, high row, low is used, high is used).
    """
    used, unordered = set(range(trim, K - trim)), set(range(trim, K - trim))
    network = []
    for i, j in reversed(list(_merge_exchange(K))):
        if {i, j} <= unordered or not {i, j} & used:
            continue
        network.append((i, j, i in used, j in used))
        used |= {i, j}
        unordered -= {i, j}
    return network[::-1]


def _merge_exchange(K: int) -> Iterator[tuple[int, int]]:
    top = 1 << (K - 1).bit_length() >> 1
    p = top
    while p > 0:
        q, r, distance = top, 0, p
        while True:
            yield from ((i, i + distance) for i in range(K - distance) if i & p == r)
            if q == p:
                break
            q, r, distance = q >> 1, p, q - p
        p >>= 1


def combine_reference(
    values: list[list[int]], factors: list[int], near: list[list[int]], trim: int
) -> list[int]:
    """Scale, mix, trim and average, coordinate by coordinate."""
    K, update = len(values), []
    for p in range(len(values[0])):
        scaled = [values[i][p] * factors[i] >> 16 for i in range(K)]
        mixed = sorted(sum(scaled[j] for j in near[i]) for i in range(K))
        kept = mixed[trim : K - trim]
        update.append(sum(kept) // (len(near[0]) * len(kept)))
    return update
