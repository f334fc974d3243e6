"""What training from an agreed state is made of, whatever the model: `agreed` and `swarm` use it.

A state becomes parameters, parameters become an update, updates become the next state. The last of
these is integers only, the same bits everywhere; the rest is a peer's own affair. `Local` follows
the agreed state while a training is in hand; `agreed` has the algebra. Knows nothing of text, of
votes or networks, nor of who trains.

Shape suffix: `P` parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from peerformer.config import Config
from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.audit import score_micronats
from peerformer.gradients.compress import read
from peerformer.gradients.fixed_point import AgreedState, Layout, outer_step, to_fixed, to_float
from peerformer.train.outer import outer_rate_q16
from peerformer.train.recipe import rule_of

TRIAL_STEP = 0.2  # a contribution is scored at a fifth of its step: a full one overshoots
OUTLIER_FACTOR = 8.0  # an update this much longer than the last ones is not sent
OUTLIER_HISTORY = 16
STEPS_AGE_MAX = 2  # rounds between the state that a step departed from and the one it is added to

Blobs = list[tuple[bytes, bytes]]  # (author, its contribution), sorted by author


def flat(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return parameters one after the other, as float32 where the integers are computed."""
    pieces = [parameter.detach().float().reshape(-1) for parameter in parameters.values()]
    return torch.cat(pieces).cpu()


def load(model: nn.Module, layout: Layout, flat_P: Tensor) -> None:
    """Write a flat vector into the parameters of a model that the layout names."""
    with torch.no_grad():
        for name, piece in layout.split(flat_P).items():
            model.get_parameter(name).copy_(piece)


def first_state(parameters: Mapping[str, Tensor]) -> AgreedState:
    """Return the agreed state of round 0: parameters in fixed point, no momentum."""
    theta_P = to_fixed(flat(parameters))
    return AgreedState(theta_P, torch.zeros_like(theta_P), ())


@dataclass(slots=True)
class Local:
    """What the local model holds: a training, in hand or ended, and where it departed from."""

    round: int  # that it trains for
    departed: int  # the round of the agreed state that it departed from
    state_round: int  # of the agreed state in the model by now
    start_P: Tensor  # moved along with the agreed state
    losses: list[float] = field(default_factory=list)  # of its steps so far
    ended: bool = False

    def follow(self, model: nn.Module, layout: Layout, round_number: int, state: Tensor) -> None:
        """Move the model along with the agreed state, taking out what is agreed of its own.

        Args:
            model: holds the training in hand; moved between two of its steps.
            layout: of the agreed parameters.
            round_number: of the newest agreed state.
            state: its parameters, int32 (P,).
        """
        if self.state_round == round_number:
            return
        theta_P = to_float(state)
        here_P = flat({name: model.get_parameter(name) for name in layout.names})
        load(model, layout, here_P + (theta_P - self.start_P))
        self.state_round, self.start_P = round_number, theta_P


def is_usual(norm: float, norms: list[float]) -> bool:
    """Tell whether an update is fit to be sent: finite, and not far longer than the last ones."""
    usual = median(norms) if len(norms) >= 3 else norm
    return norm < max(OUTLIER_FACTOR * usual, 1e-12)


def next_state(
    config: Config, state: AgreedState, round_number: int, blobs: Blobs, seed: bytes
) -> tuple[AgreedState, tuple[bytes, ...]]:
    """Return the state after aggregating (author, blob) pairs, and whose norm was refused."""
    size, swarm = len(state.theta_P), config.swarm
    outcome = aggregate(
        [read(blob, size, swarm.codec) for _, blob in blobs],
        rule=rule_of(config),
        seed=seed,
        recent_norms=state.norms,
    )
    refused = tuple(blobs[index][0] for index, _ in outcome.refused)
    if len(refused) == len(blobs):
        return state, refused
    moved = outer_step(
        state,
        outcome.update_P,
        learning_rate_q16=outer_rate_q16(config, round_number),
        momentum_q16=round(swarm.outer_momentum * 65_536),
        nesterov=True,
        update_norm=outcome.norm,
    )
    return moved, refused


def trial(
    theta_P: Tensor, update_P: Tensor, before: float | None, loss_at: Callable[[Tensor], float]
) -> tuple[int, float]:
    """Return by how much a fraction of an update lowers a loss, in micro-nats, and the loss before.

    Args:
        theta_P: the agreed parameters.
        update_P: an update of them, start minus end.
        before: the loss at theta_P, if it is known already.
        loss_at: parameters -> loss.
    """
    before = loss_at(theta_P) if before is None else before
    return score_micronats(before, loss_at(theta_P - TRIAL_STEP * update_P)), before


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what is this peer's alone, whole or not at all."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote; nothing if it is not there or not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):
        return {}
    return tensors
