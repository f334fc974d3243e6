"""Our integer rules against the float ones of ByzFL, which others wrote from the same papers."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.rules import Rule

SEED = b"\x07" * 32
SIZES = (4, 5, 7, 8, 13, 16)  # also where K is not 3 f + 1


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    """The package's aggregators without its training, which wants an image library."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None:
        pytest.skip("byzfl is not installed: pip install --no-deps byzfl")
    package = ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations or ())
    before = dict(sys.modules)
    sys.modules["byzfl"] = package
    try:
        return importlib.import_module("byzfl.aggregators")
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] == "byzfl":
                del sys.modules[name]


def contributions(K: int, liars: int = 0) -> np.ndarray:
    """Honest ones around a common direction; liars far away, on the other side."""
    seed = 31 * K + liars
    print("seed", seed)
    generator = np.random.default_rng(seed)
    common = generator.normal(size=5_000)
    rows = common + 0.5 * generator.normal(size=(K, 5_000))
    rows[:liars] = -3 * common + 0.1 * generator.normal(size=(liars, 5_000))
    return np.rint(rows * 50_000)


def ours(rule: str, rows: np.ndarray) -> np.ndarray:
    values = [Contribution.of(torch.from_numpy(row.astype("i4"))) for row in rows]
    named = Rule.named(rule)
    return aggregate(values, rule=named, seed=SEED, recent_norms=()).update_P.numpy()


def close(mine: np.ndarray, theirs: np.ndarray, units: float) -> bool:
    return bool(np.abs(mine - theirs).max() <= units)


@pytest.mark.parametrize("K", SIZES)
def test_of_each_coordinate(oracle: ModuleType, K: int) -> None:
    rows, f = contributions(K, (K - 1) // 3), (K - 1) // 3
    assert close(ours("mean", rows), oracle.Average()(rows), 1)  # rounded down
    assert close(ours("coordinate-median", rows), oracle.Median()(rows), 1)
    assert close(ours("trimmed-mean", rows), oracle.TrMean(f=f)(rows), 1)


@pytest.mark.parametrize("K", SIZES)
def test_by_distance(oracle: ModuleType, K: int) -> None:
    f = (K - 1) // 3
    rows = contributions(K, f)
    assert close(ours("multi-krum", rows), oracle.MultiKrum(f=f)(rows), 1)
    if K > 4:  # with one neighbour to count, the two nearest score alike
        rows[-1] = np.rint(rows[f:].mean(0))  # amid the honest: of Krum's scores the least
        assert close(ours("krum", rows), oracle.Krum(f=f)(rows), 0)
    mixed = oracle.NNM(f=f)(rows)
    assert close(ours("nearest-neighbour-mixing+mean", rows), oracle.Average()(mixed), 2)
    trimmed = oracle.TrMean(f=f)(mixed)
    assert close(ours("nearest-neighbour-mixing+trimmed-mean", rows), trimmed, 2)


@pytest.mark.parametrize("K", SIZES)
def test_of_the_point_nearest_to_all(oracle: ModuleType, K: int) -> None:
    rows = contributions(K, (K - 1) // 3)
    theirs = oracle.GeometricMedian(nu=1.0, T=200)(rows)
    spread = np.linalg.norm(rows - theirs, axis=1).min()
    assert np.linalg.norm(ours("geometric-median", rows) - theirs) < 0.05 * spread


@pytest.mark.parametrize("K", SIZES)
def test_of_clipped_pulls(oracle: ModuleType, K: int) -> None:
    """Both rest where the clipped pulls cancel; ours clips at the median pull."""
    rows = contributions(K, (K - 1) // 3)
    mine = ours("centred-clipping", rows).astype(float)
    pulls = np.sort(np.linalg.norm(rows - mine, axis=1))
    clipping = oracle.CenteredClipping(L=400, tau=float(pulls[(K - 1) // 2]))
    clipping.m = mine.copy()
    assert np.linalg.norm(clipping(rows) - mine) < 0.1 * pulls[0]


@pytest.mark.parametrize("K", SIZES)
def test_of_long_ones_made_shorter(oracle: ModuleType, K: int) -> None:
    rows = contributions(K)
    rows[0] *= 9
    norms = np.sort(np.linalg.norm(rows, axis=1))
    clipped = oracle.Clipping(c=float(norms[(K - 1) // 2]))(rows.copy())
    assert close(ours("norm-clipping+mean", rows), clipped.mean(0), 8)  # factors have 16 bits
