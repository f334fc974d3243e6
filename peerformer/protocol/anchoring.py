"""How a newcomer with an invitation comes to a chain, before it is a peer: sans-IO, like `Machine`.

`handle(event, now)` -> effects. One connected peer at a time is asked for a base, then for headers
up to the checkpoint's round. Whoever sends what the checkpoint does not vouch for is cut off and
not asked again; whoever lacks it or is too slow is left for the next, and asked again later. Once
all fits, the chain is persisted, and a `Machine` starts from these records as after a restart.
"""

from dataclasses import dataclass, field

from peerformer import events
from peerformer.protocol.chain import Base, Chain, Succeed
from peerformer.protocol.checkpoint import Checkpoint, base_fault, chain_to, records_of
from peerformer.protocol.codec import MalformedError, decode
from peerformer.protocol.effects import (
    Command,
    Connected,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Persist,
    Received,
    Report,
    Send,
    SetTimer,
    TimerFired,
)
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import next_members
from peerformer.protocol.messages import (
    PROTOCOL_VERSION,
    AskHeaders,
    Certified,
    Headers,
    Hello,
    Packet,
    unpack,
)
from peerformer.protocol.newcomer_packets import AskBase, BaseOf

TICK_SECONDS = 1.0
ASK_SECONDS = 2.0  # to wait for an answer before it is asked for again
SILENCE_SECONDS = 10.0  # to wait for anything new from one peer
SOURCE_SECONDS = 60.0  # for one peer in all; twice as long each time that all had their turn
PAUSE_SECONDS = 5.0  # after all had their turn


@dataclass(slots=True)
class Source:
    """The peer that is asked, and what it has sent that may be true."""

    peer: bytes
    began: float
    heard_at: float  # when it last sent something new
    asked_at: float = 0.0
    base: Base | None = None
    items: list[Certified] = field(default_factory=list)

    @property
    def tip(self) -> int:
        """The last round that it sent."""
        return (self.base.round if self.base else 0) + len(self.items)


@dataclass(slots=True)
class Anchoring:
    """The way to the chain that a checkpoint names; `chain` is None until it is there."""

    genesis: Genesis
    checkpoint: Checkpoint
    succeed: Succeed = next_members
    chain: Chain | None = None
    connected: list[bytes] = field(default_factory=list)
    source: Source | None = None
    refused: set[bytes] = field(default_factory=set)  # they sent what is false
    tried: set[bytes] = field(default_factory=set)  # they lack it, or are too slow
    seconds_max: float = SOURCE_SECONDS
    resume_at: float = 0.0
    said: str = ""  # why it waits, as last reported
    effects: list[Effect] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance by one event; the effects are carried out in order, as those of a machine."""
        if self.chain is not None:
            return []
        match event:
            case Command("start"):
                self.effects.append(SetTimer("tick", TICK_SECONDS))
            case TimerFired("tick"):
                self.effects.append(SetTimer("tick", TICK_SECONDS))
                self._look_at_the_clock(now)
            case Connected(peer):
                self.connected.append(peer)
            case Disconnected(peer):
                self.connected = [one for one in self.connected if one != peer]
                if self.source is not None and self.source.peer == peer:
                    self.source = None
            case Received(peer, frame):
                if self.source is not None and self.source.peer == peer:
                    self._receive(self.source, frame, now)
        if self.chain is None and self.source is None:
            self._choose(now)
        effects, self.effects = self.effects, []
        return effects

    # --- whom to ask ---------------------------------------------------------------------------

    def _choose(self, now: float) -> None:
        willing = [peer for peer in self.connected if peer not in self.refused]
        fresh = [peer for peer in willing if peer not in self.tried]
        if fresh and now >= self.resume_at:
            self.source = Source(fresh[0], began=now, heard_at=now)
            self._greet_and_ask(self.source, now)
        elif willing and not fresh:
            self._wait("no connected peer can serve it")
            self.tried.clear()
            self.seconds_max *= 2
            self.resume_at = now + PAUSE_SECONDS

    def _look_at_the_clock(self, now: float) -> None:
        source = self.source
        if source is None:
            if self.refused.issuperset(self.connected):
                false = "whoever was connected sent what it does not vouch for"
                self._wait(false if self.refused else "nobody is connected")
        elif now - source.heard_at >= SILENCE_SECONDS or now - source.began >= self.seconds_max:
            self._pass_over(source)
        elif now - source.asked_at >= ASK_SECONDS:
            self._greet_and_ask(source, now)

    def _wait(self, reason: str) -> None:
        if reason != self.said:
            self.said = reason
            number = self.checkpoint.round
            self.effects.append(Report(events.CheckpointAwaited(round=number, reason=reason)))

    def _pass_over(self, source: Source) -> None:
        self.tried.add(source.peer)
        self.source = None

    def _refuse(self, source: Source, reason: str) -> None:
        peer = source.peer
        self.refused.add(peer)
        self.source = None
        told = events.Misbehaved(peer=peer.hex(), name=name_of(peer), reason=reason)
        self.effects += [Report(told), Disconnect(peer, "what it sent is not the checkpoint's")]

    # --- question and answer -------------------------------------------------------------------

    def _greet_and_ask(self, source: Source, now: float) -> None:
        hello = Hello(PROTOCOL_VERSION, self.genesis.chain_id, 0, None)
        self.effects.append(Send(source.peer, hello))
        self._ask(source, now)

    def _ask(self, source: Source, now: float) -> None:
        source.asked_at = now
        question: Packet = AskBase(self.checkpoint.round)
        if source.base is not None:
            question = AskHeaders(source.tip + 1)
        self.effects.append(Send(source.peer, question))

    def _receive(self, source: Source, frame: bytes, now: float) -> None:
        try:
            match unpack(frame):
                case BaseOf(self.checkpoint.round, data) if source.base is None:
                    self._on_base(source, data, now)
                case Headers(items) if source.base is not None:
                    self._on_headers(source, source.base, items, now)
        except MalformedError as error:
            self._refuse(source, f"checkpoint: {error}")

    def _on_base(self, source: Source, data: bytes, now: float) -> None:
        if not data:
            self._pass_over(source)
            return
        base = decode(Base, data)
        fault = base_fault(base, self.genesis, self.checkpoint)
        if fault:
            raise MalformedError(fault)
        source.base, source.heard_at = base, now
        self._ask(source, now)

    def _on_headers(
        self, source: Source, base: Base, items: tuple[Certified, ...], now: float
    ) -> None:
        if not items:
            self._pass_over(source)
            return
        before = source.tip
        for item in items:
            if item.header.round == source.tip + 1 <= self.checkpoint.round:
                parent = source.items[-1].header.digest if source.items else base.head
                if item.header.parent != parent:
                    raise MalformedError(f"round {item.header.round}: wrong parent")
                source.items.append(item)
        if source.tip == self.checkpoint.round:
            self._arrive(chain_to(self.genesis, self.checkpoint, base, source.items, self.succeed))
        elif source.tip > before:
            source.heard_at = now
            self._ask(source, now)

    def _arrive(self, chain: Chain) -> None:
        self.chain, self.source = chain, None
        reached = events.CheckpointReached(round=chain.tip, from_round=chain.base.round)
        self.effects += [Persist(records_of(chain)), Report(reached)]
