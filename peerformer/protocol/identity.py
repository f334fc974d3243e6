"""A peer id is an Ed25519 public key; this module signs, verifies, hashes and names.

Nothing here makes randomness: a key pair is built from 32 secret bytes that the caller drew. Hashes
are BLAKE3-256 with a tag per use, so that bytes hashed for one purpose never serve another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HASH_SIZE_BYTES = 32
KEY_SIZE_BYTES = 32
SIGNATURE_SIZE_BYTES = 64
HASH_CHAIN_LENGTH = 1 << 16  # proposals a peer can make before it must register anew
KEYS_KEPT_MAX = 1_024
VERIFIED_KEPT_MAX = 16_384  # a vote comes alone and again in certificates: check it once
MADE_KEPT_MAX = 512  # my own, in certificates

ADJECTIVES = (
    "amber ashen azure brave brisk bronze calm cedar clear coral crimson dapper dawn deep dusty "
    "eager early ember fair fleet frosty gentle gilded glad golden grand green hardy hazel humble "
    "indigo ivory jade jolly keen kind lively lucky lunar mellow merry misty noble opal pale "
    "pearl plucky proud quick quiet rapid rosy ruby russet sage silent silver sunny swift teal "
    "tidy umber velvet violet"
).split()
BIRDS = (
    "avocet bittern bunting crake crane curlew dipper dove dunlin eagle egret falcon finch "
    "flicker gannet godwit grebe grouse gull harrier hawk heron hobby hoopoe ibis jackdaw jay "
    "kestrel kite lapwing lark linnet loon magpie martin merlin nuthatch oriole osprey owl petrel "
    "pigeon pipit plover puffin quail rail raven robin rook ruff shrike skua snipe starling stork "
    "swan swift tern thrush tit whimbrel wigeon wren"
).split()


def hash_of(tag: str, *parts: bytes) -> bytes:
    """Return the 32-byte BLAKE3 hash of length-prefixed `parts` under a purpose `tag`."""
    hasher = _hasher(tag).copy()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


@cache
def _hasher(tag: str) -> blake3:
    return blake3(derive_key_context=f"peerformer 1 {tag}")


def blob_hash(chain_id: bytes, round_number: int, peer: bytes, pieces: Iterable[bytes]) -> bytes:
    """Hash a contribution under a key of its run, round and author.

    The same bytes from another peer, round or run hash differently: a copied or replayed
    contribution never matches what its sender would have to commit to.
    """
    key = hash_of("contribution key", chain_id, round_number.to_bytes(8, "little"), peer)
    hasher = blake3(key=key)
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair; `peer_id` is the raw public key."""

    private_key: Ed25519PrivateKey
    peer_id: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> "KeyPair":
        """Build the key pair of 32 secret bytes."""
        assert len(seed) == KEY_SIZE_BYTES
        private_key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(private_key, private_key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        signature = self.private_key.sign(message)
        if len(_made_here) >= MADE_KEPT_MAX:
            _made_here.pop(next(iter(_made_here)), None)
        _made_here[signature] = (self.peer_id, message)
        return signature


_made_here: dict[bytes, tuple[bytes, bytes]] = {}  # signature -> key, message: need no check


@lru_cache(maxsize=VERIFIED_KEPT_MAX)
def verify(peer_id: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether `signature` is the one of `message` under the key `peer_id`; never raises."""
    if _made_here.get(signature) == (peer_id, message):
        return True
    try:
        _public_key(peer_id).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def forget_signatures() -> None:
    """Check every signature again that was checked or made in this process: for measurements."""
    verify.cache_clear()
    _made_here.clear()


@lru_cache(maxsize=KEYS_KEPT_MAX)
def _public_key(peer_id: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(peer_id)


def name_of(peer_id: bytes) -> str:
    """Return the readable name of a peer, such as `amber-finch`: a hash of its key, not unique."""
    digest = hash_of("name", peer_id)
    adjective = ADJECTIVES[digest[0] % len(ADJECTIVES)]
    return f"{adjective}-{BIRDS[digest[1] % len(BIRDS)]}"


@dataclass(frozen=True, slots=True)
class HashChain:
    """A chain of preimages: its anchor is public, each reveal is the preimage of the last one.

    `links[0]` is the anchor, `links[i + 1]` hashes to `links[i]`.
    """

    links: tuple[bytes, ...]

    @classmethod
    def from_seed(cls, seed: bytes, length: int = HASH_CHAIN_LENGTH) -> "HashChain":
        """Derive the chain of a secret seed."""
        link = blake3(seed, derive_key_context="peerformer 1 hash chain seed").digest()
        links = [link]
        for _ in range(length):
            link = blake3(link).digest()
            links.append(link)
        return cls(tuple(reversed(links)))

    def next_after(self, anchor: bytes) -> bytes | None:
        """Return the preimage of `anchor`, or None when the chain is used up or is another's."""
        try:
            position = self.links.index(anchor)
        except ValueError:
            return None
        return self.links[position + 1] if position + 1 < len(self.links) else None


def reveals(anchor: bytes, reveal: bytes) -> bool:
    """Tell whether `reveal` is the preimage of `anchor`."""
    return blake3(reveal).digest() == anchor
