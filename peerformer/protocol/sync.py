"""Bringing the agreed state up with the chain: by contributions, or by proven chunks.

The chain of certified headers says which state root is the agreed one; a height is taken from a
certificate only, never from a peer's claim. If the state is a few rounds behind and the
contributions can be had for less, it is computed round by round; otherwise its chunks are fetched
from whoever has them, each proven against the root. What others decide meanwhile is gathered, so
that a fetch may take many rounds. If nobody has the state (the power of all failed before any had
saved it), what is saved is brought up from the contributions that everybody keeps. A claim of a
later round only makes us ask for headers.
"""

from dataclasses import dataclass, field

from peerformer import events
from peerformer.protocol.chain import MEMBERS_KEPT, Chain
from peerformer.protocol.codec import encode
from peerformer.protocol.collection import Collection
from peerformer.protocol.conduct import ROUNDS_SERVED
from peerformer.protocol.effects import Adopt, Applied, Apply, FetchState
from peerformer.protocol.identity import hash_of, name_of
from peerformer.protocol.membership import peers_of
from peerformer.protocol.messages import HEADERS_MAX, AskHeaders, Certified, Header, Headers
from peerformer.protocol.newcomer_packets import BaseOf
from peerformer.protocol.outbox import Outbox
from peerformer.protocol.refusals import NORM

ASK_SECONDS = 1.0  # between two requests for headers to one peer
ANSWER_SIZE_MAX = 1 << 20  # bytes of headers in one answer: well below a packet's limit
NEAR_ROUNDS = 16  # a newcomer this close behind may ask to join: as a member it catches up
HEADERS_SECONDS = 3.0  # to wait for headers that are claimed, before a state is fetched without
HELP_SECONDS = 0.5  # between two answers to a peer that is behind
ALONE_SECONDS = 3.0  # to wait for others who may give the state, before it is computed alone
RETRY_SECONDS = 1.0  # after a fetch of the state failed
REPLAYED_MAX = 4  # rounds computed though nothing was gathered: well within ROUNDS_SERVED
REPLAYED_SIZE_MAX = 1 << 29  # bytes of contributions that are gathered: half of what a peer keeps
LOOK_BACK_SECONDS = 10.0  # between two requests for what a peer's chain was long ago


