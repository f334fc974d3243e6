"""The judgement of one contribution: integers and reasons."""

import pytest
import torch

from peerformer.gradients.audit import check_bounds, norm, score_micronats, similarity_permille
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
