"""A copy of the training state: model, optimizer, step. The same in every mode.

`gradients` adds up over the passes of a step, `apply` clips and steps. Two kinds of gradient are
left out, and counted: one that is not finite, and one far longer than the last ones were. What
they would do cannot be taken back, while a step left out costs a step. The update itself needs no
guard of its own: Muon's is bounded by its known norm, AdamW's by its quotient. Works on any module
that has `loss(tokens, targets)`, or with a function that gives the loss.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from blake3 import blake3
from torch import Tensor, nn

from peerformer.data.batches import Batch
from peerformer.train.optimizer import Optimizer

OUTLIER_FACTOR = 8.0  # honest gradients differ less from step to step
OUTLIER_HISTORY = 16  # so many norms are remembered; none is an outlier before


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a step: the gradient's norm before clipping, and whether it was skipped."""

    gradient_norm: float
    skipped: bool


class Replica:
    """Model, optimizer and step.

    Args:
        model: any module.
        optimizer: the optimizer of its parameters.
        clip_norm: the longest gradient; 0 turns clipping off.
        autocast_dtype: the type to compute in; None is float32.
        loss: (tokens, targets) -> mean loss in nats a token; None takes the model's `loss`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        clip_norm: float,
        autocast_dtype: torch.dtype | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.clip_norm, self.autocast_dtype = clip_norm, autocast_dtype
        self.loss: Callable[[Tensor, Tensor], Tensor] = loss or model.loss  # type: ignore[assignment]
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0  # of those that were not finite
        self.norms: deque[float] = deque(maxlen=OUTLIER_HISTORY)

    def gradients(self, batches: Sequence[Batch]) -> float:
        """Leave the mean gradient over the sequences of all batches in the parameters.

        Returns:
            the mean loss in nats a token.
        """
        self.optimizer.zero_grad()
        sequences, total = sum(len(batch.tokens_BT) for batch in batches), 0.0
        for batch in batches:
            with torch.autocast(
                batch.tokens_BT.device.type,
                dtype=self.autocast_dtype,
                enabled=self.autocast_dtype is not None,
            ):
                loss = self.loss(batch.tokens_BT, batch.targets_BT)
            loss = loss * (len(batch.tokens_BT) / sequences)
            loss.backward()
            total += loss.item()
        return total

    def apply(self, learning_rate_scale: float) -> Applied:
        """Clip the gradient and step, or leave a gradient out that would do harm."""
        gradients = [p.grad for p in self.optimizer.named.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        skipped = not math.isfinite(norm) or self._is_outlier(norm)
        if math.isfinite(norm):
            self.norms.append(norm)  # an outlier too, so that a lasting change is soon none
            self.skipped_in_a_row = 0
        else:
            self.skipped_in_a_row += 1
        if skipped:
            self.optimizer.zero_grad()
            self.skipped += 1
        else:
            if 0 < self.clip_norm < norm:
                torch._foreach_mul_(gradients, self.clip_norm / norm)
            self.optimizer.step(learning_rate_scale, self.autocast_dtype)
        self.step += 1
        return Applied(norm, skipped)

    def _is_outlier(self, norm: float) -> bool:
        usual = median(self.norms) if len(self.norms) == OUTLIER_HISTORY else 0.0
        return 0.0 < OUTLIER_FACTOR * usual < norm

    def is_finite(self) -> bool:
        """Tell whether every parameter is a finite number."""
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()], math.inf)
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    def digest(self) -> str:
        """Return the BLAKE3 hash of all parameters and their names, in hexadecimal."""
        hasher = blake3()
        for name, parameter in sorted(self.model.named_parameters()):
            hasher.update(name.encode())
            data = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            hasher.update(data.numpy().data)
        return hasher.hexdigest()
