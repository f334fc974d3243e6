"""`peerformer doctor`: this machine alone, and by a ticket of a swarm that runs in a process."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerformer import __version__
from peerformer.interface.cli import main
from peerformer.node.findings import GUEST, NO, NOTHING, VOTER, WARNING, Finding, Report
from peerformer.node.keyring import load_key
from peerformer.node.own_checkup import Needs, look_at_this_machine
from peerformer.protocol.identity import KeyPair
from peerformer.protocol.ticket import Place, read_ticket, write_ticket
from tests.node.founder import (
    SECONDS_MAX,
    WITH_ANOTHER_CLOCK,
    Founder,
    founder,
    started,
    ticket_of,
)

__all__ = ["founder"]  # the fixture

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `doctor --json`, and its findings by name, with the last of each."""
    capsys.readouterr()
    code = main(["doctor", *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    return code, {**{one["what"]: one for one in found["findings"]}, "all": found}


def test_this_machine_alone_is_looked_at_without_a_ticket(here: Path, capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    *lines, verdict = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["python", "torch", "memory", "disk"]
    assert all(" ok " in line for line in lines) and "this machine can train" in verdict
    assert list(here.iterdir()) == []


def test_what_is_too_little_is_said_with_its_cure(here: Path) -> None:
    found = {f.what: f for f in look_at_this_machine(here, Needs(10**15, 10**18))}
    assert found["memory"].verdict == found["disk"].verdict == NO
    assert "1000000.0 GB" in found["memory"].measured and "make room" in found["disk"].cure


def test_a_verdict_follows_from_the_findings() -> None:
    good, bad = Finding("clock", "0.1 s"), Finding("clock", "600 s behind", NO, "set it")
    assert Report((good,), True, is_reached=True).can == VOTER
    guest = Report((good, Finding("reached", "no", WARNING)), True, is_reached=False)
    assert guest.can == GUEST and "behind NAT" in guest.sentence
    refused = Report((good, bad), True, is_reached=True)
    assert refused.can == NOTHING
    assert refused.sentence == "cannot join: clock: 600 s behind"


@pytest.mark.timeout(200)
def test_a_machine_that_is_reached_can_join_as_a_voter_and_nothing_is_spent(
    founder: Founder, here: Path, capsys: Capture
) -> None:
    ticket = ticket_of(founder, capsys, "--uses", "2")
    for _ in range(2):
        code, found = examined(capsys, ticket, "--port", "0")
        assert code == 0 and found["all"]["can"] == VOTER, found["all"]
        assert found["admission"]["measured"].endswith("lets 2 more in by this ticket")
    assert found["reached"]["verdict"] == "ok" and "127.0.0.1:" in found["reached"]["measured"]
    assert __version__ in found["versions"]["measured"] and found["clock"]["verdict"] == "ok"
    assert "Mbit/s" in found["upload"]["measured"]
    assert "this swarm takes" in found["memory"]["measured"]
    assert "this swarm takes" in found["disk"]["measured"]
    assert list(here.iterdir()) == []  # it has written nothing
    members = [member["name"] for member in founder.status["members"]]
    assert members == [founder.status["name"]]


def test_a_machine_that_nobody_reaches_can_be_a_guest(founder: Founder, capsys: Capture) -> None:
    ticket = ticket_of(founder, capsys)
    # It listens on another address than the one that its connections come from, as behind NAT.
    code, found = examined(capsys, ticket, "--port", "0", "--host", "127.0.0.2")
    assert code == 0 and found["all"]["can"] == GUEST
    assert found["reached"]["verdict"] == WARNING and "router" in found["reached"]["cure"]


def test_what_keeps_a_machine_out_is_a_finding_and_exit_code_1(
    founder: Founder, capsys: Capture
) -> None:
    ticket = ticket_of(founder, capsys)
    good = read_ticket(ticket, time.time())
    keys = KeyPair.from_seed(load_key(founder.directory / "runs" / "mine" / "peers" / "me" / "key"))
    nowhere = (Place(keys.peer_id, b"127.0.0.1:1"),)
    port = founder.address.rpartition(":")[2]
    for changes, words, what, said in (
        ({"expires": int(time.time()) - 60}, (), "ticket", "expired 1.0 minutes ago"),
        ({"places": nowhere}, (), "members", "nobody of this ticket is reached"),
        ({"chain_id": bytes(32)}, (), "member", "another swarm than the ticket"),
        ({}, ("--port", port), "listen", "cannot listen on"),
    ):
        changed = write_ticket(keys, replace(good.invitation, **changes))
        code, found = examined(capsys, changed, *(words or ("--port", "0")))
        assert code == 1 and found["all"]["can"] == NOTHING, found["all"]
        assert found[what]["verdict"] == NO and said in found[what]["measured"]
        assert found["all"]["verdict"].startswith("cannot join: ")
    assert main(["doctor", ticket[:-3]]) == 2
    assert "the ticket is damaged" in capsys.readouterr().err


@pytest.mark.deep  # half a minute; test_joining has clocks of all kinds
@pytest.mark.timeout(400)
def test_a_clock_that_is_ten_minutes_off_keeps_a_machine_out(
    founder: Founder, here: Path, capsys: Capture
) -> None:
    ticket = ticket_of(founder, capsys)
    before = WITH_ANOTHER_CLOCK.format(seconds=-600)
    process = started(here, "doctor", ticket, "--port", "0", before=before)
    try:
        told, _ = process.communicate(timeout=2 * SECONDS_MAX)
    finally:
        process.kill()
    assert process.returncode == 1, told
    (line,) = (line for line in told.splitlines() if line.startswith("clock"))
    assert " no " in line and "s behind" in line and "more than 5.0 minutes" in line
    assert "timedatectl" in told


def test_the_uplink_is_measured_within_what_a_member_takes(
    founder: Founder, capsys: Capture
) -> None:
    ticket = ticket_of(founder, capsys)
    before = founder.status["bytes_received"]
    code, _ = examined(capsys, ticket, "--port", "0")
    assert code == 0
    deadline = time.monotonic() + 30
    while founder.status["bytes_received"] - before < 2_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert founder.status["bytes_received"] - before < 6_000_000
