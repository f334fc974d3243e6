"""The trials of docs/reliability.md: that they run, say what is documented, and find what is wrong.

A trial that cannot fail proves nothing, so faults are planted here in what a small trial left: a
second signature, a header gone from a store, another byte in a state.
"""

import json
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from peerformer.node.directory import write_durably
from peerformer.node.faults import POINTS, VARIABLE, chances_of
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.messages import Commit, Prepare, Said, Timeout, pack, sign

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
SCRIPTS = ("kill", "partition", "slow_link", "sync", "strangers", "soak", "nodes")
CANNOT_RUN = 77
CHAIN = b"\x05" * 32
MINE, YOURS = (KeyPair.from_seed(bytes([index]) * 32) for index in (1, 2))


def command(script: str, *words: str, seconds: float = 280.0) -> subprocess.CompletedProcess[str]:
    """Run a trial as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_trial_tells_how_it_is_used(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert not ended.value.code
    assert "--quick" in told and "--json" in told


# --- what was signed ------------------------------------------------------------------------------


def received(
    folder: Path, *statements: object, keys: KeyPair = MINE, signer: KeyPair = MINE
) -> int:
    """Let a peer receive statements of `keys`, signed by `signer`; returns the double signs."""
    from trial_records import Signed
    from trial_swarm import FrameLog

    log = FrameLog(folder)
    for statement in statements:
        envelope = sign(signer, CHAIN, statement)  # type: ignore[arg-type]
        envelope = type(envelope)(keys.peer_id, envelope.kind, envelope.body, envelope.signature)
        log(YOURS.peer_id, pack(Said(envelope)))
    signed = Signed(CHAIN)
    signed.read_frames(folder)
    signed.read_frames(folder)  # what was read is not read again
    return len(signed.double())


def test_a_second_signature_for_a_slot_is_found_by_who_received_both(tmp_path: Path) -> None:
    one, other = Prepare(3, 0, b"\x01" * 32), Prepare(3, 0, b"\x02" * 32)
    assert received(tmp_path / "honest", one, one, Prepare(3, 1, b"\x02" * 32)) == 0
    assert received(tmp_path / "double", one, other) == 1
    forged = received(tmp_path / "forged", one, other, signer=YOURS)
    assert forged == 0  # that another signed for it says nothing about a key


def test_a_lock_denied_after_a_restart_is_found_too(tmp_path: Path) -> None:
    commit, forgot = Commit(3, 1, b"\x01" * 32), Timeout(3, 1, -1, bytes(32))
    assert received(tmp_path / "kept", commit, Timeout(3, 1, 1, b"\x01" * 32)) == 0
    assert received(tmp_path / "denied", commit, forgot) == 1


# --- what was decided -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_kill(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Three kills of four peers: the figures, and what the peers left."""
    folder = tmp_path_factory.mktemp("kill")
    words = ("--kills", "3", "--peers", "4", "--seed", "3", "--json", "--keep", str(folder))
    done = command("kill", *words)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


@pytest.mark.timeout(300)
def test_killed_peers_sign_nothing_twice_and_lose_nothing(small_kill: tuple[dict, Path]) -> None:
    found, _ = small_kill
    assert found["passed"], found
    assert found["kills"] >= 3 and found["statements_checked"] > 20
    names = ("double_signs", "sent_but_not_kept", "lost_certified_rounds", "forks", "not_back")
    assert [found[name] for name in names] == [0] * len(names)


@pytest.mark.timeout(300)
def test_every_figure_of_the_kill_trial_is_explained(small_kill: tuple[dict, Path]) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    unexplained = [name for name in small_kill[0] if f"`{name}`" not in page]
    assert not unexplained


@pytest.mark.timeout(300)
def test_planted_faults_are_found_in_what_a_trial_left(small_kill: tuple[dict, Path]) -> None:
    from trial_records import compare_chains
    from trial_swarm import TrialSwarm

    trial = TrialSwarm(small_kill[1] / "swarm")
    first, second, *_ = trial.names
    clean = compare_chains(trial, trial.names)
    assert (clean.forks, clean.lost, clean.unequal) == ([], [], [])

    with closing(sqlite3.connect(trial.swarm.peer(first).path / "protocol.db")) as store, store:
        last = store.execute("SELECT max(key) FROM records WHERE key LIKE 'header/%'").fetchone()
        store.execute("DELETE FROM records WHERE key = ?", last)
    state = max(trial.swarm.peer(second).states.glob("*.state"))
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    broken = compare_chains(trial, trial.names)
    assert len(broken.lost) == 1 and first in broken.lost[0]
    assert len(broken.unequal) == 1 and second in broken.unequal[0]


# --- fault points ---------------------------------------------------------------------------------

WRITES = """
import sys
from pathlib import Path
from peerformer.node.directory import write_durably
write_durably(Path(sys.argv[1]), b"new")
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("file.before-fsync", b"old"),
        ("file.before-rename", b"old"),
        ("file.before-directory", b"new"),
    ],
)
def test_a_fault_point_kills_there_and_leaves_the_old_file_or_the_new(
    tmp_path: Path, point: str, left: bytes
) -> None:
    path = tmp_path / "state"
    write_durably(path, b"old")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: f"{point}:1"}
    words = [sys.executable, "-c", WRITES, str(path)]
    killed = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == left
    del environment[VARIABLE]
    subprocess.run(words, env=environment, check=True)
    assert path.read_bytes() == b"new"


def test_fault_points_that_there_are_not_are_refused() -> None:
    assert chances_of("store.before-commit:0.5,blob.before-fsync:1") == {
        "store.before-commit": 0.5,
        "blob.before-fsync": 1.0,
    }
    assert chances_of("") == {}
    for wrong in ("blob.before-lunch:1", "blob.before-fsync:2", "blob.before-fsync:often"):
        with pytest.raises(ValueError):
            chances_of(wrong)
    for point in POINTS:  # each is reached somewhere, under this very name
        kind, _, name = point.partition(".")
        source = {"store": "journal", "blob": "blobs", "file": "directory"}[kind]
        text = (ROOT / "peerformer" / "node" / f"{source}.py").read_text()
        assert f'"{name if kind == "store" else point}"' in text, point


# --- the quick sizes ------------------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.timeout(400)
@pytest.mark.parametrize("script", ["partition", "nodes", "soak"])
def test_the_quick_size_of_a_trial_passes(script: str) -> None:
    done = command(script, "--quick", "--json", seconds=390.0)
    if done.returncode == CANNOT_RUN:
        pytest.skip("needs root")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["passed"]


@pytest.mark.deep
def test_slow_lines_are_slow_and_cut_lines_carry_nothing() -> None:
    from slow_network import SlowNetwork, can_make_namespaces

    if not can_make_namespaces():
        pytest.skip("needs root")
    program = """
import socket, sys, time
try:
    began = time.monotonic()
    socket.create_connection((sys.argv[1], 9), timeout=2)
except ConnectionRefusedError:
    print(time.monotonic() - began)
except TimeoutError:
    print(-1)
"""
    with SlowNetwork(2, megabits=50, delay_seconds=0.1) as network:

        def round_trip() -> float:
            words = ["ip", "netns", "exec", network.names[0], sys.executable, "-c", program]
            done = subprocess.run([*words, network.addresses[1]], capture_output=True, check=True)
            return float(done.stdout)

        assert round_trip() >= 0.2
        network.cut((1,), (0,))
        assert round_trip() == -1
        network.heal()
        assert round_trip() >= 0.2
