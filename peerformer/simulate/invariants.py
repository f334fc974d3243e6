"""What must hold in every world, whatever the network, the disks and f liars do.

Each rule is checked against a naive reference of its own, not against the code it judges: a second
counting of signers, a second G(attestations), a second reckoning of who may vote. Only hosts that
keep to the protocol are judged.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from peerformer.adversary import POISONS
from peerformer.events import PeerAudited
from peerformer.protocol.attestations import Attestation
from peerformer.protocol.auditing import WITHHELD
from peerformer.protocol.certificates import vote_of
from peerformer.protocol.codec import decode, encode
from peerformer.protocol.conduct import slot_of
from peerformer.protocol.effects import Report
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import hash_of
from peerformer.protocol.machine import Machine
from peerformer.protocol.membership import VOTER, founders, subject_of
from peerformer.protocol.merkle import state_root
from peerformer.protocol.messages import (
    STATEMENTS,
    Admission,
    Certified,
    Contradiction,
    Departure,
    Envelope,
    Eviction,
    HeaderBody,
    Join,
    Packet,
    QuorumCertificate,
    Return,
    Timeout,
    signed_bytes,
)
from peerformer.protocol.refusals import AUDIT
from peerformer.simulate.host import Host

LATER_PACKETS_MAX = 1_024  # of the next round, over all connections: stated in `intake`
BODIES_MAX = 64


class Violation(AssertionError):
    """The world saw what must never happen; the message names the seed and the invariant."""

    def __init__(self, seed: int, invariant: str, what: str) -> None:
        self.seed, self.invariant, self.what = seed, invariant, what
        super().__init__(f"seed {seed}: {invariant}: {what}")

    def __reduce__(self) -> tuple[type, tuple[int, str, str]]:
        """Travel between processes."""
        return type(self), (self.seed, self.invariant, self.what)


class Invariants:
    """The watcher of one world."""

    def __init__(self, seed: int, genesis: Genesis, by_id: Mapping[bytes, list[Host]]) -> None:
        """Watch from round 1 on."""
        self.seed, self.genesis, self.by_id = seed, genesis, by_id
        self.chain_id = genesis.chain_id
        self.decided: dict[int, bytes] = {}  # round -> digest
        self.states: dict[int, bytes] = {}  # round -> state root
        self.next_members: dict[int, bytes] = {}  # round -> their hash, as the round before says
        self.said: dict[tuple[bytes, tuple[str, int, int]], bytes] = {}
        self.committed: dict[tuple[bytes, int], int] = {}  # (peer, round) -> highest COMMIT said
        self.voters: dict[int, frozenset[bytes]] = {1: frozenset(founders(genesis).voters)}
        self.views: Counter[int] = Counter()  # view of decision -> rounds
        self.view_of: dict[int, int] = {}  # round -> lowest view of a certificate seen
        self.joins = self.evictions = self.audits = self.audits_failed = 0
        self._idle: Counter[bytes] = Counter()  # rounds in a row without an attestation
        self.promised = True  # at most f lie; else a fork is what is to be expected
        self.on_first_said: Callable[[Host, str], None] = lambda host, kind: None
        self.on_first_decided: Callable[[Host], None] = lambda host: None
        self._seen_tip: dict[tuple[int, int], int] = {}
        self._certificates: set[tuple[int, bytes]] = set()  # those that were counted
        self._signatures: dict[tuple[bytes, bytes], bytes] = {}  # signer, message -> what is true
        self._attestations: dict[bytes, tuple[Envelope, ...]] = {}  # header digest -> its grounds
        self._high: dict[int, tuple[int, int, QuorumCertificate | None]] = {}  # life, round, lock
        self._sent: tuple[Host, Envelope] | None = None  # what was looked at last

    def fail(self, invariant: str, what: str) -> None:
        """Raise what must never happen."""
        raise Violation(self.seed, invariant, what)

    def _judged(self, host: Host) -> bool:
        return not host.attacks or set(host.attacks) <= {"poison", *POISONS}

    # --- what a host writes and says -----------------------------------------------------------

    def before_persist(self, host: Host, records: tuple[tuple[str, bytes], ...]) -> None:
        """A slot once written never changes, and no vote is written in a view given up."""
        for key, data in records:
            if key.startswith("slot/"):
                before = host.disk.records.get(key)
                if before is None:
                    self._first_signed(host, key)
                elif before != data:
                    self.fail("one message per slot", f"host {host.index} signed {key} twice")
            digest = bytes.fromhex(key.rpartition("/body/")[2]) if "/body/" in key else b""
            if digest and digest not in self._attestations:
                self._attestations[digest] = decode(HeaderBody, data).attestations

    def _first_signed(self, host: Host, key: str) -> None:
        """When a vote is signed counts: where nobody was connected it is first said later."""
        _, number, kind, view = key.split("/")
        if kind not in ("prepare", "commit") or not self._judged(host):
            return
        timeouts = f"slot/{number}/timeout/"
        for other in host.disk.records:
            if other.startswith(timeouts) and int(other.removeprefix(timeouts)) >= int(view):
                what = f"host {host.index} signed {key}, having signed {other}"
                self.fail("no vote in a view given up", what)

    def before_send(self, host: Host, packet: Packet) -> None:
        """One statement a slot, durable before it is sent."""
        envelope = getattr(packet, "envelope", None)
        if envelope is None or envelope.sender != host.me or not self._judged(host):
            return
        if self._sent is not None and self._sent[0] is host and self._sent[1] is envelope:
            return  # a broadcast
        self._sent = (host, envelope)
        slot = slot_of(envelope.statement)
        if slot is None:
            return
        kind, number, view = slot
        before = self.said.get((envelope.sender, slot))
        if before is None:
            self.said[envelope.sender, slot] = envelope.body
            self._first_said(host, envelope, kind, number, view)
        elif before != envelope.body:
            self.fail("one message per slot", f"host {host.index} said two things for {slot}")

    def _first_said(
        self, host: Host, envelope: Envelope, kind: str, number: int, view: int
    ) -> None:
        key = f"slot/{number:012d}/{kind}/{view}"
        if host.disk.records.get(key) != encode(envelope):
            self.fail("durable before sent", f"host {host.index} sent {key}, which is not on disk")
        if kind == "timeout":
            self._check_claim(host, envelope)
        elif kind == "commit":
            earlier = self.committed.get((host.me, number), -1)
            self.committed[host.me, number] = max(earlier, view)
        self.on_first_said(host, kind)

    def _check_claim(self, host: Host, envelope: Envelope) -> None:
        """A timeout carries a lock at least as high as any commit before it."""
        timeout = envelope.statement
        assert isinstance(timeout, Timeout)
        view = self.committed.get((host.me, timeout.round), -1)
        if timeout.high_view < view:
            self.fail("no lock is forgotten", f"host {host.index} denied its commit of {view}")

    def on_report(self, host: Host, report: Report) -> None:
        """Evidence never convicts an honest peer, and an honest training can be repeated."""
        if isinstance(report.event, PeerAudited) and self._judged(host):
            self._check_audit(host, report.event)
        if report.evidence is None or not self._judged(host):
            return
        culprit = getattr(report.event, "peer", "")
        accused = self.by_id.get(bytes.fromhex(culprit), []) if culprit else []
        if any(self._judged(one) for one in accused):
            self.fail("no honest peer is incriminated", f"host {host.index}: {report.event}")

    def _check_audit(self, host: Host, audited: PeerAudited) -> None:
        """A record that was not handed out proves nothing: links are cut."""
        self.audits += 1
        authors = self.by_id.get(bytes.fromhex(audited.peer), [])
        lied = not all(one.honest for one in authors)
        if not audited.passed and audited.why != WITHHELD and not lied:
            self.fail("an honest training can be repeated", f"host {host.index}: {audited}")

    # --- what a host decides -------------------------------------------------------------------

    def after_event(self, host: Host) -> None:
        """Look at a host after something happened to it."""
        machine = host.machine
        if machine is None or not self._judged(host) or not self.promised:
            return
        if machine.forked:
            self.fail("one decision per round", f"host {host.index} saw a fork")
        self._check_lock(host, machine)
        chain = machine.chain
        seen = self._seen_tip.get((host.index, host.life), chain.base.round)
        if chain.tip != seen:
            for item in chain.items[seen - chain.base.round :]:
                self._check_decided(host, machine, item)
            self._seen_tip[host.index, host.life] = chain.tip
            self._check_bounds(host, machine)

    def _check_lock(self, host: Host, machine: Machine) -> None:
        consensus = machine.ballot.consensus
        life, number, lock = self._high.get(host.index, (-1, -1, None))
        is_same_round = life == host.life and number == consensus.round
        if is_same_round and consensus.high is lock:
            return
        view = consensus.high.view if consensus.high else -1
        before = lock.view if is_same_round and lock else -1
        if view < before:
            self.fail("a lock never falls", f"host {host.index} fell from view {before} to {view}")
        self._high[host.index] = (host.life, consensus.round, consensus.high)

    def _check_decided(self, host: Host, machine: Machine, item: Certified) -> None:
        header, number = item.header, item.header.round
        digest = hash_of("header", encode(header))
        first = number not in self.decided
        if self.decided.setdefault(number, digest) != digest:
            self.fail("one decision per round", f"two headers were decided for round {number}")
        self._check_certificate(item, digest)
        if header.members_hash != self.next_members.get(number, header.members_hash):
            self.fail("members follow", f"round {number} has others than the round before named")
        if first:
            self.audits_failed += sum(entry.reason == AUDIT for entry in header.refused)
            self.next_members[number + 1] = header.next_members_hash
            self.views[item.certificate.view] += 1
            self.view_of[number] = item.certificate.view
            self._reckon_voters(item, machine)
            self.on_first_decided(host)
        for operation in header.operations:
            if isinstance(operation, Eviction):
                self._check_eviction(operation, number)
        if first and digest in self._attestations:
            self._check_accepted(item, machine, self._attestations[digest])

    def _check_certificate(self, item: Certified, digest: bytes) -> None:
        """More than two thirds of the round's voters signed, each once."""
        certificate, number = item.certificate, item.header.round
        known = (number, b"".join(certificate.signatures))
        if known in self._certificates:
            return
        self._certificates.add(known)
        voters = sorted(self.voters[number])
        bits = int.from_bytes(certificate.signers, "little")
        signers = [voter for index, voter in enumerate(voters) if bits >> index & 1]
        vote = vote_of(certificate)
        message = signed_bytes(self.chain_id, STATEMENTS.index(type(vote)), encode(vote))
        good = 0
        for signer, signature in zip(signers, certificate.signatures, strict=False):
            good += self._true_signature(signer, message) == signature
        if vote.digest != digest or vote.round != number or 3 * good <= 2 * len(voters):
            what = f"round {number}: {good} good signatures of {len(voters)} voters"
            self.fail("a quorum signed what is decided", what)

    def _true_signature(self, signer: bytes, message: bytes) -> bytes:
        """Ed25519 has one signature of a key for a message: made anew, once, with the key."""
        made = self._signatures.get((signer, message))
        if made is None:
            hosts = self.by_id.get(signer)
            made = hosts[0].keys.sign(message) if hosts else b""
            self._signatures[signer, message] = made
        return made

    def _reckon_voters(self, item: Certified, machine: Machine) -> None:
        """Who may vote in the next round, from the operations alone."""
        if (
            machine.chain.members.committee
            or machine.chain.past_members[item.header.round].committee
        ):
            self.voters[item.header.round + 1] = frozenset(machine.chain.members.voters)
            return  # drawn: `test_committee` reckons whom
        voters = set(self.voters[item.header.round])
        for operation in item.header.operations:
            match operation:
                case Admission(join):
                    self.joins += 1
                    if isinstance(join.statement, Join) and join.statement.role == VOTER:
                        self._idle[join.sender] = 0
                        voters.add(join.sender)
                case Departure(leave):
                    voters.discard(leave.sender)
                case Return(rejoin):
                    self._idle[rejoin.sender] = 0
                    voters.add(rejoin.sender)
                case Eviction():
                    self.evictions += 1
                    voters.discard(subject_of(operation))
        voters -= self._suspended(item, voters)
        self.voters[item.header.round + 1] = frozenset(voters)

    def _suspended(self, item: Certified, voters: set[bytes]) -> set[bytes]:
        """Those that attested nothing for so long that they are counted out."""
        header, most = item.header, self.genesis.limits.idle_rounds_max
        before = sorted(self.voters[header.round])
        bits = int.from_bytes(header.attesters, "little")
        for index, voter in enumerate(before):
            self._idle[voter] = 0 if bits >> index & 1 else self._idle[voter] + 1
        idle = {v for v in voters & set(before) if most and self._idle[v] >= most}
        return idle if idle < voters else set()

    def _check_eviction(self, operation: Eviction, number: int) -> None:
        """Whoever is evicted lies, and signed what convicts it."""
        evidence = operation.evidence
        if isinstance(evidence, Contradiction):
            signed = [evidence.first, evidence.second]
        else:
            signed = [evidence.attestation]
        hosts = self.by_id.get(signed[0].sender, [])
        if any(self._judged(host) for host in hosts):
            self.fail("no honest peer is incriminated", f"round {number} evicts {hosts[0].index}")
        for envelope in signed:
            message = signed_bytes(self.chain_id, envelope.kind, envelope.body)
            if not hosts or hosts[0].keys.sign(message) != envelope.signature:
                self.fail("evidence is signed", f"round {number} evicts on a forged statement")

    def _check_accepted(
        self, item: Certified, machine: Machine, attestations: tuple[Envelope, ...]
    ) -> None:
        """What is accepted is held by f + 1 of the attesters; most of its scorers saw no harm."""
        number, header = item.header.round, item.header
        members = {m.peer: m for m in machine.chain.past_members[number].members}
        enough = (len(self.voters[number]) - 1) // 3 + 1
        holders: Counter[tuple[bytes, bytes]] = Counter()
        scores: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
        for envelope in attestations:
            attestation = envelope.statement
            assert isinstance(attestation, Attestation)
            for judged in attestation.judgements:
                if judged.holds:
                    holders[judged.peer, judged.blob_hash] += 1
                    if judged.score is not None:
                        scores[judged.peer, judged.blob_hash].append(judged.score)
        for accepted in header.contributions:
            slot = accepted.peer, accepted.blob_hash
            theta = self.genesis.limits.harm_micronats
            harmed = sum(score < -theta for score in scores[slot])
            member = members.get(accepted.peer)
            quarantined = member is None or member.quarantined_until > number
            if quarantined or holders[slot] < enough or 2 * harmed > len(scores[slot]):
                self.fail(
                    "accepted = G(attestations)",
                    f"round {number} accepts a contribution held by {holders[slot]}, "
                    f"harmful to {harmed} of {len(scores[slot])}",
                )

        self._check_audited(item, machine, attestations)

    def _check_audited(
        self, item: Certified, machine: Machine, attestations: tuple[Envelope, ...]
    ) -> None:
        """Only who failed by the word of most of those drawn is refused, and is not accepted."""
        header, number = item.header, item.header.round
        audits = machine.chain.past_members[number].audits
        due = {a.peer: a.auditors for a in audits if a.round == number - 2}
        against: Counter[bytes] = Counter()
        for envelope in attestations:
            attestation = envelope.statement
            assert isinstance(attestation, Attestation)
            for finding in attestation.findings:
                drawn = envelope.sender in due.get(finding.peer, ())
                against[finding.peer] += drawn and not finding.passed
        failed = {peer for peer, drawn in due.items() if 2 * against[peer] > len(drawn)}
        refused = {entry.peer for entry in header.refused if entry.reason == AUDIT}
        accepted = {entry.peer for entry in header.contributions}
        if not refused <= failed or accepted & failed:
            what = f"round {number} refuses {len(refused)} for their training, {len(failed)} failed"
            self.fail("refused = failed by most auditors", what)

    def on_state(self, host: Host, number: int, state: bytes) -> None:
        """Equal headers imply equal state bytes."""
        root = state_root(state)
        judged = self._judged(host) and self.promised
        if judged and self.states.setdefault(number, root) != root:
            self.fail("equal header, equal state", f"host {host.index} differs in round {number}")

    def _check_bounds(self, host: Host, machine: Machine) -> None:
        """What one peer remembers of others is bounded."""
        later = sum(len(packets) for packets in machine.later.values())
        sizes = {
            "packets of the next round": (later, LATER_PACKETS_MAX),
            "headers of one round": (len(machine.ballot.headers.bodies), BODIES_MAX),
            "signed slots": (len(machine.outbox.signed), 4_096),
        }
        for what, (size, most) in sizes.items():
            if size > most:
                self.fail("memory is bounded", f"host {host.index} holds {size} {what}")
