"""Distances between contributions, exactly repeatable: count-sketches of integers.

A count-sketch (Charikar et al., 2002) is linear and keeps norms and distances within about one
percent. Its randomness is drawn from a seed that nobody knows before the contributions are fixed.

Shape suffixes: `P` parameters, `C` coordinates of a chunk, `S` buckets of a sketch.
"""

from collections.abc import Sequence

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peerformer.gradients.fixed_point import CHUNK

SKETCH_BUCKETS = CHUNK  # a squared distance has a standard deviation of at most 1.1 %
SKETCH_CONTEXT = "peerformer 2026 count-sketch of contributions"

_SKETCH_FLUSH = 256  # chunks: as many of the largest values sum within int32
_HALF_BITS = 21  # a bucket has at most 2^43: the squares of both halves sum within int64

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def sketches(values: Sequence[Int32], seed: bytes) -> list[Int64]:
    """Return a count-sketch of each vector: int64 (S,), linear, of nearly the same norm.

    Coordinate p of chunk c gets a random sign and goes to bucket (p + rotation_c) mod S. Two
    coordinates of a chunk never collide, two of different chunks do with probability 1/S, which is
    all that the variance bound of a count-sketch asks for; and whole chunks are added at once.
    """
    P = len(values[0])
    rotations, packed_signs = _randomness(P, seed)
    totals = [np.zeros(SKETCH_BUCKETS, np.int64) for _ in values]
    sums = [np.zeros(SKETCH_BUCKETS, np.int32) for _ in values]
    signed = np.empty(CHUNK, np.int32)
    for chunk, rotation in enumerate(rotations):
        part = slice(chunk * CHUNK, min(P, (chunk + 1) * CHUNK))
        size = part.stop - part.start
        bits = np.unpackbits(packed_signs[part.start // 8 :][: CHUNK // 8], count=size)
        signs_C = 1 - 2 * bits.astype(np.int32)
        straight = min(size, SKETCH_BUCKETS - rotation)
        for value, bucket_sums in zip(values, sums, strict=True):
            np.multiply(value[part], signs_C, out=signed[:size])
            bucket_sums[rotation : rotation + straight] += signed[:straight]
            bucket_sums[: size - straight] += signed[straight:size]
        if (chunk + 1) % _SKETCH_FLUSH == 0 or part.stop == P:
            for total, bucket_sums in zip(totals, sums, strict=True):
                total += bucket_sums
                bucket_sums[:] = 0
    return totals


def _randomness(P: int, seed: bytes) -> tuple[list[int], NDArray[np.uint8]]:
    """Return a rotation for each chunk, and a sign bit for each coordinate (1 is minus)."""
    chunks = -(-P // CHUNK)
    stream = blake3(seed, derive_key_context=SKETCH_CONTEXT).digest(2 * chunks + -(-P // 8))
    rotations = np.frombuffer(stream, "<u2", chunks) % SKETCH_BUCKETS
    return rotations.tolist(), np.frombuffer(stream, np.uint8, offset=2 * chunks)


def sketch_reference(value: Sequence[int], seed: bytes) -> list[int]:
    """The sketch of one vector, coordinate by coordinate."""
    rotations, packed_signs = _randomness(len(value), seed)
    sketch = [0] * SKETCH_BUCKETS
    for p, number in enumerate(value):
        minus = packed_signs[p // 8] >> (7 - p % 8) & 1
        sketch[(p + rotations[p // CHUNK]) % SKETCH_BUCKETS] += -number if minus else number
    return sketch


def squared_distance(a_S: Int64, b_S: Int64) -> int:
    """Return the exact squared distance of two sketches whose entries are below 2^42."""
    difference = a_S - b_S
    high, low = difference >> _HALF_BITS, difference & (2**_HALF_BITS - 1)
    squares, mixed = int(high.dot(high)), int(high.dot(low))
    return (squares << 2 * _HALF_BITS) + (mixed << _HALF_BITS + 1) + int(low.dot(low))


def squared_distances(sketches_of: Sequence[Int64]) -> list[list[int]]:
    """Return the exact squared distances between all sketches."""
    K = len(sketches_of)
    distance = [[0] * K for _ in range(K)]
    for i in range(K):
        for j in range(i):
            distance[i][j] = distance[j][i] = squared_distance(sketches_of[i], sketches_of[j])
    return distance
