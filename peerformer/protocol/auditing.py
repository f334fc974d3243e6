"""This peer as an auditor: it repeats the trainings that the beacon assigns to it.

A training is repeated from the record to which its contribution committed. Whoever is connected and
does not hand the record out, at a rate that any link has, has failed; that this peer itself could
not look (it did not see the commitment, was away or busy, or no longer has the state) says nothing
about anybody. What was found waits here for the attestation of two rounds later. It knows nothing
of tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from peerformer import events
from peerformer.protocol.attestations import Finding
from peerformer.protocol.audits import AUDIT_ROUNDS
from peerformer.protocol.chain import Chain
from peerformer.protocol.committee import shard_of
from peerformer.protocol.effects import Audited, FetchBlob, Repeat
from peerformer.protocol.identity import name_of
from peerformer.protocol.messages import (
    Contribution,
    Header,
)
from peerformer.protocol.outbox import Outbox

WITHHELD = "it does not hand out what it departed from"
GAINS_NEEDED = 8  # before anything is made of them
PATIENCE_SECONDS, RATE_MIN_BYTES_PER_SECOND = 2.0, 256 * 1024  # with which a record is awaited


@dataclass(frozen=True, slots=True)
class Awaited:
    """A record that is being fetched, and when at the latest it should have come."""

    repeat: Repeat
    until: float


@dataclass(slots=True)
class Auditing:
    """What this peer is to repeat, and what it found."""

    chain: Chain
    outbox: Outbox
    fetching: dict[bytes, Awaited] = field(default_factory=dict)  # by the hash of the record
    found: dict[tuple[int, bytes], bool] = field(default_factory=dict)  # by round and peer
    gains: dict[bytes, list[int]] = field(default_factory=dict)  # micro-nats, by peer

    def order(
        self, header: Header, contributions: Mapping[bytes, Contribution], now: float
    ) -> None:
        """Repeat what the round just decided assigns to me, if I saw what was committed to."""
        number, me = header.round, self.outbox.keys.peer_id
        oldest = number + 1 - AUDIT_ROUNDS
        self.found = {key: passed for key, passed in self.found.items() if key[0] >= oldest}
        self.fetching = {k: one for k, one in self.fetching.items() if one.repeat.round >= oldest}
        here = self.chain.members.get
        self.gains = {peer: gains for peer, gains in self.gains.items() if here(peer)}
        accepted = {entry.peer: entry for entry in header.contributions}
        for audit in self.chain.members.audits:
            said, entry = contributions.get(audit.peer), accepted.get(audit.peer)
            if audit.round != number or me not in audit.auditors or said is None or entry is None:
                continue
            if said.blob_hash == entry.blob_hash:
                seed = shard_of(self.chain.beacon_of(number - 1), audit.peer)
                work = Repeat(number, audit.peer, entry.blob_hash, said.record_hash, seed)
                patience = PATIENCE_SECONDS + said.record_size / RATE_MIN_BYTES_PER_SECOND
                self.fetching[said.record_hash] = Awaited(work, now + patience)
                record = (said.record_hash, said.record_size)
                fetch = FetchBlob(number, audit.peer, *record, (audit.peer,), record=True)
                self.outbox.work(fetch)

    def on_fetched(self, work: FetchBlob, *, succeeded: bool) -> None:
        """Repeat a training whose record has come."""
        if succeeded and work.blob_hash in self.fetching:
            self.outbox.work(self.fetching.pop(work.blob_hash).repeat)

    def on_repeated(self, work: Repeat, result: Audited) -> None:
        """Note what came of a repetition."""
        if result.passed is not None:
            self._note(work, result.passed, result.why)

    def on_gain(self, author: bytes, gain: int) -> None:
        """Note by how much more a contribution improves the data that its author had to train on.

        Honest work improves that more than other data, not in each round but in most.
        """
        gains = self.gains.setdefault(author, [])
        gains.append(gain)
        if len(gains) < GAINS_NEEDED:
            return
        del self.gains[author]
        if sum(gains) <= 0:
            self.outbox.report(
                events.WorkDoubted(
                    round=self.chain.tip + 1,
                    peer=author.hex(),
                    name=name_of(author),
                    gain_micronats=sum(gains) // len(gains),
                )
            )

    def _note(self, work: Repeat, passed: bool, why: str) -> None:
        self.found[work.round, work.author] = passed
        self.outbox.report(
            events.PeerAudited(
                round=work.round,
                peer=work.author.hex(),
                name=name_of(work.author),
                passed=passed,
                why=why,
            )
        )

    def findings(self, round_number: int, now: float) -> tuple[Finding, ...]:
        """Return what an attestation of a round carries, sorted by peer."""
        due = round_number - AUDIT_ROUNDS
        for one in self.fetching.values():
            late = one.repeat.round == due and now > one.until
            if late and one.repeat.author in self.outbox.connected:
                self._note(one.repeat, False, WITHHELD)
        found = ((peer, passed) for (number, peer), passed in self.found.items() if number == due)
        return tuple(Finding(peer, passed) for peer, passed in sorted(found))
