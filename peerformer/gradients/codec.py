"""What every codec of contributions is: rows of values as bytes, and back to integers exactly.

A codec cuts the flat update into rows of `block` values and makes of each the same number of bytes,
so that the length of a contribution is known before anything is decoded. Decoding is exact, and
every vector of integers has at most one encoding; how floats become integers is the sender's own
affair. A codec knows neither error feedback nor who sent a blob: see `compress`.

Shape suffixes: `P` parameters, `N` rows, `B` values of a row.
"""

from abc import ABC, abstractmethod
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peerformer.gradients.fixed_point import CHUNK

VALUE_MAX = 127 << 16  # about half a unit a round; 64 of these, scaled by 4, sum within int32

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Parts = tuple[NDArray[Any], ...]
Places = NDArray[np.intp]


class BlobError(ValueError):
    """A contribution that does not decode; `reason` is a slug for the header."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Codec(ABC):
    """One way to encode, by rows; all values in units of 2^-24."""

    name: str  # what the genesis calls it
    block: int  # values of a row
    row_size: int  # bytes of a row
    rows_at_once: int  # so many stay in cache
    coordinates_at_once = CHUNK  # that are best read together

    def rows(self, P: int) -> int:
        """Return how many rows P values have; the last is padded with zeros."""
        return ceil(P / self.block)

    def size(self, P: int) -> int:
        """Return the exact length of a contribution of P values, in bytes."""
        return self.rows(P) * self.row_size

    @abstractmethod
    def parts(self, data: Bytes, N: int) -> Parts:
        """Return views of the bytes of N rows, each with a line for each row."""

    @abstractmethod
    def encode_rows(self, value_NB: Float32, parts: Parts, P: int) -> None:
        """Encode finite values into these rows; leaves in them what was not sent.

        `P` is how many of the values are no padding.
        """

    @abstractmethod
    def fault(self, parts: Parts, P: int) -> str | None:
        """Return why these are not the rows of P values, at least one, or None.

        It is a slug for the header.
        """

    @abstractmethod
    def decode_rows(self, parts: Parts, out_NB: Int32) -> None:
        """Write the values of checked rows."""

    def read_rows(self, parts: Parts, P: int) -> tuple[Int32, Places | None]:
        """Return values of checked rows, P coordinates in all, and where in these they are.

        The places ascend, and everywhere else is zero. None: one value for each coordinate.
        """
        value_NB = np.empty((len(parts[0]), self.block), np.int32)
        self.decode_rows(parts, value_NB)
        return value_NB.reshape(-1)[:P], None

    @abstractmethod
    def squares(self, parts: Parts, P: int) -> int:
        """Return the exact sum of the squares of the values of checked rows."""

    @abstractmethod
    def reference(self, blob: bytes, P: int) -> list[int]:
        """Return the values of a well-formed blob, one by one, plainly."""
