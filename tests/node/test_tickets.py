"""Real processes: a swarm invites, and a newcomer joins by the ticket, or is told why not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerformer.events import CheckpointReached
from peerformer.interface.cli import main
from peerformer.journal import read_journal
from peerformer.node.keyring import load_or_create_key
from peerformer.node.supervisor import Supervisor
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.ticket import DAY_SECONDS, Invitation, read_ticket, write_ticket
from tests.node.test_swarm import SECONDS_MAX, at_round, small, start, supervisor

__all__ = ["supervisor"]  # the fixture

Peerformer = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def peerformer(tmp_path: Path) -> Iterator[Peerformer]:
    """Start commands in a directory of their own; what still runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def run(*words: str) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "peerformer", *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
                text=True,
                stderr=subprocess.PIPE,
            )
        )
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def invite(supervisor: Supervisor, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["invite", str(supervisor.swarm.path)]) == 0
    return capsys.readouterr().out.strip()


def changed(supervisor: Supervisor, ticket: str, **changes: Any) -> str:
    """The ticket with other words, signed by whoever gave it."""
    found = read_ticket(ticket, time.time())
    seeds = [load_or_create_key(peer.key) for peer in supervisor.swarm.peers()]
    keys = {KeyPair.from_seed(seed).peer_id: KeyPair.from_seed(seed) for seed in seeds}
    other: Invitation = replace(found.invitation, **changes)
    return write_ticket(keys[found.inviter], other)


def status_when(
    process: subprocess.Popen[str], path: Path, holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS_MAX
    status: dict[str, Any] = {}
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        if path.is_file():
            status = json.loads(path.read_text())
            if holds(status):
                return status
        time.sleep(0.1)
    raise AssertionError(status)


def accepted(status: dict[str, Any]) -> bool:
    mine = [one for one in status["members"] if one["peer_id"] == status["peer_id"]]
    return any(one["role"] == "voter" and one["accepted"] > 0 for one in mine)


@pytest.mark.timeout(240)
def test_a_newcomer_joins_by_a_ticket_contributes_and_goes_on_after_a_restart(
    supervisor: Supervisor,
    peerformer: Peerformer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    supervisor.found(small(4), lambda _: None)
    at_round(supervisor, 2, start(supervisor))
    ticket = invite(supervisor, capsys)
    point = read_ticket(ticket, time.time()).invitation.checkpoint
    assert point.round >= 2
    me = tmp_path / "runs" / "mine" / "peers" / "me"
    words = ("--port", "0", "--no-console", "--run", "mine", "--data", "synthetic:1")
    process = peerformer("join", ticket, *words)
    status_when(process, me / "status.json", accepted)
    reached = [e for e in read_journal(me / "journal.jsonl") if isinstance(e, CheckpointReached)]
    assert [(event.round, event.from_round) for event in reached] == [(point.round, 0)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads((me / "status.json").read_text())["round"]
    again = peerformer("node", *words)
    status_when(again, me / "status.json", lambda now: now["state_round"] > before)


@pytest.mark.deep  # a minute of real processes; scenarios tell it in a virtual world
@pytest.mark.timeout(200)
def test_a_ticket_to_a_round_that_never_was_leads_nowhere(
    supervisor: Supervisor,
    peerformer: Peerformer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    supervisor.found(small(4), lambda _: None)
    at_round(supervisor, 1, start(supervisor))
    ticket = invite(supervisor, capsys)
    point = read_ticket(ticket, time.time()).invitation.checkpoint
    false = changed(supervisor, ticket, checkpoint=replace(point, digest=b"\1" * 32))
    process = peerformer("join", false, "--port", "0", "--no-console", "--run", "mine")
    _, told = process.communicate(timeout=SECONDS_MAX)
    print(told)
    assert process.returncode == 4 and "Traceback" not in told
    assert told.count(f"another header of round {point.round} than the checkpoint's") == 4
    assert "nobody at this ticket's addresses has the round that it names" in told
    foreign = changed(supervisor, ticket, chain_id=b"\1" * 32)
    process = peerformer("join", foreign, "--port", "0", "--no-console", "--run", "other")
    _, told = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 4 and "is of another swarm than the ticket" in told
    process = peerformer("join", foreign, "--port", "0", "--no-console", "--run", "mine")
    _, told = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 2 and "another swarm than the one in this run" in told
    stale = changed(supervisor, ticket, expires=int(time.time()) - DAY_SECONDS)
    for wrong, words in ((stale, "expired, 1.0 days ago"), (ticket[:-1], "damaged")):
        assert main(["join", wrong, "--run", "none"]) == 2
        assert words in capsys.readouterr().err
