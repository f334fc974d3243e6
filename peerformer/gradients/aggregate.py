"""Combine contributions into one update that a minority of liars cannot steer far.

The default rule brings every contribution to the median norm, up as well as down (a factor outside
1/4..4 is refused); replaces each by the mean of its nearest neighbours (Allouah et al., arXiv
2302.01772), near by a count-sketch drawn after the contributions are fixed (Charikar et al., 2002);
drops the `f` lowest and highest values of each coordinate and averages the rest (Yin et al., arXiv
1803.01498); and caps the norm of the result by those of recent rounds. `f = (K - 1) // 3`: fewer
than 4 contributions tolerate no liar, and the rule then is a mean of equal norms. Everything is
integer arithmetic rounded down, without a sum that could overflow, so threads, processors and the
order of summation cannot change a bit. No contribution is ever expanded as a whole. This module
does not know who contributed: the order given is the canonical one.

Shape suffix: `P` parameters; lists have one entry for each of the `K` contributions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from peerformer.gradients import weights
from peerformer.gradients.combine import CONTRIBUTIONS_MAX, Plan, combine
from peerformer.gradients.contribution import Contribution, norms
from peerformer.gradients.fixed_point import CHUNK, norm
from peerformer.gradients.rules import BY_DISTANCE, FACTOR_ONE, Rule
from peerformer.gradients.sketch import Int32, sketches, squared_distances

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
    contributions: Sequence[Contribution], *, rule: Rule, seed: bytes, recent_norms: Sequence[int]
) -> Aggregate:
    """Combine contributions.

    Args:
        contributions: of P values and one codec, at most `CONTRIBUTIONS_MAX`, sorted by peer id.
        rule: how.
        seed: draws the sketch; must not be known before the contributions are fixed.
        recent_norms: norms of the latest accepted updates.
    """
    assert len(contributions) <= CONTRIBUTIONS_MAX
    assert len({(contribution.codec.name, contribution.P) for contribution in contributions}) <= 1
    if not contributions:
        return Aggregate(torch.zeros(0, dtype=torch.int32), 0, ())
    factors: list[int | None] = [FACTOR_ONE] * len(contributions)
    if rule.norms:
        factors = scale_factors(norms(contributions), rule)
    refused = tuple((index, "norm") for index, factor in enumerate(factors) if factor is None)
    kept = [(c, factor) for c, factor in zip(contributions, factors, strict=True) if factor]
    update, length = np.zeros(contributions[0].P, np.int32), 0
    if kept:
        chosen, scales = [c for c, _ in kept], [factor for _, factor in kept]
        length = isqrt(combine(chosen, scales, plan_for(chosen, scales, rule, seed), update))
    update_P = torch.from_numpy(update)
    if rule.norm_cap is not None and len(recent_norms) >= NORMS_LEAST:
        limit = rule.norm_cap * _lower_median(recent_norms)
        if length > limit:
            _shrink(update, (limit << 32) // length)
            length = norm(update_P)
    return Aggregate(update_P, length, refused)


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


def plan_for(
    contributions: Sequence[Contribution], factors: Sequence[int], rule: Rule, seed: bytes
) -> Plan:
    """Return what a rule comes to for these contributions."""
    K = len(contributions)
    f = (K - 1) // 3
    squares: list[list[int]] = []
    if (rule.mixing and f) or rule.final in BY_DISTANCE:
        drawn = sketches(contributions, seed)
        scaled = [s * factor >> 16 for s, factor in zip(drawn, factors, strict=True)]
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
