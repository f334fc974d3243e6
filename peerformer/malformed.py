"""Contributions that are none: every way to break the form, for tests and demonstrations.

Each is made of an honest contribution, so that it has the right length where length is not the
point. What a receiver finds wrong with it depends on the codec; that it refuses it does not.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass

from peerformer.protocol.identity import hash_of


def _noise(blob: bytes) -> bytes:
    return (hash_of("noise", blob) * (len(blob) // 32 + 1))[: len(blob)]


def _filled(pattern: bytes) -> Callable[[bytes], bytes]:
    return lambda blob: (pattern * (len(blob) // len(pattern) + 1))[: len(blob)]


def _bomb(blob: bytes) -> bytes:
    """Compressed zeros: nothing here is decompressed, so that it is only noise."""
    packed = gzip.compress(bytes(64 * len(blob)), mtime=0)
    return (packed + bytes(len(blob)))[: len(blob)]


SHAPES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "garbage": ("sends noise", _noise),
    "nan": ("sends what is not a number, as 32-bit floats", _filled(b"\x00\x00\xc0\x7f")),
    "infinity": ("sends infinity, as 32-bit floats", _filled(b"\x00\x00\x80\x7f")),
    "wrong-type": ("sends 64-bit floats", _filled(b"\x9a\x99\x99\x99\x99\x99\xb9\xbf")),
    "wrong-shape": ("sends half of the parameters", lambda blob: blob[: len(blob) // 2]),
    "cut": ("sends all but the last byte", lambda blob: blob[:-1]),
    "trailing": ("sends one byte more", lambda blob: blob + b"\x00"),
    "unsorted": ("sends everything in reverse", lambda blob: blob[::-1]),
    "repeated": ("sends the second half twice", lambda b: b[len(b) // 2 :] + b[len(b) // 2 :]),
    "out-of-range": ("sends numbers larger than any may be", _filled(b"\x7f")),
    "nested": ("sends lists in lists in lists", _filled(b"[")),
    "bomb": ("sends zeros, compressed", _bomb),
}
CLAIMS = {
    "lying-size": "names another size than it serves",
    "huge-size": "names four gigabytes",
    "wrong-chain": "names the hash that its contribution has in another run",
    "wrong-round": "names the hash that its contribution has in another round",
}
MALFORMED = {**{name: what for name, (what, _) in SHAPES.items()}, **CLAIMS}
SIZE_HUGE = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a liar serves, and what it commits to."""

    data: bytes
    size: int
    chain_id: bytes
    round: int


def claimed(name: str, blob: bytes, chain_id: bytes, round_number: int) -> Claimed:
    """Return what a liar of this name makes of an honest contribution."""
    shape = SHAPES.get(name)
    data = shape[1](blob) if shape is not None else blob
    size = {"lying-size": len(data) - 1, "huge-size": SIZE_HUGE}.get(name, len(data))
    chain = chain_id[::-1] if name == "wrong-chain" else chain_id
    return Claimed(data, size, chain, round_number + (name == "wrong-round"))
