"""The bench of a swarm peer: local steps from the agreed state, and the integer steps that agree.

The agreed state (parameters and outer momentum in 32-bit fixed point) moves only by `move_to`;
training never changes it. What is trained becomes a contribution: start minus end, compressed with
error feedback (DiLoCo, arXiv 2311.08105). Scoring uses a model of its own, so that contributions
can be judged while training goes on. Knows nothing of votes or networks.

Training may be one round ahead of the agreed state (staleness 1: DiLoCo with eager updates, arXiv
2502.12996). Let `theta_r` be the parameters of the agreed state S_r, x the local model, and `u_r`
the sum of this peer's own inner steps for round r (start minus end). Always

    x = theta - u      theta: the newest agreed state in x, u: own work not agreed yet

*Departing* for round n. If S_{n-1} is there, x = theta_{n-1}: that is all of staleness 0. Ahead of
it, x = theta_{n-2} - u_{n-1}: the model goes on as the contribution before left it.

*Following.* When S_r is adopted in the middle of training for r + 1, the start of that training and
x both move by theta_r - (theta_{r-1} - u_r): what all have agreed on comes in, what the own
contribution had already put there goes out, in one addition. The start is then theta_r exactly, so
no error of rounding adds up over rounds; x is moved between two steps, never within one, even if
the state was adopted within it (`between_layers` lets others work there). The paper keeps 1/K of
the own update beside the late average of the others; here the agreed state, which contains it,
takes the place of both.

*Sending.* `u_n` is the start minus the end, where moves count in both: the sum of the steps
themselves. Part of them were taken at theta_{n-2} - u_{n-1}, and all are applied to theta_{n-1}:
that is the staleness.

*Overtaken.* A training in hand whose round went on without it (it began late) is not thrown away
with staleness 1: its steps so far are the first ones for the next round, unless it departed from a
state that is by then more than two rounds older than the newest.

*Refused, or a null round.* Following takes u_r out of x in any case; refused, the whole of it goes
into the residual and is sent again with the next contribution that is not encoded yet, once (see
`feedback`). Blown up, it is dropped.

*Restarting.* Only the residual and the optimizer's state survive. Work for a round that was not
signed is lost; if S_{n-1} is not there, training for n departs from theta_{n-2}, with no own work.

*Fetching.* After a state that was fetched the model starts anew from it, and so does a training in
hand, from its first step: what was under way belongs to a state that may have been damaged.

*Judging.* A contribution for round r is scored at a fifth of its step from the state that the bench
holds when it is checked: S_{r-1}, or S_{r-2} while this peer still computes or fetches that. It is
an opinion in either case. Aggregation is onto S_{r-1} and nothing else.

*Repeating.* In a swarm with audits each contribution comes with the record of what its training
departed from (see `replay`), and the states of the last rounds are kept for auditors. Nothing
records between which steps a start moved, so a training that was ahead is never repeated: such a
swarm has no audits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor, nn

from peerformer.config import Config
from peerformer.data.batches import Batch, Batches
from peerformer.gradients.audit import Samples, check_bounds, score_micronats
from peerformer.gradients.compress import decode, encode
from peerformer.gradients.fixed_point import AgreedState, Layout, to_float
from peerformer.train import poison
from peerformer.train.agreement import (
    OUTLIER_HISTORY,
    STEPS_AGE_MAX,
    TRIAL_STEP,
    Local,
    first_state,
    flat,
    is_usual,
    load,
    load_tensors,
    next_state,
    save_tensors,
    trial,
)
from peerformer.train.feedback import Feedback
from peerformer.train.optimizer import build_optimizer, optimizer_tensors
from peerformer.train.privacy import privatised
from peerformer.train.replay import Departure, Repeater, Repetition, rate_scale
from peerformer.train.replica import Replica

TESTED_SEQUENCES = 8  # of the data that a contribution's author had to train on
STATES_KEPT = 3  # for auditors: those that the last rounds departed from
MINE = b""  # the key of one's own contribution among those of a round
UPDATES_KEPT = 8  # by a liar, to replay them or to know its spread


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a round of local training made."""

    blob: bytes
    record: bytes  # what it departed from, for auditors; empty if there are none
    tokens: int
    loss: float


@dataclass(frozen=True, slots=True)
class Judged:
    """Why a contribution does not decode, or what is thought of it; see `Checked` of `effects`."""

    fault: str | None
    score: int | None = None
    alike: bytes | None = None
    gain: int | None = None


