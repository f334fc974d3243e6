"""A leaf is proven by its own proof at its own place in a state of its size, by nothing else."""

from random import Random

import pytest

from peerformer.protocol import merkle
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.identity import hash_of
from peerformer.protocol.merkle import MerkleTree, check_leaf, leaf_count, leaf_span

LEAF = merkle.LEAF_SIZE_BYTES
SIZES = (0, 1, LEAF, LEAF + 1, 2 * LEAF, 3 * LEAF - 5, 5 * LEAF, 7 * LEAF + 9)


def state_of(size: int) -> bytes:
    return Random(size).randbytes(size)


def refused(*claim: object) -> bool:
    try:
        check_leaf(*claim)  # type: ignore[arg-type]
    except MalformedError:
        return True
    return False


@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_proves_at_its_place_and_nowhere_else(size: int) -> None:
    data = state_of(size)
    tree = MerkleTree(size, lambda start, end: data[start:end])
    count = leaf_count(size)
    leaves = [data[slice(*leaf_span(size, index))] for index in range(count)]
    assert b"".join(leaves) == data
    for index, leaf in enumerate(leaves):
        proof = tree.proof(index)
        check_leaf(tree.root, size, index, leaf, proof)
        for other in range(-1, count + 2):
            if other != index:
                assert refused(tree.root, size, other, leaf, proof)
                if 0 <= other < count:
                    assert refused(tree.root, size, index, leaves[other], proof)
                    assert refused(tree.root, size, other, leaf, tree.proof(other))


@pytest.mark.parametrize("size", [3 * LEAF - 5, 5 * LEAF])
def test_a_damaged_leaf_proof_root_or_size_is_refused(size: int) -> None:
    data = state_of(size)
    tree = MerkleTree(size, lambda start, end: data[start:end])
    leaf, proof = data[:LEAF], tree.proof(0)
    flipped = bytes((leaf[0] ^ 1,)) + leaf[1:]
    assert refused(tree.root, size, 0, flipped, proof)
    assert refused(tree.root, size, 0, leaf[:-1], proof)
    assert refused(tree.root, size, 0, leaf + b"\0", proof)
    for damaged in (proof[:-32], proof[:-1], proof + bytes(32), proof[32:] + proof[:32], b""):
        assert refused(tree.root, size, 0, leaf, damaged)
    assert refused(bytes(32), size, 0, leaf, proof)
    for other in (size - LEAF, size + LEAF, size + 1, size - 1):
        assert refused(tree.root, other, 0, leaf, proof)


def test_no_node_can_be_shown_as_a_leaf() -> None:
    size = 2 * LEAF
    data = state_of(size)
    tree = MerkleTree(size, lambda start, end: data[start:end])
    left, right = (hash_of("leaf", data[i * LEAF : (i + 1) * LEAF]) for i in (0, 1))
    assert refused(tree.root, 64, 0, left + right, b"")


def test_the_root_binds_the_size() -> None:
    assert merkle.state_root(b"") != merkle.state_root(b"\0")
    assert merkle.state_root(bytes(LEAF)) != merkle.state_root(bytes(LEAF + 1))
