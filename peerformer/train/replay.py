"""Repeating somebody's training from the record of what it departed from.

A record holds the state of the optimizer, what error feedback had left to send, and the norms by
which a gradient is an outlier: with the agreed state and the text that all hold, everything that a
training of H steps depends on. Another machine's rounding differs, so the outcome is compared and
not matched: direction and length of both contributions, once encoded. An honest repetition reaches
a cosine of 0.99; other data stay below 0.95 early, when all updates point the same way, and far
below later; half of the steps are too short. A record is its author's word and is checked for its
form only: it can excuse a poisoned update that its author has thought of, but not one that cost no
training. Knows nothing of votes or networks.

Shape suffix: `P` parameters.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.gradients.audit import norm, similarity_permille
from peerformer.gradients.compress import decode, encode
from peerformer.gradients.fixed_point import Layout
from peerformer.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

PASSES_PERMILLE = 950  # the cosine, in thousandths
LENGTH_LEAST, LENGTH_MOST = 800, 1_250  # of the repetition's, in thousandths
RESIDUAL, NORMS, OPTIMIZER = "residual", "norms", "optimizer."


@dataclass(frozen=True, slots=True)
class Departure:
    """What a training departs from, beside the agreed parameters: copied before its first step."""

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, replica: Replica) -> "Departure":
        """Copy the state of the optimizer and the norms of the last gradients."""
        state = optimizer_tensors(replica.optimizer)
        tensors = {OPTIMIZER + name: tensor.clone() for name, tensor in state.items()}
        return cls({**tensors, NORMS: torch.tensor(list(replica.norms), dtype=torch.float64)})

    def record(self, unsent_P: Tensor) -> bytes:
        """Return the record, with what error feedback adds to the update."""
        tensors = {**self.tensors, RESIDUAL: unsent_P}
        return save({name: tensor.contiguous() for name, tensor in tensors.items()})


@dataclass(frozen=True, slots=True)
class Repetition:
    """Whether a training could be repeated, and why not; None if it was not looked at."""

    passed: bool | None
    why: str


def rate_scale(config: Config, round_number: int, step: int, steps: int) -> float:
    """Return the scale of the learning rate at a step of a round of so many steps."""
    return learning_rate_scale((round_number - 1) * steps + step, config.training)


@dataclass(slots=True)
class Repeater:
    """A model and an optimizer of its own, with which an auditor trains as others did."""

    config: Config
    model: nn.Module
    text: Batches
    layout: Layout
    replica: Replica = field(init=False)

    @classmethod
    def beside(cls, config: Config, model: nn.Module, text: Batches, layout: Layout) -> "Repeater":
        """Return one with a copy of a model, of the same parts."""
        return cls(config, deepcopy(model), text, layout)

    def __post_init__(self) -> None:
        """Build the optimizer."""
        optimizer = build_optimizer(self.model, self.config.optimizer)
        clip_norm = self.config.optimizer.clip_norm
        self.replica = Replica(self.model, optimizer, clip_norm=clip_norm, autocast_dtype=None)

    def repeat(
        self,
        round_number: int,
        start_P: Tensor,
        blob: bytes,
        record: bytes,
        number: int,
        should_stop: Callable[[], bool],
    ) -> Repetition:
        """Train a round again, and compare.

        Args:
            round_number: the round that the contribution is for.
            start_P: the agreed parameters that it departed from, float32.
            blob: the contribution, which decodes.
            record: what its author hands out; not trusted.
            number: which data.
            should_stop: asked before every step.
        """
        unsent_P = self._depart(record)
        if unsent_P is None:
            return Repetition(False, "its record is none of such a training")
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, piece in self.layout.split(start_P).items():
                parameters[name].copy_(piece)
        self.model.train()
        steps, batch_size = self.config.swarm.inner_steps, self.config.training.batch_size
        for step in range(steps):
            if should_stop():
                return Repetition(None, "it was stopped")
            self.replica.gradients([self.text.batch(number, step, batch_size=batch_size)])
            self.replica.apply(rate_scale(self.config, round_number, step, steps))
        end_P = torch.cat([p.detach().float().reshape(-1) for p in parameters.values()])
        codec, feedback = self.config.swarm.codec, self.config.swarm.feedback
        try:
            again = encode(start_P - end_P, unsent_P, codec=codec, feedback=feedback)
        except ValueError as error:
            return Repetition(False, f"repeated, {error}")
        size = self.layout.size
        again_P, given_P = (decode(data, size, codec) for data in (again.blob, blob))
        cosine = similarity_permille(again_P, given_P)
        length = 1_000 * norm(given_P) // max(1, norm(again_P))
        passed = cosine >= PASSES_PERMILLE and LENGTH_LEAST <= length <= LENGTH_MOST
        why = f"cosine {cosine / 1_000:.2f}, {length / 1_000:.2f} of the length"
        return Repetition(passed, why)

    def _depart(self, record: bytes) -> Tensor | None:
        """Take up a record; returns its residual, or None if it is no such record."""
        try:
            tensors = load(record)
        except SafetensorError:
            return None
        unsent_P, norms = tensors.pop(RESIDUAL, None), tensors.pop(NORMS, None)
        if unsent_P is None or norms is None or norms.dim() != 1 or norms.dtype != torch.float64:
            return None
        if unsent_P.shape != (self.layout.size,) or len(norms) > (self.replica.norms.maxlen or 0):
            return None
        given = [unsent_P, *tensors.values()]
        if any(t.dtype != torch.float32 or not t.isfinite().all() for t in given):
            return None
        if any(not name.startswith(OPTIMIZER) for name in tensors):
            return None
        names = {name.removeprefix(OPTIMIZER): tensor for name, tensor in tensors.items()}
        if any(name.endswith("/step") and tensor.numel() != 1 for name, tensor in names.items()):
            return None
        try:
            load_optimizer_tensors(self.replica.optimizer, names)
        except ValueError:
            return None
        self.replica.norms.clear()
        self.replica.norms.extend(norms.tolist())
        return unsent_P
