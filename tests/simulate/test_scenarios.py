"""The stories of `tests/scenarios`: each names a danger, runs it and says what must come of it.

Tell one by hand: `peerformer simulate --story tests/scenarios/amnesia.txt --trace`.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from peerformer.errors import ConfigError
from peerformer.simulate import scenario
from peerformer.simulate.scenario import parse, play, read
from peerformer.simulate.trace import tell
from tests.simulate.test_mutants import Mutant, plant

STORIES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))
TABLE = tomllib.loads((Path(__file__).parent / "stories.toml").read_text())
BITTEN = {
    story: Mutant(
        story,
        ((bug["file"], bug["old"], bug["new"]), *map(tuple, bug.get("also", ()))),
        quick=1,
    )
    for story, bug in TABLE.items()
}
EVENTS_SHOWN = 30


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_a_story_goes_as_it_is_written(path: Path) -> None:
    verdict = play(read(path))
    for finding in verdict.findings:
        instead = "" if finding.fault is None else f"  -- {finding.fault}"
        print(f"{path.name}:{finding.line}: {finding.text}{instead}")
    if not verdict.holds:
        print(*tell(verdict.world, last=EVENTS_SHOWN), sep="\n")
    assert verdict.holds


def test_there_are_many_stories_and_each_is_about_another_danger() -> None:
    dangers = {read(path).danger for path in STORIES}
    assert len(dangers) == len(STORIES) >= 40


def test_a_story_replays_exactly() -> None:
    path = next(path for path in STORIES if path.stem == "liars_everywhere")
    assert tell(play(read(path)).world) == tell(play(read(path)).world)


# --- the language --------------------------------------------------------------------------------


def test_every_form_of_the_language_is_described_and_told_by_some_story() -> None:
    assert scenario.__doc__ is not None
    text = "\n".join(path.read_text() for path in STORIES)
    told = [" ".join(line.partition("#")[0].split()) for line in text.splitlines()]
    for form in [form for forms in scenario.FORMS for form in forms]:
        assert f"\n    {form}" in scenario.__doc__, form
        assert any(scenario.pattern(form).fullmatch(line) for line in told), form


GOOD = "# A danger\npeers 4\nround 1\n----\ndecided round 1 by 0\n"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (GOOD.replace("round 1\n--", "rond 1\n--"), "bad.txt:3", "rond 1"),
        (GOOD.replace("decided round 1 by 0", "decided round 1"), "bad.txt:5", "decided"),
        (GOOD.replace("by 0", "by 4"), "bad.txt:5", "no peer 4 of 4"),
        (GOOD.replace("peers 4", "peers 4\nadversary 1 naughty"), "bad.txt:3", "naughty"),
        (GOOD.replace("round 1\n--", "crash 1 after nap\n--"), "bad.txt:3", "nap"),
        (GOOD.replace("round 1\n--", "hold gossip from 0 to 1\n--"), "bad.txt:3", "gossip"),
        (GOOD.replace("round 1\n--", "round 1\npeers 5\n--"), "bad.txt:4", "peers 5"),
        (GOOD.replace("----", "then"), "bad.txt:4", "then"),
        (GOOD.replace("----\n", ""), "bad.txt:4", "decided"),
        (GOOD.replace("decided round 1 by 0\n", ""), "bad.txt", "expects something"),
        (GOOD.replace("# A danger\n", ""), "bad.txt", "names its danger"),
        (GOOD.replace("peers 4", "peers 40"), "bad.txt", "peers"),
        ("", "bad.txt", "names its danger"),
    ],
)
def test_a_story_that_cannot_be_understood_says_where(text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text, "bad.txt")
    print(refused.value)
    assert refused.value.where == place and words in refused.value.what


def test_a_broken_promise_of_the_world_fails_the_story_where_it_happens() -> None:
    """Two liars of four break what is promised for one: the story notices without being told to."""
    text = (Path(STORIES[0].parent) / "two_certificates_for_one_round.txt").read_text()
    verdict = play(parse(text.replace("too many liars\n", ""), "told.txt"))
    assert verdict.findings[-1].fault is not None
    assert "one decision per round" in verdict.findings[-1].fault


# --- the command ---------------------------------------------------------------------------------


def simulate(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "peerformer", "simulate", *arguments]
    where = {"PYTHONPATH": str(folder)} if folder else {}
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **where}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=environment, cwd=folder
    )


def test_the_command_tells_a_story_line_by_line(tmp_path: Path) -> None:
    done = simulate("--story", str(STORIES[0]))
    assert done.returncode == 0, done.stderr
    danger, *lines = done.stdout.splitlines()
    assert danger == read(STORIES[0]).danger and all(re.match(r"ok +\d+  ", line) for line in lines)
    failing = tmp_path / "failing.txt"
    failing.write_text(GOOD + "evicted 2: anything\n")
    done = simulate("--story", str(failing))
    assert done.returncode == 1
    assert "FAILED   6  evicted 2: anything: it was not evicted" in done.stdout
    assert "sends prepare round 1, view 0" in done.stderr
    done = simulate("--story", str(failing), "--json")
    assert json.loads(done.stdout)["findings"][-1]["fault"] == "it was not evicted"


def test_the_command_refuses_a_story_that_it_cannot_read(tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.txt"
    unknown.write_text(GOOD.replace("round 1\n--", "rond 1\n--"))
    for path, words in ((unknown, "unknown.txt:3"), (tmp_path / "none.txt", "none.txt")):
        done = simulate("--story", str(path))
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


# --- they bite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", BITTEN.values(), ids=lambda mutant: mutant.name)
def test_a_story_fails_on_the_bug_that_it_warns_of(mutant: Mutant, tmp_path: Path) -> None:
    plant(mutant, tmp_path)
    path = STORIES[0].parent / f"{mutant.name}.txt"
    done = simulate("--story", str(path), folder=tmp_path)
    print(done.stdout, done.stderr)
    assert done.returncode == 1 and "FAILED" in done.stdout
