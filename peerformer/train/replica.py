"""A copy of the training state: model, optimizer, step. The same in every mode.

`gradients` adds up over the passes of a step, `apply` clips and steps. A gradient that is not
finite is not applied and the state stays as it was; how often that happened is counted. Works on
any module that has `loss(tokens, targets)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import nn

from peerformer.data.batches import Batch
from peerformer.train.optimizer import Optimizer


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a step: the gradient's norm before clipping, and whether it was skipped."""

    gradient_norm: float
    skipped: bool


class Replica:
    """Model, optimizer and step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        clip_norm: float,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.clip_norm, self.autocast_dtype = clip_norm, autocast_dtype
        self.step = 0
        self.skipped_in_a_row = 0

    def gradients(self, batches: Sequence[Batch]) -> float:
        """Leave the mean gradient over equally large batches in the parameters.

        Returns:
            the mean loss in nats a token.
        """
        self.optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            with torch.autocast(
                batch.tokens_BT.device.type,
                dtype=self.autocast_dtype,
                enabled=self.autocast_dtype is not None,
            ):
                loss = self.model.loss(batch.tokens_BT, batch.targets_BT)  # type: ignore[operator]
            (loss / len(batches)).backward()
            total += loss.item()
        return total / len(batches)

    def apply(self, learning_rate_scale: float) -> Applied:
        """Clip the gradient and step; a gradient that is not finite is left out."""
        gradients = [p.grad for p in self.optimizer.named.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        value = norm.item()
        skipped = not math.isfinite(value)
        if skipped:
            self.optimizer.zero_grad()
            self.skipped_in_a_row += 1
        else:
            if 0 < self.clip_norm < value:
                torch._foreach_mul_(gradients, self.clip_norm / value)
            self.optimizer.step(learning_rate_scale)
            self.skipped_in_a_row = 0
        self.step += 1
        return Applied(value, skipped)

    def digest(self) -> str:
        """Return the BLAKE3 hash of all parameters and their names, in hexadecimal."""
        hasher = blake3()
        for name, parameter in sorted(self.model.named_parameters()):
            hasher.update(name.encode())
            data = parameter.detach().contiguous().reshape(-1).view(torch.uint8)
            hasher.update(data.numpy().tobytes())
        return hasher.hexdigest()
