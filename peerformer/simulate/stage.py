"""The stage of a scripted story: a world in which single packets are held and peers die on cue.

It knows when to strike (a kind of statement about to be stored, or sent) and what may not pass (a
kind of packet, from here to there), and nothing of what a story is about.
"""

from dataclasses import dataclass, field, replace

from peerformer.protocol.effects import Effect, FetchBlob, FetchState, Persist, Send
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import (
    Certified,
    GaveUp,
    HeaderBody,
    Headers,
    Packet,
    Prepared,
    Proposed,
    Requested,
    Said,
    TimedOut,
)
from peerformer.simulate.host import Host
from peerformer.simulate.network import Parcel
from peerformer.simulate.world import World

STATEMENTS = ("contribution", "attestation", "proposal", "prepare", "commit", "timeout")
PARCELS = (*STATEMENTS, "lock", "ending", "decision", "header", "request", "blob", "state")


@dataclass(frozen=True, slots=True)
class Hold:
    """What does not pass: these kinds, from here to there, of this round and view if given."""

    kinds: tuple[str, ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    round: int | None
    view: int | None
    loses: bool  # else it is kept for later

    def stops(self, source: int, target: int, parcel: Parcel) -> bool:
        """Whether a parcel is such a one."""
        if source not in self.sources or target not in self.targets:
            return False
        number, view = _place_of(parcel)
        of_round = self.round is None or self.round == number
        return kind_of(parcel) in self.kinds and of_round and self.view in (None, view)


@dataclass(frozen=True, slots=True)
class Cue:
    """When a peer dies: `moment` is one of before storing, before sending, amid, after."""

    kind: str
    moment: str


@dataclass(slots=True)
class Stage:
    """A world, what is held in it, and who dies when."""

    world: World
    holds: list[Hold] = field(default_factory=list)
    held: list[tuple[int, int, Packet]] = field(default_factory=list)
    cues: dict[int, Cue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Stand between the hosts and their network."""
        self.world.network.stops = self._stops
        self.world.before_effect = self._before_effect

    # --- what does not pass --------------------------------------------------------------------

    def _stops(self, source: int, target: int, parcel: Parcel) -> bool:
        holding = [hold for hold in self.holds if hold.stops(source, target, parcel)]
        if holding and not isinstance(parcel, FetchBlob | FetchState):
            if not any(hold.loses for hold in holding):
                self.held.append((source, target, parcel))
        return bool(holding)

    def release(self, kinds: tuple[str, ...] = PARCELS) -> None:
        """Let these kinds pass again, and deliver what was held of them."""
        left = (tuple(k for k in hold.kinds if k not in kinds) for hold in self.holds)
        self.holds = [replace(h, kinds=k) for h, k in zip(self.holds, left, strict=True) if k]
        held, self.held = self.held, []
        for source, target, packet in held:
            if kind_of(packet) in kinds:
                self.world.send(source, target, packet)
            else:
                self.held.append((source, target, packet))

    # --- who dies when -------------------------------------------------------------------------

    def _before_effect(self, host: Host, effect: Effect) -> None:
        cue = self.cues.get(host.index)
        if cue is None or not _is_about(effect, cue, host):
            return
        del self.cues[host.index]
        match cue.moment:
            case "before storing":
                self.world.crash(host.index)
            case "before sending" | "amid":  # this effect is the last
                host.effects_until_crash = 1
            case "after":  # the whole broadcast goes out
                machine = host.machine
                assert machine is not None
                voters = set(machine.chain.members.voters) - {host.me}
                host.effects_until_crash = max(1, len(machine.outbox.connected & voters))

    # --- looking -------------------------------------------------------------------------------

    def running(self) -> list[Host]:
        """Return the honest hosts that are up."""
        return [host for host in self.world.honest() if host.peer is not None]

    def machine(self, index: int) -> Machine | None:
        """Return a host's protocol state, while it is up."""
        return self.world.hosts[index].machine

    def tip(self) -> int:
        """Return the newest round that an honest host decided."""
        return max((self.world.tip(host.index) for host in self.running()), default=0)


def _is_about(effect: Effect, cue: Cue, host: Host) -> bool:
    match effect:
        case Persist(records) if cue.moment in ("before storing", "before sending"):
            return any(key.startswith("slot/") and f"/{cue.kind}/" in key for key, _ in records)
        case Send(_, packet) if cue.moment in ("amid", "after"):
            envelope = getattr(packet, "envelope", None)
            mine = envelope is not None and envelope.sender == host.me
            return mine and kind_of(packet) == cue.kind
    return False


def kind_of(parcel: Parcel) -> str:
    """Return what stories call a packet or a fetch; small talk has no name."""
    match parcel:
        case Said(envelope):
            return type(envelope.statement).__name__.lower()
        case Proposed():
            return "proposal"
        case TimedOut():
            return "timeout"
        case Prepared():
            return "lock"
        case GaveUp():
            return "ending"
        case Certified() | Headers():
            return "decision"
        case HeaderBody():
            return "header"
        case Requested():
            return "request"
        case FetchBlob():
            return "blob"
        case FetchState():
            return "state"
    return ""


def _place_of(parcel: Parcel) -> tuple[int | None, int | None]:
    """Return the round and the view that a parcel is about, where it is about one."""
    match parcel:
        case Said(envelope) | Proposed(envelope) | TimedOut(envelope):
            about: object = envelope.statement
        case Prepared(certificate) | GaveUp(certificate):
            about = certificate
        case Certified(header) | HeaderBody(header):
            about = header
        case _:
            about = parcel
    return getattr(about, "round", None), getattr(about, "view", None)
