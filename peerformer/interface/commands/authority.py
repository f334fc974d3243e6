"""`peerformer authority`: the certificates of a private group, whose peers let nobody else in."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.node import authority as authorities
from peerformer.node.authority import AuthorityFiles
from peerformer.node.directory import write_durably
from peerformer.protocol.identity import KEY_SIZE_BYTES, name_of

DAYS_MAX = 3_650


def new(
    folder: Annotated[Path, Parameter(help="Where to keep it; the key in it stays there.")],
    /,
    *,
    name: Annotated[str, Parameter(help="What its certificates call it.")] = "peerformer group",
) -> None:
    """Make the authority of a private group: authority.key, a secret, and authority.pem for all."""
    files = AuthorityFiles(folder)
    authorities.new_authority(files, name)
    print(f"made        {files.certificate}   give it to every peer: --authority authority.pem")
    print(f"secret      {files.key}   whoever has it lets peers in")


def certify(
    folder: Annotated[Path, Parameter(help="The authority's folder.")],
    peer: Annotated[str, Parameter(help="The peer's id: its public key, 64 hex digits.")],
    /,
    *,
    days: Annotated[int, Parameter(help="How long the certificate is good for.")] = 365,
) -> None:
    """Issue a peer's certificate into the authority's folder; it is no secret."""
    if not 1 <= days <= DAYS_MAX:
        raise ConfigError(f"--days must be between 1 and {DAYS_MAX}", why=f"given: {days}")
    try:
        key = bytes.fromhex(peer)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE_BYTES:
        raise ConfigError(
            "a peer's id has 64 hex digits",
            why=f"given: {peer:.80}",
            hint="peerformer status --json",
        )
    leaf = authorities.certify(AuthorityFiles(folder), key, days)
    path = folder / f"{name_of(key)}-{peer[:8].lower()}.pem"
    write_durably(path, leaf.encode())
    print(f"issued      {path}   give it to {name_of(key)}: --certificate {path.name}")
