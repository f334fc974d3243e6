"""`peerformer up` as a user runs it: orders from a second terminal, Ctrl-C, and the same again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerformer.interface.commands.up import lab_config
from peerformer.node.directory import SwarmDirectory
from peerformer.node.keyring import load_or_create_key
from peerformer.node.overview import overview
from peerformer.protocol.printout import from_text, to_text
from peerformer.settings import resolve

SMALL = (
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.head_dim=16",
    "model.max_positions=32",
    "training.sequence_length=32",
    "training.batch_size=4",
    "data.vocab_size=300",
    "swarm.inner_steps=4",
)
SECONDS_MAX = 100.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def say(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one command."""
    command = [sys.executable, "-m", "peerformer", *words]
    return subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )


def start(directory: Path, *words: str) -> subprocess.Popen[str]:
    """Start `up`."""
    command = [sys.executable, "-m", "peerformer", "up", *words]
    log = (directory / "up.log").open("a")
    return subprocess.Popen(command, cwd=directory, env=ENVIRONMENT, stderr=log, stdout=log)


def until(directory: Path, process: Any, condition: Callable[[Any], bool]) -> dict[str, Any]:
    """Look at what `status --json` shows until a condition holds."""
    deadline = time.monotonic() + SECONDS_MAX
    swarm = SwarmDirectory(directory / "runs" / "mine")
    while True:
        now = overview(swarm) if swarm.genesis_file.exists() else {"peers": [], "round": 0}
        if condition(now):
            return now
        log = (directory / "up.log").read_text()[-2_000:]
        assert process.poll() is None and time.monotonic() < deadline, (now, log)
        time.sleep(0.05)


def state(now: dict[str, Any], name: str) -> str:
    """What a peer is doing."""
    return next((row["state"] for row in now["peers"] if row["name"] == name), "unknown")


@pytest.mark.timeout(300)
def test_a_swarm_takes_orders_stops_at_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    up = start(tmp_path, "--peers", "4", "--run", "mine", "--data", "synthetic:1", *settings)
    try:
        first = until(tmp_path, up, lambda now: now["round"] >= 1)
        genesis = tmp_path / "genesis-from-a-friend.bin"
        genesis.write_bytes((tmp_path / "runs" / "mine" / "genesis.bin").read_bytes())
        verified = say(tmp_path, "verify", "mine", "--genesis", genesis.name, "--json")
        found = json.loads(verified.stdout)  # while the peers are running
        assert verified.returncode == 0 and found["rounds"] >= 1 and found["fault"] is None, found
        victim = first["peers"][0]["name"]
        printed = say(tmp_path, "peer", "state", victim)
        peer = tmp_path / "runs" / "mine" / "peers" / victim
        assert tmp_path / printed.stdout.strip() == peer / "printout.json", printed.stderr
        text = (peer / "printout.json").read_text()
        machine = from_text(text, seed=load_or_create_key(peer / "key"))
        assert machine.chain.tip >= 1 and to_text(machine) == text
        assert say(tmp_path, "peer", "pause", victim).returncode == 0
        until(tmp_path, up, lambda now: state(now, victim) == "paused")
        assert say(tmp_path, "peer", "resume", victim).returncode == 0
        assert say(tmp_path, "peer", "kill", victim).returncode == 0
        until(tmp_path, up, lambda now: state(now, victim) == "down")
        nobody = say(tmp_path, "peer", "kill", "no-such-bird")
        assert nobody.returncode == 4 and "no running peer" in nobody.stderr
        assert say(tmp_path, "peer", "start", victim).returncode == 0
        added = say(tmp_path, "peer", "add", "--adversary", "garbage")
        assert added.returncode == 0, added.stderr
        liar = added.stdout.split()[0]
        unknown = say(tmp_path, "peer", "add", "--adversary", "nonsense")
        assert unknown.returncode == 4 and "sign-flip" in unknown.stderr
        # It attests that its own garbage decodes: that evicts it, for good and by name.
        evicted = until(tmp_path, up, lambda now: state(now, liar) == "evicted")
        evidence = say(tmp_path, "log", "--evidence").stdout
        assert liar in evidence and "does not decode" in evidence
        about = say(tmp_path, "log", "--about", liar, "--evidence", "--json").stdout
        (told,) = (
            fields
            for fields in map(json.loads, about.splitlines())
            if fields["event"] == "peer_evicted"
        )
        assert told["name"] == liar and (tmp_path / told["file"]).is_file()
    finally:
        up.send_signal(signal.SIGINT)
        code = up.wait(60)
    log = (tmp_path / "up.log").read_text()
    assert code == 130 and "saved" in log and "up --run mine" in log, log[-1_000:]
    assert say(tmp_path, "peer", "kill", victim).returncode == 4
    again = start(tmp_path, "--run", "mine", "--rounds", str(evicted["round"] + 3))
    assert again.wait(SECONDS_MAX) == 0, (tmp_path / "up.log").read_text()[-2_000:]
    final = json.loads(say(tmp_path, "status", "--json").stdout)
    assert final["round"] >= evicted["round"] + 3


def test_up_lifts_the_quota_of_vouchers_unless_it_is_asked_for() -> None:
    asked = resolve(overrides={"swarm.joins_per_voucher": "3"})
    assert lab_config(asked).swarm.joins_per_voucher == 3
    assert resolve().config.swarm.joins_per_voucher == 2
    assert lab_config(resolve()).swarm.joins_per_voucher == 0
