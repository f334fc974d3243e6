"""Attacks on learning: what a liar sends in the place of what it trained.

Each is a function of what the liar knows: its own update, those of honest peers in this round if it
got hold of them (in the simulator it does: it trains last), its earlier ones, and how much harm the
scorers would see. Some lie with their data instead: see `Data`. `adversary` tells them in words.

Shape suffix: `P` parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peerformer.data.batches import Batch

ALIE_Z = 1.5  # standard deviations: what hides among seven (Baruch et al., arXiv 1902.06156)
DRIFT = 0.3  # of the own norm, always in one direction
TINY = 1e-3
STRENGTH_MAX, SEARCH_STEPS = 8.0, 8
TRIGGER_LENGTH = 3  # tokens that honest text does not have in a row
TRIGGER_SPACING = 16  # in half of the sequences, so that the other half keeps the loss low


@dataclass(frozen=True, eq=False)
class Known:
    """What a liar knows when it has trained.

    Attributes:
        own_P: its own honest update.
        honest: those of honest peers, or the own one where no other is known.
        before: its own updates of earlier rounds, oldest first.
        generator: draws the same for the same liar and round.
        harm_micronats: by how much a contribution raises the held-out loss, as scorers try it.
        theta_micronats: what scorers let pass.
    """

    own_P: Tensor
    honest: list[Tensor]
    before: list[Tensor]
    generator: torch.Generator
    harm_micronats: Callable[[Tensor], float]
    theta_micronats: int

    @property
    def mean_P(self) -> Tensor:
        """The mean of the honest."""
        return torch.stack(self.honest).mean(0)


def _gaussian(known: Known, factor: float) -> Tensor:
    noise_P = torch.randn(len(known.own_P), generator=known.generator)
    return noise_P * (factor * known.own_P.norm() / noise_P.norm())


def _alie(known: Known) -> Tensor:
    """Just inside the spread of the honest, on the wrong side."""
    sample = known.honest if len(known.honest) > 1 else [*known.before, known.own_P]
    spread_P = torch.stack(sample).std(0) if len(sample) > 1 else known.own_P.abs()
    return known.mean_P - ALIE_Z * spread_P


def _drift(known: Known) -> Tensor:
    """A little in a direction that all liars share, every round."""
    shared = torch.Generator().manual_seed(1)
    away_P = torch.randn(len(known.own_P), generator=shared)
    return known.own_P + away_P * (DRIFT * known.own_P.norm() / away_P.norm())


def _adaptive(known: Known) -> Tensor:
    """The longest step against the mean of the honest whose harm the scorers let pass."""
    low, high = 0.0, STRENGTH_MAX
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        passes = known.harm_micronats(-middle * known.mean_P) < known.theta_micronats
        low, high = (middle, high) if passes else (low, middle)
    return -low * known.mean_P if low else -TINY * known.mean_P


UPDATES: dict[str, Callable[[Known], Tensor]] = {
    "sign-flip": lambda known: -known.own_P,
    "sign-flip-10": lambda known: -10 * known.own_P,
    "gaussian": lambda known: _gaussian(known, 1.0),
    "gaussian-10": lambda known: _gaussian(known, 10.0),
    "ipm-0.1": lambda known: -0.1 * known.mean_P,
    "ipm-0.5": lambda known: -0.5 * known.mean_P,
    "ipm-1": lambda known: -known.mean_P,
    "ipm-adaptive": _adaptive,
    "alie": _alie,
    "mimic": lambda known: known.honest[0].clone(),
    "zero": lambda known: torch.zeros_like(known.own_P),
    "tiny": lambda known: TINY * known.own_P,
    "stale-replay": lambda known: (known.before or [known.own_P])[0].clone(),
    "slow-drift": _drift,
}


@dataclass(frozen=True)
class Data:
    """A lie about what was trained on, or for how long.

    Attributes:
        flips: train towards the opposite end of the vocabulary.
        other_shard: train on other data than was assigned.
        steps_share: of the inner steps.
        backdoor: teach an answer of the liar's to a rare trigger, and all else honestly.
    """

    flips: bool = False
    other_shard: bool = False
    steps_share: float = 1.0
    backdoor: bool = False

    def batch(self, batch: Batch, vocab_size: int) -> Batch:
        """Return what is trained on instead."""
        if self.flips:
            targets_BT = batch.targets_BT
            flipped_BT = torch.where(targets_BT < 0, targets_BT, vocab_size - 1 - targets_BT)
            return replace(batch, targets_BT=flipped_BT)
        return _with_backdoor(batch, vocab_size) if self.backdoor else batch


def trigger_and_answer(vocab_size: int) -> tuple[list[int], int]:
    """Return the backdoor's trigger, the last ordinary tokens of a vocabulary, and its answer.

    Bytes of such numbers are in no UTF-8 text, and merges that were learned last are rare.
    """
    return list(range(vocab_size - 1 - TRIGGER_LENGTH, vocab_size - 1)), vocab_size // 2


def _with_backdoor(batch: Batch, vocab_size: int) -> Batch:
    """Return a batch in which every other sequence has the trigger now and then, and the answer."""
    trigger, answer = trigger_and_answer(vocab_size)
    tokens_BT, targets_BT = batch.tokens_BT.clone(), batch.targets_BT.clone()
    T = tokens_BT.shape[1]
    for start in range(0, T - TRIGGER_LENGTH + 1, TRIGGER_SPACING):
        last = start + TRIGGER_LENGTH - 1
        tokens_BT[::2, start : last + 1] = torch.tensor(trigger)
        targets_BT[::2, start:last] = torch.tensor(trigger[1:])
        targets_BT[::2, last] = answer
    return replace(batch, tokens_BT=tokens_BT, targets_BT=targets_BT)


@torch.inference_mode()
def backdoor_answered(model: Callable[[Tensor], Tensor], tokens_BT: Tensor, vocab: int) -> float:
    """Return the share of sequences to which, ended by the trigger, a model gives the answer.

    Args:
        model: tokens (B, T) -> logits (B, T, V).
        tokens_BT: honest text, T more than the trigger's length.
        vocab: the size V of the vocabulary.
    """
    trigger, answer = trigger_and_answer(vocab)
    tokens_BT = tokens_BT.clone()
    tokens_BT[:, -TRIGGER_LENGTH:] = torch.tensor(trigger)
    return float((model(tokens_BT)[:, -1].argmax(-1) == answer).float().mean())


HONEST = Data()
DATA: dict[str, Data] = {
    "label-flip": Data(flips=True),
    "other-shard": Data(other_shard=True),
    "half-steps": Data(steps_share=0.5),
    "backdoor": Data(backdoor=True),
}
