"""A run whose headers begin at a base holds with a checkpoint of somebody trusted, or not."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerformer.false_base import fork_from
from peerformer.interface.cli import main
from peerformer.node.journal import DATABASE, DurableStore
from peerformer.protocol.checkpoint import BASE_KEY, newest_checkpoint, records_of
from peerformer.protocol.codec import encode
from peerformer.protocol.identity import name_of
from peerformer.simulate.world import Host, World

SEED, SPARE, POINT, TIP = 3, 4, 205, 208


@pytest.fixture(scope="module")
def world() -> World:
    """Four founders and a newcomer that came with an invitation to round 205."""
    print("seed", SEED)
    made = World(SEED, 4, spares=1)
    made.works.train_seconds = lambda _: 1.0
    for index in range(4):
        made.boot(index)
    assert made.run(seconds=3_000, until=lambda: made.tip(0) == POINT)
    machine = made.hosts[0].machine
    assert machine is not None
    made.hosts[SPARE].checkpoint = newest_checkpoint(machine.chain)
    made.boot(SPARE)
    assert made.run(seconds=600, until=lambda: made.tip(SPARE) >= TIP)
    return made


def store(path: Path, world: World, host: Host, records: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    found = DurableStore.open(path, peer_id=host.me, chain_id=world.genesis.chain_id)
    found.persist(sorted(records.items()))
    found.close()
    (path.parent / "genesis.bin").write_bytes(world.genesis.to_bytes())
    return path


@pytest.fixture
def peer(world: World, tmp_path: Path) -> Path:
    host = world.hosts[SPARE]
    return store(tmp_path / "peer", world, host, host.disk.records)


Verify = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    def run(directory: Path, checkpoint: str | None = None) -> tuple[int, dict[str, Any]]:
        words = ["verify", str(directory), "--genesis", str(directory.parent / "genesis.bin")]
        code = main([*words, "--json", *(["--checkpoint", checkpoint] if checkpoint else [])])
        return code, json.loads(capsys.readouterr().out)

    return run


def named(world: World, number: int, digest: bytes | None = None) -> str:
    machine = world.hosts[0].machine
    item = machine.chain.item(number) if machine else None
    assert item is not None
    return f"{number}:{(digest or item.header.digest).hex()}"


def test_it_holds_with_a_checkpoint_and_says_that_the_genesis_alone_is_not_enough(
    world: World, peer: Path, verify: Verify
) -> None:
    code, shown = verify(peer)
    assert code == 1 and not shown["holds"]
    assert "the headers begin at round 101" in shown["fault"]["what"]
    assert "the genesis alone does not vouch for that" in shown["fault"]["what"]
    for number in (200, POINT):
        code, shown = verify(peer, named(world, number))
        assert code == 0 and shown["rounds"] >= TIP, shown


def test_another_checkpoint_does_not_vouch_for_it(world: World, peer: Path, verify: Verify) -> None:
    for checkpoint, words in (
        (named(world, POINT, b"\1" * 32), "another header than the checkpoint's"),
        (named(world, 150), "too near to round 100"),
        (named(world, 50), "not among the headers"),
    ):
        code, shown = verify(peer, checkpoint)
        assert code == 1 and words in shown["fault"]["what"], shown
    assert main(["verify", str(peer), "--genesis", str(peer.parent / "genesis.bin"),
                 "--checkpoint", "205:12"]) == 2  # fmt: skip


def test_a_liars_own_chain_from_a_base_is_refused(
    world: World, tmp_path: Path, verify: Verify
) -> None:
    liar = world.hosts[1].machine
    assert liar is not None
    fork = fork_from(liar, liar.chain.bases[1], POINT)
    path = store(tmp_path / "peer", world, world.hosts[1], dict(records_of(fork)))
    assert verify(path)[0] == 1
    code, shown = verify(path, named(world, POINT))
    assert code == 1 and "another header" in shown["fault"]["what"]


def test_a_base_that_calls_itself_the_genesis_is_not_believed(
    world: World, tmp_path: Path, verify: Verify
) -> None:
    liar = world.hosts[1].machine
    assert liar is not None
    fork = fork_from(liar, liar.chain.base, 20)
    assert fork.base.round == 0
    records = {**dict(records_of(fork)), BASE_KEY: encode(fork.base)}
    path = store(tmp_path / "peer", world, world.hosts[1], records)
    code, shown = verify(path)
    assert code == 1 and shown["fault"]["round"] == 1, shown


def test_a_base_with_a_wrong_word_or_that_is_no_base_is_found(
    world: World, peer: Path, verify: Verify
) -> None:
    machine = world.hosts[SPARE].machine
    assert machine is not None
    false = encode(replace(machine.chain.base, beacon=b"\1" * 32))
    for data, words in ((false, "wrong beacon"), (b"no base", "damaged")):
        connection = sqlite3.connect(peer / DATABASE)
        with connection:
            connection.execute("UPDATE records SET data = ? WHERE key = ?", (data, BASE_KEY))
        connection.close()
        code, shown = verify(peer, named(world, POINT))
        assert code == 1 and words in shown["fault"]["what"], shown


def test_the_log_hands_on_a_round_after_the_base(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = world.hosts[SPARE]
    run = tmp_path / "run"
    store(run / "peers" / name_of(host.me), world, host, host.disk.records)
    (run / "genesis.bin").write_bytes(world.genesis.to_bytes())
    assert main(["log", str(run), "--round", "150", "--certificate"]) == 0
    file = tmp_path / "round.json"
    file.write_text(capsys.readouterr().out)
    assert main(["verify", str(file), "--genesis", str(run / "genesis.bin")]) == 0
    capsys.readouterr()
    assert main(["log", str(run), "--round", "50", "--certificate"]) == 2
    assert "it holds rounds 101 to" in capsys.readouterr().err
