"""Noise for privacy: what is sent is bounded and noised, and what that costs is told rightly."""

import sys
from dataclasses import replace
from math import exp, isclose, sqrt

import pytest
import torch

from peerformer.errors import ConfigError
from peerformer.gradients.compress import decode
from peerformer.gradients.fixed_point import to_float
from peerformer.simulate.real import RealReplicas
from peerformer.train.agreed import AgreedReplica
from peerformer.train.privacy import check_accountant, epsilon, privatised

SEED = b"\x05" * 32


def normal_cdf(x: float) -> float:
    return float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(x, dtype=torch.float64)))


def delta_of(eps: float, noise: float) -> float:
    """The Gaussian mechanism exactly (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    one, two = 1 / (2 * noise) - eps * noise, -1 / (2 * noise) - eps * noise
    return normal_cdf(one) - exp(eps) * normal_cdf(two)


def test_an_update_is_clipped_before_it_is_hidden() -> None:
    long_P = torch.full((10_000,), 3.0)
    for update_P in (long_P, long_P * 100):
        sent_P = privatised(update_P, noise=1e-6, clip=2.0, seed=1)
        assert isclose(float(sent_P.norm()), 2.0, rel_tol=1e-3)
    short_P = long_P * 1e-4
    assert torch.allclose(privatised(short_P, noise=1e-9, clip=100.0, seed=1), short_P, atol=1e-5)


def test_the_noise_is_that_of_the_largest_difference_two_texts_can_make() -> None:
    sent_P = privatised(torch.zeros(100_000), noise=0.7, clip=1.5, seed=2)
    assert isclose(float(sent_P.std()), 0.7 * 2 * 1.5, rel_tol=0.02)
    again_P = privatised(torch.zeros(100_000), noise=0.7, clip=1.5)
    other_P = privatised(torch.zeros(100_000), noise=0.7, clip=1.5)
    assert not torch.equal(again_P, other_P)  # drawn anew each time


@pytest.mark.parametrize("noise", [0.8, 2.0, 10.0])
@pytest.mark.parametrize("releases", [1, 25])
def test_what_is_told_as_spent_is_never_less_than_what_is(noise: float, releases: int) -> None:
    """Of Gaussians the composition is one with noise / sqrt(releases), known exactly."""
    told = epsilon(releases, noise=noise, delta=1e-5)
    exact = noise / sqrt(releases)
    assert delta_of(told, exact) <= 1e-5  # it holds
    assert delta_of(0.7 * told, exact) > 1e-5  # and is no wild guess
    assert epsilon(0, noise=noise, delta=1e-5) == 0.0


def test_in_a_swarm_with_noise_nothing_leaves_a_peer_without_it() -> None:
    plain, noisy = RealReplicas(8), RealReplicas(8)
    swarm = replace(noisy.config.swarm, privacy_noise=1.0, privacy_clip=0.01, codec="none")
    noisy.config = replace(noisy.config, swarm=swarm)
    plain.config = replace(plain.config, swarm=replace(plain.config.swarm, codec="none"))
    sent = []
    for world in (plain, noisy, noisy):
        replica = world.bench(b"a" * 32, 0, poisons=False).replica
        assert isinstance(replica, AgreedReplica)
        made = replica.train(1, SEED, lambda: False)
        assert made is not None
        sent.append(to_float(decode(made.blob, world.parameters, "none")))
        # A refused contribution is put back as it was sent, not as it was trained.
        whole_P = replica.feedback.pending[-1].whole_P
        assert torch.allclose(whole_P, sent[-1], atol=1e-6)
    plain_P, one_P, two_P = sent
    spread = 2 * 0.01
    assert isclose(float((one_P - two_P).std()), spread * sqrt(2), rel_tol=0.1)
    assert float(plain_P.norm()) > 0.01  # it would have been longer than the bound
    assert isclose(float(one_P.std()), spread, rel_tol=0.1)


def test_without_the_accountant_a_swarm_with_noise_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError) as caught:
        check_accountant()
    assert "dp-accounting is not installed" in str(caught.value)
    assert "peerformer[privacy]" in (caught.value.hint or "")
