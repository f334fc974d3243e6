"""More than a third is gone for good: those who stay found one new chain, each for itself."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerformer import events
from peerformer.config import DataConfig
from peerformer.errors import ConfigError, DataError, SwarmError
from peerformer.interface.cli import main
from peerformer.journal import read_journal
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import PeerDirectory, SwarmDirectory
from peerformer.node.joining import fetch_swarm
from peerformer.node.journal import DATABASE, DurableStore
from peerformer.node.keyring import load_or_create_key, save_key
from peerformer.node.overview import overview
from peerformer.node.recovery import Recovered, recover
from peerformer.node.supervisor import Supervisor
from peerformer.protocol.chain import Chain
from peerformer.protocol.genesis import Genesis
from peerformer.protocol.identity import KeyPair, name_of
from peerformer.protocol.membership import GUEST
from peerformer.settings import resolve
from peerformer.simulate.world import Host, World

SEED, LIAR, GUEST_INDEX, ROUNDS = 5, 3, 5, 8

# --- worlds of toys: the same genesis for all, and what is refused -------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    """Five voters, one of them evicted, and a guest."""
    print("seed", SEED)
    made = World(SEED, 5, attacks={LIAR: "equivocate"}, spares=1)
    made.hosts[GUEST_INDEX].role = GUEST
    made.start()
    banned, guest = made.hosts[LIAR].me, made.hosts[GUEST_INDEX].me

    def done() -> bool:
        honest = [h.peer.machine.chain for h in made.honest() if h.peer and h.index < GUEST_INDEX]
        ready = all(
            c.tip >= ROUNDS and banned in c.members.banned and c.members.get(guest) for c in honest
        )
        saved = {host.snapshot and host.snapshot[0] for host in made.hosts[:LIAR]}
        return ready and saved == {c.tip for c in honest}

    assert made.run(seconds=600, until=done)
    return made


def chain_of(host: Host) -> Chain:
    assert host.peer is not None
    return host.peer.machine.chain


def laid_out(world: World, index: int, root: Path) -> SwarmDirectory:
    """The run of one host on a machine of its own, as `peerformer node` keeps it."""
    host = world.hosts[index]
    swarm = SwarmDirectory(root / "old")
    swarm.path.mkdir(parents=True)
    swarm.genesis_file.write_bytes(world.genesis.to_bytes())
    swarm.tokenizer.write_bytes(b"a tokenizer")
    swarm.validation.write_bytes(b"a held-out set")
    swarm.first_state.write_bytes(world.replicas.first_state())
    peer = swarm.peer("me").make()
    save_key(peer.key, world._key(index))
    store = DurableStore.open(peer.path, peer_id=host.me, chain_id=world.genesis.chain_id)
    store.persist(sorted(host.disk.records.items()))
    store.close()
    assert host.snapshot is not None
    number, state = host.snapshot
    (peer.states / f"{number:012d}.state").write_bytes(state)
    return swarm


def recovered(swarm: SwarmDirectory, *staying: str, **more: Any) -> Recovered:
    return recover(swarm, swarm.peers(), staying, **more)


def names(world: World, *indices: int) -> list[str]:
    return [name_of(world.hosts[index].me) for index in indices]


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_those_who_stay_found_the_same_chain_without_a_word(world: World, tmp_path: Path) -> None:
    olds = [laid_out(world, index, tmp_path / str(index)) for index in (0, 1)]
    before = [contents(old.path) for old in olds]
    first, second = names(world, 0, 1)
    by_id = world.hosts[1].me.hex()[:12].upper()
    made = [recovered(olds[0], first, second), recovered(olds[1], by_id, first)]
    assert made[0].genesis.to_bytes() == made[1].genesis.to_bytes()
    assert [contents(old.path) for old in olds] == before
    earlier = [recovered(old, first, second, number=0, to="earlier").genesis for old in olds]
    assert earlier[0].to_bytes() == earlier[1].to_bytes() != made[0].genesis.to_bytes()

    chain, genesis = chain_of(world.hosts[0]), made[0].genesis
    number = made[0].chain.tip
    assert number == world.hosts[0].snapshot[0]
    item = chain.item(number)
    assert item is not None and genesis.state_root == item.header.state_root
    members = chain.past_members.get(number + 1, chain.members)
    assert [(f.peer, f.chain_anchor) for f in genesis.founders] == sorted(
        (peer, members.get(peer).chain_anchor)  # type: ignore[union-attr]
        for peer in (world.hosts[0].me, world.hosts[1].me)
    )
    origin = f"world from {chain.chain_id.hex()[:16]}/{number}/{item.header.digest.hex()[:16]}"
    assert genesis.name.decode() == origin
    kept = replace(
        genesis,
        name=world.genesis.name,
        state_root=world.genesis.state_root,
        founders=world.genesis.founders,
    )
    assert kept.to_bytes() == world.genesis.to_bytes()

    new = made[0].swarm
    assert new.first_state.read_bytes() == world.hosts[0].snapshot[1]
    assert new.genesis().chain_id == genesis.chain_id != world.genesis.chain_id
    assert load_or_create_key(new.peer("me").key) == world._key(0)
    assert not (new.peer("me").path / DATABASE).exists()


def test_other_members_or_another_round_are_another_chain(world: World, tmp_path: Path) -> None:
    old = laid_out(world, 0, tmp_path)
    a, b, c = names(world, 0, 1, 2)
    made: list[Genesis] = [
        recovered(old, *staying, to=str(index), **more).genesis
        for index, (staying, more) in enumerate(
            [((a,), {}), ((a, b), {}), ((a, b, c), {}), ((a, b), {"number": 0})]
        )
    ]
    assert len({genesis.chain_id for genesis in made}) == len(made)
    assert made[-1].state_root == world.genesis.state_root


def test_a_chain_that_was_recovered_before_keeps_its_short_name(
    world: World, tmp_path: Path
) -> None:
    old = laid_out(world, 0, tmp_path)
    once = recovered(old, *names(world, 0, 1)).swarm
    peer = once.peer("me")
    store = DurableStore.open(
        peer.path, peer_id=world.hosts[0].me, chain_id=once.genesis().chain_id
    )
    store.close()
    twice = recovered(once, *names(world, 0)).genesis
    chain_id = once.genesis().chain_id.hex()[:16]
    assert twice.name.decode() == f"world from {chain_id}/0/{chain_id}"


def test_a_round_whose_state_is_not_here_is_not_gone_on_from(world: World, tmp_path: Path) -> None:
    old = laid_out(world, 0, tmp_path)
    me = names(world, 0)[0]
    newest = world.hosts[0].snapshot[0]  # type: ignore[index]
    with pytest.raises(ConfigError, match=f"state of round {newest - 1} is not") as caught:
        recovered(old, me, number=newest - 1)
    assert caught.value.hint == f"--round {newest}"
    with pytest.raises(ConfigError, match="state of round 999 is not"):
        recovered(old, me, number=999)
    for path in old.peer("me").states.iterdir():
        path.unlink()
    earlier = recovered(old, me)
    assert (earlier.chain.tip, earlier.tip) == (0, chain_of(world.hosts[0]).tip)
    old.first_state.write_bytes(b"\x01" * 32)
    with pytest.raises(DataError, match="no agreed state is on this disk"):
        recovered(old, me, to="another")


def test_a_store_that_does_not_follow_from_the_genesis_is_refused(
    world: World, tmp_path: Path
) -> None:
    old = laid_out(world, 0, tmp_path)
    store = DurableStore.open(
        old.peer("me").path, peer_id=world.hosts[0].me, chain_id=world.genesis.chain_id
    )
    record = store.load("header/")["header/000000000002"]
    store.persist([("header/000000000002", record[:-1] + bytes([record[-1] ^ 1]))])
    store.close()
    with pytest.raises(DataError, match="do not follow") as caught:
        recovered(old, *names(world, 0))
    assert (caught.value.why or "").startswith("round 2: ")


def test_only_members_with_a_vote_found_a_chain_and_this_peer_is_one(
    world: World, tmp_path: Path
) -> None:
    old = laid_out(world, 0, tmp_path)
    me, other, liar, guest = names(world, 0, 1, LIAR, GUEST_INDEX)
    for words, message in (
        ((me, "nobody"), "no member is called 'nobody'"),
        ((me, liar), f"{liar} was evicted from the old chain"),
        ((me, guest), f"{guest} is a guest"),
        ((other,), "none of those who stay has its key here"),
    ):
        with pytest.raises(ConfigError, match=message):
            recovered(old, *words)
    for name in ("", "..", "elsewhere/new", "/new", "x" * 300):
        with pytest.raises(ConfigError, match="--to takes the name of a run"):
            recovered(old, me, to=name)
    assert main(["recover", "x" * 5_000, "--with", me]) == 2
    with pytest.raises(ConfigError, match="not said who stays") as caught:
        recovered(old)
    shown = caught.value
    assert ",".join(sorted(names(world, 0, 1, 2, 4), key=(shown.hint or "").find)) in shown.hint
    assert guest not in (shown.hint or "") and guest in (shown.why or "")
    assert "attested last in round" in (shown.why or "")
    assert not (tmp_path / f"old-recovered-{world.hosts[0].snapshot[0]}").exists()  # type: ignore[index]


HOLDER = """
import sys
from pathlib import Path
from peerformer.node.journal import DurableStore

