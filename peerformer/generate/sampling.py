"""From logits to a token: temperature, the k most likely, the most likely mass p.

Logits are divided by the temperature, cut to the `top_k` largest, then to the smallest set whose
probability reaches `top_p`, and one token is drawn from what is left. Temperature 0 takes the
most likely token and draws nothing.

Knows nothing about models, text or how the logits came about.

Sources: Fan et al., Hierarchical Neural Story Generation, 2018 (top-k); Holtzman et al., The
Curious Case of Neural Text Degeneration, 2020 (top-p).

Shapes: B batch, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from peerformer.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep so many tokens; None keeps all.
        top_p: keep the most likely tokens up to this probability; None keeps all.

    Raises:
        ConfigError: a value that is not allowed.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise _refused("temperature", self.temperature, "a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise _refused("top-k", self.top_k, "a whole number of at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise _refused("top-p", self.top_p, "more than 0 and at most 1")


def sample(
    logits_BV: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Tensor:
    """One token id for each row, (B,), int64.

    Args:
        logits_BV: finite logits.
        temperature: divides the logits; 0 takes the first of the most likely tokens.
        top_k: keep so many tokens; None keeps all. Of equal logits the lower ids are kept.
        top_p: keep the fewest tokens that reach this probability; None keeps all.
        generator: of the logits' device; the same state draws the same tokens.
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    order_BV = logits_BV.float().sort(dim=-1, descending=True, stable=True)
    # The maximum is taken off before the division, which a small temperature would overflow.
    sorted_BV = (order_BV.values - order_BV.values[:, :1]) / temperature
    if top_k is not None:
        sorted_BV = sorted_BV[:, :top_k]
    probabilities_BV = sorted_BV.softmax(dim=-1)
    if top_p is not None:
        before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        probabilities_BV = probabilities_BV * (before_BV < top_p)  # 0 before the first: it stays
    drawn_B1 = torch.multinomial(probabilities_BV, 1, generator=generator)
    return order_BV.indices.gather(1, drawn_B1).squeeze(1)


def _refused(name: str, value: float, allowed: str) -> ConfigError:
    return ConfigError(f"{name} is {value:g}, but must be {allowed}", hint=f"--{name} VALUE")
