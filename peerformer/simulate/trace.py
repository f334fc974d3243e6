"""What happened in a world, in words: the story of one seed, or the end of one that went wrong."""

from collections.abc import Iterable

from peerformer.protocol.attestations import Attestation
from peerformer.protocol.effects import (
    Audited,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Received,
    Repeat,
    Send,
    TimerFired,
    Trained,
    WorkFinished,
)
from peerformer.protocol.messages import (
    Certified,
    Contribution,
    Envelope,
    GaveUp,
    HeaderBody,
    Headers,
    Hello,
    Packet,
    Prepared,
    Proposed,
    Requested,
    Said,
    TimedOut,
)
from peerformer.simulate.world import World

HASH_SHOWN = 6
Entry = tuple[float, int, Event | Effect | str]


def tell(world: World, *, last: int | None = None) -> list[str]:
    """Return what is remembered of a world, a line each, the newest `last`."""
    lines = list(_lines(world, world.trace))
    return lines if last is None else lines[-last:]


def _lines(world: World, entries: Iterable[Entry]) -> Iterable[str]:
    began = 1_000_000_000.0
    sending: tuple[float, int, Packet, list[int]] | None = None
    for time, index, what in entries:
        if isinstance(what, Send):
            targets = [host.index for host in world.by_id.get(what.peer, ())]
            if sending and sending[1] == index and sending[2] is what.packet:
                sending[3].extend(targets)
                continue
            if sending:
                yield from _sent(sending, began)
            sending = (time, index, what.packet, targets)
            continue
        if sending:
            yield from _sent(sending, began)
            sending = None
        words = _happened(what)
        if words:
            yield f"{time - began:8.2f} s  {index}  {words}"
    if sending:
        yield from _sent(sending, began)


def _sent(sending: tuple[float, int, Packet, list[int]], began: float) -> Iterable[str]:
    time, index, packet, targets = sending
    words = packet_in_words(packet)
    if words:
        to = ",".join(str(target) for target in sorted(set(targets)))
        yield f"{time - began:8.2f} s  {index}  sends {words} to {to}"


def _happened(what: Event | Effect | str) -> str | None:
    match what:
        case str():
            return what
        case TimerFired("view"):
            return "has waited long enough for this view"
        case WorkFinished(_, Trained()):
            return "has trained"
        case WorkFinished(Repeat(number, _), Audited(passed, why)):
            return f"has repeated a training for round {number}: {why}, passed: {passed}"
        case Disconnect(_, reason):
            return f"cuts a connection: {reason}"
        case Disconnected() | Received():
            return None
    return None


def packet_in_words(packet: Packet) -> str | None:
    """Return what a packet says, or None for small talk."""
    match packet:
        case Said(envelope):
            return _statement(envelope)
        case Proposed(envelope, header):
            return f"{_statement(envelope)}, {len(header.contributions)} contributions"
        case TimedOut(envelope, high):
            lock = f"locked in view {high.view}" if high else "locked on nothing"
            return f"{_statement(envelope)}, {lock}"
        case Prepared(certificate):
            kind = "commits" if certificate.commits else "prepares"
            place = f"round {certificate.round}, view {certificate.view}"
            return f"a quorum of {kind}, {place}, {_short(certificate.digest)}"
        case GaveUp(certificate):
            return f"a quorum that gave up round {certificate.round}, view {certificate.view}"
        case Certified(header):
            return f"decided round {header.round}, {_short(header.digest)}"
        case Headers(items, tip):
            return f"{len(items)} decided headers, its tip is {tip}"
        case HeaderBody(header):
            return f"the header {_short(header.digest)} of round {header.round}"
        case Requested(operation):
            return f"a request: {type(operation).__name__.lower()}"
        case Hello(tip=tip):
            return f"hello, its tip is {tip}"
    return None


def _statement(envelope: Envelope) -> str:
    statement = envelope.statement
    kind = type(statement).__name__.lower()
    number, view = getattr(statement, "round", None), getattr(statement, "view", None)
    place = f"round {number}" + (f", view {view}" if view is not None else "")
    match statement:
        case Contribution(blob_hash=digest):
            return f"{kind} {place}, {_short(digest)}"
        case Attestation(judgements=judgements):
            return f"{kind} {place} of {len(judgements)}"
    proposed = getattr(statement, "digest", None)
    return f"{kind} {place}" + (f", {_short(proposed)}" if proposed else "")


def _short(digest: bytes) -> str:
    return digest.hex()[:HASH_SHOWN] + "…"
