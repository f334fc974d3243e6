"""A private group's certificate authority: two files, and the leaves that it issues.

Whoever holds `authority.key` decides who may connect; `authority.pem` is what all peers trust. A
leaf is issued over a peer's public key alone, so no secret travels: only that peer can use it. It
is no membership: who votes is agreed by the chain, as in every swarm.
"""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from peerformer.errors import ConfigError, IdentityError
from peerformer.node.certificate import Authority, Group, authority_of, issue_leaf, tls_contexts
from peerformer.node.directory import write_durably
from peerformer.protocol.identity import KEY_SIZE_BYTES

NAME_LENGTH_MAX = 64  # of an X.509 common name


@dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """Where an authority lies."""

    path: Path

    @property
    def key(self) -> Path:
        """Its secret: whoever has it lets peers in."""
        return self.path / "authority.key"

    @property
    def certificate(self) -> Path:
        """What all peers of the group trust."""
        return self.path / "authority.pem"


def new_authority(files: AuthorityFiles, name: str) -> None:
    """Make an authority.

    Raises:
        ConfigError: if there is one already, or its name is none.
    """
    if files.key.exists() or files.certificate.exists():
        raise ConfigError(
            "there is an authority already", where=str(files.path), hint="choose another folder"
        )
    if not 0 < len(name) <= NAME_LENGTH_MAX:
        raise ConfigError(f"a name has 1 to {NAME_LENGTH_MAX} letters", why=f"given: {name!r:.80}")
    private_key = Ed25519PrivateKey.generate()
    files.path.mkdir(parents=True, exist_ok=True)
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate = authority_of(private_key, name).certificate
    write_durably(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _load(files: AuthorityFiles) -> Authority:
    try:
        mode = files.key.stat().st_mode
        private_key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "this is no folder of an authority",
            where=str(files.path),
            why=str(error),
            hint=f"peerformer authority new {files.path}",
        ) from error
    if mode & 0o077:
        raise IdentityError(
            "the authority's key can be read by others",
            where=str(files.key),
            hint=f"chmod 600 {files.key}",
        )
    if not isinstance(private_key, Ed25519PrivateKey):
        raise ConfigError("the authority's key is not an Ed25519 key", where=str(files.key))
    return Authority(private_key, certificate)


def certify(files: AuthorityFiles, peer: bytes, days: int, now: datetime | None = None) -> str:
    """Return the leaf of a peer as PEM, good for so many days.

    Raises:
        ConfigError: if the authority cannot be used.
        IdentityError: if others can read its key.
    """
    assert len(peer) == KEY_SIZE_BYTES
    until = (now or datetime.now(UTC)) + timedelta(days=days)
    leaf = issue_leaf(_load(files), Ed25519PublicKey.from_public_bytes(peer), until)
    return leaf.public_bytes(serialization.Encoding.PEM).decode()


def read_group(authority: Path, leaf: Path | None) -> Group:
    """Read what a peer of a group shows and trusts; no leaf is an empty one.

    Raises:
        ConfigError: if one of the files is no certificate.
    """
    return Group(_certificate_in(authority), _certificate_in(leaf) if leaf else "")


def _certificate_in(path: Path) -> str:
    try:
        text = path.read_text()
        x509.load_pem_x509_certificate(text.encode())
    except (OSError, ValueError) as error:
        raise ConfigError(
            "this is no certificate in PEM form", where=str(path), why=str(error)
        ) from error
    return text


def check_fits(seed: bytes, group: Group | None) -> None:
    """Check that a peer can show the leaf of its group, if it has one.

    Raises:
        ConfigError: if there is no leaf, or it is over another key, of another authority, or out
        of date.
    """
    if group is None:
        return
    private_key = Ed25519PrivateKey.from_private_bytes(seed)
    peer = private_key.public_key().public_bytes_raw().hex()
    fault = _fault_of(group, private_key) if group.leaf else "--certificate is not given"
    if fault:
        raise ConfigError(
            "this peer has no certificate that its group takes",
            why=fault,
            hint=f"whoever keeps the authority types: peerformer authority certify FOLDER {peer}",
        )


def _fault_of(group: Group, private_key: Ed25519PrivateKey) -> str | None:
    leaf = x509.load_pem_x509_certificate(group.leaf.encode())
    if datetime.now(UTC) >= leaf.not_valid_after_utc:
        return f"it ran out on {leaf.not_valid_after_utc:%Y-%m-%d}"
    try:
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(group.authority.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return "it is of another authority than --authority"
    try:
        tls_contexts(private_key, group)
    except ssl.SSLError:
        return "it is over another key than this peer's"
    return None
