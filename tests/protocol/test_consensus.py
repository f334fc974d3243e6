"""The rules R1 to R8, one by one, for one voter of four."""

import pytest

from peerformer.protocol.consensus import (
    VIEWS_KEPT,
    Action,
    Consensus,
    Decide,
    EnterView,
    Forward,
    SignCommit,
    SignPrepare,
    SignTimeout,
    justification_fault,
)
from peerformer.protocol.messages import (
    NO_HASH,
    Commit,
    Prepare,
    QuorumCertificate,
    Timeout,
    TimeoutCertificate,
    TimeoutVote,
)

VOTERS = tuple(bytes((i,)) * 32 for i in range(1, 5))
A, B = b"\x0a" * 32, b"\x0b" * 32
SIGNATURE = bytes(64)


def lock(view: int, digest: bytes = A) -> QuorumCertificate:
    return QuorumCertificate(False, 1, view, digest, b"\x07", (SIGNATURE,) * 3)


def ended(view: int, high: QuorumCertificate | None = None) -> TimeoutCertificate:
    claim = (high.view, high.digest) if high else (-1, NO_HASH)
    votes = tuple(TimeoutVote(voter, *claim, SIGNATURE) for voter in VOTERS[:3])
    return TimeoutCertificate(1, view, votes, high)


def vote(voter: Consensus, kind: type, view: int, digest: bytes, *senders: int) -> list[Action]:
    actions: list[Action] = []
    for sender in senders:
        actions += voter.on_vote(VOTERS[sender], kind(1, view, digest), SIGNATURE)
    return actions


def time_out(
    voter: Consensus, view: int, *senders: int, high: QuorumCertificate | None = None
) -> list[Action]:
    claim = (high.view, high.digest) if high else (-1, NO_HASH)
    actions: list[Action] = []
    for sender in senders:
        actions += voter.on_timeout(VOTERS[sender], Timeout(1, view, *claim), SIGNATURE, high)
    return actions


def in_view(view: int) -> Consensus:
    voter = Consensus(1, VOTERS)
    if view:
        voter.on_view_ended(ended(view - 1))
    return voter


def test_r1_a_view_is_prepared_once_and_only_while_it_is_current() -> None:
    voter = in_view(0)
    assert voter.may_prepare(0, A, None)
    assert not voter.may_prepare(1, A, ended(0))
    assert voter.prepare(0, A) == [SignPrepare(0, A)]
    assert not voter.may_prepare(0, A, None) and not voter.may_prepare(0, B, None)
    voter.on_view_ended(ended(0))
    assert not voter.may_prepare(0, A, None)
    assert voter.may_prepare(1, B, ended(0))


def test_r1_a_later_view_needs_the_end_of_the_one_before_it() -> None:
    voter = in_view(3)
    for justify in (None, ended(1), ended(3)):
        assert not voter.may_prepare(3, A, justify)
    assert voter.may_prepare(3, A, ended(2))


def test_r1_a_proposal_must_be_what_the_highest_lock_names() -> None:
    voter = in_view(2)
    assert voter.may_prepare(2, A, ended(1, lock(1, A)))
    assert not voter.may_prepare(2, B, ended(1, lock(1, A)))


@pytest.mark.parametrize(
    ("view", "justify", "fine"),
    [
        (0, None, True),
        (0, ended(0), False),
        (1, None, False),
        (1, ended(0), True),
        (2, ended(0), False),
        (2, ended(1, lock(0, A)), True),
        (2, ended(1, lock(0, B)), False),
    ],
)
def test_r7_a_justification_fits_its_view_and_its_lock(
    view: int, justify: TimeoutCertificate | None, fine: bool
) -> None:
    assert (justification_fault(view, A, justify) is None) == fine


