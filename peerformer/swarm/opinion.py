"""What a user thinks of others' contributions: a score on data of their own, and a check of theirs.

Both are this peer's opinion and nothing more. They become the score that it attests; a contribution
is refused if more than half of those that score it see harm, whoever is right. So a hook that
differs from peer to peer, or fails, never makes peers disagree about the state: they disagree about
a number that is counted. A failure of a hook is the user's to know: it is kept for their next step,
and the contribution is attested without a score.

Shape suffix: `P` parameters.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from peerformer.gradients.fixed_point import INT32_MIN, Layout
from peerformer.train.agreement import load, trial

WORST = INT32_MIN  # the score of what the user's check refuses: harm beyond any limit
NO_HARM = 0  # without data to judge by; silence would leave the judgement to a single liar
REFUSALS_KEPT = 64

Check = Callable[[dict[str, Tensor]], str | None]
Score = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A contribution to a round that the user's check refused."""

    round: int
    reason: str


@dataclass(slots=True)
class Opinion:
    """The user's hooks, called on the worker's thread.

    Attributes:
        layout: of the agreed tensors.
        check_update: update by name -> why it is refused, or None.
        score_model: a copy of the module -> loss on data that is the same for all peers.
        scorer: the copy.
        scale: an update's values are told divided by this.
        buffers: what the module's buffers were at its user's last contribution.
    """

    layout: Layout
    check_update: Check | None = None
    score_model: Score | None = None
    scorer: nn.Module | None = None
    scale: int = 1
    buffers: dict[str, Tensor] = field(default_factory=dict)
    refusals: deque[Refusal] = field(default_factory=lambda: deque(maxlen=REFUSALS_KEPT))
    failure: Exception | None = None  # of a hook, for the user
    loss_before: float | None = None

    def forget(self) -> None:
        """The agreed state has moved: its loss is another."""
        self.loss_before = None

    def score(self, state_round: int, state_P: Tensor, update_P: Tensor) -> int | None:
        """Return what is thought of a contribution, in micro-nats; None is no opinion."""
        try:
            return self._score(state_round, state_P, update_P)
        except Exception as error:  # the user's code: theirs to know, and no reason to fall silent
            self.failure = self.failure or error
            return None

    def _score(self, state_round: int, state_P: Tensor, update_P: Tensor) -> int | None:
        if self.check_update is not None:
            named = self.layout.split(update_P * self.scale)
            reason = self.check_update({name: piece.clone() for name, piece in named.items()})
            if reason is not None:
                self.refusals.append(Refusal(state_round + 1, str(reason)))
                return WORST
        if self.score_model is None or self.scorer is None:
            return NO_HARM
        score, self.loss_before = trial(state_P, update_P, self.loss_before, self._loss_at)
        return score

    def _loss_at(self, parameters_P: Tensor) -> float:
        assert self.scorer is not None and self.score_model is not None
        load(self.scorer, self.layout, parameters_P)
        for name, buffer in self.buffers.items():
            self.scorer.get_buffer(name).copy_(buffer)
        self.scorer.eval()
        with torch.no_grad():
            return float(self.score_model(self.scorer))
