"""Keys sign, hashes separate their uses, and hash chains reveal one link at a time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol import identity
from peerformer.protocol.identity import (
    ADJECTIVES,
    BIRDS,
    MADE_KEPT_MAX,
    HashChain,
    KeyPair,
    blob_hash,
    forget_signatures,
    hash_of,
    name_of,
    reveals,
    verify,
)

KEYS = KeyPair.from_seed(bytes(range(32)))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 511), st.booleans())
def test_a_signature_serves_one_message_and_one_key(message: bytes, flip: int, known: bool) -> None:
    signature = KEYS.sign(message)
    if not known:
        forget_signatures()  # as if another process had made it
    other = KeyPair.from_seed(bytes(32))
    damaged = bytearray(signature)
    damaged[flip // 8] ^= 1 << flip % 8
    assert verify(KEYS.peer_id, message, signature)
    assert not verify(KEYS.peer_id, message + b"\0", signature)
    assert not verify(KEYS.peer_id, message, bytes(damaged))
    assert not verify(other.peer_id, message, signature)


def test_only_the_newest_of_my_own_signatures_are_remembered() -> None:
    for number in range(MADE_KEPT_MAX + 10):
        KEYS.sign(number.to_bytes(4, "little"))
    assert len(identity._made_here) == MADE_KEPT_MAX


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_verifying_noise_is_false_and_never_raises(
    peer: bytes, message: bytes, signature: bytes
) -> None:
    assert verify(peer, message, signature) is False


def test_hashed_parts_do_not_run_into_each_other_and_tags_separate() -> None:
    hashes = {
        hash_of("a", b"bc"),
        hash_of("a", b"b", b"c"),
        hash_of("a", b"", b"bc"),
        hash_of("a", b"bc", b""),
        hash_of("ab", b"c"),
        hash_of("a"),
    }
    assert len(hashes) == 6


def test_a_contribution_copied_to_another_run_round_or_peer_hashes_differently() -> None:
    chain, peer = bytes(32), KEYS.peer_id
    mine = blob_hash(chain, 3, peer, [b"one", b"two"])
    assert mine == blob_hash(chain, 3, peer, [b"onetwo"])
    for copied in ((bytes([1]) * 32, 3, peer), (chain, 4, peer), (chain, 3, bytes(32))):
        assert blob_hash(*copied, [b"onetwo"]) != mine


def test_a_hash_chain_reveals_preimages_in_order_until_it_is_used_up() -> None:
    chain = HashChain.from_seed(b"secret", length=4)
    anchor, seen = chain.links[0], []
    while (link := chain.next_after(anchor)) is not None:
        assert reveals(anchor, link)
        assert not reveals(link, anchor)
        seen.append(link)
        anchor = link
    assert len(seen) == 4
    assert chain.next_after(bytes(32)) is None


def test_a_name_is_stable_and_readable() -> None:
    adjective, bird = name_of(KEYS.peer_id).split("-")
    assert adjective in ADJECTIVES and bird in BIRDS
    assert name_of(KEYS.peer_id) == name_of(bytes(KEYS.peer_id))