def test_r2_a_quorum_of_prepares_locks_and_commits_once() -> None:
    voter = in_view(0)
    assert vote(voter, Prepare, 0, A, 0, 1) == []
    commit, forward = vote(voter, Prepare, 0, A, 2)
    assert isinstance(commit, SignCommit) and (commit.view, commit.digest) == (0, A)
    assert voter.high == commit.high and forward == Forward(commit.high)
    assert vote(voter, Prepare, 0, A, 3) == []
    assert voter.on_prepared(lock(0)) == []


def test_r2_a_lock_rises_and_never_falls() -> None:
    voter = in_view(0)
    voter.on_prepared(lock(3))
    voter.on_prepared(lock(1, B))
    assert voter.high == lock(3)
    voter.on_prepared(lock(4, B))
    assert voter.high == lock(4, B)


def test_r2_prepares_of_another_view_lock_but_do_not_commit() -> None:
    voter = in_view(2)
    assert voter.on_prepared(lock(1)) == [] and voter.high == lock(1)
    assert voter.high == lock(1) and voter.committed == -1


def test_r2_prepares_of_a_later_view_lead_into_it() -> None:
    voter = in_view(2)
    enter, commit, _ = voter.on_prepared(lock(3))
    assert enter == EnterView(3) and voter.view == 3 and voter.high == lock(3)
    assert isinstance(commit, SignCommit) and commit.view == 3


def test_r2_whoever_gave_up_a_later_view_is_led_there_without_a_vote() -> None:
    voter = in_view(0)
    voter.timed_out = 3
    assert voter.on_prepared(lock(3)) == [EnterView(3)] and voter.committed == -1


def test_r2_two_digests_do_not_add_up_and_a_double_voter_counts_once() -> None:
    voter = in_view(0)
    assert vote(voter, Prepare, 0, A, 0, 1) + vote(voter, Prepare, 0, B, 2, 3) == []
    assert vote(voter, Prepare, 0, A, 0, 1, 1, 0) == []
    assert vote(voter, Prepare, 0, A, 2, 3) == []  # both said B before
    assert voter.high is None


def test_r3_a_quorum_of_commits_decides_and_nothing_follows() -> None:
    voter = in_view(0)
    assert vote(voter, Commit, 0, A, 0, 1) == []
    (decide,) = vote(voter, Commit, 0, A, 3)
    assert isinstance(decide, Decide) and decide.certificate.digest == A
    assert voter.decided == decide.certificate
    assert voter.on_timer() == time_out(voter, 0, 0, 1, 2) == vote(voter, Prepare, 0, A, 0, 1, 2)
    assert not voter.may_prepare(0, A, None)
    assert voter.on_view_ended(ended(0)) == [] and voter.view == 0


def test_r3_strangers_other_rounds_and_far_views_do_not_count() -> None:
    voter = in_view(0)
    for view in (VIEWS_KEPT + 1, 1 << 31):
        vote(voter, Commit, view, A, 0, 1, 2)
    for sender in (b"\x09" * 32, b"\x08" * 32, b"\x07" * 32):
        voter.on_vote(sender, Commit(1, 0, A), SIGNATURE)
    for sender in VOTERS:
        voter.on_vote(sender, Commit(2, 0, A), SIGNATURE)
    assert voter.decided is None and not voter._votes


def test_r4_no_vote_at_or_below_a_view_that_was_given_up() -> None:
    voter = in_view(1)
    assert voter.on_timer() == [SignTimeout(1, None)]
    assert not voter.may_prepare(1, A, ended(0))
    assert vote(voter, Prepare, 1, A, 0, 1, 2) == []
    assert voter.on_prepared(lock(1)) == []
    assert voter.high is not None and voter.committed == -1
    assert voter.on_timer() == [SignTimeout(1, voter.high)]
    assert voter.view == 1  # the timer alone never enters a view


def test_r4_a_lock_held_is_what_the_timeout_claims() -> None:
    voter = in_view(0)
    vote(voter, Prepare, 0, A, 0, 1, 2)
    (timeout,) = voter.on_timer()
    assert isinstance(timeout, SignTimeout) and timeout.high and timeout.high.digest == A


