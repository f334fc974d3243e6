"""Sampling: what may be drawn, how often, and that a seed repeats it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.errors import ConfigError
from peerformer.generate.sampling import Sampling, sample


def draw(logits, *, temperature=1.0, top_k=None, top_p=None, seed=0, times=1):
    generator = torch.Generator().manual_seed(seed)
    rows = logits.expand(times, -1)
    drawn = sample(rows, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    assert drawn.shape == (times,) and drawn.dtype == torch.int64
    return drawn


def make_logits(size, seed):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


@given(size=st.integers(1, 40), seed=st.integers(0, 2**32), k=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_only_the_k_likeliest_tokens_are_drawn(size, seed, k):
    logits = make_logits(size, seed)
    allowed = set(logits.topk(min(k, size)).indices.tolist())
    assert set(draw(logits, top_k=k, times=200).tolist()) <= allowed


@given(size=st.integers(1, 40), seed=st.integers(0, 2**32), p=st.floats(0.01, 1.0))
@settings(max_examples=40, deadline=None)
def test_the_tokens_drawn_are_the_fewest_that_reach_the_mass_p(size, seed, p):
    probabilities, order = make_logits(size, seed).softmax(-1).double().sort(descending=True)
    count = int((probabilities.cumsum(-1) < p - 1e-5).sum()) + 1
    allowed = set(order[: count + 1].tolist())  # one more, for a mass that p hits on the edge
    found = set(draw(make_logits(size, seed), top_p=p, times=400).tolist())
    assert found <= allowed
    if probabilities[0] >= p:
        assert found <= set(order[:2].tolist())


def test_the_mass_p_is_exact_on_a_known_distribution():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, allowed in ((0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        assert set(draw(logits, top_p=p, times=2_000).tolist()) == allowed, p


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_at_the_temperature(temperature):
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    drawn = draw(logits, temperature=temperature, times=40_000)
    found = torch.bincount(drawn, minlength=4) / 40_000
    expected = (logits / temperature).softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.012)


def test_temperature_zero_and_nearly_zero_take_the_likeliest_token():
    logits = torch.stack([make_logits(30, seed) for seed in range(20)])
    for temperature in (0.0, 1e-30):
        drawn = sample(
            logits, temperature=temperature, top_k=None, top_p=None, generator=torch.Generator()
        )
        assert torch.equal(drawn, logits.argmax(-1)), temperature


def test_a_seed_repeats_and_another_differs():
    logits = make_logits(50, 1)
    first = draw(logits, times=50, seed=5)
    assert torch.equal(first, draw(logits, times=50, seed=5))
    assert not torch.equal(first, draw(logits, times=50, seed=6))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"top_k": 0}, {"top_k": -3}, {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused_by_name(values):
    with pytest.raises(ConfigError) as caught:
        Sampling(**values)
    assert next(iter(values)).replace("_", "-") in str(caught.value)
    assert caught.value.exit_code == 2
