"""`peerformer node` day by day: its console, its end, the same command again, as a service."""

import configparser
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from peerformer.errors import ConfigError
from peerformer.interface.running_options import RunningOptions, bytes_per_second
from peerformer.journal import read_journal
from peerformer.node import process, service
from peerformer.node.assemble import PeerOptions
from peerformer.node.limits import TransportLimits
from tests.interface.test_up import ENVIRONMENT, SMALL

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 90.0
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][AB0]|\r")


class Terminal:
    """A node on a terminal of its own."""

    def __init__(self, directory: Path, *words: str, **environment: str) -> None:
        self.ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "peerformer", "node", "--port", "0", *words]
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env={**ENVIRONMENT, "TERM": "xterm", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def until(self, *wanted: str) -> str:
        """Read until all of this was shown; returns what was shown since the last call."""
        deadline, shown = time.monotonic() + SECONDS_MAX, b""
        while not all(word in self.text for word in wanted):
            assert time.monotonic() < deadline, self.text
            if select.select([self.ours], [], [], 0.2)[0]:
                try:
                    shown += os.read(self.ours, 65_536)
                except OSError:
                    break
                self.text = ESCAPES.sub(b"", shown).decode(errors="replace")
        assert all(word in self.text for word in wanted), self.text
        text, self.text = self.text, ""
        return text

    def stop(self) -> None:
        """Send SIGTERM, and read on until it has ended."""
        self.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_MAX
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.ours], [], [], 0.05)[0]:
                try:
                    os.read(self.ours, 65_536)
                except OSError:
                    self.process.wait(SECONDS_MAX)


@pytest.mark.timeout(300)
def test_a_console_answers_while_it_trains_and_the_same_command_goes_on(tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    words = ("--node-id", "alice", "--stay", "--data", "synthetic:1", *settings)
    peer = tmp_path / "runs" / "alice" / "peers" / "me"
    node = Terminal(tmp_path, *words)
    try:
        node.until("listening", "alice>")
        node.until("round 1 decided")
        node.type("sta\t")  # two commands begin so
        node.until("stats", "state")
        node.type("\x15stats\r")
        node.until("held out", "state root", "on disk")
        node.type("tset\r")
        node.until("did you mean test?")
        node.type("log 0\r")
        node.until("it is typed so: log [N]")
        node.type("log 3\r")
        node.until("decided:")
        node.type("test\r")
        told = node.until("PASSED", "the certificate holds")
        assert told.count("prepare") >= 3 and told.count("commit") >= 3 and " ms " in told
        assert "largest difference from the known answer: 0 units" in told
        node.type("pause\r")
        node.until("votes and serves")
        node.stop()
        assert node.process.returncode == 0
    finally:
        if node.process.poll() is None:
            node.process.kill()
    _history_is_private(peer / "console-history")
    before = json.loads((peer / "status.json").read_text())
    assert before["state"].startswith("stopped") and before["paused_by"] == ["by hand"]

    ready = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(ready))
        manager.settimeout(SECONDS_MAX)
        command = [sys.executable, "-m", "peerformer", "node", "--port", "0", *words]
        again = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**ENVIRONMENT, "NOTIFY_SOCKET": str(ready)},
            stdin=subprocess.PIPE,  # on which nothing ever comes
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert b"READY=1" in manager.recv(1_000)
            _await_round(peer / "status.json", before["round"] + 1)
            again.send_signal(signal.SIGTERM)
            assert b"STOPPING=1" in manager.recv(1_000)
            out, _ = again.communicate(timeout=SECONDS_MAX)
        finally:
            if again.poll() is None:
                again.kill()
    assert again.returncode == 0 and "resumed" in out, out
    after = json.loads((peer / "status.json").read_text())
    assert after["peer_id"] == before["peer_id"] and after["disk_bytes"] > 0
    _status_shows_it(tmp_path, after["name"])
    rounds = [e.round for e in read_journal(peer / "journal.jsonl") if hasattr(e, "digest")]
    assert rounds == sorted(set(rounds)), "no round twice"


def _status_shows_it(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "peerformer", "status", "alice"]
    shown = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert "on disk" in shown.stdout and "MB" in shown.stdout, shown.stderr
    assert name in shown.stdout and "elsewhere" not in shown.stdout, shown.stdout


def _await_round(status: Path, number: int) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while json.loads(status.read_text())["round"] < number:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _history_is_private(history: Path) -> None:
    assert history.stat().st_mode & 0o777 == 0o600 and "+log 3" in history.read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10Mbit", 1.25e6),
        ("10 Mbit/s", 1.25e6),
        ("10mbps", 1.25e6),
        ("1.5MB/s", 1.5e6),
        ("500kbit", 62_500.0),
        ("1gbit", 1.25e8),
        ("10", None),
        ("fast", None),
        ("1bit", None),
        ("-5Mbit", None),
    ],
)
def test_amounts_a_second_are_read_as_networks_count_them(
    text: str, expected: float | None
) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="--upload"):
            bytes_per_second(text)
    else:
        assert bytes_per_second(text) == expected


def test_flags_of_the_day_reach_the_peer_or_are_refused() -> None:
    flags = RunningOptions(node_id="alice", upload="8Mbit", between="22:00-07:00", stay=True)
    options = flags.applied_to(PeerOptions())
    assert options.reach.upload_bytes_per_second == 1e6
    assert str(options.hours) == "22:00-07:00" and options.stays
    assert flags.run_name(None, 8888) == "alice" and flags.run_name("other", 8888) == "other"
    assert RunningOptions().run_name(None, 8888) == "node-8888"
    for wrong in ({"node_id": "../up"}, {"node_id": ""}, {"between": "noon"}, {"upload": "x"}):
        with pytest.raises(ConfigError):
            RunningOptions(**wrong)


def test_all_that_an_end_waits_for_is_over_within_ten_seconds() -> None:
    closing = TransportLimits().close_seconds_max
    assert process.LEAVE_SECONDS_MAX + process.STOP_SECONDS_MAX + closing < 10


def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not service.notify(READY=1)
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at-all")
    assert not service.notify(READY=1)


def test_the_unit_runs_a_command_that_exists_and_restarts_only_what_that_helps(
    tmp_path: Path,
) -> None:
    path = ROOT / "deploy" / "systemd" / "peerformer.service"
    unit: Any = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(path.read_text())
    section = unit["Service"]
    assert section["Type"] == "notify" and section["Restart"] == "on-failure"
    assert set(section["RestartPreventExitStatus"].split()) == {"2", "5"}
    words = section["ExecStart"].replace("$PEERFORMER_ARGUMENTS", "--host 0.0.0.0").split()
    from peerformer.interface.cli import build_app

    build_app().parse_args(words[1:], exit_on_error=False, print_error=False)
    if shutil.which("systemd-analyze"):
        text = path.read_text().replace("/usr/local/bin/peerformer", "/bin/true")
        copy = tmp_path / "peerformer.service"
        copy.write_text(text)
        verified = subprocess.run(
            ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True
        )
        assert verified.returncode == 0, verified.stderr
