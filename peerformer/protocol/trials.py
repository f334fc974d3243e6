"""Whether contributions that voters attest decode: what convicts a false attestation.

A `FalseHolding` is two halves: an attestation that says OK, which the signature proves, and a
contribution that does not decode, which takes the bytes. Nobody takes a verdict from others: a peer
looks at the bytes itself, fetched by their keyed hash from whoever names them, before it convicts,
relays or votes. Only a fault of format convicts, which everybody finds alike; bytes that are gone,
late or too large for this machine prove nothing. So an honest voter, which attests what it has
decoded, is never convicted.
"""

from dataclasses import dataclass, field

from peerformer.protocol.attestations import Attestation
from peerformer.protocol.conduct import Exhibit, accused_of, exhibit_of
from peerformer.protocol.effects import Inspect
from peerformer.protocol.messages import (
    Envelope,
    FalseHolding,
)
from peerformer.protocol.outbox import Outbox

EXHIBITS_PER_TELLER_MAX = 4  # under trial at once: a liar fills its own places only


@dataclass(slots=True)
class Trial:
    """One contribution that somebody says does not decode, until I have seen it."""

    running: bool = False
    asked: set[bytes] = field(default_factory=set)  # sources, each of them once
    waiting: list[bytes] = field(default_factory=list)  # sources to ask next
    claims: dict[bytes, tuple[FalseHolding, bytes]] = field(default_factory=dict)  # and the teller


@dataclass(slots=True)
class Trials:
    """My verdicts on the contributions of the last rounds, and those that I am still to give."""

    outbox: Outbox
    verdicts: dict[Exhibit, bool] = field(default_factory=dict)  # True: it decodes
    pending: dict[Exhibit, Trial] = field(default_factory=dict)

    def accuse(self, evidence: FalseHolding, teller: bytes) -> None:
        """Look into what a peer tells me of a voter."""
        exhibit, accused = exhibit_of(evidence), accused_of(evidence)
        if exhibit not in self.pending:
            tellers = [{who for _, who in trial.claims.values()} for trial in self.pending.values()]
            if sum(teller in told for told in tellers) >= EXHIBITS_PER_TELLER_MAX:
                return
        self.inspect(exhibit, (teller, exhibit.author, accused))
        self.pending[exhibit].claims.setdefault(accused, (evidence, teller))

    def inspect(self, exhibit: Exhibit, sources: tuple[bytes, ...]) -> None:
        """Order a look at a contribution, from sources that were not asked yet."""
        trial = self.pending.setdefault(exhibit, Trial())
        known = {*trial.asked, *trial.waiting, self.outbox.keys.peer_id}
        trial.waiting += [source for source in dict.fromkeys(sources) if source not in known]
        if not trial.running and (trial.waiting or not trial.asked):
            trial.running = True
            trial.asked.update(trial.waiting)
            self.outbox.work(Inspect(exhibit, tuple(trial.waiting)))
            trial.waiting = []

    def on_failed(self, exhibit: Exhibit) -> None:
        """The contribution could not be had: that says nothing, but others may have it."""
        trial = self.pending.get(exhibit)
        if trial is not None:
            trial.running = False
            if trial.waiting:
                self.inspect(exhibit, ())

    def learn(self, exhibit: Exhibit, *, decodes: bool) -> list[tuple[FalseHolding, bytes]]:
        """Note a verdict of mine; returns what was said about it meanwhile, and who said so."""
        self.verdicts[exhibit] = decodes
        trial = self.pending.pop(exhibit, None)
        return list(trial.claims.values()) if trial else []

    def against(self, envelope: Envelope) -> list[FalseHolding]:
        """Return what convicts the sender of an attestation: OKs for what I could not decode."""
        statement = envelope.statement
        if not isinstance(statement, Attestation) or False not in self.verdicts.values():
            return []
        found = []
        for said in statement.judgements:
            exhibit = Exhibit(statement.round, said.peer, said.blob_hash, said.size)
            if said.holds and self.verdicts.get(exhibit) is False:
                found.append(FalseHolding(envelope, said.peer, said.blob_hash, said.size))
        return found

    def forget_before(self, round_number: int) -> None:
        """Drop what is too old to convict anybody."""
        self.verdicts = {e: v for e, v in self.verdicts.items() if e.round >= round_number}
        self.pending = {e: t for e, t in self.pending.items() if e.round >= round_number}
