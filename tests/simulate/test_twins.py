"""One key run twice, in every way that partitions can come between the copies.

One scenario by hand: `peerformer simulate --twins --seed 5 --trace`.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from peerformer.simulate.campaign import TWINS, Tally, replay, run_seeds
from peerformer.simulate.plan import Plan
from peerformer.simulate.trace import tell
from peerformer.simulate.twins import COUNT, MOMENTS, PHASES, SIZES, Twinned, scenario
from tests.simulate.test_mutants import mutants, plant

QUICK = 40
DEEP = 4_096
BITTEN = (
    "a quorum of int(0.67 n)",
    "a quorum of 2 f + 1",
    "a lock is not kept",
    "a leader proposes anew over a lock",
)
BITTEN_DEEP = (
    "commits after its own timeout",
    "prepares after its own timeout",
    "a timeout carries no lock",
    "an evicted peer keeps its vote",
)
HUNTED = 24
HUNTED_DEEP = 128


def run(first: int, number: int) -> Tally:
    tally = Tally()
    for outcome in run_seeds(range(first, first + number), Plan(TWINS)):
        tally.add(outcome)
        assert outcome.violation is None, (scenario(outcome.seed), outcome.violation)
    print(f"scenarios {first} to {first + number - 1}: {tally}")
    return tally


def simulate(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    where = {"PYTHONPATH": str(folder)} if folder else {}
    return subprocess.run(
        [sys.executable, "-P", "-m", "peerformer", "simulate", "--twins", *arguments],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **where},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_no_doubled_key_forks_stops_or_incriminates_the_others() -> None:
    tally = run(0, QUICK)
    assert tally.seeds == QUICK and tally.counts["partitions"] > QUICK
    assert tally.counts["evictions"] and tally.views[1]  # the copies were caught; views changed


@pytest.mark.deep
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("part", range(8))
def test_no_doubled_key_forks_stops_or_incriminates_the_others_in_thousands_of_ways(
    part: int,
) -> None:
    size = DEEP // 8
    assert run(part * size, size).seeds == size


def test_an_index_enumerates_all_scenarios_once() -> None:
    number, tried = 1_000_003, 20_000  # walks over all indices in another order than they are in
    found = {scenario(index * number % COUNT) for index in range(tried)}
    assert len(found) == tried
    assert sum(n * len(MOMENTS) * 2 ** (n * PHASES) for n in SIZES) == COUNT
    with pytest.raises(AssertionError):
        scenario(COUNT)


def test_a_short_run_of_indices_is_spread_over_everything() -> None:
    found = [scenario(index) for index in range(200)]
    assert {(one.peers, one.twinned) for one in found} == {
        (peers, twinned) for peers in SIZES for twinned in range(peers)
    }
    assert set(Counter(one.moments for one in found)) == set(MOMENTS)
    apart = [one for one in found if one.sides[0][one.twinned] != one.sides[0][one.peers]]
    assert len(found) // 3 < len(apart) < 2 * len(found) // 3


def test_both_copies_have_one_key_and_keep_to_the_protocol() -> None:
    made = Twinned(7)
    first, second = made.world.hosts[made.scenario.twinned], made.world.hosts[-1]
    assert first.me == second.me and first is not second
    assert made.run().violation is None
    assert first.index not in second.links and second.index not in first.links
    assert {host.me for host in made.honest} == set(made.world.by_id) - {first.me}


def test_a_scenario_tells_its_story_and_tells_it_again() -> None:
    first, again = (replay(11, Plan(TWINS))[0] for _ in range(2))
    assert tell(first.world) == tell(again.world)
    done = simulate("--seed", "11", "--trace")
    assert done.returncode == 0, done.stderr
    opening, *lines = done.stdout.splitlines()
    assert opening == str(scenario(11)) and lines == tell(first.world)


def test_scenarios_are_counted_as_one_object_and_bad_input_is_refused() -> None:
    done = simulate("--first", "100", "--seeds", "6", "--jobs", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seeds"] == 6 and found["forks"] == found["stalls"] == 0
    refused = ("--first", COUNT), ("--peers", 4), ("--world", "calm"), ("--replica", "real")
    for arguments in (tuple(map(str, pair)) for pair in refused):
        done = simulate(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


# --- they bite -----------------------------------------------------------------------------------


def bite(name: str, folder: Path, most: int) -> None:
    (mutant,) = (m for m in mutants() if m.name.endswith(f": {name}"))
    plant(mutant, folder)
    done = simulate("--seeds", str(most), "--jobs", "1", "--json", folder=folder)
    found = json.loads(done.stdout)
    print(f"{mutant.name}: after {found['seeds']} scenarios, {found['violations']}")
    assert done.returncode == 1 and found["violations"], done.stderr[-2_000:]
    assert "peerformer simulate --seed " in done.stderr and "--twins" in done.stderr


@pytest.mark.parametrize("name", BITTEN)
def test_a_planted_bug_is_found_by_twins(name: str, tmp_path: Path) -> None:
    bite(name, tmp_path, HUNTED)


@pytest.mark.deep
@pytest.mark.parametrize("name", BITTEN_DEEP)
def test_more_planted_bugs_are_found_by_more_twins(name: str, tmp_path: Path) -> None:
    bite(name, tmp_path, HUNTED_DEEP)
