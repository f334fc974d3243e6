"""The bench of a swarm peer: local steps from the agreed state, and the integer steps that agree.

The agreed state (parameters and outer momentum in 32-bit fixed point) moves only by `adopt` and
`install`; training starts from it each round and never changes it. What is trained becomes a
contribution: start minus end, compressed with error feedback (DiLoCo, arXiv 2311.08105). Scoring
uses a model of its own, so that contributions can be judged while training goes on. Knows nothing
of votes or networks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from blake3 import blake3
from torch import Tensor, nn

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.gradients.aggregate import Rule, aggregate
from peerformer.gradients.audit import score_micronats
from peerformer.gradients.compress import BlobError, decode, encode
from peerformer.gradients.fixed_point import AgreedState, Layout, outer_step, to_fixed, to_float
from peerformer.train.optimizer import build_optimizer, optimizer_tensors
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

TRIAL_STEP = 0.2  # a contribution is scored at a fifth of its step: a full one overshoots
OUTLIER_FACTOR = 8.0  # an update this much longer than the last ones is not sent
OUTLIER_HISTORY = 16
STATES_COMPUTED_MAX = 3


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a round of local training made."""

    blob: bytes
    optimizer_root: bytes
    tokens: int
    loss: float


@dataclass(slots=True)
class Pending:
    """A contribution on its way: what error feedback keeps if it is accepted, and if it is not."""

    round: int
    residual_P: Tensor
    whole_P: Tensor


def initial_state(model: nn.Module) -> AgreedState:
    """Return the agreed state of round 0: the model's parameters in fixed point, no momentum."""
    theta_P = to_fixed(_flat(dict(model.named_parameters())))
    return AgreedState(theta_P, torch.zeros_like(theta_P), ())


