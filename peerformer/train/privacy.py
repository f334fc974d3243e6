"""Differential privacy of what a peer sends: every update clipped, and noise added before encoding.

The Gaussian mechanism (Dwork and Roth 2014, theorem A.1) on the whole update of a round, so that it
covers everything a peer trained on, and holds against everybody who sees single contributions (the
local model): no aggregator is trusted. Two texts change a clipped update by at most 2 C, so the
noise has a standard deviation of noise * 2 C in each parameter. Rounds compose; what error feedback
and encoding make of a noised update costs nothing more. The accountant is Google's `dp-accounting`
(extra `privacy`); this module only asks it.

Not covered: that a peer took part and how many tokens it names; that an outlier was not sent; the
tokenizer and the held-out set of the founder; floating-point attacks on the noise (Mironov 2012).

Shape suffix: `P` parameters.
"""

import secrets
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from peerformer.errors import ConfigError

ORDERS = tuple(1 + x / 10 for x in range(1, 100)) + tuple(range(11, 64)) + (128, 256, 512, 1_024)


def privatised(update_P: Tensor, *, noise: float, clip: float, seed: int | None = None) -> Tensor:
    """Return an update of at most the norm `clip`, with noise that hides which update it was.

    Args:
        update_P: float32.
        noise: standard deviation of the noise, as a share of 2 * clip.
        clip: the longest norm.
        seed: for tests; else from the system's secret randomness.
    """
    norm = float(update_P.norm())
    generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
    noise_P = torch.randn(update_P.shape, generator=generator)
    return update_P * min(1.0, clip / max(norm, 1e-12)) + noise_P * (noise * 2 * clip)


@lru_cache(maxsize=64)
def epsilon(releases: int, *, noise: float, delta: float) -> float:
    """Return epsilon after so many contributions, at a delta (Renyi accountant, Mironov 2017).

    Raises:
        ConfigError: the accountant is not installed.
    """
    rdp, events = _accountant()
    if releases == 0:
        return 0.0
    accountant = rdp.RdpAccountant(ORDERS)
    accountant.compose(events.GaussianDpEvent(noise), releases)
    return float(accountant.get_epsilon(delta))


def check_accountant() -> None:
    """Raise ConfigError unless what was spent can be told."""
    _accountant()


def _accountant() -> tuple[Any, Any]:
    try:
        from dp_accounting import dp_event, rdp
    except ImportError as error:
        raise ConfigError(
            "this swarm adds noise for privacy, and what that promises cannot be told here",
            where="swarm.privacy_noise",
            why="the accountant dp-accounting is not installed",
            hint="pip install 'peerformer[privacy]'",
        ) from error
    return rdp, dp_event
