"""How often one connection may ask: token buckets in the time that the caller passes in.

Each kind of request has a rate that no honest peer needs to exceed. What comes faster is left
unanswered, which costs nothing: whoever lost an answer asks again a little later, and that is no
fault. Only what exceeds the rate many times over is counted against the connection. The limits are
forgotten with the connection; how many connections a peer may open is the transport's concern.
"""

from dataclasses import dataclass, field

from peerformer.protocol.messages import (
    AskHeaders,
    AskPeers,
    AskProposed,
    AskSaid,
    Hello,
    Packet,
    Peers,
)
from peerformer.protocol.newcomer_packets import AskBase, AskGenesis, Present

GROSS_FACTOR = 10.0  # duplicates and clocks double a rate; no accident makes ten times of it


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` requests at once, and `per_second` for as long as one likes."""

    burst: int
    per_second: float


RATES: dict[type, Rate] = {
    # An unanswered greeting is repeated every second; each is answered with all that I voted.
    Hello: Rate(burst=8, per_second=1.0),
    # A newcomer asks once. The answer may have 128 KiB, and whoever asks has shown nothing yet.
    AskGenesis: Rate(burst=3, per_second=0.1),
    # A newcomer asks once, and again every two seconds without an answer, which may have 3 MiB.
    AskBase: Rate(burst=3, per_second=0.5),
    # Shown once on meeting the inviter, and again after a few seconds without an answer; each
    # takes a signature to verify.
    Present: Rate(burst=4, per_second=0.5),
    # Asked again after a second without an answer (sync.ASK_SECONDS). Going on where the last
    # answer ended is not counted: a peer that catches up asks as fast as it can verify.
    AskHeaders: Rate(burst=4, per_second=1.0),
    # Once a view and once a second while a decided header is lacking; answers are large.
    AskProposed: Rate(burst=8, per_second=2.0),
    # One for each contributor that told two stories, at most as many as there can be faulty ones.
    AskSaid: Rate(burst=96, per_second=8.0),
    # Asked once on greeting, and then of one peer at random every half minute.
    AskPeers: Rate(burst=4, per_second=1 / 15),
    # As often as I ask: each carries up to 32 signatures to verify.
    Peers: Rate(burst=4, per_second=1 / 15),
}


@dataclass(slots=True)
class TokenBucket:
    """What is left of a rate at a time."""

    tokens: float
    at: float

    def take(self, burst: float, per_second: float, now: float) -> bool:
        """Take one token if there is one."""
        self.tokens = min(burst, self.tokens + (now - self.at) * per_second)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(slots=True)
class Rates:
    """What each connection has asked lately."""

    # By the connection and the name of the kind.
    _limits: dict[tuple[bytes, str], tuple[TokenBucket, TokenBucket]] = field(default_factory=dict)

    def may_answer(self, peer: bytes, packet: Packet, now: float) -> tuple[bool, str | None]:
        """Whether to attend to a packet, and why it is a fault if it comes far too often."""
        kind = type(packet)
        rate = RATES.get(kind)
        if rate is None:
            return True, None
        gross_burst = rate.burst * GROSS_FACTOR
        fresh = (TokenBucket(rate.burst, now), TokenBucket(gross_burst, now))
        limit, gross = self._limits.setdefault((peer, kind.__name__), fresh)
        answered = limit.take(rate.burst, rate.per_second, now)
        tolerated = gross.take(gross_burst, rate.per_second * GROSS_FACTOR, now)
        return answered, None if tolerated else f"a flood of {kind.__name__}"

    def forget(self, peer: bytes) -> None:
        """Forget a connection that has ended."""
        for kind in RATES:
            self._limits.pop((peer, kind.__name__), None)
