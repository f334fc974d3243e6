"""The judgement of one contribution: integers and reasons."""

import pytest
import torch
from torch import Tensor

from peerformer.gradients.audit import (
    SAMPLES_MAX,
    Samples,
    check_bounds,
    norm,
    score_micronats,
    similarity_permille,
)
from peerformer.gradients.compress import encoded_size
from peerformer.gradients.fixed_point import INT32_MAX, INT32_MIN


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def test_a_blob_is_in_bounds_or_the_reason_is_named():
    good = bytes(encoded_size(300, "dense-int8"))
    assert check_bounds(good, 300, "dense-int8") is None
    assert check_bounds(memoryview(good), 300, "dense-int8") is None
    assert check_bounds(good[1:], 300, "dense-int8") == "length"
    assert check_bounds(b"\xff" + good[1:], 300, "dense-int8") == "exponent"


def test_a_copy_and_its_multiples_are_wholly_similar_and_the_opposite_wholly_unlike():
    torch.manual_seed(print("seed 5") or 5)
    a = torch.randint(-(2**23), 2**23, (50_000,), dtype=torch.int32)
    b = torch.randint(-(2**23), 2**23, (50_000,), dtype=torch.int32)
    assert similarity_permille(a, a) == similarity_permille(a, 3 * a) == 1000
    assert similarity_permille(a, -a) == -1000
    cosine = torch.cosine_similarity(a.double(), b.double(), dim=0).item()
    assert similarity_permille(a, b) == pytest.approx(1000 * cosine, abs=1)
    assert similarity_permille(a, 0 * a) == 0


def test_the_extremes_do_not_overflow():
    lowest = torch.full((100_000,), INT32_MIN, dtype=torch.int32)
    assert similarity_permille(lowest, lowest) == 1000
    assert norm(lowest[:4]) == 2**32


@pytest.mark.parametrize(
    ("before", "after", "score"),
    [
        (2.0, 1.5, 500_000),
        (1.5, 2.0, -500_000),
        (2.0, 2.0, 0),
        (2.0, float("nan"), INT32_MIN),
        (2.0, float("inf"), INT32_MIN),
        (float("nan"), float("nan"), INT32_MIN),
        (float("nan"), 2.0, 0),
        (1e300, -1e308, INT32_MAX),
        (0.0, 1e308, INT32_MIN),
    ],
)
def test_a_score_is_the_gain_in_micronats_within_32_bits(before, after, score):
    assert score_micronats(before, after) == score


def test_a_copy_is_told_from_honest_work_by_the_values_that_nobody_else_knows() -> None:
    seed = 9
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    common_P = torch.randn(600_000, generator=generator)

    def honest() -> Tensor:
        mine_P = common_P + 0.5 * torch.randn(600_000, generator=generator)
        return (mine_P * 10_000).round().int()  # a cosine of 0.8 with each other

    samples = Samples(600_000)
    one_P, two_P = honest(), honest()
    assert samples.alike(b"one", one_P) is None and samples.alike(b"two", two_P) is None
    nearly_P = one_P + (torch.randn(600_000, generator=generator) * 1_000).round().int()
    assert samples.alike(b"copy", nearly_P) == b"one"
    assert samples.alike(b"longer", 3 * two_P) == b"two"
    assert samples.alike(b"one", one_P) == b"copy"  # not of itself, but of its copy
    assert samples.alike(b"against", -two_P) is None
    assert samples.alike(b"nothing", torch.zeros_like(one_P)) is None
    assert Samples(600_000).start != samples.start  # drawn by each peer for itself
    samples.forget()
    assert samples.alike(b"copy", nearly_P) is None
    kept = sum(value_P.numel() for value_P in samples.kept.values())
    assert kept <= SAMPLES_MAX
