"""A false attestation convicts only whoever has seen the bytes, and never an honest voter."""

from typing import Any

import pytest

from peerformer.protocol.attestations import Attestation, Judgement
from peerformer.protocol.conduct import Exhibit, exhibit_of
from peerformer.protocol.effects import (
    Check,
    Checked,
    Effect,
    FetchBlob,
    Inspect,
    StartWork,
    WorkFinished,
)
from peerformer.protocol.machine import Machine
from peerformer.protocol.messages import (
    Contribution,
    Departure,
    Eviction,
    FalseHolding,
    Leave,
    Prepare,
    Requested,
    Said,
    sign,
)
from peerformer.protocol.trials import EXHIBITS_PER_TELLER_MAX
from tests.protocol.test_machine import (
    CHAIN,
    FAR,
    KEYS,
    NOW,
    PEERS,
    STRANGER,
    body_by,
    certified,
    hear,
    leader,
    proposed,
    said,
    sent,
    started,
)

AUTHOR, LIAR = 2, 3
MALFORMED, FINE = Checked("length", None, malformed=True), Checked(None, None)
GONE = Checked("it is gone", None)


def holding(blob: bytes = FAR, *, holds: bool = True, by: int = LIAR) -> FalseHolding:
    """What convicts a voter that attested the author's contribution, if it does not decode."""
    judgement = Judgement(PEERS[AUTHOR], blob, 40, holds, None)
    attestation = sign(KEYS[by], CHAIN, Attestation(1, (judgement,)))
    return FalseHolding(attestation, PEERS[AUTHOR], blob, 40)


def ordered(effects: list[Effect], kind: Any = Inspect) -> list[Any]:
    works = [effect.work for effect in effects if isinstance(effect, StartWork)]
    return [work for work in works if isinstance(work, kind)]


def told(machine: Machine, teller: int, evidence: FalseHolding) -> list[Effect]:
    return hear(machine, KEYS[teller], Requested(Eviction(evidence)))


def finish(machine: Machine, work: Any, result: Any) -> list[Effect]:
    return machine.handle(WorkFinished(work, result), NOW)


def test_evidence_is_relayed_and_held_only_after_my_own_look() -> None:
    machine = started(0)
    effects = told(machine, 1, holding())
    (work,) = ordered(effects)
    assert work == Inspect(exhibit_of(holding()), (PEERS[1], PEERS[AUTHOR], PEERS[LIAR]))
    assert not sent(effects, Requested) and not machine.requests.operations
    effects = finish(machine, work, MALFORMED)
    assert {packet.operation for packet in sent(effects, Requested)} == {Eviction(holding())}
    assert machine.requests.operations == {PEERS[LIAR]: Eviction(holding())}
    assert not machine.faults and not machine.trials.pending


def test_whoever_tells_of_a_contribution_that_decodes_is_blamed_and_nobody_convicted() -> None:
    machine = started(0)
    (work,) = ordered(told(machine, 1, holding()))
    finish(machine, work, FINE)
    assert machine.faults == {PEERS[1]: 1} and not machine.requests.operations
    told(machine, 1, holding())  # known by now: no second look
    assert machine.faults == {PEERS[1]: 2} and not machine.trials.pending


@pytest.mark.parametrize("result", [None, GONE])
def test_what_cannot_be_had_or_read_convicts_and_blames_nobody(result: Checked | None) -> None:
    machine = started(0)
    (work,) = ordered(told(machine, LIAR, holding()))
    assert not ordered(told(machine, 1, holding()))  # a look is under way
    (again,) = ordered(finish(machine, work, result))
    assert again == Inspect(work.exhibit, (PEERS[1],))  # each source is asked once
    assert not finish(machine, again, result)
    assert not ordered(told(machine, 1, holding()))
    assert not machine.requests.operations and not machine.faults


def test_forged_or_contradicted_accusations_are_blamed_at_once() -> None:
    good = holding()
    forged = FalseHolding(sign(STRANGER, CHAIN, Attestation(1, ())), PEERS[AUTHOR], FAR, 40)
    for wrong in (
        holding(holds=False),
        FalseHolding(good.attestation, PEERS[1], FAR, 40),
        FalseHolding(good.attestation, PEERS[AUTHOR], bytes(32), 40),
        FalseHolding(good.attestation, PEERS[AUTHOR], FAR, 41),
        FalseHolding(sign(KEYS[LIAR], bytes(32), good.attestation.statement), PEERS[2], FAR, 40),
        FalseHolding(sign(KEYS[LIAR], CHAIN, Prepare(1, 0, FAR)), PEERS[AUTHOR], FAR, 40),
    ):
        machine = started(0)
        assert not ordered(told(machine, 1, wrong))
        assert machine.faults == {PEERS[1]: 1} and not machine.requests.operations
    machine = started(0)
    assert not ordered(told(machine, 1, forged)) and not machine.faults  # it is about nobody here


def test_a_teller_fills_its_own_places_only() -> None:
    machine = started(0)
    for number in range(3 * EXHIBITS_PER_TELLER_MAX):
        told(machine, LIAR, holding(bytes((number,)) * 32))
    assert len(machine.trials.pending) == EXHIBITS_PER_TELLER_MAX
    assert ordered(told(machine, 1, holding()))
    hear(machine, KEYS[1], certified(body_by(1)))
    assert len(machine.trials.pending) == EXHIBITS_PER_TELLER_MAX + 1
    machine.trials.forget_before(2)
    assert not machine.trials.pending


