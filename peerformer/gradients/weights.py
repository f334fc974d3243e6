"""Rules that look at distances: how much each contribution counts, in integers.

All of them need only the squared distances between contributions: a point that is a weighted mean
of them has its distance to each from these alone. Python's integers are exact, so nothing here
rounds but divisions, downwards. This module knows no parameters.
"""

from collections.abc import Sequence
from math import isqrt

import numpy as np

Squares = Sequence[Sequence[int]]
WEIGHT_MAX = (1 << 16) - 1
WEISZFELD_STEPS = 16
CLIPPING_STEPS = 8
_ONE = 1 << 20  # a share
_SMOOTH = 12  # bits: whoever is nearer to the centre than 2^-12 of the farthest counts no more


def nearest(squares: Squares, count: int) -> list[list[int]]:
    """Return, for each, itself and its nearest others, `count` in all; ties by index."""
    near = []
    for i, row in enumerate(squares):
        ranked = sorted((j != i, row[j], j) for j in range(len(row)))
        near.append(sorted(j for _, _, j in ranked[:count]))
    return near


def of_means(squares: Squares, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the squared distances between means of members, all times one common factor.

    Args:
        squares: between the members.
        groups: who is averaged, of one or two sizes.
    """
    sizes = [len(group) for group in groups]
    common = max(sizes) if len(set(sizes)) == 1 else max(sizes) * min(sizes)
    shares = np.zeros((len(groups), len(squares)), object)
    for row, group in zip(shares, groups, strict=True):
        row[list(group)] = common // len(group)
    crossed = shares @ np.array(squares, object) @ shares.T
    J = range(len(groups))
    # |sum c_i x_i|^2 = -1/2 sum c_i c_j d_ij wherever the c sum to 0.
    return [[crossed[a][b] - (crossed[a][a] + crossed[b][b]) // 2 for b in J] for a in J]


def krum_scores(squares: Squares, f: int) -> list[int]:
    """Return the sum of the squared distances to the K - f - 2 nearest others."""
    K = len(squares)
    count = max(1, K - f - 2)
    return [sum(sorted(row[:i] + row[i + 1 :])[:count]) for i, row in enumerate(map(list, squares))]


def krum(squares: Squares, f: int, *, count: int) -> list[int]:
    """Return a weight of 1 for the `count` of the least scores; ties by index."""
    scores = krum_scores(squares, f)
    chosen = sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]
    return [int(i in chosen) for i in range(len(scores))]


def geometric_median(squares: Squares) -> list[int]:
    """Return weights of the point with the least sum of distances (smoothed Weiszfeld)."""
    weights = [1] * len(squares)
    for _ in range(WEISZFELD_STEPS):
        lengths = [isqrt(square) for square in from_mean(squares, weights)]
        farthest = max(max(lengths), 1)
        least = max(1, farthest >> _SMOOTH)
        weights = [(farthest << 16) // max(length, least) for length in lengths]
    return _narrow(weights)


def centred_clipping(squares: Squares) -> list[int]:
    """Return weights of where steps towards the mean end, each pull clipped to the median pull.

    It starts at whoever has the least sum of distances to all.
    """
    K = len(squares)
    sums = [sum(map(isqrt, row)) for row in squares]
    weights = [0] * K
    weights[sums.index(min(sums))] = _ONE
    for _ in range(CLIPPING_STEPS):
        lengths = [isqrt(square) for square in from_mean(squares, weights)]
        limit = sorted(lengths)[(K - 1) // 2]
        pulls = [_ONE if n <= limit else limit * _ONE // n for n in lengths]
        stays = K * _ONE - sum(pulls)
        weights = [(w * stays // _ONE + pull) // K for w, pull in zip(weights, pulls, strict=True)]
    return _narrow(weights)


def from_mean(squares: Squares, weights: Sequence[int]) -> list[int]:
    """Return each one's squared distance to the weighted mean of all, rounded down."""
    total = sum(weights)
    to_each = [sum(w * d for w, d in zip(weights, row, strict=True)) for row in squares]
    spread = sum(w * d for w, d in zip(weights, to_each, strict=True))
    return [max(0, (2 * total * d - spread) // (2 * total * total)) for d in to_each]


def _narrow(weights: list[int]) -> list[int]:
    """Return the weights in 16 bits; they only matter as ratios."""
    largest = max(weights)
    return [weight * WEIGHT_MAX // largest for weight in weights]
