"""Certificates that prove one thing: the other end holds the private key of its peer id.

The standard `ssl` module asks for a client's certificate only if it can also check it against an
authority, and strangers share none. So the network has an authority whose *private key is public*,
derived from the protocol's name: every peer issues its own leaf, over its Ed25519 identity key. The
check of the chain passes for anyone and proves nothing; the TLS 1.3 signature under the leaf's key
proves the identity (RFC 8446, section 4.4.3). After the handshake both ends read that key, and only
that: names, dates and extensions of a leaf are never looked at.

A group that wants to be alone has an authority whose private key is its own (`authority.py`): then
whoever holds no leaf of it does not get past the handshake, and OpenSSL looks at the dates too.

It knows no address, no chain and no member.
"""

import secrets
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from peerformer.protocol.identity import hash_of

# Changing it makes another network: its peers and ours refuse each other in the handshake.
NETWORK_NAME = "peerformer/1"
# A peer with a wrong clock is still a peer: the key counts, and the protocol tells the time.
VALID_FROM = datetime(1970, 1, 1, tzinfo=UTC)
VALID_UNTIL = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Group:
    """What a peer of a private group shows and trusts, both as PEM."""

    authority: str
    leaf: str


class CertificateRefused(Exception):
    """The other end showed no certificate, or one that is not over an Ed25519 key."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The network's certificate authority, the same bytes at every peer."""

    private_key: Ed25519PrivateKey
    certificate: x509.Certificate


def network_authority(name: str = NETWORK_NAME) -> Authority:
    """Derive the authority of the network called `name`."""
    seed = hash_of("network certificate authority", name.encode())
    return authority_of(Ed25519PrivateKey.from_private_bytes(seed), name)


def authority_of(private_key: Ed25519PrivateKey, name: str) -> Authority:
    """Return the authority called `name` that signs with a key."""
    subject = _name(name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(private_key.public_key())
    builder = _builder(subject, subject, private_key.public_key(), serial=1)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Authority(private_key, builder.sign(private_key, None))


def issue_leaf(
    authority: Authority, public_key: Ed25519PublicKey, until: datetime | None = None
) -> x509.Certificate:
    """Issue the leaf over an identity key, valid for ever or until a time."""
    issuer = authority.certificate.subject
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(
        authority.private_key.public_key()
    )
    serial = x509.random_serial_number()
    builder = _builder(_name("peer"), issuer, public_key, serial=serial, until=until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False
    )
    builder = builder.add_extension(authority_id, critical=False)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    return builder.sign(authority.private_key, None)


def tls_contexts(
    private_key: Ed25519PrivateKey, group: Group | None = None
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the (server, client) contexts of an identity: TLS 1.3 only, both ends proved.

    Raises:
        ssl.SSLError: if the leaf of a group is over another key.
        ValueError: if it cannot be read.
    """
    if group is None:
        authority = network_authority()
        trusted = authority.certificate.public_bytes(serialization.Encoding.PEM).decode()
        leaf = issue_leaf(authority, private_key.public_key())
    else:
        trusted, leaf = group.authority, x509.load_pem_x509_certificate(group.leaf.encode())
    server = _context(ssl.PROTOCOL_TLS_SERVER, trusted)
    client = _context(ssl.PROTOCOL_TLS_CLIENT, trusted)
    server.num_tickets = 0  # no resumption: every connection proves its key anew
    load_identity(server, private_key, leaf)
    load_identity(client, private_key, leaf)
    return server, client


def load_identity(
    context: ssl.SSLContext, private_key: PrivateKeyTypes, leaf: x509.Certificate
) -> None:
    """Give a context its certificate and key; the key touches the disk only encrypted."""
    password = secrets.token_bytes(32).hex().encode()
    key_pem = private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    with tempfile.TemporaryDirectory(prefix="peerformer-") as directory:
        path = Path(directory) / "identity.pem"
        path.write_bytes(key_pem + leaf.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(path, password=password)


def peer_key(tls: ssl.SSLObject) -> bytes:
    """Return the raw 32-byte Ed25519 key that the other end proved to hold.

    Raises:
        CertificateRefused: if the leaf is missing, cannot be read, or is over another kind of key.
    """
    der = tls.getpeercert(True)
    if not der:
        raise CertificateRefused("no certificate was shown")
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CertificateRefused("the certificate cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateRefused("the certificate is not over an Ed25519 key")
    return key.public_bytes_raw()


def _context(protocol: int, trusted: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a peer is its key; names mean nothing
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusted)
    return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: Ed25519PublicKey,
    *,
    serial: int,
    until: datetime | None = None,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(public_key).serial_number(serial)
    return builder.not_valid_before(VALID_FROM).not_valid_after(until or VALID_UNTIL)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