@dataclass(slots=True)
class Sync:
    """Where the installed state is, and what is under way to bring it to the tip."""

    chain: Chain
    outbox: Outbox
    state_round: int = 0  # -1: no state at all yet
    last: Collection | None = None  # of the newest decided round: which contributions are held
    computed: dict[Apply, Applied | None] = field(default_factory=dict)
    fetching: FetchState | None = None
    began: float = 0.0
    retry_at: float = 0.0
    compute_failed: int = 0  # the round whose contributions could not be had, or led elsewhere
    led_elsewhere: int = 0  # the round whose contributions led to another state than was agreed
    replaying: bool = False  # nobody gives the state: compute it round by round
    gathered_from: int | None = None  # contributions of this round and all later ones are ordered
    alone_since: float | None = None  # nobody is here who could give the state
    heard_at: float = 0.0  # when somebody last claimed or gave something new
    claims: dict[bytes, int] = field(default_factory=dict)  # tips that peers said they have
    asked: dict[bytes, float] = field(default_factory=dict)
    helped: dict[bytes, float] = field(default_factory=dict)
    given: dict[bytes, int] = field(default_factory=dict)  # the newest header sent to each peer
    looked_back: dict[bytes, float] = field(default_factory=dict)
    without: set[bytes] = field(default_factory=set)  # peers that have forgotten what I lack

    @property
    def ready(self) -> bool:
        """Whether the state of the tip is installed."""
        return self.state_round == self.chain.tip

    @property
    def is_near(self) -> bool:
        """Whether the installed state is so recent that I could take part soon."""
        return 0 <= self.chain.tip - self.state_round <= NEAR_ROUNDS and self.state_round >= 0

    @property
    def to_compute(self) -> int | None:
        """The round whose state is to be computed from its contributions next, None for none."""
        number, tip = self.state_round + 1, self.chain.tip
        if self.state_round < 0 or number > tip or number == self.compute_failed or self.fetching:
            return None
        if number not in self.chain.past_members:  # it is older than the chain here, or very old
            return None
        return number if number == tip or self._can_be_replayed(number) else None

    def _can_be_replayed(self, number: int) -> bool:
        """Whether to compute the states from a round on, rather than to fetch that of the tip."""
        if self.replaying:
            return self.chain.tip - number < ROUNDS_SERVED
        gathered = self.gathered_from is not None and self.gathered_from <= number
        return (gathered or self.chain.tip - number < REPLAYED_MAX) and self._is_worth_it(number)

    def _is_worth_it(self, number: int) -> bool:
        """Whether the contributions from a round on are fewer bytes than the state."""
        headers = (self.chain.item(later) for later in range(number, self.chain.tip + 1))
        entries = (entry for item in headers if item for entry in item.header.contributions)
        size_max = min(self.chain.genesis.state_size, REPLAYED_SIZE_MAX)
        return sum(entry.size for entry in entries) < size_max

    @property
    def oldest_needed(self) -> int:
        """The first round whose contributions I still need."""
        return self.chain.tip + 1 if self.gathered_from is None else self.state_round + 1

    @property
    def uncollected(self) -> int | None:
        """The round that is to be computed and of which nobody notes yet what is held."""
        number = self.to_compute
        return None if self.last is not None and self.last.number == number else number

    # --- headers -------------------------------------------------------------------------------

    def on_claim(self, peer: bytes, tip: int, now: float) -> None:
        """Note the tip that a peer says it has; ask it for proof if that is news."""
        if tip > self.claims.get(peer, 0):
            self.heard_at = now
        self.claims[peer] = tip
        if tip > self.chain.tip:
            self.replaying = False  # others went on: somebody has a state
            self.ask(peer, now)

    def ask(self, peer: bytes, now: float) -> None:
        """Ask a peer for the headers after my tip, not too often."""
        if now - self.asked.get(peer, -ASK_SECONDS) >= ASK_SECONDS:
            self.asked[peer] = now
            self.outbox.send(peer, AskHeaders(self.chain.tip + 1))

    def on_nothing(self, peer: bytes) -> None:
        """Note that a peer with a later tip gave no headers: it keeps none so old."""
        if peer not in self.without:
            self.without.add(peer)
            number, name = self.chain.tip + 1, name_of(peer)
            self.outbox.report(events.HistoryGone(round=number, peer=peer.hex(), name=name))

    def on_disconnected(self, peer: bytes) -> None:
        """Forget a peer's claim."""
        self.without.discard(peer)
        self.claims.pop(peer, None)
        self.asked.pop(peer, None)
        self.helped.pop(peer, None)
        self.given.pop(peer, None)
        self.looked_back.pop(peer, None)

    def compare(self, peer: bytes) -> None:
        """Ask a peer for the round that I decided last: nothing goes on, and this may be why."""
        if self.chain.tip:
            self.outbox.send(peer, AskHeaders(self.chain.tip))

    def look_back(self, peer: bytes, now: float) -> None:
        """Ask a peer whose headers do not fit mine for all that I could still judge.

        It lies, or two certificates stand for the round after which its chain is another.
        """
        if now - self.looked_back.get(peer, -LOOK_BACK_SECONDS) >= LOOK_BACK_SECONDS:
            self.looked_back[peer] = now
            self.outbox.send(peer, AskHeaders(max(1, self.chain.tip + 1 - MEMBERS_KEPT)))

    def tick(self, now: float) -> None:
        """Ask again while somebody claims more than I have; retry a failed fetch."""
        for peer, tip in sorted(self.claims.items()):
            if tip > self.chain.tip:
                self.ask(peer, now)
        self.advance(now)

    def goes_on(self, peer: bytes, first_round: int) -> bool:
        """Whether a request is for headers that I have and never sent on this connection."""
        return self.given.get(peer, 0) < first_round <= self.chain.tip

    def answer(self, peer: bytes, first_round: int) -> None:
        """Send a peer certified headers from a round on.

        Whoever lacks headers before my base gets none: they would not follow from what it has.
        """
        start = first_round - self.chain.base.round - 1
        if start < 0:
            start = (
                0 if self.claims.get(peer, 0) >= self.chain.base.round else len(self.chain.items)
            )
        items: list[Certified] = []
        size_bytes = 0
        for item in self.chain.items[start : start + HEADERS_MAX]:
            size_bytes += len(encode(item))
            if items and size_bytes > ANSWER_SIZE_MAX:
                break
            items.append(item)
            self.given[peer] = max(item.header.round, self.given.get(peer, 0))
        self.outbox.send(peer, Headers(tuple(items), self.chain.tip))

    def answer_base(self, peer: bytes, round_number: int) -> None:
        """Send a peer the base for a checkpoint's round, or word that there is none here."""
        base = self.chain.base_for(round_number)
        self.outbox.send(peer, BaseOf(round_number, encode(base) if base else b""))

    def help(self, peer: bytes, number: int, now: float) -> None:
        """R9: answer a message of an older round with what was decided since, not too often."""
        if now - self.helped.get(peer, -HELP_SECONDS) >= HELP_SECONDS:
            self.helped[peer] = now
            self.answer(peer, number)

    # --- state ---------------------------------------------------------------------------------

    def advance(self, now: float, *, more_to_come: bool = False) -> None:
        """Order what brings the installed state to the tip.

        With `more_to_come` the tip is about to move on: a state fetched for it would be old.
        """
        tip = self.chain.tip
        if self.ready or self.fetching or now < self.retry_at:
            return
        newest = max(self.claims.values(), default=0)
        if newest > tip + 1 and now - self.heard_at < HEADERS_SECONDS:
            return  # headers are on their way: the state of an old round may be gone
        if self.state_round < 0 and not self.claims:
            return  # nobody has greeted yet
        number = self.to_compute
        if number == tip or (number is not None and not more_to_come):
            self._compute(number)
        elif not more_to_come:
            self._fetch(now)

    def _compute(self, number: int) -> None:
        item = self.chain.item(number)
        assert item is not None
        header = item.header
        if not header.contributions:
            self._adopt(number, None, header.state_root)
            return
        seed = hash_of("sketch", header.parent, header.attestations_hash)
        apply = Apply(header.round, header.contributions, seed)
        if apply in self.computed:
            outcome = self.computed[apply]
            if outcome is not None:
                self._judge_outcome(apply, outcome)
            return
        collection = self.last
        if collection is None or collection.number != number:
            return  # the machine begins one: see `uncollected`
        missing = self._order(header, collection)
        if not missing:
            self.computed[apply] = None
            self.outbox.work(apply)

    def _order(self, header: Header, collection: Collection) -> set[bytes]:
        """Fetch the contributions of a decided round; returns whose are not here yet."""
        wanted = {entry.peer: (entry.blob_hash, entry.size) for entry in header.contributions}
        missing = collection.missing(wanted)
        wanting = sorted(author for author in missing if not collection.asks_others(author))
        if wanting:
            voters = self.chain.past_members[header.round].voters
            nearby = sorted(self.outbox.connected) if self.outbox.gossips else ()
            holders = (*nearby, *(peers_of(voters, header.attesters) or ()))
            for author in wanting:
                collection.fetch(author, *wanted[author], (*holders, author))
        return missing

    def on_decided(
        self,
        header: Header,
        collection: Collection,
        computed: dict[Apply, Applied | None],
        *,
        more_to_come: bool,
    ) -> None:
        """Note what is held of a round that was just decided; gather it if it is for later.

        Later is when the state that is being fetched, or the rounds being computed, have come to
        it. Where it is much to gather, or the round is an old one, a newer state is fetched then.
        """
        if self.to_compute in (None, header.round):
            self.last, self.computed = collection, computed
        if self.fetching:
            base, is_for_later = self.fetching.round, True
        else:
            base = self.state_round
            is_for_later = 0 <= base < header.round - 1 and not more_to_come
        if not is_for_later or not self._is_worth_it(base + 1):
            self.gathered_from = None
            return
        self.gathered_from = self.gathered_from or header.round
        self._order(header, collection)

    def on_applied(self, apply: Apply, outcome: Applied, now: float) -> None:
        """Adopt a computed state if it is the agreed one."""
        self.computed[apply] = outcome
        self.advance(now)

    def on_apply_failed(self, apply: Apply, now: float) -> None:
        """The contributions were gone: fetch the state instead."""
        self.computed.pop(apply, None)
        self.on_fetch_failed(apply.round, now)

    def on_fetch_failed(self, round_number: int, now: float) -> None:
        """A contribution cannot be had: fetch the state instead."""
        if round_number == self.state_round + 1 and not self.ready:
            self.compute_failed = round_number
            self.advance(now)

    def _judge_outcome(self, apply: Apply, outcome: Applied) -> None:
        item = self.chain.item(apply.round)
        assert item is not None
        norms = {entry.peer for entry in item.header.refused if entry.reason == NORM}
        if outcome.state_root == item.header.state_root and norms == set(outcome.out_of_norm):
            self._adopt(apply.round, apply, outcome.state_root)
        else:
            # A quorum computed another root from the same bytes: my own state must be damaged.
            self.compute_failed = self.led_elsewhere = apply.round

    def _adopt(self, number: int, apply: Apply | None, state_root: bytes) -> None:
        item = self.chain.item(number)
        assert item is not None
        me = self.outbox.keys.peer_id
        refused = {entry.peer for entry in item.header.refused}
        accepted = any(entry.peer == me for entry in item.header.contributions)
        self.outbox.work(Adopt(number, apply, state_root, accepted and me not in refused))
        self.state_round = number
        self.computed = {}
        self.replaying = self.replaying and not self.ready

    def _fetch(self, now: float) -> None:
        tip, root = self.chain.tip, self.chain.state_root
        peers = [p for p, tip in self.claims.items() if tip >= self.chain.tip]
        sources = tuple(sorted(peers)) or tuple(sorted(self.outbox.connected))
        if not sources:
            self.alone_since = now if self.alone_since is None else self.alone_since
            if now - self.alone_since >= ALONE_SECONDS:
                self._do_without(now)
            return
        self.alone_since = None
        self.fetching = FetchState(tip, root, self.chain.genesis.state_size, sources)
        self.began = now
        self.outbox.report(events.SyncStarted(from_round=max(self.state_round, 0), to_round=tip))
        self.outbox.work(self.fetching)

    def _do_without(self, now: float) -> None:
        """Nobody gave the state: try again, and from contributions before."""
        self.retry_at = now + RETRY_SECONDS
        self.replaying, self.compute_failed = True, self.led_elsewhere

    def on_state_fetched(self, work: FetchState, *, succeeded: bool, now: float) -> None:
        """Note that a state was installed, or try again, perhaps for a newer round."""
        self.fetching = None
        if succeeded:
            self.state_round, self.replaying = work.round, False
            self.outbox.report(
                events.SyncFinished(
                    round=work.round,
                    state_root=work.state_root.hex(),
                    bytes=work.size,
                    seconds=now - self.began,
                )
            )
        elif work.round == self.chain.tip:
            self._do_without(now)
        else:  # others went on meanwhile, and may keep newer states only
            self.retry_at = now + RETRY_SECONDS
        self.advance(now)
