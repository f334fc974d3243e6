"""Sampling: what may be drawn, how often, and that a seed repeats it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.errors import ConfigError
from peerformer.generate.penalties import Said, penalise
from peerformer.generate.sampling import GREEDY, Sampling, distribution, sample


def draw(logits, *, seed=0, times=1, **cuts):
    """So many draws; each row has a generator of its own."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + n) for n in range(times)]
    drawn = sample(logits.expand(times, -1), Sampling(**cuts), generators)
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
        drawn = sample(logits, Sampling(temperature=temperature), [torch.Generator()] * 20)
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
        {"min_p": -0.1}, {"min_p": 1.5}, {"repetition_penalty": 0.0}, {"no_repeat_ngram": 0},
        {"presence_penalty": float("inf")}, {"frequency_penalty": float("nan")},
        {"top_k": 3, "temperature": 0}, {"min_p": 0.1, "temperature": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused_by_name(values):
    with pytest.raises(ConfigError) as caught:
        Sampling(**values)
    assert next(iter(values)).replace("_", "-") in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("p", [0.0, 1.1])
def test_typical_is_refused_by_the_name_of_its_flag(p):
    with pytest.raises(ConfigError, match="typical is"):
        Sampling(typical_p=p)


def kept(logits, **cuts):
    probabilities, ids = distribution(logits.reshape(1, -1), Sampling(**cuts))
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    return set(ids[probabilities > 0].tolist())


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for share, expected in ((0.05, {0, 1, 2, 3}), (0.2, {0, 1, 2}), (0.5, {0, 1}), (1.0, {0})):
        assert kept(logits, min_p=share) == expected


def test_typical_keeps_what_says_about_as_much_as_is_expected():
    """Entropy 1.15 nats; information 0.51, 2.30, 2.30, 2.30, 2.30: the likeliest is nearest."""
    logits = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]).log()
    assert kept(logits, typical_p=0.5) == {0}
    # Of 0.4 and sixty of 0.01 the entropy is 3.13: the likeliest token, of 0.92, is not typical.
    flat = torch.tensor([0.4, *[0.01] * 60]).log()
    assert 0 not in kept(flat, typical_p=0.3)
    assert 0 in kept(flat, typical_p=0.9)


@given(size=st.integers(1, 30), seed=st.integers(0, 2**32), p=st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_what_typical_keeps_reaches_the_mass_and_is_nearest_to_the_entropy(size, seed, p):
    logits = make_logits(size, seed)
    found = kept(logits, typical_p=p)
    probabilities = logits.double().softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum()
    distance = (-probabilities.log() - entropy).abs()
    assert sum(probabilities[i].item() for i in found) >= p - 1e-5
    left = set(range(size)) - found
    assert not left or max(distance[i] for i in found) <= min(distance[i] for i in left) + 1e-6


def test_a_row_draws_the_same_whatever_stands_beside_it():
    logits = torch.stack([make_logits(40, seed) for seed in range(8)])
    sampling = Sampling(temperature=1.2, top_p=0.9)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(8)]

    together = sample(logits, sampling, generators())
    alone = [sample(logits[i : i + 1], sampling, generators()[i : i + 1]) for i in range(8)]
    assert torch.equal(together, torch.cat(alone))


def test_presence_and_frequency_count_what_was_made_and_repetition_the_prompt_too():
    logits = torch.tensor([[1.0, -1.0, 2.0, 0.5]])
    said = [Said(prompt=[0, 1], made=[2, 2, 1])]
    found = penalise(logits, Sampling(presence_penalty=0.25, frequency_penalty=1.0), said)
    assert found.tolist() == [[1.0, -2.25, -0.25, 0.5]]
    found = penalise(logits, Sampling(repetition_penalty=2.0), said)
    assert found.tolist() == [[0.5, -2.0, 1.0, 0.5]]
    assert penalise(logits, GREEDY, said) is logits


def test_no_run_of_n_tokens_comes_twice_unless_nothing_else_is_left():
    logits = torch.zeros(1, 3)
    found = penalise(logits, Sampling(no_repeat_ngram=2), [Said([0, 1, 0], [2, 0])])
    assert found.tolist() == [[0.0, float("-inf"), float("-inf")]]
    everything = penalise(logits, Sampling(no_repeat_ngram=1), [Said([0, 1], [2])])
    assert everything.isfinite().all()
    short = penalise(logits, Sampling(no_repeat_ngram=9), [Said([0], [])])
    assert short.isfinite().all()