def _flat(parameters: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([parameter.detach().float().reshape(-1) for parameter in parameters.values()])


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
    residual_P: Tensor = field(init=False)
    pending: Pending | None = None
    computed: dict[bytes, AgreedState] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)  # of the updates last sent
    flip_round: int | None = None  # for the demonstration of an attack
    loss_before: dict[bytes, float] = field(default_factory=dict)
    last_loss: float = float("nan")

    def __post_init__(self) -> None:
        """Build the optimizer and the flat view of the parameters."""
        parameters = dict(self.model.named_parameters())
        self.layout = Layout.of(parameters)
        optimizer = build_optimizer(self.model, self.config.optimizer)
        self.replica = Replica(
            self.model,
            optimizer,
            clip_norm=self.config.optimizer.clip_norm,
            autocast_dtype=None,
        )
        self.residual_P = torch.zeros(self.layout.size)

    def flip_from(self, round_number: int) -> None:
        """Send the opposite of what was trained, from a round on (an attack)."""
        self.flip_round = round_number

    # --- local training ------------------------------------------------------------------------

    def train(
        self, round_number: int, seed: bytes, should_stop: Callable[[], bool]
    ) -> Contribution | None:
        """Run H local steps from the agreed state; None if stopped or unfit to be sent.

        Args:
            round_number: the round this trains for; the state must be that of the round before.
            seed: which data.
            should_stop: asked before every step.
        """
        if round_number != self.round + 1:
            return None
        start_P = to_float(self.state.theta_P)
        self._load(self.model, start_P)
        settings, steps = self.config.training, self.config.swarm.inner_steps
        first = (round_number - 1) * steps
        losses = []
        self.model.train()
        for index in range(steps):
            if should_stop() or round_number != self.round + 1:
                return None
            batch = self.text.batch(_number(seed), index, batch_size=settings.batch_size)
            losses.append(self.replica.gradients([batch]))
            self.replica.apply(
                learning_rate_scale(
                    first + index,
                    steps=settings.steps,
                    warmup_steps=settings.warmup_steps,
                    final_fraction=settings.final_fraction,
                )
            )
        self.last_loss = sum(losses) / len(losses)
        delta_P = start_P - _flat(dict(self.model.named_parameters()))
        tokens = steps * settings.batch_size * settings.sequence_length
        return self._contribute(round_number, delta_P, tokens)

    def _contribute(self, round_number: int, delta_P: Tensor, tokens: int) -> Contribution | None:
        norm = float(delta_P.norm())
        usual = median(self.norms) if len(self.norms) >= 3 else norm
        if not norm < max(OUTLIER_FACTOR * usual, 1e-12) and norm > 0 or norm != norm:
            self.residual_P.zero_()  # blown up: start afresh from the agreed state
            return None
        self.norms = [*self.norms, norm][-OUTLIER_HISTORY:]
        if self.flip_round is not None and round_number >= self.flip_round:
            delta_P = -delta_P
        swarm = self.config.swarm
        encoded = encode(delta_P, self.residual_P, codec=swarm.codec, feedback=swarm.feedback)
        self.pending = Pending(round_number, encoded.residual_P, delta_P)
        return Contribution(encoded.blob, self.optimizer_root(), tokens, self.last_loss)

    def optimizer_root(self) -> bytes:
        """Return the hash of the optimizer's state, to which a contribution commits."""
        hasher = blake3()
        for name, tensor in sorted(optimizer_tensors(self.replica.optimizer).items()):
            hasher.update(name.encode())
            hasher.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return hasher.digest()

    # --- judging -------------------------------------------------------------------------------

    def check(self, blob: bytes, score_seed: bytes | None) -> tuple[str | None, int | None]:
        """Return why a contribution does not decode, or None, and its score in micro-nats."""
        try:
            contribution_P = decode(blob, self.layout.size, self.config.swarm.codec)
        except BlobError as error:
            return str(error), None
        if score_seed is None:
            return None, None
        before = self.loss_before.get(score_seed)
        theta_P = to_float(self.state.theta_P)
        if before is None:
            self._load(self.scorer, theta_P)
            before = self._held_out_loss(score_seed)
            self.loss_before = {score_seed: before}
        self._load(self.scorer, theta_P - TRIAL_STEP * to_float(contribution_P))
        return None, score_micronats(before, self._held_out_loss(score_seed))

    @torch.no_grad()
    def _held_out_loss(self, seed: bytes) -> float:
        self.scorer.eval()
        count = self.config.swarm.score_sequences
        batch = self.held_out.batch(_number(seed), 0, batch_size=count)
        return float(self.scorer.loss(batch.tokens_BT, batch.targets_BT))  # type: ignore[operator]

    # --- agreeing ------------------------------------------------------------------------------

    def apply(
        self, round_number: int, blobs: list[tuple[bytes, bytes]], seed: bytes
    ) -> tuple[AgreedState, tuple[bytes, ...]] | None:
        """Return the state after aggregating (author, blob) pairs, and whose norm was refused."""
        if round_number != self.round + 1:
            return None
        size, swarm = self.layout.size, self.config.swarm
        contributions = [decode(blob, size, swarm.codec) for _, blob in blobs]
        outcome = aggregate(
            contributions, rule=Rule.named(swarm.rule), seed=seed, recent_norms=self.state.norms
        )
        refused = tuple(blobs[index][0] for index, _ in outcome.refused)
        if len(refused) == len(blobs):
            return self.state, refused
        state = outer_step(
            self.state,
            outcome.update_P,
            learning_rate_q16=round(swarm.outer_learning_rate * 65_536),
            momentum_q16=round(swarm.outer_momentum * 65_536),
            nesterov=True,
            update_norm=outcome.norm,
        )
        return state, refused

    def move_to(self, round_number: int, state: AgreedState, *, accepted: bool | None) -> None:
        """Make a state the agreed one; `accepted` is None if I was not there for the round."""
        self.state, self.round = state, round_number
        self.loss_before = {}
        pending, self.pending = self.pending, None
        if pending is None or accepted is None:
            return
        if pending.round == round_number and accepted:
            self.residual_P = pending.residual_P
        else:  # not in: the whole update goes back, but never more than one update's length
            whole_P = self.residual_P + pending.whole_P
            longest, length = float(pending.whole_P.norm()), float(whole_P.norm())
            self.residual_P = whole_P * min(1.0, longest / max(length, 1e-12))

    def _load(self, model: nn.Module, flat_P: Tensor) -> None:
        with torch.no_grad():
            for name, piece in self.layout.split(flat_P).items():
                model.get_parameter(name).copy_(piece)

    def agreed_model(self) -> nn.Module:
        """Return the scoring model holding the agreed parameters."""
        self._load(self.scorer, to_float(self.state.theta_P))
        return self.scorer

    # --- across restarts -------------------------------------------------------------------------

    def save_local(self, path: Path) -> None:
        """Save what is this peer's alone: the residual and the optimizer's state."""
        from safetensors.torch import save_file

        tensors = {
            f"optimizer.{k}": v for k, v in optimizer_tensors(self.replica.optimizer).items()
        }
        tensors["residual"] = self.residual_P
        temporary = path.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
        temporary.replace(path)

    def load_local(self, path: Path) -> bool:
        """Take up what `save_local` wrote; False if it is not there or not whole."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from peerformer.train.optimizer import load_optimizer_tensors

        try:
            tensors = load_file(path)
            residual_P = tensors.pop("residual")
            if residual_P.shape != self.residual_P.shape:
                return False
            names = {k.removeprefix("optimizer."): v for k, v in tensors.items()}
            load_optimizer_tensors(self.replica.optimizer, names)
        except (OSError, KeyError, ValueError, SafetensorError):
            return False
        self.residual_P = residual_P
        return True


def _number(seed: bytes) -> int:
    return int.from_bytes(seed[:7], "little")