def test_r5_f_plus_one_timeouts_are_joined_and_f_are_not() -> None:
    voter = in_view(0)
    assert time_out(voter, 3, 1) == []
    assert time_out(voter, 2, 2) == [SignTimeout(2, None)]  # two gave up view 2 or later
    assert (voter.view, voter.timed_out) == (2, 2)
    assert not voter.may_prepare(2, A, ended(1))
    assert time_out(voter, 1, 3) == []


def test_r6_a_quorum_of_timeouts_enters_the_next_view_once() -> None:
    voter = in_view(0)
    actions = [*voter.on_timer(), *time_out(voter, 0, 0, 1)]
    assert EnterView(1) not in actions
    *_, forward, enter = time_out(voter, 0, 2)
    assert enter == EnterView(1)
    assert isinstance(forward, Forward) and forward.certificate == voter.entry
    assert time_out(voter, 0, 3) == [] and voter.on_view_ended(ended(0)) == []
    assert voter.view == 1


def test_r6_an_older_end_of_view_does_not_lead_back() -> None:
    voter = in_view(5)
    assert voter.on_view_ended(ended(2)) == []
    assert voter.view == 5 and voter.entry == ended(4)


def test_r8_a_lock_inside_a_timeout_or_an_end_of_view_is_adopted() -> None:
    voter = in_view(0)
    time_out(voter, 3, 1, high=lock(2))
    assert voter.high == lock(2)
    voter.on_view_ended(ended(4, lock(3, B)))
    assert voter.high == lock(3, B)


def test_a_timeout_of_a_lower_view_does_not_replace_a_higher_one() -> None:
    voter = in_view(0)
    time_out(voter, 4, 1)
    time_out(voter, 0, 1, 2, 3)
    assert voter.view == 0 and voter.entry is None


def test_after_a_hidden_decision_every_later_view_must_propose_the_same() -> None:
    """A is decided in view 0 by voters 0 to 2; whichever quorum ends it, A is locked in it."""
    voters = [in_view(0) for _ in VOTERS]
    certificate = lock(0, A)
    for voter in voters[:3]:
        assert any(isinstance(action, SignCommit) for action in voter.on_prepared(certificate))
    timeouts = [action for voter in voters for action in voter.on_timer()]
    highs = [action.high for action in timeouts if isinstance(action, SignTimeout)]
    for left_out in range(4):
        observer = in_view(0)
        for sender in range(4):
            if sender != left_out:
                time_out(observer, 0, sender, high=highs[sender])
        assert observer.view == 1 and observer.entry is not None
        assert not observer.may_prepare(1, B, observer.entry)
        assert observer.may_prepare(1, A, observer.entry)


def test_a_restart_resumes_at_the_highest_vote_and_casts_none_twice() -> None:
    high = lock(2)
    for prepared, committed, timed_out, view in (
        (3, 2, 1, 3),
        (1, 2, -1, 2),
        (2, 2, 4, 4),
        (-1, -1, -1, 0),
    ):
        voter = Consensus(1, VOTERS, prepared, committed, timed_out, high)
        assert voter.view == view
        if max(prepared, timed_out) >= view:
            assert not voter.may_prepare(view, A, ended(view - 1))
        if committed >= view or timed_out >= view:
            assert vote(voter, Prepare, view, A, 0, 1, 2) == []
        (timeout,) = voter.on_timer()
        assert timeout == SignTimeout(view, voter.high)
        assert voter.high is not None and voter.high.view >= high.view


def test_votes_of_passed_views_are_forgotten() -> None:
    voter = in_view(0)
    for view in range(12):
        for digest in (A, B):
            vote(voter, Prepare, view, digest, 0, 1)
            vote(voter, Commit, view, digest, 2)
        voter.on_view_ended(ended(view))
    assert len(voter._votes) <= 2 * (2 * VIEWS_KEPT + 1)
