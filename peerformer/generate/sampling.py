"""From logits to a token: which tokens may be drawn, how likely each is, and the draw.

Logits are divided by the temperature and cut, in this order: to the `top_k` largest; to the
fewest tokens that reach the mass `top_p`; to those at least `min_p` times as likely as the
likeliest; to the `typical_p` mass whose information is nearest to the entropy. Each cut sees what
the one before it left. One token is drawn from the rest. Temperature 0 takes the most likely token
and draws nothing. What was said before counts in `penalties.py`, which changes logits.

Knows nothing about models, text or how the logits came about.

Sources: Fan et al., Hierarchical Neural Story Generation, 2018 (top-k); Holtzman et al., The
Curious Case of Neural Text Degeneration, 2020 (top-p); Nguyen et al., Turning Up the Heat: Min-p
Sampling, 2024; Meister et al., Locally Typical Sampling, 2022 (arXiv 2202.00666).

Shapes: B batch, V vocabulary.
"""

import math
from collections.abc import Sequence
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
        min_p: keep tokens of at least this share of the likeliest one's probability.
        typical_p: keep the most typical tokens up to this probability.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens
            that the prompt or the text has; 1 changes nothing.
        presence_penalty: taken off the logits of tokens that the made text has.
        frequency_penalty: taken off as often as the made text has the token.
        no_repeat_ngram: no so many tokens in a row come twice; None allows it.

    Raises:
        ConfigError: a value that is not allowed, or a cut where nothing is drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise _refused("temperature", self.temperature, "a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise _refused("top-k", self.top_k, "a whole number of at least 1")
        for name in ("top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise _refused(_flag(name), value, "more than 0 and at most 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise _refused("repetition-penalty", self.repetition_penalty, "a number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise _refused(_flag(name), getattr(self, name), "a finite number")
        if self.no_repeat_ngram is not None and self.no_repeat_ngram < 1:
            raise _refused("no-repeat-ngram", self.no_repeat_ngram, "a whole number of at least 1")
        cuts = [name for name in CUTS if getattr(self, name) is not None]
        if self.temperature == 0 and cuts:
            raise ConfigError(
                f"--{_flag(cuts[0])} has no meaning at temperature 0, which draws nothing",
                hint=f"leave out --{_flag(cuts[0])}, or give --temperature 1",
            )

    @property
    def penalises(self) -> bool:
        """Whether what was said before changes what may follow."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.no_repeat_ngram is not None
        )


CUTS = ("top_k", "top_p", "min_p", "typical_p")
GREEDY = Sampling(temperature=0)
DEFAULT = Sampling(temperature=0.8, top_p=0.95)  # where nobody says how


def sample(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One token id for each row, (B,), int64.

    A row's token depends on its logits and its generator alone, whatever stands beside it.

    Args:
        logits_BV: logits on the CPU; -inf where a token must not be taken.
        sampling: at temperature 0 the first of the most likely tokens is taken.
        generators: one for each row, on the CPU; the same state draws the same token.
    """
    assert len(generators) == len(logits_BV), (len(generators), logits_BV.shape)
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BV, order_BV = distribution(logits_BV, sampling)
    cumulative_BV = probabilities_BV.double().cumsum(dim=-1)
    uniform_B1 = torch.tensor(
        [[torch.rand((), dtype=torch.float64, generator=one).item()] for one in generators],
        dtype=torch.float64,
    )
    # The first token whose cumulative probability exceeds the draw: never one of probability 0.
    # The last quotient is exactly 1, and a draw is below 1.
    exceeds_BV = cumulative_BV / cumulative_BV[:, -1:] > uniform_B1.reshape(-1, 1)
    return order_BV.gather(1, exceeds_BV.int().argmax(dim=-1, keepdim=True)).squeeze(1)


def distribution(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The probabilities that tokens are drawn with, and the tokens' ids; each (B, k), k <= V.

    Both stand from the most likely token down; of equal logits the lower ids come first, and
    what was cut has probability 0.

    Args:
        logits_BV: logits; -inf is probability 0.
        sampling: its temperature is above 0.
    """
    order_BV = logits_BV.float().sort(dim=-1, descending=True, stable=True)
    ids_BV = order_BV.indices
    # The maximum is taken off before the division, which a small temperature would overflow.
    sorted_BV = (order_BV.values - order_BV.values[:, :1]) / sampling.temperature
    if sampling.top_k is not None:
        sorted_BV, ids_BV = sorted_BV[:, : sampling.top_k], ids_BV[:, : sampling.top_k]
    if sampling.top_p is not None:
        probabilities_BV = sorted_BV.softmax(dim=-1)
        before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        sorted_BV = _keep(sorted_BV, before_BV < sampling.top_p)  # 0 before the first: it stays
    if sampling.min_p is not None:
        probabilities_BV = sorted_BV.softmax(dim=-1)
        sorted_BV = _keep(sorted_BV, probabilities_BV >= sampling.min_p * probabilities_BV[:, :1])
    if sampling.typical_p is not None and sampling.typical_p < 1:
        sorted_BV = _keep(sorted_BV, _typical(sorted_BV, sampling.typical_p))
    return sorted_BV.softmax(dim=-1), ids_BV


def _typical(logits_BV: Tensor, mass: float) -> Tensor:
    """True for the fewest tokens, the most typical first, that reach the mass.

    A token is typical if its information, -log p, is near the entropy, its expectation.
    """
    logs_BV = logits_BV.log_softmax(dim=-1)
    probabilities_BV = logs_BV.exp()
    entropy_B1 = -(probabilities_BV * logs_BV).nansum(dim=-1, keepdim=True)  # 0 log 0 is 0
    distance_BV = (logs_BV + entropy_B1).abs()
    nearest_BV = distance_BV.sort(dim=-1, stable=True)
    reached_BV = probabilities_BV.gather(1, nearest_BV.indices).cumsum(dim=-1)
    last_B1 = (reached_BV < mass).sum(dim=-1, keepdim=True).clamp(max=logits_BV.shape[-1] - 1)
    return distance_BV <= nearest_BV.values.gather(1, last_B1)


def _keep(logits_BV: Tensor, kept_BV: Tensor) -> Tensor:
    return logits_BV.masked_fill(~kept_BV, float("-inf"))


def _flag(name: str) -> str:
    return "typical" if name == "typical_p" else name.replace("_", "-")


def _refused(name: str, value: float, allowed: str) -> ConfigError:
    return ConfigError(f"{name} is {value:g}, but must be {allowed}", hint=f"--{name} VALUE")
