"""Evidence on disk: what convicts a peer, in files that anybody can check who has the genesis.

The file holds an `Eviction` as headers carry it. Where that is about a contribution, the bytes lie
beside it under the same name. `culprit_of` says whom the signatures convict; for a contribution,
`is_exhibit` says whether these are the attested bytes, and the recipe's codec that they are none.
"""

from pathlib import Path

from peerformer import events
from peerformer.node.directory import write_durably
from peerformer.protocol.codec import encode
from peerformer.protocol.messages import Eviction, Evidence

EVIDENCE, BLOB = ".bin", ".blob"


def evidence_file(directory: Path, event: events.Event) -> Path:
    """Return where the evidence for an event lies, if there is any."""
    name = getattr(event, "name", "peer")
    return directory / "evidence" / f"{type(event).__name__.lower()}-{name}{EVIDENCE}"


def save_evidence(
    directory: Path, event: events.Event, evidence: Evidence, blob: bytes | None
) -> None:
    """Write the evidence for an event, and the contribution that it is about."""
    path = evidence_file(directory, event)
    write_durably(path, encode(Eviction(evidence)))
    if blob is not None:
        write_durably(path.with_suffix(BLOB), blob)
