"""Two certificates for one round, heard in an answer: the peer says so to everybody, and stops."""

from dataclasses import replace

from peerformer.protocol.attestations import Attestation
from peerformer.protocol.effects import Effect, Report, TimerFired
from peerformer.protocol.machine import REPEAT_SECONDS
from peerformer.protocol.messages import (
    AskHeaders,
    Certified,
    Headers,
)
from tests.protocol.test_machine import (
    KEYS,
    PEERS,
    body_by,
    certified,
    hear,
    said,
    sent,
    started,
)


def forks_seen(effects: list[Effect]) -> list[str]:
    reports = (effect.event for effect in effects if isinstance(effect, Report))
    return [type(event).__name__ for event in reports if type(event).__name__ == "ForkSeen"]


def test_a_contradiction_in_an_answer_is_shown_to_everybody_and_stops_the_peer() -> None:
    machine, mine, other = started(0), certified(body_by(1)), certified(body_by(2))
    hear(machine, KEYS[1], mine)
    effects = hear(machine, KEYS[2], Headers((other,), 1))
    assert machine.forked == (mine, other) and forks_seen(effects)
    shown = sent(effects, Certified)
    assert shown.count(mine) == shown.count(other) == len(PEERS) - 1
    assert machine.handle(TimerFired("tick"), machine.now + 9) == []


def test_another_header_without_a_quorum_is_a_fault_and_stops_nobody() -> None:
    machine, other = started(0), certified(body_by(2))
    hear(machine, KEYS[1], certified(body_by(1)))
    few = replace(other.certificate, signatures=other.certificate.signatures[:1])
    hear(machine, KEYS[2], Headers((Certified(other.header, few),), 1))
    hear(machine, KEYS[2], Certified(other.header, few))
    assert not machine.forked and machine.faults[PEERS[2]] == 2


def test_a_header_that_does_not_fit_makes_one_look_back_but_not_too_often() -> None:
    machine, ahead = started(0), certified(body_by(1))
    hear(machine, KEYS[1], ahead)
    stray = Certified(replace(ahead.header, round=2), ahead.certificate)
    asked = sent(hear(machine, KEYS[2], Headers((stray,), 2)), AskHeaders)
    assert AskHeaders(1) in asked  # from where on its chain is another
    assert AskHeaders(1) not in sent(hear(machine, KEYS[2], Headers((stray,), 2)), AskHeaders)


def test_whoever_is_stuck_compares_its_newest_round_with_everybody() -> None:
    machine = started(0)
    hear(machine, KEYS[1], certified(body_by(1)))
    machine.collection.trained = True
    machine.collection.reveal(machine.now)
    machine.collection.attest(machine.now)
    hear(machine, KEYS[1], said(KEYS[1], Attestation(2, ())))
    effects = machine.handle(TimerFired("tick"), machine.now + REPEAT_SECONDS + 1)
    assert sent(effects, AskHeaders).count(AskHeaders(1)) == len(PEERS) - 1
