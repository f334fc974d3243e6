"""The decided rounds: headers, each certified by the members that its parent fixed.

Holding the chain means knowing the members, their standing and the beacon of the next round.
Nothing enters but by `append`, which checks what a header says against what follows from its
parents, and its certificate against the voters of its round. Votes, views and timers are not its
concern.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from peerformer.protocol.certificates import decided_fault
from peerformer.protocol.codec import U64, Hash, encode
from peerformer.protocol.decided import Decided
from peerformer.protocol.genesis import Genesis, Limits
from peerformer.protocol.identity import hash_of, reveals
from peerformer.protocol.membership import (
    EPOCH_ROUNDS,
    VOTER,
    Members,
    first_beacon,
    founders,
    next_members,
    peers_of,
    quorum,
)
from peerformer.protocol.messages import (
    NO_HASH,
    OPERATIONS_MAX,
    PROTOCOL_VERSION,
    Admission,
    Certified,
    Header,
    Operation,
)
from peerformer.protocol.newcomer_packets import BASE_SIZE_MAX
from peerformer.protocol.operations import operations_fault

Succeed = Callable[[Members, Header, Limits], Members]
MEMBERS_KEPT = 64  # member sets of recent rounds, to check a late certificate against
BASES_KEPT = 256
ROUNDS_KEPT = 25_000  # for sleepers, and for newcomers by an invitation; fewer than the bases span


@dataclass(frozen=True, slots=True)
class Base:
    """A decided round, and all that the headers after it need: a chain may begin here.

    Nothing in it proves itself. What vouches for it is the caller's concern; see `checkpoint`.
    """

    round: U64
    members: Members  # of the round after it
    head: Hash  # digest of its header
    beacon: Hash
    state_root: Hash


def first_base(genesis: Genesis) -> Base:
    """Return where a chain begins that nobody vouches for: the genesis, which is round 0."""
    chain_id = genesis.chain_id
    return Base(0, founders(genesis), chain_id, first_beacon(genesis), genesis.state_root)


class Chain:
    """The certified headers after a base, the genesis or a later one, and what follows."""

    succeed: Succeed
    genesis: Genesis
    chain_id: bytes
    base: Base
    bases: list[Base]  # the newest, oldest first: here others may begin
    items: Decided  # of the rounds after the base
    tip: int  # the newest decided round
    members: Members  # of round tip + 1
    past_members: dict[int, Members]
    head: bytes  # digest of the newest header
    beacon: bytes
    state_root: bytes
    admitted: list[tuple[int, tuple[bytes, ...]]]  # lately: round, and who vouched
    rounds_kept: int  # of all decided ones, at least

    def __init__(
        self, genesis: Genesis, succeed: Succeed = next_members, base: Base | None = None
    ) -> None:
        """Start at the genesis, which is round 0, or at a base that the caller believes.

        `succeed` is `next_members`, or that with a memory: in a world of a thousand peers all
        reckon the same members.
        """
        self.succeed = succeed
        self.genesis = genesis
        self.chain_id = genesis.chain_id
        self.base = base or first_base(genesis)
        self.bases = [self.base]
        self.items = Decided()
        self.tip = self.base.round
        self.members = self.base.members
        self.past_members = {}
        self.head = self.base.head
        self.beacon = self.base.beacon
        self.state_root = self.base.state_root
        self.admitted = []
        self.rounds_kept = ROUNDS_KEPT

    def item(self, round_number: int) -> Certified | None:
        """Return a decided round after the base."""
        place = round_number - self.base.round - 1
        return self.items[place] if 0 <= place < len(self.items) else None

    def beacon_of(self, round_number: int) -> bytes:
        """Return the beacon of a decided round; of the base and before, that of the base."""
        item = self.item(round_number)
        return item.header.beacon if item is not None else self.base.beacon

    def base_for(self, round_number: int) -> Base | None:
        """Return the newest base for whoever trusts a decided round, or None if there is none.

        It is an epoch older, so that the headers in between tell who was admitted lately.
        """
        if self.item(round_number) is None:
            return None
        far = [base for base in self.bases if is_far_enough(base.round, round_number)]
        return far[-1] if far else None

    def next_beacon(self, reveal: bytes) -> bytes:
        """Return the beacon that a reveal leads to."""
        return hash_of("beacon", self.beacon, reveal)

    def header_fault(self, header: Header) -> str | None:
        """Return why a header cannot follow the tip, whatever its state root; or None."""
        expected = (
            (header.round, self.tip + 1, "round"),
            (header.parent, self.head, "parent"),
            (header.beacon, self.next_beacon(header.reveal), "beacon"),
        )
        for given, due, what in expected:
            if given != due:
                return f"wrong {what}"
        fault = lone_header_fault(
            header, self.members, self.genesis, self.chain_id, self.succeed
        ) or self._history_fault(header.operations)
        if fault:
            return fault
        if not header.contributions and header.state_root != self.state_root:
            return "a null round that changes the state"
        return None

    def operations_fault(self, operations: tuple[Operation, ...]) -> str | None:
        """Return why these operations may not stand in the next header, or None."""
        fault = operations_fault(
            operations, self.members, self.genesis, self.chain_id, self.tip + 1
        )
        return fault or self._history_fault(operations)

    def _history_fault(self, operations: tuple[Operation, ...]) -> str | None:
        """Return what earlier rounds have against these operations, or None."""
        admissions = [operation for operation in operations if isinstance(operation, Admission)]
        if len(admissions) > self.joins_left():
            return "too many admissions"
        asked = Counter(voucher for operation in admissions for voucher in _vouching(operation))
        if any(count > self.vouchers_left(voucher) for voucher, count in asked.items()):
            return "too many admissions on one voter's vouchers"
        return None

    def joins_left(self) -> int:
        """Return how many admissions the quota of 100 rounds still allows."""
        quota = self.genesis.limits.joins_per_epoch or max(1, len(self.members.members) // 10)
        return max(0, quota - len(self._lately()))

    def vouchers_left(self, voter: bytes) -> int:
        """Return how many admissions of the next header may rest on a voter's vouchers."""
        quota = self.genesis.limits.joins_per_voucher
        used = sum(voter in vouching for _, vouching in self._lately())
        return max(0, quota - used) if quota else OPERATIONS_MAX

    def _lately(self) -> list[tuple[int, tuple[bytes, ...]]]:
        return [entry for entry in self.admitted if entry[0] > self.tip + 1 - EPOCH_ROUNDS]

    def may_vouch(self, peer: bytes) -> bool:
        """Tell whether a voucher of this peer counts in the next header."""
        member = self.members.get(peer)
        if member is None or member.role != VOTER or member.barred_until > self.tip + 1:
            return False
        return self.vouchers_left(peer) > 0

    def append(self, item: Certified) -> str | None:
        """Take the next decided round in; return why not, or None when it was."""
        fault = decided_fault(item, self.members.voters, self.chain_id) or self.header_fault(
            item.header
        )
        if fault:
            return fault
        header = item.header
        self.past_members[header.round] = self.members
        self.past_members.pop(header.round - MEMBERS_KEPT, None)
        admissions = [entry for entry in header.operations if isinstance(entry, Admission)]
        admitted = [(header.round, _vouching(admission)) for admission in admissions]
        self.admitted = self._lately() + admitted
        self.members = self.succeed(self.members, header, self.genesis.limits)
        self.beacon = header.beacon
        self.head = header.digest
        self.state_root = header.state_root
        self.items.append(item)
        self.tip = header.round
        if header.round % EPOCH_ROUNDS == 0:
            self._note_base()
        return None

    def _note_base(self) -> None:
        base = Base(self.tip, self.members, self.head, self.beacon, self.state_root)
        if len(encode(base)) <= BASE_SIZE_MAX:
            self.bases = [*self.bases, base][-BASES_KEPT:]

    def forget_old(self) -> range:
        """Begin at a later base if the chain has grown long; returns the rounds that are gone.

        An epoch is kept whatever happens: the quotas of the next round count its admissions.
        """
        bound = self.tip - max(self.rounds_kept, EPOCH_ROUNDS)
        later = [base for base in self.bases if self.base.round < base.round <= bound]
        if not later:
            return range(0)
        gone = range(self.base.round + 1, later[-1].round + 1)
        self.items.forget(len(gone))
        self.base = later[-1]
        self.bases = [base for base in self.bases if base.round >= self.base.round]
        return gone

    def contradicts(self, item: Certified) -> bool:
        """Tell whether this is a valid certificate for another header of a decided round."""
        mine = self.item(item.header.round)
        voters = self.past_members.get(item.header.round)
        if mine is None or voters is None or mine.header.digest == item.header.digest:
            return False
        return decided_fault(item, voters.voters, self.chain_id) is None

    def leaders(self) -> tuple[bytes, ...]:
        """Return those who take turns at leading the next round, sorted.

        They are the voters whose attestations the newest header included, or all voters if those
        are fewer than a quorum: a peer that died leads at most once.
        """
        voters = self.members.voters
        if not self.items:
            return voters
        header = self.items[-1].header
        before = self.past_members[header.round].voters
        live = tuple(p for p in peers_of(before, header.attesters) or () if p in set(voters))
        return live if len(live) >= quorum(len(voters)) else voters


