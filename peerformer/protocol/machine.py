"""The whole protocol of one peer: `handle(event, now)` -> effects. Sans-IO and deterministic.

The machine gives every event to the part that understands it: `Chain` holds what is decided,
`Collection` gathers the current round's contributions, `Ballot` votes on its header, `Sync` brings
the state up, `Requests` carries joins, leaves and evidence, `Neighbourhood` knows where peers are.
`Training` orders local training, also ahead of the vote. After each event it settles: a decided
header enters the chain and the next round begins. It knows no socket, clock, thread or tensor.
"""

from collections.abc import Callable, Mapping

from peerformer.protocol import amnesia, intake, reports
from peerformer.protocol.anchors import is_of_book
from peerformer.protocol.auditing import Auditing
from peerformer.protocol.ballot import Ballot
from peerformer.protocol.chain import Chain, Succeed
from peerformer.protocol.checkpoint import header_key
from peerformer.protocol.codec import encode
from peerformer.protocol.collection import Collection, Company
from peerformer.protocol.committee import fingers
from peerformer.protocol.conduct import ROUNDS_SERVED, Exhibit, Ledger
from peerformer.protocol.consensus import Consensus
from peerformer.protocol.effects import (
    Adopt,
    Applied,
    Apply,
    Audited,
    Check,
    Checked,
    Command,
    Connected,
    Dial,
    Disconnected,
    Effect,
    Event,
    FetchBlob,
    FetchState,
    Inspect,
    Persist,
    Received,
    Repeat,
    TimerFired,
    Train,
    Trained,
    WorkFinished,
)
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.headers import Headers
from peerformer.protocol.identity import HashChain, KeyPair
from peerformer.protocol.membership import VOTER, Members, next_members
from peerformer.protocol.messages import (
    Certified,
    Packet,
    Return,
    unpack,
)
from peerformer.protocol.neighbourhood import Link, Neighbourhood
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.rates import Rates
from peerformer.protocol.requests import Requests
from peerformer.protocol.stored_chain import FORK_KEY, shortened, stored_chain, stored_fork
from peerformer.protocol.sync import Sync
from peerformer.protocol.timing import Timing
from peerformer.protocol.training import Training
from peerformer.protocol.trials import Trials

TICK_SECONDS = 1.0
REPEAT_SECONDS = 5.0
LEDGER_ROUNDS = 2  # statements of so many rounds are kept to compare with
ROUND_PREFIX = "round/"


