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

from peerformer.gradients import weights
from peerformer.gradients.codec import VALUE_MAX
from peerformer.gradients.fixed_point import CHUNK, norm
from peerformer.gradients.rules import BY_DISTANCE, FACTOR_ONE, Rule
from peerformer.gradients.sketch import Int32, Int64, sketches, squared_distances

CONTRIBUTIONS_MAX = 64  # scaled by 4, this many of the largest values still sum within int32
NORMS_LEAST = 3  # fewer recent norms have no meaningful median
PAIRS_CONTEXT = "peerformer 2026 pairs of contributions"


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
    if rule.norms:
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
    if rule.norms == "norm-clipping":
        return [min(FACTOR_ONE, max(factor, 1)) for factor in factors]
    low, high = max(1, rule.clip_low_q16), rule.clip_high_q16
    return [factor if low <= factor <= high else None for factor in factors]


def _lower_median(numbers: Sequence[int]) -> int:
    """Return the middle, the lower one of two: updates blow up more often than they collapse."""
    return sorted(numbers)[(len(numbers) - 1) // 2]


def _shrink(update_P: Int32, factor_q32: int) -> None:
    for start in range(0, len(update_P), CHUNK):
        part = slice(start, start + CHUNK)
        update_P[part] = (update_P[part].astype(np.int64) * factor_q32) >> 32


# --- combination -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is computed of the scaled contributions, coordinate by coordinate.

    Attributes:
        buckets: who is averaged first, rounded down; empty for nobody.
        near: whose sum takes each one's place, all of one number; empty for nobody.
        trim: how many of the lowest and of the highest are dropped.
        weights: how much each of the rest counts; empty if all alike.
    """

    buckets: tuple[tuple[int, ...], ...] = ()
    near: tuple[tuple[int, ...], ...] = ()
    trim: int = 0
    weights: tuple[int, ...] = ()

    def divisor(self, K: int) -> int:
        """By what the sum at the end is divided."""
        rows = len(self.buckets) or K
        counted = sum(self.weights) if self.weights else rows - 2 * self.trim
        return counted * (len(self.near[0]) if self.near else 1)


def plan_for(values: Sequence[Int32], factors: Sequence[int], rule: Rule, seed: bytes) -> Plan:
    """Return what a rule comes to for these contributions."""
    K = len(values)
    f = (K - 1) // 3
    squares: list[list[int]] = []
    if (rule.mixing and f) or rule.final in BY_DISTANCE:
        scaled = [
            s * factor >> 16 for s, factor in zip(sketches(values, seed), factors, strict=True)
        ]
        squares = squared_distances(scaled)
    buckets: tuple[tuple[int, ...], ...] = ()
    rows = K
    if rule.bucketing:
        buckets = _pairs(K, seed)
        rows, f = len(buckets), min(f, (len(buckets) - 1) // 2)
        squares = weights.of_means(squares, buckets) if squares else squares
    near: tuple[tuple[int, ...], ...] = ()
    if rule.mixing and f:  # without a liar to expect, the mean of means is the mean
        near = tuple(tuple(group) for group in weights.nearest(squares, rows - f))
        squares = weights.of_means(squares, near) if rule.final in BY_DISTANCE else squares
    trim = {"trimmed-mean": f, "coordinate-median": (rows - 1) // 2}.get(rule.final, 0)
    return Plan(buckets, near, trim, _weights(squares, f, rule))


def _weights(squares: list[list[int]], f: int, rule: Rule) -> tuple[int, ...]:
    match rule.final:
        case "krum":
            return tuple(weights.krum(squares, f, count=1))
        case "multi-krum":
            return tuple(weights.krum(squares, f, count=len(squares) - f))
        case "geometric-median":
            return tuple(weights.geometric_median(squares))
        case "centred-clipping":
            return tuple(weights.centred_clipping(squares))
    return ()


def _pairs(K: int, seed: bytes) -> tuple[tuple[int, ...], ...]:
    """Return random pairs, and one alone if K is odd."""
    keys = [blake3(seed + bytes([i]), derive_key_context=PAIRS_CONTEXT).digest() for i in range(K)]
    order = sorted(range(K), key=keys.__getitem__)
    return tuple(tuple(sorted(order[i : i + 2])) for i in range(0, K, 2))


def _combine(
    values: list[Int32], factors: list[int], rule: Rule, seed: bytes, update: Int32
) -> None:
    """Scale, pair, mix, trim or weigh, and average into `update`, chunk by chunk."""
    K, plan = len(values), plan_for(values, factors, rule, seed)
    rows_left = len(plan.buckets) or K
    network = selection_network(rows_left, plan.trim)
    divisor = plan.divisor(K)
    # A scaled value is below VALUE_MAX * 4 < 2^25, and so many of them sum within int32.
    narrow = divisor <= CONTRIBUTIONS_MAX and not plan.weights
    wide: NDArray[Any] = np.empty(CHUNK, np.int32 if narrow else np.int64)
    product = np.empty(CHUNK, np.int64)
    buffers = np.empty((2 * K + 2, CHUNK), np.int32)
    for start in range(0, len(update), CHUNK):
        part = slice(start, start + CHUNK)
        size = len(update[part])
        rows = [row[:size] for row in buffers]
        current, mixed_C, (total_C, spare_C) = rows[:K], rows[K:-2], rows[-2:]
        for value, factor, out in zip(values, factors, current, strict=True):
            _scale(value[part], factor, product[:size], out)
        if plan.buckets:
            current = _pair(current, plan.buckets)
        if plan.near:
            mixed_C = mixed_C[:rows_left]
            _mix(current, plan.near, total_C, mixed_C)
            current = mixed_C
        sum_C = wide[:size]
        sum_C[:] = 0
        if plan.weights:
            for row, weight in zip(current, plan.weights, strict=True):
                if weight:
                    np.multiply(row, weight, out=product[:size], dtype=np.int64)
                    sum_C += product[:size]
        else:
            for row in _kept(current, spare_C, network, plan.trim):
                sum_C += row
        np.floor_divide(sum_C, divisor, out=sum_C)
        np.copyto(update[part], sum_C, casting="same_kind")


def _pair(rows: list[Int32], buckets: Sequence[Sequence[int]]) -> list[Int32]:
    """Return the mean of each bucket, rounded down; overwrites its first row."""
    for first, *others in buckets:
        for other in others:
            rows[first] += rows[other]
        np.floor_divide(rows[first], 1 + len(others), out=rows[first])
    return [rows[first] for first, *_ in buckets]


def _scale(value_C: Int32, factor_q16: int, product_C: Int64, out_C: Int32) -> None:
    if factor_q16 == FACTOR_ONE:
        np.copyto(out_C, value_C)
        return
    np.copyto(product_C, value_C)
    np.multiply(product_C, factor_q16, out=product_C)
    np.right_shift(product_C, 16, out=product_C)
    np.copyto(out_C, product_C, casting="same_kind")


def _mix(
    scaled_C: list[Int32], near: Sequence[Sequence[int]], total_C: Int32, mixed_C: list[Int32]
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


def combine_reference(values: list[list[int]], factors: list[int], plan: Plan) -> list[int]:
    """Scale, pair, mix, trim or weigh, and average, coordinate by coordinate."""
    update = []
    for p in range(len(values[0])):
        row = [value[p] * factor >> 16 for value, factor in zip(values, factors, strict=True)]
        if plan.buckets:
            row = [sum(row[i] for i in bucket) // len(bucket) for bucket in plan.buckets]
        if plan.near:
            row = [sum(row[i] for i in group) for group in plan.near]
        if plan.weights:
            total = sum(value * weight for value, weight in zip(row, plan.weights, strict=True))
        else:
            total = sum(sorted(row)[plan.trim : len(row) - plan.trim])
        update.append(total // plan.divisor(len(values)))
    return update
