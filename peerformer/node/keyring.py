"""The identity file, and the keys of peers met before.

A peer's identity is 32 secret bytes in one line of text, in a file that nobody else may read, as
with `ssh-keygen`; hidden under a passphrase if its owner wants that (`protected_key`). A file that
others can read, or whose checksum does not fit, is refused, never repaired: a vote under a key that
another may hold is worse than none. `KnownPeers` is trust on first use, like `known_hosts`: it
remembers which key answered at an address.

It knows nothing of certificates or terminals: whoever has a passphrase passes it in.
"""

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from peerformer.errors import IdentityError
from peerformer.node import protected_key
from peerformer.node.directory import write_durably
from peerformer.node.protected_key import MalformedLineError, WrongPassphraseError
from peerformer.protocol.identity import KEY_SIZE_BYTES, KeyPair, hash_of

FORMAT = "peerformer-key-v1"
CHECKSUM_DIGITS = 8  # finds slips of a disk or an editor; it need not stop anybody
FILE_SIZE_MAX = 4096
KNOWN_PEERS_SIZE_MAX = 16 * 1024 * 1024
PASSPHRASE_VARIABLE = "PEERFORMER_PASSPHRASE"


def passphrase_of_environment() -> str:
    """Return the passphrase in the environment, for programs that nobody sits at.

    Raises:
        IdentityError: if there is none.
    """
    if passphrase := os.environ.get(PASSPHRASE_VARIABLE):
        return passphrase
    raise IdentityError(
        "this key is protected by a passphrase, and none was given",
        hint=f"--passphrase-file FILE, or the variable {PASSPHRASE_VARIABLE}, or a terminal",
    )


def load_or_create_key(
    path: Path, passphrase: Callable[[], str] = passphrase_of_environment
) -> bytes:
    """Return the 32-byte Ed25519 seed in `path`; where there is no file, make one.

    `passphrase` is asked only where the file has one.

    Raises:
        IdentityError: if the file is damaged, or may be read by others, or cannot be made, or its
        passphrase is another one.
    """
    if not path.exists():
        try:
            save_key(path, secrets.token_bytes(KEY_SIZE_BYTES))
        except FileExistsError:
            pass  # another process was faster: its key is the key
    return load_key(path, passphrase)


def save_key(path: Path, seed: bytes, passphrase: str | None = None) -> None:
    """Write a new identity file: whole, durable, readable by its owner only.

    Raises:
        FileExistsError: if there is one already; it is left as it is.
        IdentityError: if it cannot be written.
    """
    assert len(seed) == KEY_SIZE_BYTES
    plain = f"{FORMAT} {seed.hex()} {_checksum(seed)}"
    write_key_line(path, plain if passphrase is None else protected_key.protect(seed, passphrase))


def write_key_line(path: Path, text: str) -> None:
    """Write the line of a new identity file; raises as `save_key` does."""
    line = f"{text}\n".encode()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, it never replaces a file
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        raise
    except OSError as error:
        raise IdentityError(
            "the identity file cannot be written", where=str(path), why=str(error)
        ) from error


def load_key(path: Path, passphrase: Callable[[], str] = passphrase_of_environment) -> bytes:
    """Return the seed in an identity file; raises IdentityError as `load_or_create_key` does."""
    line = read_key_line(path)
    if not line.startswith(protected_key.FORMAT):
        return _plain(path, line)
    try:
        return protected_key.unprotect(line, passphrase())
    except MalformedLineError as error:
        raise _damaged(path, str(error)) from None
    except WrongPassphraseError:
        raise IdentityError(
            "the passphrase is wrong",
            where=str(path),
            why="it does not open this key",
            hint="try again; without its passphrase a key is lost: join under a new one",
        ) from None


def peer_id_in(path: Path) -> tuple[bytes, bool]:
    """Return whose key an identity file holds, and whether a passphrase protects it.

    It asks for no passphrase. Raises IdentityError.
    """
    line = read_key_line(path)
    if not line.startswith(protected_key.FORMAT):
        return KeyPair.from_seed(_plain(path, line)).peer_id, False
    try:
        return protected_key.public_key_of(line), True
    except MalformedLineError as error:
        raise _damaged(path, str(error)) from None


def read_key_line(path: Path) -> str:
    """Return the line of an identity file.

    Raises:
        IdentityError: if it cannot be read, or others can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(FILE_SIZE_MAX)
    except OSError as error:
        raise IdentityError(
            "the identity file cannot be read", where=str(path), why=str(error)
        ) from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise IdentityError(
            "the identity file may be read by others",
            where=str(path),
            why=f"its permissions are {stat.S_IMODE(mode):04o}, and whoever holds this key is you",
            hint=f"chmod 600 {path}",
        )
    try:
        return data.decode("ascii").removesuffix("\n")
    except ValueError:
        raise _damaged(path, "it is not one line of three words") from None


def _plain(path: Path, line: str) -> bytes:
    try:
        form, digits, checksum = line.split()
        seed = bytes.fromhex(digits)
    except ValueError:
        raise _damaged(path, "it is not one line of three words") from None
    if form != FORMAT:
        raise _damaged(path, f"it starts with {form[:32]!r}, not with {FORMAT!r}")
    if len(seed) != KEY_SIZE_BYTES or checksum != _checksum(seed):
        raise _damaged(path, "its checksum does not fit")
    return seed


def _checksum(seed: bytes) -> str:
    return hash_of("key file checksum", seed).hex()[:CHECKSUM_DIGITS]


def _damaged(path: Path, why: str) -> IdentityError:
    return IdentityError(
        "the identity file is damaged",
        where=str(path),
        why=why,
        hint=f"restore it from a copy, or start under a new key: mv {path} {path}.damaged",
    )


class KnownPeers:
    """Which key answered at which address: one `address key` a line, for people to edit."""

    def __init__(self, path: Path) -> None:
        """Use the file at `path`, which need not exist yet."""
        self.path = path

    def check(self, address: str, peer_id: bytes) -> Literal["new", "known", "changed"]:
        """Compare a key with the one remembered for its address; raises IdentityError."""
        known = self._read().get(address)
        if known is None:
            return "new"
        return "known" if known == peer_id else "changed"

    def remember(self, address: str, peer_id: bytes) -> None:
        """Remember the key of an address, in place of an earlier one; raises IdentityError."""
        assert len(peer_id) == KEY_SIZE_BYTES and not any(c.isspace() for c in address)
        peers = self._read()
        peers[address] = peer_id
        text = "".join(f"{name} {key.hex()}\n" for name, key in peers.items())
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self.path, text.encode())

    def _read(self) -> dict[str, bytes]:
        try:
            with self.path.open("rb") as file:
                lines = file.read(KNOWN_PEERS_SIZE_MAX).decode().splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise IdentityError(
                "the list of known peers cannot be read", where=str(self.path), why=str(error)
            ) from error
        peers = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                address, digits = line.split()
                peers[address] = bytes.fromhex(digits)
            except ValueError:
                raise IdentityError(
                    "the list of known peers is damaged",
                    where=f"{self.path}, line {number}",
                    hint="correct the line or take it out",
                ) from None
        return peers