def is_far_enough(base_round: int, round_number: int) -> bool:
    """Tell whether a chain that begins at a base knows the quotas of the round after another."""
    return base_round == 0 or base_round + EPOCH_ROUNDS <= round_number


def lone_header_fault(
    header: Header,
    members: Members,
    genesis: Genesis,
    chain_id: bytes,
    succeed: Succeed = next_members,
) -> str | None:
    """Return why no chain of this genesis holds the header in a round of these members, or None.

    It needs no earlier round, so it leaves open whether the parent, the beacon and the state root
    are those of the chain.
    """
    builder = members.get(header.builder)
    if builder is None or builder.peer not in members.voters:
        return "built by no voter"
    expected = (
        (header.version, PROTOCOL_VERSION, "version"),
        (header.members_hash, members.hash, "members"),
        (header.parameters_hash, genesis.parameters_hash, "parameters"),
    )
    for given, due, what in expected:
        if given != due:
            return f"wrong {what}"
    if not reveals(builder.chain_anchor, header.reveal):
        return "wrong reveal"
    fault = operations_fault(header.operations, members, genesis, chain_id, header.round)
    if fault:
        return fault
    if header.next_members_hash != succeed(members, header, genesis.limits).hash:
        return "wrong next members"
    return None


def _vouching(admission: Admission) -> tuple[bytes, ...]:
    return tuple(voucher.sender for voucher in admission.vouchers)


def leader_of(leaders: tuple[bytes, ...], round_number: int, view: int) -> bytes:
    """Return whose turn a view is."""
    return leaders[(round_number + view) % len(leaders)] if leaders else NO_HASH
