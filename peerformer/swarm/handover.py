"""Where the user's thread and the node's worker meet: updates one way, agreed states the other.

The user trains on a thread of theirs, the node votes on its own. `Handover` is what the bench works
with: for a round it waits for an update instead of training, and gives way meanwhile to all that
the node orders (checks, aggregation, adopting). Whoever trains gives its update with `give`, and
looks at `newest` for what was agreed. The user's module is never touched here.

An update is given for the round that the bench asks for, and taken or returned whole: if the round
ends before the bench has taken it, or the giver's time is up, it was never sent.

While its user says that nothing is to come (`idle`), rounds go by without a contribution of this
peer, a few a second, so that others can join. And whoever is away for much longer than usual sits
the round out: a voter that still trains neither attests nor leads, and all would wait for it.

Shape suffix: `P` parameters.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from peerformer.config import Config
from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.audit import Samples, check_bounds
from peerformer.gradients.compress import decode, encode, read
from peerformer.gradients.fixed_point import NORMS_MAX, AgreedState, Layout, to_float
from peerformer.swarm.opinion import Opinion
from peerformer.train.agreed import MINE, Contribution, Judged
from peerformer.train.agreement import (
    OUTLIER_HISTORY,
    Blobs,
    is_usual,
    load_tensors,
    next_state,
    save_tensors,
)
from peerformer.train.feedback import Feedback
from peerformer.train.recipe import GRADIENTS, rule_of
from peerformer.train.replay import Repetition

POLL_SECONDS = 0.005  # between two looks at what the node has ordered meanwhile
IDLE_SECONDS = 0.1  # that a round lasts at least which nobody contributes to
PATIENCE = 2.0  # times the longest wait of late; then the user is doing something else
PATIENCE_SECONDS_MIN = 3.0
WAITS_KEPT = 8
REACHED_MAX = 16  # agreed states kept for a user who is behind


@dataclass(slots=True)
class Offer:
    """An update for a round, and what became of it."""

    update_P: Tensor
    loss: float
    round: int = 0
    taken: bool = False  # it is the contribution of `round`, or was held back
    held_back: bool = False  # it was far longer than the ones before


@dataclass(frozen=True, slots=True)
class Reached:
    """A state that became agreed, and whether this peer contributed to it; None: not known."""

    round: int
    state: AgreedState
    accepted: bool | None


@dataclass(slots=True)
class Handover:
    """The learner of a swarm whose module is the user's."""

    config: Config
    kind: str
    layout: Layout
    state: AgreedState
    opinion: Opinion
    round: int = 0
    idle: bool = False
    feedback: Feedback = field(init=False)
    samples: Samples = field(init=False)
    norms: list[float] = field(default_factory=list)  # of the updates last sent
    reached: deque[Reached] = field(default_factory=lambda: deque(maxlen=REACHED_MAX))
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=WAITS_KEPT))  # seconds
    asked: int = 0  # the round that the bench waits for an update of; 0: none
    offer: Offer | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        """Begin with nothing left to send."""
        self.feedback = Feedback(torch.zeros(self.layout.size))
        self.samples = Samples(self.layout.size)

    # --- on the user's thread --------------------------------------------------------------------

    def give(self, offer: Callable[[], Offer], wait: Callable[[], None]) -> Offer:
        """Give an update to the round that is asked for; it is made as late as can be.

        Args:
            offer: makes it, with the agreed state standing still.
            wait: called while holding `changed`; waits a little, and raises if it was too long.
        """
        with self.changed:
            while True:
                while not self.asked:
                    wait()
                given = replace(offer(), round=self.asked)
                self.offer = given
                self.changed.notify_all()
                try:
                    while self.offer is given:
                        wait()
                finally:
                    if self.offer is given:
                        self.offer = None
                if given.taken:
                    return given

    # --- on the worker's thread ------------------------------------------------------------------

    def train(
        self, round_number: int, seed: bytes, should_stop: Callable[[], bool]
    ) -> Contribution | None:
        """Wait for the user's update for a round; None if the round goes on without."""
        began, patience = time.monotonic(), float("inf")
        if self.waits:
            patience = max(PATIENCE_SECONDS_MIN, PATIENCE * max(self.waits))
        ahead = 1 + self.config.swarm.staleness
        try:
            while not should_stop() and 0 < round_number - self.round <= ahead:
                with self.changed:
                    if self.asked != round_number:
                        self.asked = round_number
                        self.changed.notify_all()
                    if self.offer is None:
                        self.changed.wait(POLL_SECONDS)
                    given = self.offer
                    if given is not None and given.round == round_number:
                        given.taken, self.asked = True, 0
                        self.waits.append(time.monotonic() - began)
                        return self._contribute(round_number, given)
                if time.monotonic() - began > (IDLE_SECONDS if self.idle else patience):
                    return None
            return None
        finally:
            with self.changed:
                self.asked, self.offer = 0, None
                self.changed.notify_all()

    def _contribute(self, round_number: int, given: Offer) -> Contribution | None:
        update_P, swarm = given.update_P, self.config.swarm
        if self.kind != GRADIENTS:
            norm = float(update_P.norm())
            if not is_usual(norm, self.norms):
                given.held_back = True
                self.feedback.reset()
                return None
            self.norms = [*self.norms, norm][-OUTLIER_HISTORY:]
        unsent_P = self.feedback.unsent_P()
        encoded = encode(update_P, unsent_P, codec=swarm.codec, feedback=swarm.feedback)
        self.feedback.sent(round_number, residual_P=encoded.residual_P, whole_P=update_P)
        self.samples.alike(MINE, decode(encoded.blob, self.layout.size, swarm.codec))
        return Contribution(encoded.blob, b"", swarm.inner_steps, given.loss)

    def check(
        self, blob: bytes, score_seed: bytes | None, key: bytes, shard_seed: bytes | None = None
    ) -> Judged:
        """Judge a contribution: its form by rule, and the rest by the user's own opinion."""
        size, codec = self.layout.size, self.config.swarm.codec
        fault = check_bounds(blob, size, codec)
        if fault is not None or score_seed is None:
            return Judged(fault)
        contribution_P = decode(blob, size, codec)
        alike = self.samples.alike(key, contribution_P)
        state_P, update_P = to_float(self.state.theta_P), to_float(contribution_P)
        return Judged(None, self.opinion.score(self.round, state_P, update_P), alike)

    def repeat(
        self,
        round_number: int,
        blob: bytes,
        record: bytes,
        seed: bytes,
        should_stop: Callable[[], bool],
    ) -> Repetition:
        """No swarm of this kind has audits: only the user knows how the module is trained."""
        return Repetition(None, "the training of a user's own module is not repeated")

    def apply(
        self, round_number: int, blobs: Blobs, seed: bytes
    ) -> tuple[AgreedState, tuple[bytes, ...]] | None:
        """Return the state after these contributions, and whose norm was refused.

        Where gradients alone are agreed on, the state is what the round's came to, and nothing of
        the rounds before but their norms.
        """
        if round_number != self.round + 1:
            return None
        if self.kind != GRADIENTS:
            return next_state(self.config, self.state, round_number, blobs, seed)
        size, codec = self.layout.size, self.config.swarm.codec
        outcome = aggregate(
            [read(blob, size, codec) for _, blob in blobs],
            rule=rule_of(self.config),
            seed=seed,
            recent_norms=self.state.norms,
        )
        norms = (*self.state.norms, outcome.norm)[-NORMS_MAX:]
        state = AgreedState(outcome.update_P, torch.zeros_like(outcome.update_P), norms)
        return state, tuple(blobs[index][0] for index, _ in outcome.refused)

    def move_to(self, round_number: int, state: AgreedState, *, accepted: bool | None) -> None:
        """Make a state the agreed one, and tell whoever waits for it."""
        self.samples.forget()
        self.opinion.forget()
        if accepted is None:
            self.feedback.forget()
        else:
            self.feedback.settle(round_number, accepted=accepted)
        with self.changed:
            self.state, self.round = state, round_number
            self.reached.append(Reached(round_number, state, accepted))
            self.changed.notify_all()

    def save_local(self, path: Path) -> None:
        """Save what error feedback has kept back."""
        save_tensors(path, {"residual": self.feedback.residual_P})

    def load_local(self, path: Path) -> bool:
        """Take up what `save_local` wrote; False if it is not there or not whole."""
        residual_P = load_tensors(path).get("residual")
        if residual_P is None or residual_P.shape != self.feedback.residual_P.shape:
            return False
        self.feedback = Feedback(residual_P)
        return True
