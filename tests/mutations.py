"""Bytes as an attacker makes them from good ones: the damage that every decoder is tried with.

Works on bytes alone; what is known of a message's layout is used where that layout is tested. All
of it is cheap (a microsecond or two), since the deep tests make a million inputs.
"""

import os
from collections.abc import Callable
from random import Random

NUMBERS = tuple(
    number.to_bytes(size, "little")
    for size, numbers in (
        (1, (0, 1, 2, 0x7F, 0x80, 0xFF)),
        (2, (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF)),
        (4, (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)),
        (8, (0, 1, 2**63 - 1, 2**63, 2**64 - 1)),
    )
    for number in numbers
)
PIECE_MAX = 40


def _flip(data: bytes, _: bytes, random: Random) -> bytes:
    damaged = bytearray(data)
    for _unused in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(data))
        damaged[place] ^= 1 << random.randrange(8)
    return bytes(damaged)


def _set(data: bytes, _: bytes, random: Random) -> bytes:
    place, number = random.randrange(len(data)), random.choice(NUMBERS)
    return data[:place] + number + data[place + len(number) :]


def _insert(data: bytes, _: bytes, random: Random) -> bytes:
    place, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 32, 33))
    return data[:place] + random.choice((bytes(size), random.randbytes(size))) + data[place:]


def _delete(data: bytes, _: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    return data[:place] + data[place + random.choice((1, 1, 2, 4, 32, 33)) :]


def _truncate(data: bytes, _: bytes, random: Random) -> bytes:
    return data[: random.choice((random.randrange(len(data)), len(data) - 1))]


def _extend(data: bytes, other: bytes, random: Random) -> bytes:
    return data + random.choice((b"\0", b"\xff", random.randbytes(9), other, data))


def _repeat(data: bytes, _: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    end = start + random.randint(1, PIECE_MAX)
    place = random.choice((start, random.randrange(len(data))))
    return data[:place] + data[start:end] + data[place:]


def _swap(data: bytes, _: bytes, random: Random) -> bytes:
    a, b, c = sorted(random.randrange(len(data) + 1) for _unused in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _splice(data: bytes, other: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + other[random.choice((place, random.randrange(len(other) + 1))) :]


def _noise(data: bytes, _: bytes, random: Random) -> bytes:
    return random.randbytes(random.choice((len(data), random.randrange(PIECE_MAX))))


MUTATIONS: tuple[Callable[[bytes, bytes, Random], bytes], ...] = (
    _flip, _flip, _set, _set, _insert, _delete, _truncate, _extend, _repeat, _swap, _splice, _noise,
)  # fmt: skip


def mutate(data: bytes, other: bytes, random: Random) -> bytes:
    """Return `data` damaged once, sometimes twice or more; `other` is a second good input."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if data:
            data = random.choice(MUTATIONS)(data, other, random)
    return data


def seeds(usual: str) -> range:
    """The seeds of a deep test: the usual ones, or those that PEERFORMER_SEEDS names."""
    first, last = os.environ.get("PEERFORMER_SEEDS", usual).split(":")
    return range(int(first), int(last))