class Machine:
    """One peer's protocol state."""

    now: float
    unpack: Callable[[bytes], Packet]
    keys: KeyPair
    genesis: Genesis
    chain: Chain
    outbox: Outbox
    company: Company
    hash_chain: HashChain
    timing: Timing
    ledger: Ledger
    training: Training
    auditing: Auditing
    sync: Sync
    requests: Requests
    trials: Trials
    neighbourhood: Neighbourhood
    rates: Rates
    later: dict[bytes, list[Packet]]  # packets of the next round, by sender
    faults: dict[bytes, int]  # malformed or false input, by the connection it came on
    decided_at: float
    asked_header_at: float
    progress_at: float  # when I last persisted anything of a round
    forked: tuple[Certified, Certified] | None
    paused: bool
    collection: Collection
    ballot: Ballot
    relayed: dict[bytes, set[bytes]]  # signatures passed on this round, by sender
    _records: dict[str, bytes]  # of before a restart, until the start

    def __init__(
        self,
        genesis: Genesis,
        seed: bytes,
        *,
        hash_chain: HashChain | None = None,
        addresses: tuple[str, ...] = (),
        records: Mapping[str, bytes] | None = None,
        state_round: int = 0,
        unpack: Callable[[bytes], Packet] = unpack,
        succeed: Succeed = next_members,
        role: int = VOTER,
        now: float,
    ) -> None:
        """Found the peer on a genesis, or restore it from the records that it persisted.

        Args:
            genesis: what the swarm is founded on.
            seed: the 32 secret bytes of the identity key.
            hash_chain: the reveals registered as this peer's, if not those of `seed`.
            addresses: where others reach this peer, as host:port.
            records: what `Persist` effects wrote before a restart.
            state_round: the round of the agreed state that the caller has installed, -1 for none.
            unpack: frame -> packet; a world of many peers decodes each frame once for all.
            succeed: the members of the next round, likewise.
            role: what to ask for while this peer is no member, or a guest: VOTER or GUEST.
            now: seconds since 1970 on a clock that never goes back.

        Raises:
            MalformedError: if the records are not what this peer wrote.
        """
        self.now = now
        self.unpack = unpack
        self.keys = KeyPair.from_seed(seed)
        self.genesis = genesis
        self._records = dict(records or {})
        self.chain = stored_chain(genesis, succeed, self._records, state_round)
        self.outbox = Outbox(self.keys, self.chain.chain_id)
        self.company = Company(self.chain, self.outbox)
        self.hash_chain = hash_chain or HashChain.from_seed(seed)
        limits = genesis.limits
        self.timing = Timing(limits.train_milliseconds_max / 1_000, limits.staleness > 0)
        self.ledger = Ledger()
        self.training = Training(self.chain, self.outbox)
        self.auditing = Auditing(self.chain, self.outbox)
        self.sync = Sync(self.chain, self.outbox, state_round)
        self.requests = Requests(self.chain, self.outbox, self.hash_chain.links[0], role)
        self.trials = self.requests.trials
        self.neighbourhood = Neighbourhood(self.chain, self.outbox, seed, addresses)
        self.rates = Rates()
        self.later = {}
        self.faults = {}
        self.decided_at = now
        self.asked_header_at = 0.0
        self.progress_at = now
        self.forked = stored_fork(self.chain, self._records)
        self.paused = False
        self.relayed = {}
        self.outbox.restore(self._records)
        self.outbox.forget_rounds_before(self.chain.tip + 1)
        self.neighbourhood.restore(self._records)
        self.requests.invitations.restore(self._records)
        self._begin_round()

    @property
    def me(self) -> bytes:
        """My own id."""
        return self.keys.peer_id

    @property
    def is_member(self) -> bool:
        """Whether I belong to the current round."""
        return self.chain.members.get(self.me) is not None

    # --- events --------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance by one event. Pure but for self.

        The caller carries the effects out in order: what is persisted is durable before anything
        after it is sent. `now` is in seconds and never goes back.
        """
        self.now = now = now if now > self.now else self.now
        if self.forked:
            if event == Command("start"):
                reports.report_fork(self.outbox, *self.forked)
            return self.outbox.take()
        match event:
            case Received(peer, frame):
                if not intake.receive(self, peer, frame):
                    return []
            case WorkFinished():
                self._on_work(event, now)
            case TimerFired(name):
                self._on_timer(name, now)
            case Connected(peer, address, outbound):
                self.neighbourhood.on_connected(peer, Link(address, outbound, now), now)
            case Disconnected(peer):
                self.neighbourhood.on_disconnected(peer)
                self.rates.forget(peer)
                self.sync.on_disconnected(peer)
                self.later.pop(peer, None)
                self.faults.pop(peer, None)
                self.ballot.on_disconnected(peer)
                self.collection.look_again(now)
                self.on_attestations()
            case Command(name):
                self._on_command(name, now)
        self._settle(now)
        effects = self.outbox.take()
        for effect in effects:
            if isinstance(effect, Persist) and not is_of_book(effect):
                self.progress_at = now
        return effects

    def _on_command(self, name: str, now: float) -> None:
        match name:
            case "start":
                self.outbox.timer("tick", TICK_SECONDS)
                self._resume_round(now)
            case "leave":
                self.requests.leave()
            case "pause" | "resume":
                self.paused = name == "pause"
                self._on_state(now)
            case "announce" | "look around":
                self.neighbourhood.say_where(now, dial=name == "look around")

    def _on_timer(self, name: str, now: float) -> None:
        match name:
            case "tick":
                self.outbox.timer("tick", TICK_SECONDS)
                self.neighbourhood.tick(now)
                self.sync.tick(now)
                self.requests.tick(ready=self.sync.is_near)
                self._ask_decided_header()
                self._repeat_if_stuck(now)
            case "commit":
                self.collection.reveal(now)
            case "attest":
                self.collection.attest(now)
                self.on_attestations()
            case "propose":
                # A wait set in the round before may run out in this one.
                self.ballot.grace_over = self.ballot.grace_over or self.collection.grace_set
                self.on_attestations()
            case "view" if self.paused and self.chain.members.voters == (self.me,):
                self.outbox.timer("view", self.timing.first_view())  # nobody waits for me
            case "view":
                self.ballot.on_timer()

    def _on_work(self, finished: WorkFinished, now: float) -> None:
        work, result, current = finished.work, finished.result, self.collection
        match work:
            case Train():
                made = result if isinstance(result, Trained) else None
                self.training.on_trained(work, made, now)
                self.training.hand_in(current, now)
            case FetchBlob(record=True):
                self.auditing.on_fetched(work, succeeded=result is True)
            case FetchBlob() if work.round == current.number:
                current.on_fetched(work, succeeded=result is True, now=now)
            case FetchBlob() if self.sync.last and work.round == self.sync.last.number:
                self.sync.last.on_fetched(work, succeeded=result is True, now=now)
                if result is not True:
                    self.sync.on_fetch_failed(work.round, now)
            case Check() if isinstance(result, Checked):
                self._on_checked(work, result, now)
            case Repeat() if isinstance(result, Audited):
                self.auditing.on_repeated(work, result)
            case Inspect(exhibit):
                self._on_inspected(exhibit, result if isinstance(result, Checked) else None)
            case Apply() if isinstance(result, Applied):
                if work.round == current.number:
                    self.ballot.headers.applied[work] = result
                else:
                    self.sync.on_applied(work, result, now)
            case Apply():  # it could not be done
                if work.round == current.number:
                    self.ballot.headers.on_failed(work)
                else:
                    self.sync.on_apply_failed(work, now)
            case FetchState():
                self.sync.on_state_fetched(work, succeeded=result is True, now=now)
            case Dial():
                self.neighbourhood.on_dialled(work, reached=result is True, now=now)
            case Adopt():
                assert result is True, "the agreed state could not be adopted"
        self.on_attestations()
        self.ballot.build()
        self.ballot.advance()

    def _on_inspected(self, exhibit: Exhibit, result: Checked | None) -> None:
        """Draw the consequences of having seen whether a contribution decodes."""
        if result is None or (result.fault is not None and not result.malformed):
            self.trials.on_failed(exhibit)
            return
        claims = self.trials.learn(exhibit, decodes=result.fault is None)
        for evidence, teller in claims:
            if result.malformed:
                self.requests.convict(evidence)
            elif teller in self.outbox.connected:
                intake.blame(self, teller, "evidence convicts nobody: the contribution decodes")
        for voter in self.chain.members.voters if result.malformed else ():
            said = self.ledger.find(voter, "attestation", exhibit.round, 0)
            for found in self.trials.against(said) if said else ():
                self.requests.convict(found)

    def _on_checked(self, work: Check, result: Checked, now: float) -> None:
        if work.round == self.collection.number:
            self.collection.on_checked(work, result, now)
        elif self.sync.last and work.round == self.sync.last.number:
            self.sync.last.on_checked(work, result, now)
            self.sync.advance(now)
        exhibit = Exhibit(work.round, work.author, work.blob_hash, work.size)
        self._on_inspected(exhibit, result)

    def on_attestations(self) -> None:
        """Go on with what the attestations at hand allow."""
        current = self.collection
        if current.attested and not current.grace_set:
            current.grace_set = True
            self.outbox.timer("propose", self.timing.attest_wait())
        self.ballot.on_attestations(current.attestations.keys(), self.company.awaited)

    def _repeat_if_stuck(self, now: float) -> None:
        """Say again what I said when the vote makes no progress: a message may have been lost."""
        if self.collection.attested and now - self.progress_at >= REPEAT_SECONDS:
            self.progress_at = now
            for peer in sorted(self.outbox.connected & set(self.chain.members.voters)):
                self.ballot.repeat_to(peer)
                self.sync.compare(peer)

    # --- rounds --------------------------------------------------------------------------------

    def _begin_round(self) -> None:
        number, chain = self.chain.tip + 1, self.chain
        voters = chain.members.voters
        self.relayed.clear()
        circle = chain.members.circle
        nearby = circle if self.me in circle else chain.members.ids
        self.outbox.neighbours = fingers(nearby, self.me) if circle else ()
        self.outbox.gossips = bool(circle)
        self.collection = self._collection(number, chain.members)
        headers = Headers(
            chain,
            self.collection,
            self.outbox,
            self.hash_chain,
            self.requests.operations,
            self.trials,
        )
        self.ballot = Ballot(
            headers,
            Consensus(number, voters),
            self.outbox,
            self.timing,
            chain.leaders(),
            votes=self.me in voters,
        )

    def _collection(self, number: int, members: Members) -> Collection:
        return Collection(
            number=number,
            members=members,
            beacon=self.chain.beacon,
            outbox=self.outbox,
            timing=self.timing,
            blob_size_max=self.genesis.blob_size_max,
            record_size_max=self.genesis.record_size_max,
            scored_by=self.genesis.limits.scored_by_all_max,
            alive=self.company.alive,
            findings=self.auditing.findings,
            on_gain=self.auditing.on_gain,
            began=self.now,
        )

    def _collect_decided(self, number: int) -> None:
        """Hold the contributions of a round decided before a restart: its state is not saved."""
        decided = self.sync.last = self._collection(number, self.chain.past_members[number])
        decided.trained = decided.revealed = decided.attested = True

    def _resume_round(self, now: float) -> None:
        """Go on with the current round after a start: what was signed before is said again."""
        number = self.collection.number
        self.collection.began = now
        self.ballot.restore(self._records)
        self._records = {}
        self.outbox.timer("view", self.timing.first_view())
        contribution = self.outbox.has_signed("contribution", number)
        if contribution is not None:
            self.collection.resume(contribution, now)
        attestation = self.outbox.has_signed("attestation", number)
        if attestation is not None:
            self.collection.resume_attested(attestation)
        self._on_state(now)

    def _on_state(self, now: float) -> None:
        """Train and compute if the agreed state is there."""
        self.ballot.headers.state_ready = self.sync.ready
        if self.sync.ready and not self.paused:
            self.training.order(self.collection, now)

    def _settle(self, now: float) -> None:
        """Let decided headers into the chain, and begin what follows."""
        decided = self.ballot.consensus.decided
        while decided is not None:
            body = self.ballot.headers.bodies.get(decided.digest)
            if body is None:
                self._ask_decided_header()
                break
            fault = self.extend(Certified(body.header, decided))
            assert fault is None, f"a quorum decided what I hold invalid: {fault}"
            decided = self.ballot.consensus.decided
        was_ready = self.ballot.headers.state_ready
        if not self.sync.ready:
            uncollected = self.sync.uncollected
            if uncollected is not None:
                self._collect_decided(uncollected)
            self.sync.advance(now)
        if self.training.is_too_late(self.collection):
            self.collection.sit_out(now)
        if self.paused and self.sync.ready and self.training.is_left_out(self.collection):
            self.collection.judge(now)
        ready = self.sync.ready
        if ready != was_ready or (ready and self.training.is_due(self.collection)):
            self._on_state(now)
            self.ballot.build()
            self.ballot.advance()

    def _ask_decided_header(self) -> None:
        decided = self.ballot.consensus.decided
        if decided is None or decided.digest in self.ballot.headers.bodies:
            return
        if self.now - self.asked_header_at >= TICK_SECONDS:
            self.asked_header_at = self.now
            self.ballot.ask_body(decided)

    def extend(self, item: Certified, *, more_to_come: bool = False) -> str | None:
        """Take the next decided round in and begin the one after; returns why not, or None."""
        before = self.chain.members
        fault = self.chain.append(item)
        if fault:
            return fault
        number, decided = item.header.round, self.collection
        amnesia.watch(self.outbox, item, before.voters)
        stale = self.outbox.forget_rounds_before(number + 1)
        base, gone = shortened(self.chain)
        self.outbox.persist(
            ((header_key(number), encode(item)), *base),
            (*stale, *self.ballot.records_made(), *gone),
        )
        for accepted in item.header.contributions:
            self.company.last_contributed[accepted.peer] = number
        for refused in item.header.refused:
            self.company.last_contributed[refused.peer] = number
        for operation in item.header.operations:
            if isinstance(operation, Return):
                self.company.last_contributed[operation.rejoin.sender] = number  # it is waited for
        decided.attested = True  # too late to attest it, whatever still arrives
        computed = self.ballot.headers.applied
        self.sync.on_decided(item.header, decided, computed, more_to_come=more_to_come)
        self.timing.note_round(self.now - decided.began)
        reports.report_decided(self.outbox, item, before, self.chain.members, decided, self.now)
        if not more_to_come:
            self.auditing.order(item.header, decided.contributions, self.now)
        self.decided_at = self.now
        self.ledger.forget_before(number - LEDGER_ROUNDS + 1)
        self.trials.forget_before(number - ROUNDS_SERVED + 2)
        self.requests.drop_settled(self.now)
        self.neighbourhood.tell_newcomers(item, before)
        self._begin_round()
        self.outbox.timer("view", self.timing.first_view())
        later, self.later = self.later, {}
        self.sync.advance(self.now, more_to_come=more_to_come)
        self._on_state(self.now)
        for peer, packets in later.items():
            for packet in packets:
                intake.take(self, peer, packet)
        self.training.hand_in(self.collection, self.now)
        return None

    def on_fork(self, mine: Certified, other: Certified) -> None:
        """Two valid certificates for one round: more than f voters lied. Say so, and stop."""
        self.forked = (mine, other)
        self.outbox.persist(((FORK_KEY, encode(other)),))
        for item in self.forked:
            self.outbox.broadcast(sorted(self.outbox.connected), item)
        reports.report_fork(self.outbox, mine, other)