def initial_state(model: nn.Module) -> AgreedState:
    """Return the agreed state of round 0: the model's parameters in fixed point, no momentum."""
    return first_state(dict(model.named_parameters()))


def swarm_audits(config: Config) -> bool:
    """Tell whether trainings of the swarm are repeated by auditors."""
    return config.swarm.audits > 0


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that has a list of them."""
    lists = [child for child in model.children() if isinstance(child, nn.ModuleList)]
    return [layer for layers in lists for layer in layers]


@dataclass(slots=True)
class AgreedReplica:
    """One peer's replica of the agreed state, and the local training that departs from it."""

    config: Config
    model: nn.Module
    scorer: nn.Module  # a second model of the same shape
    state: AgreedState
    text: Batches
    held_out: Batches
    round: int = 0
    layout: Layout = field(init=False)
    replica: Replica = field(init=False)
    feedback: Feedback = field(init=False)
    local: Local | None = None  # None: the model holds nothing of use
    departure: Departure | None = None  # what it departed from beside the state, with audits
    departed_from: dict[int, Tensor] = field(default_factory=dict)  # theta, by the round trained
    repeater: Repeater | None = None  # built for the first audit
    norms: list[float] = field(default_factory=list)  # of the updates last sent
    poison: str | None = None  # an attack of `poison`, for tests and demonstrations
    poison_round: int = 0  # from which on it is told
    trained_before: list[Tensor] = field(default_factory=list)  # by a liar, oldest first
    on_update: Callable[[int, Tensor], None] = lambda *_: None  # an honest one, in the simulator
    honest_updates: Callable[[int], list[Tensor]] = lambda _: []  # what a liar got hold of
    samples: Samples = field(init=False)  # of this round's contributions
    loss_before: dict[bytes, float] = field(default_factory=dict)
    last_loss: float = float("nan")
    between_layers: Callable[[], None] = lambda: None  # called within a step, forward and backward

    def __post_init__(self) -> None:
        """Build the optimizer and the flat view of the parameters."""
        parameters = dict(self.model.named_parameters())
        self.layout = Layout.of(parameters)
        self.samples = Samples(self.layout.size)
        optimizer = build_optimizer(self.model, self.config.optimizer)
        self.replica = Replica(
            self.model,
            optimizer,
            clip_norm=self.config.optimizer.clip_norm,
            autocast_dtype=None,
        )
        self.feedback = Feedback(torch.zeros(self.layout.size))
        if swarm_audits(self.config):
            self.departed_from[self.round + 1] = self.state.theta_P
        for layer in _layers(self.model):
            layer.register_forward_pre_hook(lambda *_: self.between_layers())
            layer.register_full_backward_pre_hook(lambda *_: self.between_layers())

    def poison_from(self, name: str, round_number: int) -> None:
        """Tell an attack of `poison` from a round on."""
        assert name in poison.UPDATES or name in poison.DATA, name
        self.poison, self.poison_round = name, round_number

    def _told(self, round_number: int) -> str:
        """Return the attack that is told in a round, or nothing."""
        return self.poison if self.poison and round_number >= self.poison_round else ""

    # --- local training ------------------------------------------------------------------------

    def train(
        self, round_number: int, seed: bytes, should_stop: Callable[[], bool]
    ) -> Contribution | None:
        """Run H local steps; None if stopped or unfit to be sent.

        Args:
            round_number: the round this trains for; the state is that of the round before, or of
                the one before that.
            seed: which data.
            should_stop: asked before every step; the agreed state may move in it.
        """
        settings, swarm = self.config.training, self.config.swarm
        data = poison.DATA.get(self._told(round_number), poison.HONEST)
        steps, local = max(1, int(swarm.inner_steps * data.steps_share)), None
        number = _number(seed) + data.other_shard
        while local is None or local is not self.local or len(local.losses) < steps:
            stopped = local is not None and should_stop()
            if stopped or not 0 < round_number - self.round <= 1 + swarm.staleness:
                return None
            if local is None or local is not self.local:  # the state was fetched: anew
                local = self._depart(round_number)
                continue
            self._follow(local)
            step = len(local.losses)
            batch = self.text.batch(number, step, batch_size=settings.batch_size)
            batch = data.batch(batch, self.config.model.vocab_size)
            local.losses.append(self.replica.gradients([batch]))
            self.replica.apply(rate_scale(self.config, round_number, step, steps))
        local.ended = True
        self.last_loss = sum(local.losses) / steps
        delta_P = local.start_P - flat(dict(self.model.named_parameters()))
        tokens = swarm.inner_steps * settings.batch_size * settings.sequence_length
        return self._contribute(round_number, delta_P, tokens)

    def _depart(self, round_number: int) -> Local:
        """Return where a training departs from, with the model there."""
        before = self.local if self.config.swarm.staleness else None
        self.model.train()
        if before and before.round == round_number - 1:
            if not before.ended and before.departed >= round_number - 1 - STEPS_AGE_MAX:
                before.round = round_number  # overtaken: it goes on
                return before
            if before.ended and self.round == round_number - 2:
                self._follow(before)  # what was adopted since it ended
                start_P = flat(dict(self.model.named_parameters()))
                self.local = Local(round_number, self.round, self.round, start_P)
                return self.local
        start_P = to_float(self.state.theta_P)
        load(self.model, self.layout, start_P)
        if swarm_audits(self.config):
            self.departure = Departure.of(self.replica)
        self.local = Local(round_number, self.round, self.round, start_P)
        return self.local

    def _follow(self, local: Local) -> None:
        """Move the model along with the agreed state, taking out what is agreed of its own."""
        local.follow(self.model, self.layout, self.round, self.state.theta_P)

    def _contribute(self, round_number: int, delta_P: Tensor, tokens: int) -> Contribution | None:
        norm = float(delta_P.norm())
        if not is_usual(norm, self.norms):
            self.feedback.reset()  # blown up: start afresh from the agreed state
            self.local = None
            return None
        self.norms = [*self.norms, norm][-OUTLIER_HISTORY:]
        swarm = self.config.swarm
        unsent_P = self.feedback.unsent_P()
        if self._told(round_number) in poison.UPDATES:
            delta_P, unsent_P = self._poisoned(round_number, delta_P), torch.zeros_like(unsent_P)
        elif not self._told(round_number):
            self.on_update(round_number, delta_P)
        if swarm.privacy_noise:
            noise, clip = swarm.privacy_noise, swarm.privacy_clip
            delta_P = privatised(delta_P, noise=noise, clip=clip)
        record = self.departure.record(unsent_P) if self.departure else b""
        encoded = encode(delta_P, unsent_P, codec=swarm.codec, feedback=swarm.feedback)
        self.feedback.sent(round_number, residual_P=encoded.residual_P, whole_P=delta_P)
        self.samples.alike(MINE, decode(encoded.blob, self.layout.size, swarm.codec))
        return Contribution(encoded.blob, record, tokens, self.last_loss)

    def _poisoned(self, round_number: int, own_P: Tensor) -> Tensor:
        seed = _seed_of(own_P)
        known = poison.Known(
            own_P,
            self.honest_updates(round_number) or [own_P],
            self.trained_before,
            torch.Generator().manual_seed(seed),
            lambda update_P: -self._score(update_P, seed.to_bytes(8, "little")),
            self.config.swarm.harm_micronats,
        )
        told_P = poison.UPDATES[self._told(round_number)](known)
        self.trained_before = [*self.trained_before, own_P][-UPDATES_KEPT:]
        return told_P

    # --- judging -------------------------------------------------------------------------------

    def check(
        self, blob: bytes, score_seed: bytes | None, key: bytes, shard_seed: bytes | None = None
    ) -> Judged:
        """Judge a contribution; its score and likeness only with a seed.

        Args:
            blob: its bytes.
            score_seed: draws the held-out text.
            key: names it among those of the round; MINE is this peer's own.
            shard_seed: the data that its author had to train on, if that is to be tested.
        """
        size, codec = self.layout.size, self.config.swarm.codec
        fault = check_bounds(blob, size, codec)
        if fault is not None or score_seed is None:
            return Judged(fault)
        contribution_P = decode(blob, size, codec)
        alike, update_P = self.samples.alike(key, contribution_P), to_float(contribution_P)
        score = self._score(update_P, score_seed)
        gain = None
        if shard_seed is not None:
            own, other = (self._gain(update_P, seed) for seed in (shard_seed, score_seed))
            gain = own - other
        return Judged(None, score, alike, gain)

    def _gain(self, update_P: Tensor, seed: bytes) -> int:
        """Return by how much a fraction of an update lowers the loss on a shard of the text."""
        size, theta_P = self.config.training.batch_size, to_float(self.state.theta_P)
        slots = range(min(size, TESTED_SEQUENCES))
        batch = self.text.batch(_number(seed), 0, batch_size=size, slots=slots)
        losses = []
        for parameters_P in (theta_P, theta_P - TRIAL_STEP * update_P):
            load(self.scorer, self.layout, parameters_P)
            losses.append(self._scorers_loss(batch))
        return score_micronats(*losses)

    def _score(self, update_P: Tensor, score_seed: bytes) -> int:
        """Return by how much a fraction of an update lowers the held-out loss, in micro-nats."""
        before = self.loss_before.get(score_seed)

        def loss_at(parameters_P: Tensor) -> float:
            load(self.scorer, self.layout, parameters_P)
            return self._held_out_loss(score_seed)

        score, before = trial(to_float(self.state.theta_P), update_P, before, loss_at)
        self.loss_before = {score_seed: before}
        return score

    def _held_out_loss(self, seed: bytes) -> float:
        count = self.config.swarm.score_sequences
        return self._scorers_loss(self.held_out.batch(_number(seed), 0, batch_size=count))

    @torch.no_grad()
    def _scorers_loss(self, batch: Batch) -> float:
        self.scorer.eval()
        return float(self.scorer.loss(batch.tokens_BT, batch.targets_BT))  # type: ignore[operator]

    def repeat(
        self,
        round_number: int,
        blob: bytes,
        record: bytes,
        seed: bytes,
        should_stop: Callable[[], bool],
    ) -> Repetition:
        """Train for a round again as its author says it did, and compare; see `replay`."""
        theta_P = self.departed_from.get(round_number)
        if theta_P is None:
            return Repetition(None, "the state that it departed from is gone")
        if self.repeater is None:
            self.repeater = Repeater.beside(self.config, self.model, self.text, self.layout)
        start_P, number = to_float(theta_P), _number(seed)

        def is_over() -> bool:  # the state goes when the round that the finding is due in is over
            return should_stop() or round_number not in self.departed_from

        return self.repeater.repeat(round_number, start_P, blob, record, number, is_over)

    # --- agreeing ------------------------------------------------------------------------------

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> tuple[AgreedState, tuple[bytes, ...]] | None:
        """Return the state after aggregating (author, blob) pairs, and whose norm was refused."""
        if round_number != self.round + 1:
            return None
        return next_state(self.config, self.state, round_number, blobs, seed)

    def move_to(self, round_number: int, state: AgreedState, *, accepted: bool | None) -> None:
        """Make a state the agreed one; `accepted` is None if I was not there for the round."""
        self.state, self.round = state, round_number
        if swarm_audits(self.config):
            kept = range(round_number + 2 - STATES_KEPT, round_number + 1)
            self.departed_from = {n: self.departed_from[n] for n in kept if n in self.departed_from}
            self.departed_from[round_number + 1] = state.theta_P
        self.loss_before = {}
        self.samples.forget()
        if accepted is None:
            self.feedback.forget()
            self.local = None
        else:
            self.feedback.settle(round_number, accepted=accepted)

    def agreed_model(self) -> nn.Module:
        """Return the scoring model holding the agreed parameters."""
        load(self.scorer, self.layout, to_float(self.state.theta_P))
        return self.scorer

    # --- across restarts -------------------------------------------------------------------------

    def save_local(self, path: Path) -> None:
        """Save what is this peer's alone: the residual and the optimizer's state."""
        tensors = {
            f"optimizer.{k}": v for k, v in optimizer_tensors(self.replica.optimizer).items()
        }
        save_tensors(path, {**tensors, "residual": self.feedback.residual_P})

    def load_local(self, path: Path) -> bool:
        """Take up what `save_local` wrote; False if it is not there or not whole."""
        from peerformer.train.optimizer import load_optimizer_tensors

        tensors = load_tensors(path)
        residual_P = tensors.pop("residual", None)
        if residual_P is None or residual_P.shape != self.feedback.residual_P.shape:
            return False
        names = {k.removeprefix("optimizer."): v for k, v in tensors.items()}
        try:
            load_optimizer_tensors(self.replica.optimizer, names)
        except ValueError:
            return False
        self.feedback = Feedback(residual_P)
        return True


def _seed_of(update_P: Tensor) -> int:
    """Return a number below 2^63 that stands for an update."""
    data = update_P.detach().contiguous().view(torch.uint8).numpy().data
    return int.from_bytes(blake3(data).digest(8), "little") >> 1


def _number(seed: bytes) -> int:
    return int.from_bytes(seed[:7], "little")
