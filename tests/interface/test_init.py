"""`peerformer init`: it founds all or nothing, and says what is fixed and what to type next."""

import json
from pathlib import Path

import pytest

from peerformer.interface.cli import main
from peerformer.node.directory import SwarmDirectory
from peerformer.node.keyring import load_key
from peerformer.protocol.genesis import ADMISSION_INVITE, ADMISSION_OPEN
from peerformer.protocol.identity import KeyPair
from tests.interface.test_up import SMALL

Capture = pytest.CaptureFixture[str]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]


def test_it_founds_a_swarm_of_one_and_tells_what_is_fixed_and_what_comes_next(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--size", "nano", "--admission", "invite", "--data", "synthetic:1", *SETTINGS]
    assert main(["init", "our-run", *words]) == 0
    told = capsys.readouterr().out
    swarm = SwarmDirectory(tmp_path / "runs" / "our-run")
    genesis = swarm.genesis()
    assert genesis.limits.admission == ADMISSION_INVITE and genesis.name == b"our-run"
    keys = KeyPair.from_seed(load_key(swarm.peer("me").key))
    assert [founder.peer for founder in genesis.founders] == [keys.peer_id]
    assert swarm.first_state.stat().st_size == genesis.state_size
    for part in ("1 layers, 32 wide", "4 steps a round", "rule        robust", "dense-int8"):
        assert part in told
    assert "admission   by invitation" in told and "1 of 1 voters are needed" in told
    assert "peerformer node --run our-run --host 0.0.0.0" in told
    assert "peerformer invite our-run --expires 24h --uses 3" in told
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["our-run"]
    assert not swarm.peer("me").status.exists()  # nothing was started

    before = swarm.genesis_file.read_bytes()
    assert main(["init", "our-run", *words]) == 2
    assert "there is a run called our-run already" in capsys.readouterr().err
    assert swarm.genesis_file.read_bytes() == before


def test_it_takes_its_settings_from_a_file_and_as_many_founders_as_one_wants(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nested: dict[str, dict[str, object]] = {"data": {"path": "synthetic:1"}}
    for setting in (*SMALL, "swarm.outer_momentum=0.25"):
        name, _, value = setting.partition("=")
        section, _, field = name.partition(".")
        nested.setdefault(section, {})[field] = json.loads(value)
    (tmp_path / "four.json").write_text(json.dumps({"size": "nano", **nested}))
    assert main(["init", "four.json", "--founders", "4"]) == 0
    told = capsys.readouterr().out
    swarm = SwarmDirectory(tmp_path / "runs" / "four")
    genesis = swarm.genesis()
    assert len(genesis.founders) == len(swarm.peers()) == 4
    assert genesis.limits.admission == ADMISSION_OPEN
    assert json.loads(genesis.recipe)["swarm"]["outer_momentum"] == 0.25
    assert "1 of 4 voters may lie or be away" in told and "peerformer up --run four" in told


@pytest.mark.parametrize(
    ("words", "code", "said", "cure"),
    [
        (["x.json"], 2, "there is no file x.json", "peerformer init x"),
        (["../up"], 2, "is no name for a swarm", "peerformer init my-run"),
        (["x", "--admission", "friends"], 2, "friends", "invite"),
        (["x", "--admission", "closed"], 2, "nobody could ever join", "--founders 4"),
        (["x", "--founders", "0"], 2, "--founders must be between", ""),
        (["x", "--rule", "best"], 2, "rule", ""),
        (["x", "--set", "swarm.rule=best"], 2, "best", ""),
        (["x", "--set", "swarm.vouchers=2"], 2, "nobody could ever join", "swarm.vouchers=1"),
        (["x", "--data", "not-there"], 1, "there is no not-there", "--data"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing_behind(
    words: list[str],
    code: int,
    said: str,
    cure: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", *words]) == code
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and said in told and cure in told, told
    assert list(tmp_path.iterdir()) == []
