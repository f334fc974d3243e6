"""Evidence on disk: what convicts a peer, in files that anybody can check who has the genesis.

The file is the JSON that `peerformer verify` reads and docs/certificates.md describes. Where it is
about a contribution, the bytes lie beside it under the same name. The newest are kept. Nothing is
judged here.
"""

import json
from pathlib import Path

from peerformer import events
from peerformer.node.directory import write_durably
from peerformer.protocol.light_client import RoundEvidence, show_document
from peerformer.protocol.messages import Evidence

EVIDENCE, BLOB = ".json", ".blob"
FILES_KEPT = 128  # the headers hold the evidence too, for as long as they are kept


def evidence_file(directory: Path, event: events.PeerEvicted) -> Path:
    """Return where the evidence for an eviction lies, if it was kept."""
    return directory / "evidence" / f"{type(event).__name__.lower()}-{event.name}{EVIDENCE}"


def save_evidence(
    directory: Path,
    event: events.PeerEvicted,
    chain_id: bytes,
    evidence: Evidence,
    blob: bytes | None,
) -> None:
    """Write the evidence for an eviction, and the contribution that it is about."""
    path = evidence_file(directory, event)
    document = show_document(RoundEvidence(chain_id, event.round, (evidence,)))
    write_durably(path, json.dumps(document, indent=1).encode())
    if blob is not None:
        write_durably(path.with_suffix(BLOB), blob)
    files = sorted(path.parent.glob(f"*{EVIDENCE}"), key=lambda file: file.stat().st_mtime_ns)
    for old in files[:-FILES_KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(BLOB).unlink(missing_ok=True)
