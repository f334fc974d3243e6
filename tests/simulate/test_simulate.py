"""`peerformer simulate` as a user runs it, and the worlds behind it."""

import json
import subprocess
import sys

import pytest

from peerformer.errors import ConfigError
from peerformer.simulate.campaign import Tally, replay, run_seeds, world_of
from peerformer.simulate.plan import WORLDS, Plan, parse_adversaries
from peerformer.simulate.trace import tell

FIELDS = {
    "seeds", "rounds_decided", "forks", "stalls", "invariant_breaks", "crashes", "partitions",
    "byzantine_acts", "seconds", "seeds_per_minute",
}  # fmt: skip


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peerformer", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_worlds_of_many_seeds_hold_and_are_counted_as_one_object() -> None:
    done = simulate("--seeds", "12", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() >= FIELDS
    assert found["seeds"] == 12 and found["rounds_decided"] > 24
    assert found["forks"] == found["stalls"] == found["invariant_breaks"] == 0
    assert found["crashes"] and found["partitions"] and found["byzantine_acts"]
    assert "12/12 worlds" in done.stderr  # progress goes where results do not


def test_a_seed_tells_its_story_and_tells_it_again() -> None:
    first, again = (simulate("--seed", "5", "--trace") for _ in range(2))
    assert first.returncode == 0 and first.stdout == again.stdout
    assert "sends prepare round 1, view 0" in first.stdout
    assert "founders" in first.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--world", "sunny"), "there is no world 'sunny'"),
        (("--trace",), "--seed N --trace"),
        (("--seeds", "0"), "1 or more"),
        (("--adversaries", "equivocat*1"), "cannot read"),
        (("--peers", "0"), "--peers"),
        (("--rounds", "0", "--peers", "100"), "--rounds is 1 or more"),
        (("--exhaustive", "-3"), "--exhaustive is 1 or more"),
        (("--crowd",), "a crowd needs --peers"),
        (("--peers", "9000"), "up to 8192"),
        (("--peers", "100", "--adversaries", "silent"), "a crowd has no trouble"),
        (("--staleness", "2"), "--staleness is 0 or 1"),
    ],
)
def test_bad_input_is_refused_in_words(arguments: tuple[str, ...], words: str) -> None:
    done = simulate(*arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_adversaries_are_read_as_written() -> None:
    assert parse_adversaries("equivocate*2,silent+amnesia") == (
        ("equivocate",), ("equivocate",), ("silent", "amnesia"),
    )  # fmt: skip
    with pytest.raises(ConfigError):
        parse_adversaries("silent*many")


@pytest.mark.parametrize("kind", WORLDS)
def test_every_kind_of_world_has_the_trouble_it_names(kind: str) -> None:
    tally = Tally()
    for outcome in run_seeds(range(3), Plan(kind)):
        assert outcome.violation is None, outcome.violation
        tally.add(outcome)
    print(kind, tally.counts)
    named = {
        "crashes": "crashes",
        "partitions": "partitions",
        "liars": "byzantine acts",
        "churn": "joins",
    }
    if kind in named:
        assert tally.counts[named[kind]] > 0
    if kind == "calm":
        quiet = ("crashes", "partitions", "byzantine acts", "messages lost")
        assert not any(tally.counts[name] for name in quiet)


def test_more_liars_than_tolerated_are_noticed() -> None:
    """Two of four voters that tell two stories can fork the others: the world must see it."""
    liars = (("split", "double-vote"), ("split", "double-vote"))
    outcomes = [world_of(seed, Plan("partitions", liars, 4)).run() for seed in range(12)]
    broken = {outcome.violation.invariant for outcome in outcomes if outcome.violation}
    print(broken)
    assert broken & {"one decision per round", "equal header, equal state"}


def test_a_world_that_went_wrong_is_told_in_words() -> None:
    liars = (("silent",), ("silent",))
    troubled, outcome = replay(3, Plan("calm", liars, 4))
    assert outcome.violation is not None and outcome.violation.seed == 3
    assert outcome.violation.invariant == "what is honest goes on"
    lines = tell(troubled.world, last=30)
    assert len(lines) == 30 and all("round 1" in line for line in lines)
