"""The demonstration as a user runs it, small: its verdict, its files, and the commands it names."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peerformer.interface.story import Cast, failures

SMALL = (
    "model.hidden_size=64",
    "model.intermediate_size=128",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.max_positions=64",
    "training.sequence_length=64",
    "training.batch_size=4",
    "data.vocab_size=512",
    "swarm.inner_steps=10",
)


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `peerformer` as a user would, in a directory of its own."""
    return subprocess.run(
        [sys.executable, "-m", "peerformer", *words],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A demonstration that has been told: its directory and its summary."""
    directory = tmp_path_factory.mktemp("demo")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    done = run(directory, "demo", *settings)
    assert done.returncode == 0, done.stderr[-3_000:]
    path = done.stdout.splitlines()[-1]
    assert path.endswith("summary.json")
    return directory, json.loads((directory / path).read_text())


def cast(summary: dict[str, Any]) -> Cast:
    """Who played which part."""
    parts = {peer["adversary"]: peer["name"] for peer in summary["peers"]}
    victim = next(p["name"] for p in summary["peers"] if p["restarted_at_round"] is not None)
    return Cast(parts["sign-flip"], victim, parts["equivocate"])


@pytest.mark.timeout(300)
def test_the_demonstration_holds_and_says_why(told: tuple[Path, dict[str, Any]]) -> None:
    _, summary = told
    assert failures(summary, cast(summary)) == []
    honest = [peer for peer in summary["peers"] if not peer["adversary"]]
    assert len(honest) == 5 and len({peer["state_root"] for peer in honest}) == 1
    liar = next(peer for peer in summary["peers"] if peer["adversary"] == "equivocate")
    assert "signed two" in liar["evidence"]
    bits = summary["validation_bits_per_byte"]
    assert len(bits) == summary["rounds"] + 1 and bits[-1] < bits[0] - 0.5
    assert summary["bytes_sent_per_peer"] > 0 and summary["seconds"] > 0


@pytest.mark.timeout(300)
def test_every_way_in_which_the_story_can_fail_is_noticed(
    told: tuple[Path, dict[str, Any]],
) -> None:
    _, summary = told
    parts = cast(summary)

    def broken(name: str, **changes: object) -> list[str]:
        changed = copy.deepcopy(summary)
        next(peer for peer in changed["peers"] if peer["name"] == name).update(changes)
        return failures(changed, parts)

    honest = next(p["name"] for p in summary["peers"] if not p["adversary"])
    assert "do not hold one state" in broken(honest, state_root="00")[0]
    assert "do not hold one state" in broken(honest, state_root=None)[0]
    assert "was evicted" in broken(honest, evicted=True)[0]
    assert "poison got in" in broken(parts.poisoner, accepted=1)[0]
    assert "not quarantined" in broken(parts.poisoner, quarantined=False)[0]
    assert "was not evicted" in broken(parts.equivocator, evicted=False)[0]
    assert "did not come back" in broken(parts.victim, caught_up_seconds=None)[0]
    flat = {**summary, "validation_bits_per_byte": [3.0] * 12}
    assert "did not fall" in failures(flat, parts)[0]


@pytest.mark.timeout(300)
def test_status_and_log_tell_what_happened(told: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = told
    status = json.loads(run(directory, "status", "--json").stdout)
    assert status["round"] >= summary["rounds"] and len(status["state_root"]) == 64
    assert {"name", "peer_id", "role", "round", "state", "contributed", "accepted"} <= set(
        status["peers"][0]
    )
    lines = run(directory, "log", "--evidence", "--json").stdout.splitlines()
    kinds = {json.loads(line)["event"] for line in lines}
    assert {"contribution_refused", "peer_quarantined", "peer_evicted"} <= kinds
    about = run(directory, "log", "--about", cast(summary).equivocator).stdout
    assert "peer_evicted" in about and "signed two" in about
    unknown = run(directory, "log", "no-such-run")
    assert unknown.returncode != 0 and unknown.stderr.startswith("error: ")


@pytest.mark.timeout(300)
def test_whoever_holds_the_genesis_can_check_the_run_and_what_convicted(
    told: tuple[Path, dict[str, Any]],
) -> None:
    directory, summary = told
    checkpoint = Path(summary["checkpoint"])
    name, liar = checkpoint.parent.parent.name, cast(summary).equivocator
    genesis = directory / "genesis-from-a-friend.bin"
    genesis.write_bytes((directory / checkpoint.parent.parent / "genesis.bin").read_bytes())
    trusted = ("--genesis", str(genesis))
    for peer in (p["name"] for p in summary["peers"] if not p["adversary"]):
        verified = run(directory, "verify", name, "--peer", peer, *trusted, "--json")
        found = json.loads(verified.stdout)
        assert verified.returncode == 0, (peer, found["fault"])
        assert found["rounds"] >= summary["rounds"]
        assert f"certificate and files of {checkpoint.name}" in found["checked"]
        assert sum(check.startswith("state of round") for check in found["checked"]) == 3
    evicted = next(
        json.loads(line)["round"]
        for line in run(directory, "log", name, "--about", liar, "--json").stdout.splitlines()
        if json.loads(line)["event"] == "peer_evicted"
    )
    for what in ("certificate", "evidence"):
        shown = run(directory, "log", name, "--round", str(evicted), f"--{what}")
        (directory / f"{what}.json").write_text(shown.stdout)
        verified = run(directory, "verify", f"{what}.json", *trusted)
        assert verified.returncode == 0, verified.stdout + shown.stderr
    assert f"convicted   {liar}" in verified.stdout and "signed two" in verified.stdout


@pytest.mark.timeout(300)
def test_the_agreed_model_is_an_ordinary_checkpoint(told: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = told
    name = Path(summary["checkpoint"]).parent.parent.name
    written = run(directory, "generate", "The", "--from", name, "--tokens", "8", "--seed", "1")
    assert written.returncode == 0 and written.stdout.startswith("The"), written.stderr
    likely = run(directory, "predict", name, "The", "--top", "3", "--json")
    assert len(json.loads(likely.stdout)) == 3
    bits = json.loads(run(directory, "evaluate", name, "--json").stdout)
    assert abs(bits["validation_bits_per_byte"] - summary["validation_bits_per_byte"][-1]) < 0.5


@pytest.mark.deep  # half a minute
@pytest.mark.timeout(300)
def test_the_swarm_goes_on_after_the_story(told: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = told
    name = Path(summary["checkpoint"]).parent.parent.name
    goal = summary["rounds"] + 2
    gone_on = run(directory, "up", "--run", name, "--rounds", str(goal), "--json")
    assert gone_on.returncode == 0, gone_on.stderr[-2_000:]
    final = json.loads(gone_on.stdout.splitlines()[-1])
    assert final["round"] >= goal
    evicted = [row["name"] for row in final["peers"] if row["state"] == "evicted"]
    assert evicted == [cast(summary).equivocator]
