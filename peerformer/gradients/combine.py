"""The combination: scaled contributions into one, coordinate by coordinate, as a plan says.

What nobody sends stays zero under every plan, so of sparse contributions only the coordinates that
somebody sends are worked on. Work goes through the coordinates in chunks that stay in cache, as
integers rounded down. A median is taken by a selection network: minima and maxima of whole rows.

Shape suffixes: `P` parameters, `C` coordinates of a chunk, `A` coordinates of it that are worked
on, `V` values of one contribution; lists of arrays have one entry for each of the `K`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peerformer.gradients import native
from peerformer.gradients.codec import Int32, Places
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.fixed_point import CHUNK, square_sum
from peerformer.gradients.rules import FACTOR_ONE
from peerformer.gradients.threads import shared_out

CONTRIBUTIONS_MAX = 64  # scaled by 4, this many of the largest values still sum within int32

Int64 = NDArray[np.int64]
Comparator = tuple[int, int, bool, bool]  # low row, high row, low is used, high is used


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


class _Scratch:
    """The arrays that a thread works in, again and again.

    Attributes:
        mixed_KC: sums of neighbours.
        total_C: the sum of all.
        spare_C: the one that a comparator writes to.
        sum_C: what is divided at the end, wide where int32 might overflow.
        product_C: a row times a weight.
    """

    def __init__(self, plan: Plan, K: int) -> None:
        """Take space for K rows."""
        rows = np.empty((K + 2, CHUNK), np.int32)
        self.mixed_KC, (self.total_C, self.spare_C) = rows[:-2], rows[-2:]
        # A scaled value is below VALUE_MAX * 4 < 2^25, and so many of them sum within int32.
        narrow = plan.divisor(K) <= CONTRIBUTIONS_MAX and not plan.weights
        self.sum_C: NDArray[Any] = np.empty(CHUNK, np.int32 if narrow else np.int64)
        self.product_C = np.empty(CHUNK, np.int64)


class _Steps:
    """A plan as the compiled loops take it; holds the lists that it points to."""

    def __init__(self, plan: Plan, K: int, network: list[Comparator]) -> None:
        """Write the lists down."""
        rows = len(plan.buckets) or K
        self.told = native.Steps(rows, plan.trim, plan.divisor(K))
        lists: dict[str, list[list[int]]] = {"network": [[i, j] for i, j, *_ in network]}
        if plan.buckets:
            lists["buckets"] = [[*bucket, -1][:2] for bucket in plan.buckets]
        if plan.near:
            everyone = set(range(rows))
            far = [sorted(everyone - set(group)) for group in plan.near]
            lists["far"] = [[*others, *[-1] * (rows + 1 - len(others))] for others in far]
        if plan.weights:
            lists["weights"] = [list(plan.weights)]
        self.held = {name: np.array(values, np.int32) for name, values in lists.items()}
        self.told.comparators = len(network)
        for name, values in self.held.items():
            setattr(self.told, name, values.ctypes.data)


def combine(
    contributions: Sequence[Contribution], factors: Sequence[int], plan: Plan, update_P: Int32
) -> int:
    """Write the combination of scaled contributions over zeros; return the sum of its squares.

    Args:
        contributions: of one codec.
        factors: what each is scaled by, in units of 2^-16.
        plan: how.
        update_P: where to.
    """
    K = len(contributions)
    codec = contributions[0].codec
    many = codec.coordinates_at_once
    network = selection_network(len(plan.buckets) or K, plan.trim)
    loops = native.library_for(codec, len(update_P))
    steps = _Steps(plan, K, network) if loops is not None else None

    def combine_range(first: int, end: int) -> int:
        if loops is not None and steps is not None:
            encoded = [contribution.rows(first, end) for contribution in contributions]
            factors_K, out = np.array(factors, np.int64), update_P[first:end]
            return native.combine(loops, codec, encoded, factors_K, steps.told, out)
        scratch, squares = _Scratch(plan, K), 0
        for start in range(first, end, many):
            update_C = update_P[start : min(end, start + many)]
            rows, sent_A = _scaled(
                contributions, factors, start, start + len(update_C), scratch.product_C
            )
            out_A = update_C if sent_A is None else np.empty(len(sent_A), np.int32)
            for left in range(0, len(out_A), CHUNK):
                columns = slice(left, left + CHUNK)
                _combine([row[columns] for row in rows], out_A[columns], plan, network, scratch)
            squares += square_sum(out_A)
            if sent_A is not None:
                update_C[sent_A] = out_A
        return squares

    return sum(shared_out(combine_range, len(update_P), many))


def _scaled(
    contributions: Sequence[Contribution],
    factors: Sequence[int],
    start: int,
    stop: int,
    product_C: Int64,
) -> tuple[list[Int32], Places | None]:
    """Return rows of scaled values, and of which coordinates of the range; None: of all."""
    values, places = [], []
    for contribution, factor in zip(contributions, factors, strict=True):
        value_V, place_V = contribution.read(start, stop)
        values.append(_scale(value_V, factor, product_C))
        if place_V is not None:
            places.append(place_V)
    if not places:
        return values, None
    is_sent_C = np.zeros(stop - start, bool)
    for place_V in places:
        is_sent_C[place_V] = True
    sent_A = np.flatnonzero(is_sent_C)
    column_C = np.empty(stop - start, np.intp)
    column_C[sent_A] = np.arange(len(sent_A))
    rows_KA = np.zeros((len(values), len(sent_A)), np.int32)
    for row_A, value_V, place_V in zip(rows_KA, values, places, strict=True):
        row_A[column_C[place_V]] = value_V
    return list(rows_KA), sent_A


def _scale(value_V: Int32, factor_q16: int, product_C: Int64) -> Int32:
    if factor_q16 == FACTOR_ONE:
        return value_V.copy()
    product_V = product_C[: len(value_V)]
    np.copyto(product_V, value_V)
    np.multiply(product_V, factor_q16, out=product_V)
    np.right_shift(product_V, 16, out=product_V)
    return product_V.astype(np.int32)


def _combine(
    rows: list[Int32], out_A: Int32, plan: Plan, network: list[Comparator], scratch: _Scratch
) -> None:
    """Pair, mix, trim or weigh, and average; overwrites the rows."""
    K, size = len(rows), len(out_A)
    if plan.buckets:
        rows = _pair(rows, plan.buckets)
    if plan.near:
        mixed = [row[:size] for row in scratch.mixed_KC[: len(rows)]]
        _mix(rows, plan.near, scratch.total_C[:size], mixed)
        rows = mixed
    sum_A, product_A = scratch.sum_C[:size], scratch.product_C[:size]
    sum_A[:] = 0
    if plan.weights:
        for row, weight in zip(rows, plan.weights, strict=True):
            if weight:
                np.multiply(row, weight, out=product_A, dtype=np.int64)
                sum_A += product_A
    else:
        for row in _kept(rows, scratch.spare_C[:size], network, plan.trim):
            sum_A += row
    np.floor_divide(sum_A, plan.divisor(K), out=sum_A)
    np.copyto(out_A, sum_A, casting="same_kind")


def _pair(rows: list[Int32], buckets: Sequence[Sequence[int]]) -> list[Int32]:
    """Return the mean of each bucket, rounded down; overwrites its first row."""
    for first, *others in buckets:
        for other in others:
            rows[first] += rows[other]
        np.floor_divide(rows[first], 1 + len(others), out=rows[first])
    return [rows[first] for first, *_ in buckets]


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
    rows: list[Int32], spare_C: Int32, network: list[Comparator], trim: int
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


def selection_network(K: int, trim: int) -> list[Comparator]:
    """Return the comparators that leave the middle of K values, as a set, in the middle rows.

    Merge exchange (Batcher 1968; Knuth, vol. 3, algorithm 5.2.2M), less what only orders rows that
    are all dropped or all kept.
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
