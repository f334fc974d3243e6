"""The aggregation: fast equals plain, no order or size overflows it, and liars gain little."""

from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.gradients.aggregate import aggregate, scale_factors
from peerformer.gradients.combine import (
    CONTRIBUTIONS_MAX,
    Plan,
    combine_reference,
    selection_network,
)
from peerformer.gradients.compress import VALUE_MAX
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.fixed_point import CHUNK, norm
from peerformer.gradients.rules import FACTOR_ONE, Rule
from peerformer.gradients.sketch import (
    SKETCH_BUCKETS,
    _randomness,
    sketch_reference,
    sketches,
    squared_distance,
    squared_distances,
)
from peerformer.gradients.weights import nearest

ROBUST, MEAN = Rule.named("robust"), Rule.named("mean")
RULES = [
    ROBUST,
    MEAN,
    replace(ROBUST, mixing=False),
    replace(ROBUST, final="mean"),
    replace(ROBUST, norms=""),
]


def contributions_of(K, size, seed, spread=2.0):
    """Honest contributions: a common direction, and noise of their own."""
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    common = generator.normal(size=size)
    rows = [(common + spread * generator.normal(size=size)) * 50_000 for _ in range(K)]
    return [torch.from_numpy(np.clip(np.rint(r), -VALUE_MAX, VALUE_MAX).astype("i4")) for r in rows]


def aggregated(values, rule, seed=b"s", recent_norms=()):
    given = [Contribution.of(value) for value in values]
    return aggregate(given, rule=rule, seed=seed, recent_norms=recent_norms)


def sketches_of(values, seed):
    return sketches([Contribution.of(value) for value in values], seed)


def reference(contributions, rule, seed):
    """The whole rule but the cap, from the plain parts."""
    K = len(contributions)
    norms = [norm(contribution) for contribution in contributions]
    factors = scale_factors(norms, rule) if rule.norms else [FACTOR_ONE] * K
    kept = [i for i in range(K) if factors[i]]
    f = (len(kept) - 1) // 3
    values, factors = [contributions[i].tolist() for i in kept], [factors[i] for i in kept]
    near = ()
    if rule.mixing:
        plain = [np.array(sketch_reference(value, seed)) for value in values]
        scaled = [s * factor >> 16 for s, factor in zip(plain, factors, strict=True)]
        near = tuple(map(tuple, nearest(squared_distances(scaled), len(kept) - f)))
    plan = Plan(near=near, trim=f if rule.final == "trimmed-mean" else 0)
    return combine_reference(values, factors, plan)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("K", [1, 2, 3, 4, 7, 16])
def test_the_fast_rule_equals_the_plain_one(rule, K):
    contributions = contributions_of(K, 300, seed=K)
    result = aggregated(contributions, rule)
    assert result.update_P.tolist() == reference(contributions, rule, b"s")
    assert result.norm == norm(result.update_P)
    assert result.refused == ()


def test_the_fast_rule_equals_the_plain_one_across_chunks():
    contributions = contributions_of(4, 2 * CHUNK + 77, seed=11)
    result = aggregated(contributions, ROBUST)
    assert result.update_P.tolist() == reference(contributions, ROBUST, b"s")


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("K", [7, 32, CONTRIBUTIONS_MAX])
def test_the_largest_values_of_the_most_contributions_do_not_overflow(rule, K):
    """Some are scaled by nearly 4 and the rest not: a quarter of the norm, in the same places."""
    size = 40
    loud = torch.full((size,), VALUE_MAX, dtype=torch.int32)
    loud[1::2] = -VALUE_MAX
    quiet = torch.zeros(size, dtype=torch.int32)
    quiet[:3], quiet[3] = VALUE_MAX, -VALUE_MAX  # a norm of sqrt(4 / 40) of the loud one
    contributions = [loud] * (K - K // 4) + [quiet] * (K // 4)
    result = aggregated(contributions, rule)
    assert result.refused == ()
    assert result.update_P.tolist() == reference(contributions, rule, b"s")


@pytest.mark.parametrize("K", range(1, 11))
def test_the_network_leaves_the_middle_values_whatever_the_order(K):
    """By the 0-1 principle, a network right for all zeros and ones is right for all numbers."""
    for trim in range((K - 1) // 2 + 1):
        network = selection_network(K, trim)
        for values in product((0, 1), repeat=K):
            rows = list(values)
            for i, j, _, _ in network:
                rows[i], rows[j] = min(rows[i], rows[j]), max(rows[i], rows[j])
            assert sum(rows[trim : K - trim]) == sum(sorted(values)[trim : K - trim])


def test_the_network_is_smaller_than_a_full_sort():
    assert sum(low + high for _, _, low, high in selection_network(7, 2)) < 2 * 16
    assert selection_network(7, 0) == []


@pytest.mark.parametrize("size", [1, 7, CHUNK, 2 * CHUNK + 13])
def test_the_fast_sketch_equals_the_plain_one(size):
    contributions = contributions_of(2, size, seed=size)
    for seed in (b"", b"a", b"b"):
        fast = sketches_of(contributions, seed)
        for sketch, contribution in zip(fast, contributions, strict=True):
            assert sketch.tolist() == sketch_reference(contribution.tolist(), seed)


def test_a_sketch_of_more_chunks_than_int32_holds_does_not_overflow():
    """The worst vector there is: in every bucket all the largest values, of one sign."""
    chunks = 300
    _, packed_signs = _randomness(chunks * CHUNK, b"s")
    value = np.where(np.unpackbits(packed_signs), -VALUE_MAX, VALUE_MAX).astype(np.int32)
    assert (
        sketches_of([torch.from_numpy(value)], b"s")[0].tolist()
        == [chunks * VALUE_MAX] * SKETCH_BUCKETS
    )


def test_a_sketch_keeps_distances_within_a_few_percent():
    contributions = contributions_of(2, 10 * CHUNK, seed=21)
    a, b = (c.numpy().astype(np.int64) for c in contributions)
    exact = int(((a - b) ** 2).sum())
    sketched = squared_distance(*sketches_of(contributions, b"s"))
    assert abs(sketched / exact - 1) < 5 * (2 / SKETCH_BUCKETS) ** 0.5


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(-(2**42), 2**42), min_size=1, max_size=5), st.randoms())
def test_a_squared_distance_is_exact(values, random):
    others = random.sample(values, len(values))
    exact = sum((x - y) ** 2 for x, y in zip(values, others, strict=True))
    assert squared_distance(np.array(values), np.array(others)) == exact
    largest = np.full(SKETCH_BUCKETS, 2**42)
    assert squared_distance(largest, -largest) == SKETCH_BUCKETS * 2**86


