"""Distances between contributions, exactly repeatable: count-sketches of integers.

A count-sketch (Charikar et al., 2002) is linear and keeps norms and distances within about one
percent. Its randomness is drawn from a seed that nobody knows before the contributions are fixed.

Shape suffixes: `P` parameters, `C` coordinates of a chunk, `S` buckets of a sketch.
"""

from collections.abc import Sequence

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peerformer.gradients import native
from peerformer.gradients.contribution import Contribution
from peerformer.gradients.fixed_point import CHUNK
from peerformer.gradients.threads import shared_out

SKETCH_BUCKETS = CHUNK  # a squared distance has a standard deviation of at most 1.1 %
SKETCH_CONTEXT = "peerformer 2026 count-sketch of contributions"

_HALF_BITS = 21  # a bucket has at most 2^43: the squares of both halves sum within int64

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def sketches(contributions: Sequence[Contribution], seed: bytes) -> list[Int64]:
    """Return a count-sketch of each: int64 (S,), linear, of nearly the same norm; of one codec.

    Coordinate p of chunk c gets a random sign and goes to bucket (p + rotation_c) mod S. Two
    coordinates of a chunk never collide, two of different chunks do with probability 1/S, which is
    all that the variance bound of a count-sketch asks for; and whole chunks are added at once.
    """
    P = contributions[0].P
    rotations, packed_signs = _randomness(P, seed)

    def totals_of(first: int, end: int) -> list[Int64]:
        totals = [np.zeros(SKETCH_BUCKETS, np.int64) for _ in contributions]
        if loops is not None:
            rows = [contribution.rows(first, end) for contribution in contributions]
            turns, signs = rotations[first // CHUNK :], packed_signs[first // 8 :]
            native.sketch(loops, codec, rows, end - first, turns, signs, totals)
            return totals
        for start in range(first, end, many):
            stop = min(end, start + many)
            bits_C = np.unpackbits(packed_signs[start // 8 : -(-stop // 8)], count=stop - start)
            signs_C = 1 - 2 * bits_C.astype(np.int32)
            turns = rotations[start // CHUNK : -(-stop // CHUNK)]
            for contribution, total_S in zip(contributions, totals, strict=True):
                value_V, place_V = contribution.read(start, stop)
                if place_V is None:
                    _add_all(value_V * signs_C, turns, total_S)
                else:
                    bucket_V = (place_V + turns[place_V // CHUNK]) % SKETCH_BUCKETS
                    signed_V = (value_V * signs_C[place_V]).astype(np.int64)
                    np.add.at(total_S, bucket_V, signed_V)
        return totals

    codec = contributions[0].codec
    many, loops = codec.coordinates_at_once, native.library_for(codec, P)
    shares = shared_out(totals_of, P, many)
    return [np.sum(totals, axis=0) for totals in zip(*shares, strict=True)]


def _add_all(signed_C: Int32, rotations: NDArray[np.int64], total_S: Int64) -> None:
    """Add one value for each coordinate of whole chunks, but that the last may be shorter."""
    for rotation, start in zip(rotations.tolist(), range(0, len(signed_C), CHUNK), strict=True):
        chunk_C = signed_C[start : start + CHUNK]
        straight = min(len(chunk_C), SKETCH_BUCKETS - rotation)
        total_S[rotation : rotation + straight] += chunk_C[:straight]
        total_S[: len(chunk_C) - straight] += chunk_C[straight:]


def _randomness(P: int, seed: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return a rotation for each chunk, and a sign bit for each coordinate (1 is minus)."""
    chunks = -(-P // CHUNK)
    stream = blake3(seed, derive_key_context=SKETCH_CONTEXT).digest(2 * chunks + -(-P // 8))
    rotations = np.frombuffer(stream, "<u2", chunks) % SKETCH_BUCKETS
    return rotations.astype(np.int64), np.frombuffer(stream, np.uint8, offset=2 * chunks)


def sketch_reference(value: Sequence[int], seed: bytes) -> list[int]:
    """The sketch of one vector, coordinate by coordinate."""
    rotations, packed_signs = _randomness(len(value), seed)
    sketch = [0] * SKETCH_BUCKETS
    for p, number in enumerate(value):
        minus = packed_signs[p // 8] >> (7 - p % 8) & 1
        sketch[(p + int(rotations[p // CHUNK])) % SKETCH_BUCKETS] += -number if minus else number
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
