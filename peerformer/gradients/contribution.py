"""A contribution as it was sent: checked, and expanded only where and while it is read.

So 16 contributions cost a peer their bytes and a few chunks, whatever they would take as integers.
Of a sparse one only what is not zero is ever written down. Knows nothing of how contributions are
combined.

Shape suffix: `P` parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from torch import Tensor

from peerformer.gradients import native
from peerformer.gradients.codec import VALUE_MAX, Codec, Int32, Parts, Places
from peerformer.gradients.dense import Dense
from peerformer.gradients.plain import Plain
from peerformer.gradients.threads import shared_out


@dataclass(frozen=True, eq=False)
class Contribution:
    """The checked bytes of P values.

    Attributes:
        codec: how they are encoded.
        parts: the parts of the encoding, as the codec cuts them.
        P: how many values.
    """

    codec: Codec
    parts: Parts
    P: int

    @classmethod
    def of(cls, value_P: Tensor) -> "Contribution":
        """Return values that are already decoded, int32, as a contribution; not copied."""
        value = value_P.numpy()
        assert value.dtype == np.int32 and value.ndim == 1
        assert not len(value) or max(-int(value.min()), int(value.max())) <= VALUE_MAX
        return cls(Plain(), (value[:, None],), len(value))

    def read(self, start: int, stop: int) -> tuple[Int32, Places | None]:
        """Return values of a range of coordinates, and where in it they are; not to be changed.

        The places ascend, and everywhere else is zero. None: one value for each coordinate.

        Args:
            start: a multiple of `CHUNK` of `fixed_point`.
            stop: another one, or the end.
        """
        return self.codec.read_rows(self.rows(start, stop), stop - start)

    def squares(self, start: int, stop: int) -> int:
        """Return the exact sum of the squares of a range of coordinates, limits as for `read`."""
        return self.codec.squares(self.rows(start, stop), stop - start)

    def rows(self, start: int, stop: int) -> Parts:
        """Return the encoding of a range of coordinates, limits as for `read`."""
        rows = slice(start // self.codec.block, self.codec.rows(stop))
        return tuple(part[rows] for part in self.parts)


def norms(contributions: Sequence[Contribution]) -> list[int]:
    """Return the norms of contributions of one codec, in units of 2^-24, rounded down."""
    codec = contributions[0].codec
    many, loops = codec.coordinates_at_once, native.library_for(codec, contributions[0].P)

    def squares_of(first: int, end: int) -> list[int]:
        if loops is not None and isinstance(codec, Dense):
            return [native.squares(loops, codec, c.rows(first, end)) for c in contributions]
        starts = range(first, end, many)
        return [sum(c.squares(n, min(end, n + many)) for n in starts) for c in contributions]

    shares = shared_out(squares_of, contributions[0].P, many)
    return [isqrt(sum(squares)) for squares in zip(*shares, strict=True)]