def test_each_is_its_own_neighbour_and_ties_go_to_the_lower_index():
    same = squared_distances([np.zeros(4, np.int64)] * 5)
    assert nearest(same, 3) == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 3], [0, 1, 4]]
    line = squared_distances([np.array([x]) for x in (0, 1, 10, 11, 12)])
    assert nearest(line, 2) == [[0, 1], [0, 1], [2, 3], [2, 3], [3, 4]]


def test_every_order_given_tells_the_same_contributions_apart_alike():
    """Ties aside, who comes first must not matter."""
    contributions = contributions_of(7, 5000, seed=31)
    first = aggregated(contributions, ROBUST)
    Random(31).shuffle(contributions)
    again = aggregated(contributions, ROBUST)
    assert torch.equal(first.update_P, again.update_P)


def test_contributions_are_not_changed():
    contributions = contributions_of(7, 5000, seed=32)
    before = [c.clone() for c in contributions]
    for rule in RULES:
        aggregated(contributions, rule, recent_norms=(1, 1, 1))
    assert all(torch.equal(a, b) for a, b in zip(contributions, before, strict=True))


def test_norms_outside_a_quarter_and_four_times_the_median_are_refused():
    def vector(length):
        return torch.tensor([length, 0], dtype=torch.int32)

    lengths = [1000, 1000, 1000, 0, 249, 250, 4000, 4020, 1000]
    result = aggregated([vector(n) for n in lengths], ROBUST)
    assert result.refused == ((3, "norm"), (4, "norm"), (7, "norm"))
    assert result.update_P.tolist() == [1000, 0]
    assert scale_factors([1, 100], ROBUST) == [FACTOR_ONE, None]


def test_no_contribution_at_all_is_a_null_update():
    nothing = aggregated([], ROBUST)
    assert (nothing.update_P.numel(), nothing.norm, nothing.refused) == (0, 0, ())
    zeros = [torch.zeros(9, dtype=torch.int32)] * 4
    refused = aggregated(zeros, ROBUST, recent_norms=(5, 5, 5))
    assert not refused.update_P.any()
    assert refused.norm == 0
    assert [index for index, _ in refused.refused] == [0, 1, 2, 3]


def test_the_result_is_at_most_twice_as_long_as_the_recent_updates():
    contributions = contributions_of(7, 5000, seed=33)
    free = aggregated(contributions, ROBUST)
    recent = (free.norm // 10, free.norm // 5, free.norm)
    capped = aggregated(contributions, ROBUST, recent_norms=recent)
    assert capped.norm == pytest.approx(2 * (free.norm // 5), rel=1e-3)
    expected = [
        v * ((2 * (free.norm // 5) << 32) // free.norm) >> 32 for v in free.update_P.tolist()
    ]
    assert capped.update_P.tolist() == expected
    two = aggregated(contributions, ROBUST, recent_norms=recent[:2])
    assert torch.equal(two.update_P, free.update_P)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="unknown rule 'best'"):
        Rule.named("best")
