"""The state root: a Merkle tree over 1 MiB leaves, and the proof of one leaf.

Leaves and nodes are hashed under different tags, and the root binds the length, so no node can be
shown as a leaf and no padding as state (the second-preimage trap of RFC 9162, section 2.1). An odd
node rises unchanged.
"""

from collections.abc import Callable

from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import hash_of

LEAF_SIZE_BYTES = 1 << 20
PROOF_DEPTH_MAX = 32


def leaf_count(size_bytes: int) -> int:
    """Return the number of leaves of a state of `size_bytes`."""
    return max(1, -(-size_bytes // LEAF_SIZE_BYTES))


def leaf_span(size_bytes: int, index: int) -> tuple[int, int]:
    """Return the first and the past-the-last byte of a leaf."""
    start = index * LEAF_SIZE_BYTES
    return start, min(start + LEAF_SIZE_BYTES, size_bytes)


def _levels(leaves: list[bytes]) -> list[list[bytes]]:
    levels = [leaves]
    while len(levels[-1]) > 1:
        below = levels[-1]
        above = [hash_of("node", *below[i : i + 2]) for i in range(0, len(below) - 1, 2)]
        levels.append(above + below[len(below) // 2 * 2 :])
    return levels


class MerkleTree:
    """The tree over one state; keeps the hashes, not the bytes."""

    def __init__(self, size_bytes: int, read: Callable[[int, int], bytes]) -> None:
        """Hash the state that `read(start, end)` gives piece by piece."""
        self.size_bytes = size_bytes
        spans = (leaf_span(size_bytes, index) for index in range(leaf_count(size_bytes)))
        self._levels = _levels([hash_of("leaf", read(start, end)) for start, end in spans])
        self.root = _root(size_bytes, self._levels[-1][0])

    def proof(self, index: int) -> bytes:
        """Return the sibling hashes from the leaf to the top, one after the other."""
        hashes = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                hashes.append(level[index ^ 1])
            index >>= 1
        return b"".join(hashes)


def _root(size_bytes: int, top: bytes) -> bytes:
    return hash_of("root", size_bytes.to_bytes(8, "little"), top)


def proof_size_bytes(size_bytes: int, index: int) -> int:
    """Return the length of the proof of a leaf."""
    size, width = 0, leaf_count(size_bytes)
    while width > 1:
        size += 32 if index ^ 1 < width else 0
        index, width = index >> 1, (width + 1) // 2
    return size


def check_leaf(root: bytes, size_bytes: int, index: int, leaf: bytes, proof: bytes) -> None:
    """Check that `leaf` is the `index`-th leaf of the state with this root.

    Raises:
        MalformedError: if it is not.
    """
    width = leaf_count(size_bytes)
    start, end = leaf_span(size_bytes, index)
    if not 0 <= index < width or len(leaf) != end - start:
        raise MalformedError("leaf of a wrong length or place")
    if len(proof) != proof_size_bytes(size_bytes, index):
        raise MalformedError("proof of a wrong length")
    node, position = hash_of("leaf", leaf), 0
    while width > 1:
        if index ^ 1 < width:
            sibling = proof[position : position + 32]
            position += 32
            node = hash_of("node", sibling, node) if index & 1 else hash_of("node", node, sibling)
        index, width = index >> 1, (width + 1) // 2
    if _root(size_bytes, node) != root:
        raise MalformedError("leaf does not belong to the state")


def state_root(data: bytes) -> bytes:
    """Return the root of a state held in memory."""
    return MerkleTree(len(data), lambda start, end: data[start:end]).root


def chunk_key(state_root: bytes, index: int) -> bytes:
    """Return the key under which one proven chunk of a state is fetched."""
    return hash_of("state chunk", state_root, index.to_bytes(4, "little"))
