"""All orders of messages through two views: nothing forks, and the exploration would see it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import peerformer
from peerformer.interface.exploration import explore
from peerformer.protocol import consensus
from peerformer.protocol.certificates import assemble_timeouts, certify
from peerformer.protocol.consensus import TimeoutSeen
from peerformer.protocol.messages import Commit, Prepare, QuorumCertificate, TimeoutCertificate
from peerformer.simulate.explore import Exploration, Explored, configurations
from peerformer.simulate.hearsay import HONEST, LIAR, Configuration
from peerformer.simulate.lone_voter import (
    DIGESTS,
    QUORUM,
    ROUND,
    VOTERS,
    HonestVoter,
    certificate_of,
    end_of,
    timeout_of,
)
from peerformer.simulate.news import NO_LOCK, Lock

PACKAGE = Path(peerformer.__file__).parent
LIAR_SECOND = Configuration((HONEST - 1, LIAR))
SIGNED = b"signed"


@pytest.fixture(scope="module")
def explored() -> tuple[Exploration, Explored]:
    """Everything that can happen in two views of which a liar leads the second."""
    exploration = Exploration(LIAR_SECOND)
    return exploration, exploration.run(lambda: True, lambda layer: None)


# --- the claim -----------------------------------------------------------------------------------


def test_no_order_of_messages_forks_two_views_when_a_liar_leads_the_second(
    explored: tuple[Exploration, Explored],
) -> None:
    _, found = explored
    print(found)
    assert found.violation is None
    assert found.exhausted and found.states > 50_000


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_no_order_of_messages_timers_and_restarts_forks_two_views() -> None:
    result = explore(seconds=600, jobs=2, on_progress=print)
    print(f"{result.seconds:.0f} seconds")
    assert result.violation is None
    assert result.exhausted and len(result.worlds) == 6


# --- it bites ------------------------------------------------------------------------------------

Edit = tuple[str, str, str]  # file, what stands there, what shall stand there
LOCK_BEFORE_COMMIT = """        assert self.high is not None and self.high.view >= view
        return [*actions, SignCommit(view, certificate.digest, self.high),"""
BUGS: dict[str, list[Edit]] = {
    "two votes of four are a quorum": [
        ("membership.py", "return 2 * voters // 3 + 1", "return int(0.67 * voters)")
    ],
    "a voter commits after its own timeout": [
        (
            "consensus.py",
            "or self.committed >= view or self.timed_out >= view",
            "or self.committed >= view",
        )
    ],
    "a leader may ignore the lock": [
        ("consensus.py", 'return "another header is locked"', "return None")
    ],
    "a voter keeps no lock": [
        ("consensus.py", "            self.high = certificate\n", "            pass\n"),
        (
            "consensus.py",
            LOCK_BEFORE_COMMIT,
            "        return [*actions, SignCommit(view, certificate.digest, certificate),",
        ),
    ],
    "joining a timeout leads back": [
        ("consensus.py", "if view <= self.timed_out or view < self.view:", "if view < 0:")
    ],
}
EXPLORE = """
import sys
from peerformer.simulate.explore import Configuration, explore_one
leaders, forks_only = tuple(map(int, sys.argv[1])), sys.argv[2] == "forks"
found = explore_one(Configuration(leaders, forks_only=forks_only), lambda: True)
print(found.states, *(found.violation or ["nothing"]), sep="\\n")
"""


def violation_with(bug: str, folder: Path, leaders: str, stop_at: str) -> list[str]:
    """Plant a bug in a copy of the package, and return how the exploration tells of it."""
    copy = folder / "peerformer"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in BUGS[bug]:
        path = copy / "protocol" / name
        text = path.read_text()
        assert text.count(before) == 1, f"{name} has changed: {before}"
        path.write_text(text.replace(before, after))
    done = subprocess.run(
        [sys.executable, "-c", EXPLORE, leaders, stop_at],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    states, *path = done.stdout.splitlines()
    print(f"{bug}, leaders {leaders}: {states} states", *path, sep="\n")
    return path


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_and_the_way_to_it_told(bug: str, tmp_path: Path) -> None:
    path = violation_with(bug, tmp_path, f"{HONEST - 1}{LIAR}", "any broken promise")
    assert path[-1].startswith("broken: ") and path[0].startswith("1. voter ")


@pytest.mark.deep
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_forks_two_views(bug: str, tmp_path: Path) -> None:
    leaders = f"{LIAR}0" if "back" in bug else f"{HONEST - 1}{LIAR}"
    path = violation_with(bug, tmp_path, leaders, "forks")
    assert path[-1] == "broken: two honest voters decide differently"
    assert path[-3].endswith("decides A") and path[-2].endswith("decides B")


# --- what is left out makes no difference ------------------------------------------------------


# What happens, and how often beside the others.
KINDS = {
    "vote": 6,
    "timeout": 3,
    "propose": 4,
    "lock": 1,
    "end": 2,
    "decide": 0.2,
    "timer": 0.5,
    "restart": 0.5,
}


class PlainWorld:
    """The same world without any short cut: single messages, full buffers, decisions at once."""

    def __init__(self, configuration: Configuration, random: Random) -> None:
        self.configuration, self.random = configuration, random
        self.views = len(configuration.leaders)
        start = Exploration(configuration)
        self.voters = [
            HonestVoter(start.voters[number], random.randrange(2), VOTERS[index])
            for index, number in enumerate(start.start)
        ]
        self.likelihoods = [often * (0.3 + random.random()) for often in KINDS.values()]

    def signatures(self, kind: str, slot: Lock) -> dict[bytes, bytes]:
        """Whoever signed, and the liar."""
        said = ((i, getattr(it.said[slot[0]], kind)) for i, it in enumerate(self.voters))
        honest = {VOTERS[i]: SIGNED for i, digest in said if digest == slot[1]}
        return honest | {VOTERS[LIAR]: SIGNED}

    def certificates(self, kind: str) -> Iterator[tuple[Lock, QuorumCertificate]]:
        for slot in ((view, digest) for view in range(self.views) for digest in (0, 1)):
            signatures = self.signatures(kind, slot)
            if len(signatures) >= QUORUM:
                vote = (Commit if kind == "commit" else Prepare)(ROUND, slot[0], DIGESTS[slot[1]])
                yield slot, certify(vote, signatures, VOTERS)

    def timeouts(self, view: int) -> dict[bytes, TimeoutSeen]:
        """All that others accept; the liar claims any lock that it can prove."""
        locks = [lock for lock, _ in self.certificates("prepare") if lock[0] <= view]
        claims = {VOTERS[LIAR]: self.random.choice([NO_LOCK, *locks])}
        for index, voter in enumerate(self.voters):
            claim = voter.said[view].timeout
            if claim is not None and claim[0] <= view:
                claims[VOTERS[index]] = claim
        return {sender: timeout_of(view, claim) for sender, claim in claims.items()}

    def end(self, view: int) -> TimeoutCertificate | None:
        timeouts = self.timeouts(view)
        if len(timeouts) < QUORUM:
            return None
        senders = self.random.sample(sorted(timeouts), QUORUM)
        return assemble_timeouts(ROUND, view, {s: timeouts[s] for s in senders}, VOTERS)

    def step(self) -> None:
        """Let one honest voter hear one thing."""
        random, voter = self.random, self.random.choice(self.voters)
        view = random.randrange(self.views)
        match random.choices(list(KINDS), self.likelihoods)[0]:
            case "vote":
                kind, slot = random.choice(["prepare", "commit"]), (view, random.randrange(2))
                sender = random.choice(sorted(self.signatures(kind, slot)))
                vote = (Commit if kind == "commit" else Prepare)(ROUND, view, DIGESTS[slot[1]])
                voter.carry_out(voter.consensus.on_vote(sender, vote, SIGNED))
            case "timeout":
                timeouts = self.timeouts(view)
                sender = random.choice(sorted(timeouts))
                voter.take_timeout(sender, timeouts[sender])
            case "propose":
                self.propose(voter, view)
            case "lock":
                locks = [certificate for _, certificate in self.certificates("prepare")]
                for certificate in random.sample(locks, min(1, len(locks))):
                    voter.carry_out(voter.consensus.on_prepared(certificate))
            case "end" if view < self.views - 1 and (end := self.end(view)) is not None:
                voter.carry_out(voter.consensus.on_view_ended(end))
            case "decide":
                for _, certificate in self.certificates("commit"):
                    voter.carry_out(voter.consensus.on_decision(certificate))
            case "timer":
                voter.fire_timer()
            case "restart" if self.configuration.restarts and voter.consensus.decided is None:
                voter.restart()

    def propose(self, voter: HonestVoter, view: int) -> None:
        leader, digest = self.configuration.leaders[view], self.random.randrange(2)
        if view == 0:
            voter.take_proposal(0, DIGESTS[digest if leader == LIAR else 0], None)
        elif leader == LIAR:
            if (end := self.end(view - 1)) is not None:
                voter.take_proposal(view, DIGESTS[digest], end)
        elif (proposal := self.voters[leader].said[view].proposal) is not None:
            chosen, lock = proposal
            voter.take_proposal(view, DIGESTS[chosen], end_of(view - 1, lock))

    def within(self) -> bool:
        return all(voter.consensus.view < self.views for voter in self.voters)


def walk(exploration: Exploration, walks: int, seed: int) -> tuple[int, int]:
    """Walk at random; return how many states were met, and how many voters decided."""
    met, decisions = set(), 0
    for number in range(walks):
        world = PlainWorld(exploration.configuration, Random(seed * 1_000_003 + number))
        for _ in range(120):
            world.step()
            if not world.within():
                break
            assert all(voter.fault is None for voter in world.voters)
            state = tuple(voter.state() for voter in world.voters)
            assert exploration.has_met(state), (seed, number, state)
            met.add(state)
        decided = [v.consensus.decided.digest for v in world.voters if v.consensus.decided]
        assert len(set(decided)) <= 1
        decisions += len(decided)
    return len(met), decisions


def test_random_walks_with_full_buffers_meet_no_state_that_the_exploration_did_not(
    explored: tuple[Exploration, Explored],
) -> None:
    seed = int(os.environ.get("PEERFORMER_SEED", "1"))
    states, decisions = walk(explored[0], 400, seed)
    print(f"seed {seed}: {states} states, {decisions} decisions")
    assert states > 1_000 and decisions > 10


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("turn", range(3))
def test_long_random_walks_meet_no_new_state_whoever_leads(turn: int, restarts: bool) -> None:
    exploration = Exploration(configurations(2, restarts=restarts)[turn])
    found = exploration.run(lambda: True, lambda layer: None)
    states, decisions = walk(exploration, 20_000, seed=turn)
    print(f"{found}\nseed {turn}: {states} states walked, {decisions} decisions")


def test_a_decided_voter_is_as_one_that_is_never_heard_again(
    explored: tuple[Exploration, Explored],
) -> None:
    for voter in explored[0].voters:
        decided = HonestVoter(voter)
        decided.carry_out(decided.consensus.on_decision(certificate_of((0, 0), commits=True)))
        decided.fire_timer()
        for view in range(2):
            end = end_of(view, NO_LOCK)
            for digest in DIGESTS:
                decided.take_proposal(view, digest, None if view == 0 else end_of(0, NO_LOCK))
                for sender in VOTERS:
                    for vote in (Prepare(ROUND, view, digest), Commit(ROUND, view, digest)):
                        decided.carry_out(decided.consensus.on_vote(sender, vote, SIGNED))
            decided.carry_out(decided.consensus.on_prepared(certificate_of((view, 1))))
            decided.carry_out(decided.consensus.on_view_ended(end))
            for sender in VOTERS:
                decided.take_timeout(sender, timeout_of(view, (view, 0)))
        assert decided.state() == voter and decided.fault is None


def test_the_consensus_never_reads_how_its_view_was_entered() -> None:
    source = Path(consensus.__file__).read_text()
    restart = "entered = self.entry.view + 1 if self.entry else 0"  # a restart enters it again
    assert source.count(restart) == 1
    assert source.replace(restart, "").count("self.entry") == source.count("self.entry = ") == 1
