"""The verdict on what a peer stored, or on a file that somebody handed on, against a genesis.

The checks are the protocol's own (`protocol/light_client.py`); this module reads the files, puts
them in order, and keeps what holds and the first thing that does not. It asks nobody and changes
nothing.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from peerformer.errors import ConfigError, DataError
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.stored import (
    StoredCheckpoint,
    StoredState,
    checkpoints_of,
    states_of,
    stored_checkpoint,
    stored_headers,
    stored_state,
)
from peerformer.protocol.codec import MalformedError
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.light_client import (
    Conviction,
    Fault,
    LightClient,
    RoundCertificate,
    certificate_file_fault,
    convicted_by,
    evidence_file_fault,
    foreign_fault,
    read_document,
)
from peerformer.protocol.membership import quorum
from peerformer.protocol.messages import PACKET_SIZE_MAX, FalseHolding

DOCUMENT_BYTES_MAX = 4 * PACKET_SIZE_MAX  # hexadecimal is twice as long, and JSON has its frame
CHAIN_CHECKS = ("headers", "certificates", "members", "operations", "beacons", "reveals")
CERTIFICATE_CHECKS = ("chain", "members", "header", "operations", "reveal", "votes", "founders")
EVIDENCE_CHECKS = ("chain", "evidence")

Records = list[tuple[str, bytes]]
From = TypeVar("From")
Found = TypeVar("Found")


@dataclass(slots=True)
class Verdict:
    """What was found: how far it holds, what was checked, and the first fault."""

    source: Path
    rounds: int | None = None
    head: bytes | None = None
    state_root: bytes | None = None
    members: int | None = None
    checked: list[str] = field(default_factory=list)
    fault: Fault | None = None
    convicted: tuple[Conviction, ...] = ()
    says: str = ""  # one sentence for a person


def verify_run(
    swarm: SwarmDirectory | None,
    directory: PeerDirectory,
    genesis: Genesis,
    watch: Callable[[Records], Iterable[tuple[str, bytes]]],
    checkpoint: tuple[int, bytes] | None = None,
) -> Verdict:
    """Check a peer's headers, states and, with its swarm, the checkpoints of its agreed states.

    Args:
        swarm: where its checkpoints are; None for the directory of a peer alone.
        directory: the peer's files.
        genesis: the only thing that is believed, unless a checkpoint is given.
        watch: passes the stored headers through as they are checked, to tell how far it is.
        checkpoint: the round and digest of a header that is believed as well.
    """
    verdict = Verdict(directory.path)
    # A running peer stores a header before its state: what is read first is covered later.
    first = [swarm.first_state] if swarm and swarm.first_state.is_file() else []
    states = [_read(lambda path: stored_state(path, 0), path) for path in first]
    states += [_read(stored_state, path) for path in states_of(directory)]
    saved = checkpoints_of(swarm) if swarm else []
    checkpoints = [_read(stored_checkpoint, path) for path in saved]
    stored = _read(stored_headers, directory)
    if isinstance(stored, Fault):
        verdict.fault = stored
        return verdict
    keep = frozenset(item.round for item in checkpoints if isinstance(item, StoredCheckpoint))
    client = LightClient(genesis, keep, stored.base)
    chain, foreign = client.chain, foreign_fault(stored.chain_id, genesis)
    verdict.fault = (
        (Fault(0, foreign) if foreign else None)
        or (client.checkpoint_fault(None) if checkpoint is None else None)
        or client.follow(watch(stored.records))
        or (client.checkpoint_fault(checkpoint) if checkpoint else None)
    )
    verdict.rounds, verdict.head, verdict.state_root = chain.tip, chain.head, chain.state_root
    verdict.members, verdict.convicted = len(chain.members.members), client.convictions()
    verdict.says = f"{chain.tip} rounds follow from the genesis."
    if chain.base.round:
        trusted = checkpoint[0] if checkpoint else None
        span = f"rounds {chain.base.round + 1} to {chain.tip}"
        verdict.says = f"{span} follow from the checkpoint, round {trusted}."
    if verdict.fault is None:
        verdict.checked += CHAIN_CHECKS
    for item in [*states, *checkpoints]:
        if verdict.fault is None and item is not None:
            verdict.fault = _stored_fault(client, item)
            if verdict.fault is None:
                verdict.checked.append(str(item))
    return verdict


def _read(read: Callable[[From], Found], source: From) -> Found | Fault:
    """Read something stored, whose damage is a finding and no failure of ours."""
    try:
        return read(source)
    except DataError as error:
        where = f" ({error.where})" if error.where else ""
        return Fault(None, error.what + where + (f": {error.why}" if error.why else ""))


def _stored_fault(
    client: LightClient, item: StoredState | StoredCheckpoint | Fault
) -> Fault | None:
    if isinstance(item, Fault):
        return item
    if item.round is None:
        return Fault(None, f"{item.path.name!r:.80} is a state of no round")
    if isinstance(item, StoredState):
        return client.state_fault(item.round, item.root, item.size_bytes)
    genesis = client.chain.genesis
    foreign = foreign_fault(item.chain_id, genesis)
    return (
        (Fault(item.round, foreign) if foreign else None)
        or client.state_fault(item.round, item.state_root, genesis.state_size)
        or client.copy_fault(item.round, item.certified)
    )


def verify_file(path: Path, genesis: Genesis, blobs: tuple[Path, ...] = ()) -> Verdict:
    """Check a certificate or evidence that stands alone in a file.

    Args:
        path: the file.
        genesis: the only thing that is believed.
        blobs: contributions on which evidence rests.

    Raises:
        ConfigError: if a file cannot be read.
    """
    verdict = Verdict(path)
    try:
        data = _start_of(path, DOCUMENT_BYTES_MAX + 1)
        if len(data) > DOCUMENT_BYTES_MAX:
            raise MalformedError("too long")
        document = read_document(json.loads(data, object_pairs_hook=_distinct))
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, MalformedError) else "it is not JSON"
        verdict.fault = Fault(None, f"neither a certificate nor evidence: {why}")
        return verdict
    if isinstance(document, RoundCertificate):
        if blobs:
            raise ConfigError("--blob goes with a file of evidence only", where=str(path))
        header = document.header
        signers, voters = len(document.certificate.signatures), len(document.members.voters)
        verdict.rounds, verdict.head = header.round, header.digest
        verdict.state_root, verdict.members = header.state_root, len(document.members.members)
        verdict.fault = certificate_file_fault(document, genesis)
        verdict.says = (
            f"{signers} of {voters} voters decided round {header.round};"
            f" {quorum(voters)} were needed."
        )
        checks: tuple[str, ...] = CERTIFICATE_CHECKS
    else:
        given = tuple(_start_of(blob, genesis.blob_size_max + 1) for blob in blobs)
        verdict.fault = evidence_file_fault(
            document, genesis, given, lambda blob: _format_fault(blob, genesis)
        )
        verdict.says = f"the evidence of round {document.round} convicts."
        on_blobs = any(isinstance(one, FalseHolding) for one in document.evidence)
        checks = (*EVIDENCE_CHECKS, *(("contributions",) if on_blobs else ()))
    if verdict.fault is None:
        verdict.checked += checks
        verdict.convicted = () if isinstance(document, RoundCertificate) else convicted_by(document)
    return verdict


def _start_of(path: Path, size_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size_max)
    except OSError as error:
        raise ConfigError("the file cannot be read", where=str(path), why=error.strerror) from error


def _format_fault(blob: bytes, genesis: Genesis) -> str | None:
    """Return why a contribution does not decode, as the peers' bench finds it, or None.

    The codec works on tensors: their library is loaded here, and for nothing else.
    """
    from peerformer.gradients.audit import check_bounds
    from peerformer.gradients.fixed_point import parameters_of
    from peerformer.train.recipe import swarm_config

    codec = swarm_config(genesis.recipe).swarm.codec
    try:
        return check_bounds(blob, parameters_of(genesis.state_size), codec)
    except ValueError as error:
        raise ConfigError("this genesis has no state of a model", why=str(error)) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedError("a key stands twice in one object")
    return found
