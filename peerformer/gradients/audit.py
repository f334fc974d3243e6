"""Judge one contribution by itself: its bytes, its length, its likeness to another, its effect.

Everything here returns an integer or a reason, so that a judgement can be signed, sent and counted.
A similarity is a sign of copying, not proof; a score is one peer's opinion (the loss before minus
the loss after a fraction of the step, as in the Gauntlet test, arXiv 2505.21684). This module does
not know what follows from a judgement: majorities and evidence are the protocol's.

Shape suffix: `P` parameters.
"""

import secrets
from dataclasses import dataclass, field
from math import isfinite, isqrt

from torch import Tensor

from peerformer.gradients.compress import BlobError, check
from peerformer.gradients.fixed_point import INT32_MAX, INT32_MIN, dot, norm

__all__ = ["Samples", "check_bounds", "norm", "score_micronats", "similarity_permille"]

SAMPLES_MAX = 1 << 18
ALIKE_PERMILLE = 980  # honest work on other data stays below, but for the first rounds of a run


@dataclass(slots=True)
class Samples:
    """A secret share of the values of contributions, to find those that are copies of others.

    A copy is not byte for byte one (the hash of a contribution is keyed), but it is as long and
    points the same way. Which values are compared nobody else knows, so none can be spared.

    Attributes:
        P: values of a contribution.
        start: the first one that is looked at.
        kept: what was looked at, by whose it is.
    """

    P: int
    start: int = field(default_factory=lambda: secrets.randbelow(1 << 30))
    kept: dict[bytes, Tensor] = field(default_factory=dict)

    def alike(self, key: bytes, value_P: Tensor) -> bytes | None:
        """Keep a contribution, int32 (P,); returns whose it is like, of those kept before."""
        stride = -(-self.P // SAMPLES_MAX)
        mine = value_P[self.start % stride :: stride].clone()
        found = [
            (similarity_permille(mine, other), whose)
            for whose, other in self.kept.items()
            if whose != key
        ]
        self.kept[key] = mine
        closest, whose = max(found, default=(0, b""))
        return whose if closest >= ALIKE_PERMILLE else None

    def forget(self) -> None:
        """Begin a new round."""
        self.kept.clear()


def check_bounds(blob: bytes | memoryview, P: int, codec: str) -> str | None:
    """Return why a blob is not the encoding of P values, or None."""
    try:
        check(blob, P, codec)
    except BlobError as error:
        return error.reason
    return None


def similarity_permille(a_P: Tensor, b_P: Tensor) -> int:
    """Return the cosine of two int32 vectors in thousandths, rounded down; 0 if one is zero."""
    lengths = isqrt(dot(a_P, a_P) * dot(b_P, b_P))
    return 1000 * dot(a_P, b_P) // lengths if lengths else 0


def score_micronats(loss_before: float, loss_after: float) -> int:
    """Return by how much a contribution lowers the loss, in micro-nats; negative is harm.

    A loss after that is not finite is the greatest harm; if only the loss before is not finite, the
    contribution is not to blame, and the score is 0.
    """
    if not isfinite(loss_after):
        return INT32_MIN
    if not isfinite(loss_before):
        return 0
    # Bounded first: a difference of two large losses may be infinite.
    gain = max(-(2.0**31), min(2.0**31, (loss_before - loss_after) * 1e6))
    return max(INT32_MIN, min(INT32_MAX, round(gain)))