store = DurableStore.open(Path(sys.argv[1]), peer_id=bytes.fromhex(sys.argv[2]),
                          chain_id=bytes.fromhex(sys.argv[3]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_running_peer_and_a_directory_that_is_there_are_left_alone(
    world: World, tmp_path: Path
) -> None:
    old = laid_out(world, 0, tmp_path)
    me, chain_id = world.hosts[0].me.hex(), world.genesis.chain_id.hex()
    command = [sys.executable, "-c", HOLDER, str(old.peer("me").path), me, chain_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(SwarmError, match="me is running"):
            recovered(old, *names(world, 0))
        assert holder.stdin is not None
        holder.stdin.close()
    first = recovered(old, *names(world, 0))
    before = contents(first.swarm.path)
    with pytest.raises(ConfigError, match="there already"):
        recovered(old, *names(world, 0))
    # Nor is there a second store in which the key could sign again what it signed in the first.
    with pytest.raises(ConfigError, match="founded here already, with this key"):
        recovered(old, *names(world, 0), to="another")
    assert contents(first.swarm.path) == before
    assert not (tmp_path / "another").exists()


def test_a_quorum_that_stays_is_told_that_nothing_had_to_be_done(
    world: World, tmp_path: Path
) -> None:
    old = laid_out(world, 0, tmp_path)
    voters = len(chain_of(world.hosts[0]).members.voters)
    assert voters == 4
    assert not recovered(old, *names(world, 0, 1), to="few").could_go_on
    assert recovered(old, *names(world, 0, 1, 2), to="many").could_go_on


def test_the_command_says_what_to_type_next(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = laid_out(world, 0, tmp_path)
    peer, staying = str(old.peer("me").path), ",".join(names(world, 0, 1))
    assert main(["recover", peer]) == 2
    told = capsys.readouterr().err
    assert f"try: peerformer recover {old.path} --with " in told and names(world, 0)[0] in told
    assert main(["recover", peer, "--with", staying, "--json", "--to", "new"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["chain_id"] == SwarmDirectory(tmp_path / "new").genesis().chain_id.hex()
    assert (shown["tolerates"], shown["quorum"], shown["peers"]) == (0, 2, ["me"])
    assert shown["next"].startswith(f"peerformer node --run {tmp_path / 'new'} --port ")
    three = ",".join(names(world, 0, 1, 2))
    assert main(["recover", peer, "--with", three, "--to", "newer"]) == 0
    told = capsys.readouterr().out
    assert SwarmDirectory(tmp_path / "newer").genesis().chain_id.hex() in told
    assert "tolerate no Byzantine one" in told and "must not be started again" in told


# --- real processes ------------------------------------------------------------------------------

SECONDS_MAX = 90.0
SMALL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 32,
    "data.path": "synthetic:1",
    "data.vocab_size": 300,
    "training.sequence_length": 32,
    "training.batch_size": 4,
    "training.warmup_steps": 4,
    "swarm.inner_steps": 4,
    "swarm.idle_rounds_max": 0,  # a few seconds are thirty rounds here
    "swarm.peers": 4,
}


@pytest.fixture
def supervise() -> Iterator[Callable[[Path], Supervisor]]:
    """Supervisors whose peers are stopped at the end, whatever happens."""
    made: list[Supervisor] = []

    def supervised(path: Path) -> Supervisor:
        made.append(Supervisor(SwarmDirectory(path)))
        return made[-1]

    yield supervised
    for supervisor in made:
        supervisor.stop()


def start(supervisor: Supervisor, *peers: str, data: DataConfig | None = None) -> None:
    """Start peers of one machine and wait until they listen."""
    supervisor.await_listening(
        [
            supervisor.start(name, PeerOptions(threads=1, data=data, validates=name == peers[0]))
            for name in peers
        ]
    )


def introduce(supervisor: Supervisor, name: str, other: Supervisor, known: str) -> None:
    """Tell a peer where one of another machine is."""
    child = other.children[known]
    supervisor.order(name, "bootstrap", child.address, child.peer_id)


def until(supervisor: Supervisor, name: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Look at a peer's row until a condition holds; fails with the last look after a while."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        now = overview(supervisor.swarm)
        row = next(row for row in now["peers"] if row["name"] == name)
        if holds(row):
            return
        assert time.monotonic() < deadline, row
        time.sleep(0.1)


def state_round(row: dict[str, Any]) -> int:
    return -1 if row["state_round"] is None else int(row["state_round"])


def happened(peer: PeerDirectory, kind: type[Any]) -> list[Any]:
    return [event for event in read_journal(peer.journal) if isinstance(event, kind)]


def stuck(old: Supervisor) -> list[str]:
    """Found a swarm of four and lose the last two for good; returns the names, sorted."""
    old.found(resolve(size="nano", overrides=SMALL).config, lambda _: None)
    first, second, third, fourth = (peer.name for peer in old.swarm.peers())
    start(old, first, second, third, fourth)
    until(old, second, lambda row: state_round(row) >= 1)
    old.kill(second)
    until(old, first, lambda row: state_round(row) >= 4)
    old.kill(third)
    old.kill(fourth)
    start(old, second)  # it was behind, and catches up with the other: that takes no quorum
    introduce(old, second, old, first)
    until(old, first, lambda row: row["state"] == "waiting for a quorum")
    tip = max(row["round"] for row in overview(old.swarm)["peers"] if row["name"] == first)
    until(old, second, lambda row: state_round(row) == tip)
    return [first, second, third, fourth]


def join(newcomer: Supervisor, other: Supervisor, known: str) -> str:
    """Let a peer join that has nothing but another one's address; returns its name."""
    seed, address = b"\x77" * 32, other.children[known].address
    assert address is not None
    asyncio.run(fetch_swarm(newcomer.swarm, seed, address, lambda _: None))
    name = name_of(KeyPair.from_seed(seed).peer_id)
    save_key(newcomer.swarm.peer(name).make().key, seed)
    start(newcomer, name, data=DataConfig(path="synthetic:1"))
    introduce(newcomer, name, other, known)
    return name


@pytest.mark.timeout(300)
def test_two_of_four_go_on_where_the_old_chain_ended(
    supervise: Callable[[Path], Supervisor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = supervise(tmp_path / "old")
    first, second, third, _ = stuck(old)
    capsys.readouterr()
    assert main(["status", str(old.swarm.path)]) == 0
    assert f"peerformer recover {old.swarm.path}" in capsys.readouterr().out.replace("\n", "")
    assert main(["recover", str(old.swarm.path), "--with", f"{first},{second}"]) == 4
    assert "is running" in capsys.readouterr().err
    old.stop()
    tip = overview(old.swarm)["round"]

    # Each on a machine of its own, the same words.
    shown = {}
    for name in (first, second):
        words = ["recover", str(old.swarm.peer(name).path), "--with", f"{first},{second}"]
        assert main([*words, "--to", f"new-{name}", "--json"]) == 0
        shown[name] = json.loads(capsys.readouterr().out)
    assert shown[first]["chain_id"] == shown[second]["chain_id"]
    origin = shown[first]["recovered_from"]
    assert origin["round"] == tip >= 4
    here, there = (supervise(tmp_path / f"new-{name}") for name in (first, second))
    start(here, first)
    start(there, second)
    introduce(there, second, here, first)
    for supervisor, name in ((here, first), (there, second)):
        until(supervisor, name, lambda row: state_round(row) >= 2)

    # They learn on: what held for the last state of the old chain holds for the first of the new.
    assert here.swarm.genesis().state_root.hex() == origin["state_root"]
    before = {e.step: e.loss for e in happened(old.swarm.peer(first), events.Validated)}
    after = {e.step: e.loss for e in happened(here.swarm.peer(first), events.Validated)}
    assert after[0] == pytest.approx(before[tip], rel=1e-4)
    assert after[0] < before[0] and after[max(after)] < before[0]

    # One that was gone comes back on the old chain and finds the new one's peers: no harm done.
    start(old, third)
    introduce(old, third, here, first)
    decided = overview(here.swarm)["round"]
    for supervisor, name in ((here, first), (there, second)):
        until(supervisor, name, lambda row: state_round(row) >= decided + 2)
    until(old, third, lambda row: row["state"] == "waiting for a quorum")
    assert third not in {row["name"] for row in overview(here.swarm)["peers"]}

    # A newcomer needs nothing but an address of the new chain.
    newcomer = supervise(tmp_path / "newcomer")
    name = join(newcomer, here, first)
    until(newcomer, name, lambda row: row["role"] == "voter" and state_round(row) > 2)
    peers = (here.swarm.peer(first), there.swarm.peer(second), newcomer.swarm.peer(name))
    roots = [{e.round: e.state_root for e in happened(p, events.RoundCommitted)} for p in peers]
    shared = set.intersection(*(set(found) for found in roots))
    assert shared and all(len({found[n] for found in roots}) == 1 for n in shared)
