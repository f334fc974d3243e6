"""What this peer trains for, and when: the round at hand, or with staleness 1 the one after it.

With staleness 0 a round's training begins when the agreed state of the round before is there. With
staleness 1 (DiLoCo with eager updates, arXiv 2502.12996) it begins as soon as the contribution
before it is out, while that round is still voted on, so that a peer never waits for agreement. A
training that ends before its round begins waits here: its contribution is signed and sent in its
own round only, because that is its slot and keys its blob. Each round is trained for at most once
in a life of the process; after a restart what was not signed is trained again.

Who begins late, after a restart or a pause, would stay late with staleness 1, since everybody goes
on without a break: the others reveal without it every time. So when all whom it waits for have
committed and none of them waits for it, a late peer sits the round out, and what it has in hand is
for the next one: its steps go on, and it will be early.

The data of round n is drawn by the beacon that is known when its training may begin: that of round
n - 1, or with staleness 1 that of round n - 2, whether or not it did begin early. So a peer knows
its shard one round sooner, and nothing else does: scores are drawn by the newest beacon as before.

It knows nothing of parameters: what a training departs from is the bench's affair.
"""

from dataclasses import dataclass

from peerformer.protocol.chain import Chain
from peerformer.protocol.collection import Collection
from peerformer.protocol.committee import shard_of
from peerformer.protocol.effects import Train, Trained
from peerformer.protocol.identity import hash_of
from peerformer.protocol.membership import Members
from peerformer.protocol.messages import Header
from peerformer.protocol.outbox import Outbox


def shard_seed(chain: Chain, peer: bytes, number: int) -> bytes:
    """Return which data a peer trains on for a round, the one after the tip or one later."""
    staleness = chain.genesis.limits.staleness
    assert 1 <= number - chain.tip <= 1 + staleness
    if not staleness:
        return shard_of(chain.beacon, peer)
    return hash_of("shard", chain.beacon_of(number - 2), peer, number.to_bytes(8, "little"))


def _contributed(peer: bytes, header: Header) -> bool:
    """Whether a contribution of a peer was seen in a round, accepted or not."""
    accepted = any(entry.peer == peer for entry in header.contributions)
    return accepted or any(entry.peer == peer for entry in header.refused)


@dataclass(frozen=True, slots=True)
class Finished:
    """A training that ended, perhaps with nothing to send."""

    round: int
    result: Trained | None
    began: float
    ended: float


@dataclass(slots=True)
class Training:
    """The training in hand, and the one that waits for its round."""

    chain: Chain
    outbox: Outbox
    ordered: int = 0  # the newest round that a training was ordered for
    began: float = 0.0
    ahead: Finished | None = None  # for a round that has not begun

    def wanted(self, current: Collection) -> int | None:
        """Return the round to train for next, or None if there is none yet."""
        number = current.number
        if current.trained:
            if not self.chain.genesis.limits.staleness:
                return None
            number += 1
        if number <= self.ordered or current.me not in current.members.contributors:
            return None
        return number

    def is_due(self, current: Collection) -> bool:
        """Whether `order` would begin something now."""
        begins = not current.trained and current.only_judges
        return begins or self.wanted(current) is not None

    def order(self, current: Collection, now: float) -> None:
        """Train for the next round; the agreed state of the tip must be installed."""
        if current.only_judges and not current.trained:
            current.judge(now)
        number = self.wanted(current)
        if number is None:
            return
        self.ordered, self.began = number, now
        self.outbox.work(Train(number, shard_seed(self.chain, current.me, number)))

    def is_left_out(self, current: Collection) -> bool:
        """Tell whether others have begun a round that I, a voter who is paused, make nothing for.

        Its vote is as good without; were all paused, there would be nothing to vote on.
        """
        votes = current.me in current.members.voters
        idle = not current.trained and self.ordered < current.number
        return votes and idle and bool(current.contributions)

    def is_too_late(self, current: Collection) -> bool:
        """Tell whether the others go on without the contribution that is still in hand."""
        if current.trained or self.ordered != current.number:
            return False
        if not self.chain.genesis.limits.staleness or self._is_waited_for(current.members):
            return False
        others = current.alive() - {current.me}
        return bool(others) and others <= current.contributions.keys()

    def _is_waited_for(self, members: Members) -> bool:
        """Whether others hold me alive: I came, or contributed, in the last two rounds."""
        me, number = self.outbox.keys.peer_id, self.chain.tip + 1
        mine = members.get(me)
        if mine is not None and mine.joined >= number - 2:
            return True
        return any(_contributed(me, item.header) for item in self.chain.items[-2:])

    def on_trained(self, work: Train, result: Trained | None, now: float) -> None:
        """Keep what was trained until `hand_in`; a training that was overtaken is void."""
        if work.round == self.ordered > self.chain.tip:
            self.ahead = Finished(work.round, result, self.began, now)

    def hand_in(self, current: Collection, now: float) -> None:
        """Give the current round its contribution, if it is there: never before its time."""
        finished = self.ahead
        if finished is None or finished.round > current.number:
            return
        self.ahead = None
        contributes = current.me in current.members.contributors
        if finished.round == current.number and contributes and not current.trained:
            current.on_trained(finished.result, finished.began, finished.ended, now)
