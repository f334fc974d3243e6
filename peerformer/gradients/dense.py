"""The codecs `dense-int8` and `dense-int4`: blocks of small integers, a power-of-two scale each.

A block of 256 values has an exponent `e` and signed levels `q` of 8 or 4 bits; a value is
`q * 2^e`. The exponent is the smallest that fits, and rounding is half to even. Layout: the
exponents (u8) of all blocks, then the levels block by block: a byte each, or two in a byte, the
first in its low half. The lowest level is refused: a symmetric range leaves one encoding for each
value.
"""

import numpy as np
from numpy.typing import NDArray

from peerformer.gradients.codec import VALUE_MAX, Bytes, Codec, Float32, Int32, Parts

BLOCK = 256
Int8 = NDArray[np.int8]


class Dense(Codec):
    """Levels of so many bits."""

    block = BLOCK
    rows_at_once = 256

    def __init__(self, bits: int) -> None:
        """Take 8 bits a level, or 4."""
        self.name = f"dense-int{bits}"
        self.bits = bits
        self.level_max = (1 << bits - 1) - 1
        self.loudest_min = 1 << bits - 2  # a block below this would fit a smaller exponent
        self.exponent_max = (VALUE_MAX // self.level_max).bit_length() - 1
        self.row_size = 1 + BLOCK * bits // 8

    def parts(self, data: Bytes, N: int) -> Parts:
        """Return the exponents and the bytes of the levels."""
        return data[:N], data[N:].reshape(N, self.row_size - 1)

    def encode_rows(self, value_NB: Float32, parts: Parts, P: int) -> None:
        """Find the exponents, and round."""
        exponents_N, packed = parts
        sent_NB = np.abs(value_NB)
        loudest_N = sent_NB.view(np.int32).max(1).view(np.float32)  # without a sign: ordered alike
        exponents_N[:] = self._exponents(loudest_N.astype(np.float64))
        scale_N1 = np.ldexp(np.float32(1), exponents_N.astype(np.int32))[:, None]
        np.multiply(value_NB, 1 / scale_N1, out=sent_NB)
        np.rint(sent_NB, out=sent_NB)
        np.clip(sent_NB, -self.level_max, self.level_max, out=sent_NB)
        self._pack(sent_NB, packed)
        sent_NB *= scale_N1
        value_NB -= sent_NB

    def _exponents(self, loudest_N: NDArray[np.float64]) -> Bytes:
        """Return the smallest exponent at which no value of a block rounds beyond the levels."""
        # frexp: loudest < (level_max + 1/2) * 2^e, and not below for e - 1; a tie rounds to even.
        _, exponents_N = np.frexp(loudest_N / (self.level_max + 0.5))
        return np.clip(exponents_N, 0, self.exponent_max).astype(np.uint8)

    def _pack(self, level_NB: Float32, packed: Bytes) -> None:
        if self.bits == 8:
            np.copyto(packed.view(np.int8), level_NB, casting="unsafe")
            return
        levels_NB = level_NB.astype(np.int8).view(np.uint8) & 15
        np.bitwise_or(levels_NB[:, ::2], levels_NB[:, 1::2] << 4, out=packed)

    def _levels(self, packed: Bytes) -> Int8:
        if self.bits == 8:
            return packed.view(np.int8)
        levels_NB = np.empty((len(packed), BLOCK), np.int8)
        np.copyto(levels_NB[:, ::2], (packed << 4).view(np.int8) >> 4)
        np.copyto(levels_NB[:, 1::2], packed.view(np.int8) >> 4)
        return levels_NB

    def fault(self, parts: Parts, P: int) -> str | None:
        """Refuse exponents out of range or too large, the lowest level, and padding."""
        exponents_N, packed = parts
        if (exponents_N > self.exponent_max).any():
            return "exponent"
        levels_NB = self._levels(packed)
        lowest_N, highest_N = levels_NB.min(1), levels_NB.max(1)
        if (lowest_N < -self.level_max).any():
            return "level"
        quiet_N = (lowest_N > -self.loudest_min) & (highest_N < self.loudest_min)
        if (quiet_N & (exponents_N > 0)).any():
            return "canonical"
        used = P - (len(packed) - 1) * BLOCK
        return "padding" if levels_NB[-1:, used:].any() else None

    def decode_rows(self, parts: Parts, out_NB: Int32) -> None:
        """Shift each level by the exponent of its block."""
        exponents_N, packed = parts
        factors_N1 = np.left_shift(1, exponents_N.astype(np.int32))[:, None]
        np.multiply(self._levels(packed), factors_N1, out=out_NB)

    def squares(self, parts: Parts, P: int) -> int:
        """Sum those of the levels of blocks with one exponent."""
        exponents_N, packed = parts
        levels_NB = self._levels(packed).astype(np.int32)
        sums_N = np.einsum("nb,nb->n", levels_NB, levels_NB)
        exact = np.bincount(exponents_N, sums_N)  # as floats: below 2^53
        return sum(int(total) << 2 * exponent for exponent, total in enumerate(exact))

    def reference(self, blob: bytes, P: int) -> list[int]:
        """One level after the other."""
        blocks, per_byte = self.rows(P), 8 // self.bits
        values = []
        for i in range(P):
            byte = blob[blocks + i // per_byte]
            level = byte >> i % per_byte * self.bits & (1 << self.bits) - 1
            level -= level > self.level_max and 1 << self.bits
            values.append(level << blob[i // BLOCK])
        return values
