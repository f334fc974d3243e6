"""Where a run stands beside its replica: what a checkpoint keeps so that the run goes on exactly.

Plain numbers, in JSON. Knows nothing about tensors or files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peerformer.train.schedule import is_better


@dataclass(slots=True)
class Position:
    """What a run has come to, over all its sessions."""

    seconds: float = 0.0  # wall-clock
    tokens: int = 0  # trained on
    loss: float = math.nan  # of the last step, in nats a token
    bits_per_byte: float = math.nan  # as last validated
    validations: list[tuple[int, float]] = field(default_factory=list)  # (step, loss), by step
    threads: int = 0  # that computed it

    @property
    def losses(self) -> list[float]:
        """The validated losses, oldest first."""
        return [loss for _, loss in self.validations]

    @property
    def best_step(self) -> int | None:
        """The step of the best validation, or None before the first."""
        best, best_step = math.inf, None
        for step, loss in self.validations:
            if is_better(loss, best):
                best, best_step = loss, step
        return best_step

    def to_json(self) -> dict[str, Any]:
        """Return the position as JSON values, which know no NaN."""
        return {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "loss": _finite(self.loss),
            "validation_bits_per_byte": _finite(self.bits_per_byte),
            "validations": [[step, _finite(loss)] for step, loss in self.validations],
            "threads": self.threads,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Position":
        """Return the position that `to_json` gave."""
        return cls(
            seconds=float(stored["seconds"]),
            tokens=int(stored["tokens"]),
            loss=_number(stored["loss"]),
            bits_per_byte=_number(stored["validation_bits_per_byte"]),
            validations=[(int(s), _number(loss)) for s, loss in stored.get("validations", [])],
            threads=int(stored.get("threads", 0)),
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _number(stored: float | None) -> float:
    return math.nan if stored is None else float(stored)
