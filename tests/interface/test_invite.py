"""`peerformer invite`: terms that hold, a warning where nobody could follow, and a code to scan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zxingcpp

from peerformer.errors import ConfigError
from peerformer.interface.cli import main
from peerformer.interface.commands.invite import remarks, seconds_of
from peerformer.interface.qr import qr_lines
from peerformer.node.directory import SwarmDirectory, write_durably
from peerformer.node.inviting import Terms, invitation_of, is_loopback
from peerformer.protocol.genesis import ADMISSION_CLOSED, ADMISSION_INVITE
from peerformer.protocol.identity import KeyPair
from tests.protocol.test_machine import GENESIS, PEERS, SEEDS
from tests.protocol.test_ticket import INVITATION

Capture = pytest.CaptureFixture[str]
KEYS = KeyPair.from_seed(SEEDS[PEERS[0]])


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1_800), ("24h", 86_400), ("7d", 604_800), (" 60d ", 5_184_000)]
)
def test_a_time_is_minutes_hours_or_days(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "24", "0h", "-1h", "1w", "61d", "1.5h", "９h", "9" * 30 + "m"]
)
def test_another_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        seconds_of(text)
    assert "--expires 24h" in str(caught.value)


def swarm_of(path: Path, admission: int) -> SwarmDirectory:
    swarm = SwarmDirectory(path / "runs" / "mine")
    swarm.peer("me").make()
    genesis = replace(GENESIS, limits=replace(GENESIS.limits, admission=admission))
    write_durably(swarm.genesis_file, genesis.to_bytes())
    return swarm


@pytest.mark.parametrize(
    ("admission", "uses", "said"),
    [
        (ADMISSION_CLOSED, None, "nobody can join this swarm"),
        (GENESIS.limits.admission, 3, "nobody counts who comes into this swarm"),
    ],
)
def test_terms_that_a_swarm_cannot_hold_to_are_refused(
    admission: int, uses: int | None, said: str, tmp_path: Path
) -> None:
    swarm = swarm_of(tmp_path, admission)
    with pytest.raises(ConfigError, match=said) as caught:
        invitation_of(swarm, swarm.peer("me"), KEYS, (), 0.0, Terms(60.0, uses))
    assert "--admission invite" in str(caught.value)


def test_a_peer_without_a_vote_invites_nobody(tmp_path: Path) -> None:
    swarm = swarm_of(tmp_path, ADMISSION_INVITE)
    me = swarm.peer("me")
    me.status.write_text('{"peer_id": "aa", "members": [{"peer_id": "aa", "role": "guest"}]}')
    with pytest.raises(ConfigError, match="has no vote"):
        invitation_of(swarm, me, KEYS, (), 0.0, Terms(60.0))


def test_a_ticket_that_works_on_this_machine_only_is_warned_of() -> None:
    here = [replace(INVITATION.places[0], address=a) for a in (b"127.0.0.1:1", b"[::1]:2")]
    lines = "\n".join(remarks(replace(INVITATION, places=tuple(here)), GENESIS))
    assert "works on this machine only" in lines and "--host 0.0.0.0" in lines
    outside = replace(here[0], address=b"192.0.2.1:8888")
    lines = "\n".join(remarks(replace(INVITATION, places=(outside, here[0])), GENESIS))
    assert "only" not in lines and "192.0.2.1:8888" in lines


def test_more_uses_than_a_voter_may_vouch_for_at_once_are_said_to_wait() -> None:
    quota = GENESIS.limits.joins_per_voucher
    assert any(
        "more wait" in line for line in remarks(replace(INVITATION, uses=quota + 1), GENESIS)
    )
    assert not any(
        "more wait" in line for line in remarks(replace(INVITATION, uses=quota), GENESIS)
    )


def test_loopback_addresses_are_known_in_all_their_forms() -> None:
    assert all(map(is_loopback, ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1")))
    assert not any(map(is_loopback, ("192.0.2.1:1", "[2001:db8::1]:1", "127.example:1"[4:])))


@pytest.mark.parametrize("length", [1, 384, 700])
def test_the_code_in_the_terminal_reads_as_the_ticket(length: int) -> None:
    text = ("peerformer1" + "Ab-_9" * length)[:length]
    lines = qr_lines(text)
    assert len({len(line) for line in lines}) == 1
    light = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
    rows = [[light[mark][half] for mark in line] for line in lines for half in (0, 1)]
    pixels = np.kron(np.array(rows, np.uint8) * 255, np.ones((4, 4), np.uint8))
    (read,) = zxingcpp.read_barcodes(pixels)
    assert read.text == text and read.format == zxingcpp.BarcodeFormat.QRCode


def test_uses_out_of_bounds_are_a_usage_error(capsys: Capture) -> None:
    for uses in ("0", "1001"):
        assert main(["invite", "--uses", uses]) == 2
        assert "--uses must be between 1 and 1000" in capsys.readouterr().err
