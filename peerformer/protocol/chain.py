"""The decided rounds: headers, each certified by the members that its parent fixed.

Holding the chain means knowing the members, their standing and the beacon of the next round.
Nothing enters but by `append`, which checks what a header says against what follows from its
parents, and its certificate against the voters of its round. Votes, views and timers are not its
concern.
"""

from peerformer.protocol.certificates import decided_fault
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import hash_of, reveals
from peerformer.protocol.membership import (
    Members,
    founders,
    next_members,
    operation_fault,
    peers_of,
    quorum,
    subject_of,
)
from peerformer.protocol.messages import (
    NO_HASH,
    PROTOCOL_VERSION,
    Admission,
    Certified,
    Departure,
    Header,
    Join,
    Operation,
    digest_of,
)

MEMBERS_KEPT = 64  # member sets of recent rounds, to check a late certificate against


class Chain:
    """The certified headers from round 1 on, and what follows from them."""

    def __init__(self, genesis: Genesis) -> None:
        """Start at the genesis, which is round 0."""
        self.genesis = genesis
        self.chain_id = genesis.chain_id
        self.items: list[Certified] = []
        self.members: Members = founders(genesis)  # of round tip + 1
        self.past_members: dict[int, Members] = {}
        self.head = self.chain_id  # digest of the newest header
        self.beacon = hash_of("beacon", self.chain_id)
        self.state_root = genesis.state_root
        self.joins: list[int] = []  # rounds of recent admissions
        self.departures: dict[bytes, int] = {}  # who left lately, and in which round

    @property
    def tip(self) -> int:
        """The newest decided round."""
        return len(self.items)

    def item(self, round_number: int) -> Certified | None:
        """Return a decided round."""
        return self.items[round_number - 1] if 1 <= round_number <= self.tip else None

    def beacon_of(self, round_number: int) -> bytes:
        """Return the beacon of a decided round; 0 and before, that of the genesis."""
        item = self.item(round_number)
        return item.header.beacon if item is not None else hash_of("beacon", self.chain_id)

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
            header, self.members, self.genesis, self.chain_id
        ) or self._history_fault(header.operations)
        if fault:
            return fault
        if not header.contributions and header.state_root != self.state_root:
            return "a null round that changes the state"
        return None

    def operations_fault(self, operations: tuple[Operation, ...]) -> str | None:
        """Return why these operations may not stand in the next header, or None."""
        return lone_operations_fault(
            operations, self.members, self.genesis, self.chain_id, self.tip + 1
        ) or self._history_fault(operations)

    def _history_fault(self, operations: tuple[Operation, ...]) -> str | None:
        """Return what earlier rounds have against these operations, or None."""
        if sum(isinstance(operation, Admission) for operation in operations) > self.joins_left():
            return "too many admissions"
        for operation in operations:
            if isinstance(operation, Admission) and isinstance(operation.join.statement, Join):
                left = self.departures.get(operation.join.sender, 0)
                if operation.join.statement.round <= left:
                    return "a request to join from before its sender left"
        return None

    def joins_left(self) -> int:
        """Return how many admissions the quota of 100 rounds still allows."""
        quota = self.genesis.limits.joins_per_epoch or max(1, len(self.members.members) // 10)
        recent = sum(number > self.tip + 1 - 100 for number in self.joins)
        return max(0, quota - recent)

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
        admitted = sum(isinstance(operation, Admission) for operation in header.operations)
        self.joins = [n for n in self.joins if n > header.round - 100] + [header.round] * admitted
        for operation in header.operations:
            if isinstance(operation, Departure):
                self.departures[operation.leave.sender] = header.round
        self.members = next_members(self.members, header)
        self.beacon = header.beacon
        self.head = digest_of(header)
        self.state_root = header.state_root
        self.items.append(item)
        return None

    def contradicts(self, item: Certified) -> bool:
        """Tell whether this is a valid certificate for another header of a decided round."""
        mine = self.item(item.header.round)
        voters = self.past_members.get(item.header.round)
        if mine is None or voters is None or digest_of(mine.header) == digest_of(item.header):
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


def lone_header_fault(
    header: Header, members: Members, genesis: Genesis, chain_id: bytes
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
    fault = lone_operations_fault(header.operations, members, genesis, chain_id, header.round)
    if fault:
        return fault
    if header.next_members_hash != next_members(members, header).hash:
        return "wrong next members"
    return None


def lone_operations_fault(
    operations: tuple[Operation, ...],
    members: Members,
    genesis: Genesis,
    chain_id: bytes,
    round_number: int,
) -> str | None:
    """Return why these operations may stand in no header of this round, or None."""
    subjects = [subject_of(operation) for operation in operations]
    if subjects != sorted(set(subjects)):
        return "operations repeated or unsorted"
    for operation in operations:
        fault = operation_fault(operation, members, genesis, chain_id, round_number)
        if fault:
            return fault
    return None


def leader_of(leaders: tuple[bytes, ...], round_number: int, view: int) -> bytes:
    """Return whose turn a view is."""
    return leaders[(round_number + view) % len(leaders)] if leaders else NO_HASH
