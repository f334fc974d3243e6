"""The codec `none`: every value as a 32-bit integer, as many bytes as float32; for comparison.

Rounding is half to even. A value beyond `VALUE_MAX` saturates and is refused where it is received.
"""

import numpy as np

from peerformer.gradients.codec import VALUE_MAX, Bytes, Codec, Float32, Int32, Parts, Places
from peerformer.gradients.fixed_point import square_sum


class Plain(Codec):
    """Int32, little-endian, one after the other."""

    name = "none"
    block = 1
    row_size = 4
    rows_at_once = 16_384

    def parts(self, data: Bytes, N: int) -> Parts:
        """Return the integers."""
        return (data.view("<i4").reshape(N, 1),)

    def encode_rows(self, value_NB: Float32, parts: Parts, P: int) -> None:
        """Round."""
        rounded_NB = np.clip(np.rint(value_NB), -VALUE_MAX, VALUE_MAX)
        np.copyto(parts[0], rounded_NB, casting="unsafe")
        value_NB -= rounded_NB

    def fault(self, parts: Parts, P: int) -> str | None:
        """Refuse what is out of range."""
        values = parts[0]
        return "level" if values.max() > VALUE_MAX or values.min() < -VALUE_MAX else None

    def decode_rows(self, parts: Parts, out_NB: Int32) -> None:
        """Copy."""
        np.copyto(out_NB, parts[0])

    def read_rows(self, parts: Parts, P: int) -> tuple[Int32, Places | None]:
        """Return the integers as they are."""
        return parts[0][:, 0], None

    def squares(self, parts: Parts, P: int) -> int:
        """Multiply."""
        return square_sum(parts[0][:, 0])

    def reference(self, blob: bytes, P: int) -> list[int]:
        """Four bytes a value."""
        return [int.from_bytes(blob[4 * i : 4 * i + 4], "little", signed=True) for i in range(P)]