@pytest.mark.parametrize("attested_first", [True, False])
def test_i_convict_whoever_attested_what_i_could_not_decode(attested_first: bool) -> None:
    machine = started(0)
    attestation = Said(holding().attestation)
    check = Check(1, PEERS[AUTHOR], FAR, 40, None)
    if attested_first:
        hear(machine, KEYS[LIAR], attestation)
        assert not machine.requests.operations
        effects = finish(machine, check, MALFORMED)
    else:
        finish(machine, check, MALFORMED)
        assert not machine.requests.operations
        effects = hear(machine, KEYS[LIAR], attestation)
    assert machine.requests.operations == {PEERS[LIAR]: Eviction(holding())}
    assert sent(effects, Requested)


def test_what_i_know_already_takes_no_second_look_and_whoever_said_so_is_not_convicted() -> None:
    machine = started(0)
    finish(machine, Check(1, PEERS[AUTHOR], FAR, 40, None), MALFORMED)
    honest = holding(holds=False, by=1).attestation
    assert machine.trials.against(honest) == []
    hear(machine, KEYS[1], Said(honest))
    assert not machine.requests.operations
    assert not ordered(told(machine, 1, holding()))
    assert machine.requests.operations == {PEERS[LIAR]: Eviction(holding())}


def test_an_attestation_seen_only_in_a_proposal_convicts_too() -> None:
    machine = started(0)
    finish(machine, Check(1, PEERS[AUTHOR], FAR, 40, None), MALFORMED)
    attested = {PEERS[LIAR]: holding().attestation}
    body = body_by(leader(0), attesting=(0, 1), attested=attested)
    hear(machine, KEYS[leader(0)], proposed(body, 0))
    assert machine.requests.operations == {PEERS[LIAR]: Eviction(holding())}


@pytest.mark.parametrize(
    ("result", "votes"), [(MALFORMED, True), (FINE, False), (GONE, False), (None, False)]
)
def test_a_header_that_convicts_gets_my_vote_only_after_my_own_look(
    result: Checked | None, votes: bool
) -> None:
    eviction = Eviction(holding())
    body = body_by(leader(0), attesting=(0, 1, 2), operations={PEERS[LIAR]: eviction})
    assert body.header.operations == (eviction,)
    machine = started(0)
    effects = hear(machine, KEYS[leader(0)], proposed(body, 0))
    assert not sent(effects, Said, Prepare)
    (work,) = ordered(effects)
    assert work.sources[0] == body.header.builder and PEERS[AUTHOR] in work.sources
    effects = finish(machine, work, result)
    assert bool(sent(effects, Said, Prepare)) == votes
    assert not ordered(effects)  # all were asked: no endless fetching
    # What a quorum decided is decided: it looked.
    hear(machine, KEYS[1], certified(body))
    assert machine.chain.tip == 1 and PEERS[LIAR] in machine.chain.members.banned


def test_a_contribution_that_is_gone_is_no_bad_one() -> None:
    for result, judged in ((GONE, 0), (MALFORMED, 1), (FINE, 1)):
        machine = started(0)
        contribution = Contribution(1, FAR, 40, FAR, 1)
        hear(machine, KEYS[AUTHOR], said(KEYS[AUTHOR], contribution))
        machine.collection.trained = True
        machine.collection.reveal(NOW)
        machine.outbox.take()
        effects = finish(machine, FetchBlob(1, PEERS[AUTHOR], FAR, 40, ()), True)
        (check,) = ordered(effects, Check)
        effects = finish(machine, check, result)
        (mine,) = (e for e in sent(effects, Said, Attestation)[:1])
        judgements = mine.envelope.statement.judgements
        assert len(judgements) == judged
        assert [j.holds for j in judgements] == [result is FINE] * judged


def test_i_attest_nothing_that_i_have_not_decoded() -> None:
    machine = started(0)
    hear(machine, KEYS[AUTHOR], said(KEYS[AUTHOR], Contribution(1, FAR, 40, FAR, 1)))
    machine.collection.trained = True
    machine.collection.reveal(NOW)
    finish(machine, FetchBlob(1, PEERS[AUTHOR], FAR, 40, ()), True)
    machine.collection.attest(NOW + 9)  # time is over while the check runs
    (mine, *_) = sent(machine.outbox.take(), Said, Attestation)
    assert mine.envelope.statement == Attestation(1, ())


def test_evidence_against_somebody_who_has_left_bans_it_and_blames_nobody() -> None:
    machine = started(0)
    leave = Departure(sign(KEYS[LIAR], CHAIN, Leave(1)))
    body = body_by(1, operations={PEERS[LIAR]: leave})
    hear(machine, KEYS[1], certified(body))
    assert machine.chain.members.get(PEERS[LIAR]) is None
    (work,) = ordered(told(machine, 1, holding()))
    finish(machine, work, MALFORMED)
    assert isinstance(machine.requests.operations[PEERS[LIAR]], Eviction)
    told(machine, 1, holding(by=AUTHOR))
    strange = sign(STRANGER, CHAIN, Attestation(1, ()))
    told(machine, 1, FalseHolding(strange, PEERS[AUTHOR], FAR, 40))
    assert not machine.faults


def test_a_verdict_survives_as_long_as_it_can_convict() -> None:
    machine = started(0)
    for number in (1, 2):
        machine.trials.learn(Exhibit(number, PEERS[AUTHOR], FAR, 40), decodes=False)
    machine.trials.forget_before(2)
    assert [exhibit.round for exhibit in machine.trials.verdicts] == [2]
