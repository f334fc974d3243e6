"""Every rule by name: what it is made of, what it weighs, and that fast equals plain."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from peerformer.gradients import weights
from peerformer.gradients.aggregate import aggregate, plan_for, scale_factors
from peerformer.gradients.combine import CONTRIBUTIONS_MAX, combine_reference
from peerformer.gradients.compress import VALUE_MAX
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.fixed_point import CHUNK, norm
from peerformer.gradients.rules import FACTOR_ONE, PARTS, SHORT, Rule

FINALS = PARTS[-1]
NAMES = (
    *SHORT,
    *FINALS,
    "bucketing+mean",
    "norm-clipping+bucketing+centred-clipping",
    "bucketing+nearest-neighbour-mixing+krum",
    "equal-norms+bucketing+nearest-neighbour-mixing+geometric-median",
    "nearest-neighbour-mixing+coordinate-median",
)


def contributions_of(K, size, seed, spread=2.0, scale=50_000):
    """Honest contributions: a common direction, and noise of their own."""
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    common = generator.normal(size=size)
    rows = [(common + spread * generator.normal(size=size)) * scale for _ in range(K)]
    return [torch.from_numpy(np.clip(np.rint(r), -VALUE_MAX, VALUE_MAX).astype("i4")) for r in rows]


def aggregated(values, rule):
    given = [Contribution.of(value) for value in values]
    return aggregate(given, rule=rule, seed=b"s", recent_norms=())


def squares_of(points):
    return [
        [sum(int(a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points] for p in points
    ]


def points_of(K, seed, liars=0):
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    points = generator.integers(-1_000, 1_000, size=(K, 6))
    points[:liars] += 20_000
    return points


# --- names ---------------------------------------------------------------------------------------


def test_a_short_name_stands_for_its_parts():
    robust = Rule.named("robust")
    assert (robust.norms, robust.mixing, robust.final) == ("equal-norms", True, "trimmed-mean")
    assert Rule.named("mean").norm_cap is None and Rule.named("cheap").norm_cap == 2
    for name in NAMES:
        assert Rule.named(name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "best", "equal-norms", "mean+krum", "krum+mean", "bucketing+norm-clipping+mean",
     "mean+mean", "equal-norms+norm-clipping+mean", "robust+mean", "mean+"],
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_all_that_are(name):
    with pytest.raises(ValueError, match="coordinate-median"):
        Rule.named(name)


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 2, 5, 8])
def test_the_distance_to_a_weighted_mean_follows_from_the_distances_between(K):
    points, shares = points_of(K, K), [3 * i + 1 for i in range(K)]
    total = sum(shares)
    for index, found in enumerate(weights.from_mean(squares_of(points), shares)):
        centre = [
            sum(Fraction(w * int(p[d]), total) for w, p in zip(shares, points, strict=True))
            for d in range(6)
        ]
        exact = sum((int(points[index][d]) - centre[d]) ** 2 for d in range(6))
        assert found == int(exact)


@pytest.mark.parametrize("groups", [[(0, 1), (2, 3), (4,)], [(0, 1, 2), (1, 2, 3), (0, 3, 4)]])
def test_distances_between_means_are_those_of_the_means(groups):
    points = points_of(5, 7)
    means = np.array([points[list(group)].mean(0) for group in groups])
    found = weights.of_means(squares_of(points), groups)
    exact = ((means[:, None] - means[None]) ** 2).sum(-1)
    ratio = np.array(found, float)[exact > 0] / exact[exact > 0]
    assert ratio.min() == pytest.approx(ratio.max(), rel=1e-6)


def test_krum_chooses_whoever_is_nearest_to_others():
    points = points_of(7, 3, liars=2)
    squares = squares_of(points)
    plain = [sum(sorted(row[:i] + row[i + 1 :])[:3]) for i, row in enumerate(squares)]
    chosen = weights.krum(squares, 2, count=1)
    assert chosen.index(1) == plain.index(min(plain)) and sum(chosen) == 1
    assert weights.krum(squares, 2, count=5) == [0, 0, 1, 1, 1, 1, 1]
    assert weights.krum([[0, 0], [0, 0]], 0, count=1) == [1, 0]


def test_the_geometric_median_is_weiszfelds():
    points = points_of(7, 4, liars=2).astype(float)
    centre = points.mean(0)
    for _ in range(2_000):
        pulls = 1 / np.maximum(np.linalg.norm(points - centre, axis=1), 1e-6)
        centre = (points * pulls[:, None]).sum(0) / pulls.sum()
    found = np.array(weights.geometric_median(squares_of(points.astype(int))), float)
    mean = (points * found[:, None]).sum(0) / found.sum()
    spread = np.linalg.norm(points[2:] - centre, axis=1).mean()
    assert np.linalg.norm(mean - centre) < 0.02 * spread
    assert np.linalg.norm(points.mean(0) - centre) > spread  # where the plain mean is


def test_centred_clipping_takes_steps_that_no_liar_lengthens():
    points = points_of(7, 5, liars=2).astype(float)
    sums = np.linalg.norm(points[:, None] - points[None], axis=-1).sum(1)
    centre = points[sums.argmin()].copy()
    for _ in range(weights.CLIPPING_STEPS):
        away = points - centre
        lengths = np.linalg.norm(away, axis=1)
        limit = np.sort(lengths)[3]
        centre += (away * np.minimum(1, limit / np.maximum(lengths, 1e-9))[:, None]).mean(0)
    found = np.array(weights.centred_clipping(squares_of(points.astype(int))), float)
    mean = (points * found[:, None]).sum(0) / found.sum()
    honest = points[2:].mean(0)
    assert np.linalg.norm(mean - centre) < 0.01 * np.linalg.norm(points.mean(0) - honest)
    assert np.linalg.norm(mean - honest) < 0.25 * np.linalg.norm(points.mean(0) - honest)


# --- rules ---------------------------------------------------------------------------------------


def plain(contributions, rule, seed):
    norms = [norm(contribution) for contribution in contributions]
    factors = scale_factors(norms, rule) if rule.norms else [FACTOR_ONE] * len(contributions)
    kept = [i for i in range(len(contributions)) if factors[i]]
    chosen, factors = [contributions[i] for i in kept], [factors[i] for i in kept]
    plan = plan_for([Contribution.of(value) for value in chosen], factors, rule, seed)
    return combine_reference([value.tolist() for value in chosen], factors, plan)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 7, 8, 13])
def test_the_fast_rule_equals_the_plain_one(name, K):
    contributions, rule = contributions_of(K, 200, seed=K), Rule.named(name)
    before = [contribution.clone() for contribution in contributions]
    result = aggregated(contributions, rule)
    assert result.update_P.tolist() == plain(contributions, rule, b"s")
    assert all(torch.equal(a, b) for a, b in zip(contributions, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_rule_equals_the_plain_one_across_chunks(name):
    contributions, rule = contributions_of(5, CHUNK + 77, seed=11), Rule.named(name)
    result = aggregated(contributions, rule)
    assert result.update_P.tolist() == plain(contributions, rule, b"s")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("K", [7, CONTRIBUTIONS_MAX])
def test_the_largest_values_of_the_most_contributions_do_not_overflow(name, K):
    size = 40
    loud = torch.full((size,), VALUE_MAX, dtype=torch.int32)
    loud[1::2] = -VALUE_MAX
    quiet = torch.zeros(size, dtype=torch.int32)
    quiet[:3], quiet[3] = VALUE_MAX, -VALUE_MAX
    contributions = [loud] * (K - K // 4) + [quiet] * (K // 4)
    rule = Rule.named(name)
    result = aggregated(contributions, rule)
    assert result.update_P.tolist() == plain(contributions, rule, b"s")


@pytest.mark.parametrize("name", [n for n in NAMES if "bucketing" not in n])
def test_who_comes_first_does_not_matter(name):
    contributions, rule = contributions_of(7, 3_000, seed=31), Rule.named(name)
    first = aggregated(contributions, rule)
    again = aggregated(contributions[::-1], rule)
    near = (first.update_P - again.update_P).abs().max()  # Weiszfeld's divisions round
    assert near <= (0 if rule.final not in ("geometric-median", "centred-clipping") else 50)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("mean", "bucketing+mean")])
def test_two_of_seven_that_send_the_opposite_tenfold_are_withstood(name):
    """Pairs halve what is tolerated (arXiv 2006.09365): with them, one of seven."""
    count = 1 if "bucketing" in name else 2
    honest = contributions_of(7 - count, 5_000, seed=41, spread=0.5, scale=10_000)
    liars = [torch.clamp(-10 * honest[i], -VALUE_MAX, VALUE_MAX) for i in range(count)]
    wanted = torch.stack(honest).double().mean(0)

    def error(name):
        rule = Rule.named(name)
        result = aggregated([*liars, *honest], rule)
        return float((result.update_P.double() - wanted).norm() / wanted.norm())

    print(name, error(name), "mean", error("mean"))
    assert error("mean") > 1.5
    assert error(name) < 0.7


def test_norm_clipping_shortens_and_never_refuses():
    lengths = [1_000, 1_000, 1_000, 0, 10, 4_000, 40_000]
    factors = scale_factors(lengths, Rule.named("cheap"))
    assert factors[:3] == [FACTOR_ONE] * 3 and factors[4] == FACTOR_ONE
    assert factors[5:] == [FACTOR_ONE // 4, FACTOR_ONE // 40] and factors[3] is not None


def test_pairs_are_drawn_by_the_seed_and_hold_everybody_once():
    values = [Contribution.of(c) for c in contributions_of(7, 50, seed=1)]
    plans = [
        plan_for(values, [FACTOR_ONE] * 7, Rule.named("bucketing+mean"), bytes([seed]))
        for seed in range(20)
    ]
    for plan in plans:
        assert sorted(i for bucket in plan.buckets for i in bucket) == list(range(7))
        assert sorted(map(len, plan.buckets)) == [1, 2, 2, 2]
    assert any(a.buckets != b.buckets for a, b in pairwise(plans))
