"""A copy of the training state: model, optimizer, step. The same in every mode.

`gradients` adds up over the passes of a step, `apply` clips and steps. Two kinds of gradient are
left out, and counted: one that is not finite, and one far longer than the last ones were. What
they would do cannot be taken back, while a step left out costs a step. The update itself needs no
guard of its own: Muon's is bounded by its known norm, AdamW's by its quotient. In float16 the loss
is scaled while gradients are made (see `loss_scale`). Works on any module that has
`loss(tokens, targets)`, or with a function that gives the loss.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from blake3 import blake3
from torch import Tensor, nn

from peerformer.data.batches import NOT_LEARNED, Batch
from peerformer.train.average import Average
from peerformer.train.loss_scale import LossScale
from peerformer.train.optimizer import Optimizer
from peerformer.train.ranks import OneProcess, Ranks, own_part, whole

OUTLIER_FACTOR = 8.0  # honest gradients differ less from step to step
OUTLIER_HISTORY = 16  # so many norms are remembered; none is an outlier before


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a step: the gradient's norm before clipping, and whether it was skipped.

    A gradient may have overflowed only because float16 had its loss scaled too far.
    """

    gradient_norm: float
    skipped: bool
    overflowed: bool = False


class Replica:
    """Model, optimizer and step.

    Args:
        model: any module.
        optimizer: the optimizer of its parameters.
        clip_norm: the longest gradient; 0 turns clipping off.
        autocast_dtype: the type to compute in; None is float32.
        loss: (tokens, targets) -> mean loss in nats a learned token, with `documents_BT=` where
            batches tell documents apart; None takes the model's `loss`.
        loss_scale: by what the loss is scaled; None does not.
        average: the averaged weights; None keeps none.
        ranks: those that share a step; gradients and losses are averages over all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        clip_norm: float,
        autocast_dtype: torch.dtype | None = None,
        loss: Callable[..., Tensor] | None = None,
        loss_scale: LossScale | None = None,
        average: Average | None = None,
        ranks: Ranks = OneProcess(),
    ) -> None:
        self.model, self.optimizer, self.ranks = model, optimizer, ranks
        self.clip_norm, self.autocast_dtype = clip_norm, autocast_dtype
        self.loss: Callable[..., Tensor] = loss or model.loss  # type: ignore[assignment]
        self.loss_scale, self.average = loss_scale, average
        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0  # of those that were not finite
        self.norms: deque[float] = deque(maxlen=OUTLIER_HISTORY)

    def gradients(self, batches: Sequence[Batch]) -> float:
        """Leave the mean gradient over the learned tokens of all batches in the parameters.

        Where the optimizer seeks flat minima it is the gradient of the worst point near by.

        Returns:
            the mean loss in nats a token, where the parameters are.
        """
        self.optimizer.zero_grad()
        loss = self._accumulate(batches)
        if self.optimizer.sharpness is not None:
            with self.optimizer.sharpness.climbed(self.optimizer.named) as climbed:
                if climbed:
                    self.optimizer.zero_grad()
                    self._accumulate(batches)
        return loss

    def _accumulate(self, batches: Sequence[Batch]) -> float:
        """Leave the mean gradient, where there was none; returns the mean loss."""
        scale = 1.0 if self.loss_scale is None else self.loss_scale.scale
        batches = self.ranks.share(batches)
        counts = [int((batch.targets_BT != NOT_LEARNED).sum()) for batch in batches]
        # Gradients are averages over ranks, of which one may have more to learn than another.
        learned, total = max(1, self.ranks.mean(sum(counts))[0]), 0.0
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True), 1):
            documents = {} if batch.documents_BT is None else {"documents_BT": batch.documents_BT}
            with self.ranks.passing(last=number == len(batches)):
                with torch.autocast(
                    batch.tokens_BT.device.type,
                    dtype=self.autocast_dtype,
                    enabled=self.autocast_dtype is not None,
                ):
                    loss = self.loss(batch.tokens_BT, batch.targets_BT, **documents)
                loss = loss * (count / learned)
                (loss * scale if scale != 1.0 else loss).backward()
            total += loss.item()
        self.ranks.averaged()
        if scale != 1.0:
            torch._foreach_mul_(self._gradients(), 1.0 / scale)
        return self.ranks.mean(total)[0]

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.optimizer.named.values() if p.grad is not None]

    def apply(self, learning_rate_scale: float) -> Applied:
        """Clip the gradient and step, or leave a gradient out that would do harm."""
        gradients = self._gradients()
        norm = torch.nn.utils.get_total_norm(gradients).item()
        is_finite = math.isfinite(norm)
        skipped = not is_finite or self._is_outlier(norm)
        overflowed = self.loss_scale is not None and self.loss_scale.update(is_finite=is_finite)
        if is_finite:
            self.norms.append(norm)  # an outlier too, so that a lasting change is soon none
            self.skipped_in_a_row = 0
        elif not overflowed:
            self.skipped_in_a_row += 1
        if skipped:
            self.optimizer.zero_grad()
            self.skipped += 1
        else:
            if 0 < self.clip_norm < norm:
                torch._foreach_mul_(gradients, self.clip_norm / norm)
            self.optimizer.step(learning_rate_scale, self.autocast_dtype)
            if self.average is not None:
                self.average.update(self.optimizer.named)
        if after_step := getattr(self.model, "after_step", None):
            after_step(self.ranks.add_up)  # such as balancing its experts
        self.step += 1
        return Applied(norm, skipped, overflowed)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the model at its averaged weights, if there are some."""
        if self.average is None:
            yield
        else:
            with self.average.in_place(self.optimizer.named):
                yield

    def _is_outlier(self, norm: float) -> bool:
        usual = median(self.norms) if len(self.norms) == OUTLIER_HISTORY else 0.0
        return 0.0 < OUTLIER_FACTOR * usual < norm

    def is_finite(self) -> bool:
        """Tell whether every parameter is a finite number."""
        norms = torch._foreach_norm([own_part(p) for p in self.model.parameters()], math.inf)
        finite = torch.stack([norm.float() for norm in norms]).isfinite().all()
        return self.ranks.mean(bool(finite)) == [1.0]

    def digest(self) -> str:
        """Return the BLAKE3 hash of all parameters and their names, in hexadecimal."""
        hasher = blake3()
        for name, parameter in sorted(self.model.named_parameters()):
            hasher.update(name.encode())
            data = whole(parameter).cpu().contiguous().reshape(-1).view(torch.uint8)
            hasher.update(data.numpy().data)
        return hasher.hexdigest()
