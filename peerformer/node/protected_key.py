"""A secret key under a passphrase: scrypt makes a key of it, ChaCha20-Poly1305 hides the secret.

The line names what a reader needs before it can ask: the cost of scrypt (RFC 7914), the public key,
salt and nonce. All of it is authenticated, so a changed word is as wrong as a wrong passphrase. The
cost is what a guess costs an attacker who holds the file: 128 MiB and some tenths of a second.
"""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from peerformer.protocol.identity import KEY_SIZE_BYTES, KeyPair

FORMAT = "peerformer-key-v2"
COST_LOG2, COST_LOG2_MAX = 17, 20  # a file that asks for more would take the machine's memory
BLOCK_SIZE, LANES = 8, 1
SALT_SIZE, NONCE_SIZE = 16, 12


class WrongPassphraseError(Exception):
    """The passphrase does not open the key, or the line was changed."""


class MalformedLineError(Exception):
    """A line that is no protected key; the message says why."""


def protect(seed: bytes, passphrase: str, cost_log2: int = COST_LOG2) -> str:
    """Return the line of a secret key under a passphrase."""
    salt, nonce = secrets.token_bytes(SALT_SIZE), secrets.token_bytes(NONCE_SIZE)
    public = KeyPair.from_seed(seed).peer_id
    head = f"{FORMAT} scrypt-{cost_log2} {public.hex()} {salt.hex()} {nonce.hex()}"
    cipher = ChaCha20Poly1305(_stretched(passphrase, salt, cost_log2))
    return f"{head} {cipher.encrypt(nonce, seed, head.encode()).hex()}"


def public_key_of(line: str) -> bytes:
    """Return the public key in a line, which needs no passphrase; raises MalformedLineError."""
    return _parsed(line)[1]


def unprotect(line: str, passphrase: str) -> bytes:
    """Return the secret key in a line.

    Raises:
        MalformedLineError: if it is no line of a protected key.
        WrongPassphraseError: if the passphrase does not open it.
    """
    cost_log2, public, salt, nonce, hidden = _parsed(line)
    head = line.rpartition(" ")[0].encode()
    try:
        seed = ChaCha20Poly1305(_stretched(passphrase, salt, cost_log2)).decrypt(
            nonce, hidden, head
        )
    except InvalidTag:
        raise WrongPassphraseError from None
    if KeyPair.from_seed(seed).peer_id != public:
        raise MalformedLineError("its public key is another one")
    return seed


def _parsed(line: str) -> tuple[int, bytes, bytes, bytes, bytes]:
    words = line.split(" ")
    if len(words) != 6 or words[0] != FORMAT:
        raise MalformedLineError(f"it is not one line of six words that starts with {FORMAT!r}")
    cost = words[1].removeprefix("scrypt-")
    if not cost.isascii() or not cost.isdigit() or not 10 <= int(cost) <= COST_LOG2_MAX:
        raise MalformedLineError(f"{words[1][:32]!r} is no cost that is used here")
    try:
        public, salt, nonce, hidden = (bytes.fromhex(word) for word in words[2:])
    except ValueError as error:
        raise MalformedLineError("a word of it is not hexadecimal") from error
    sizes = (len(public), len(salt), len(nonce), len(hidden))
    if sizes != (KEY_SIZE_BYTES, SALT_SIZE, NONCE_SIZE, KEY_SIZE_BYTES + 16):
        raise MalformedLineError("a word of it has a wrong length")
    return int(cost), public, salt, nonce, hidden


def _stretched(passphrase: str, salt: bytes, cost_log2: int) -> bytes:
    return Scrypt(salt, 32, 2**cost_log2, BLOCK_SIZE, LANES).derive(passphrase.encode())
