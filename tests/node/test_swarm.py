"""Real processes over real sockets: a small swarm founded, killed, restarted, joined and lied
to."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerformer import events
from peerformer.config import DataConfig
from peerformer.errors import PeerformerError
from peerformer.gradients.fixed_point import parameters_of
from peerformer.interface.cli import main
from peerformer.journal import read_journal
from peerformer.model.transformer import Transformer
from peerformer.node.assemble import PeerOptions
from peerformer.node.directory import SwarmDirectory
from peerformer.node.evidence import evidence_file
from peerformer.node.keyring import save_key
from peerformer.node.overview import overview
from peerformer.node.reach import Reach
from peerformer.node.supervisor import Supervisor
from peerformer.protocol.conduct import ROUNDS_SERVED
from peerformer.protocol.identity import KeyPair, name_of
from peerformer.settings import resolve
from peerformer.train.privacy import epsilon
from peerformer.train.recipe import recipe_config

SECONDS_MAX = 90.0
SMALL = {
    "size": "nano",
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
    "swarm.inner_steps": 4,
    "swarm.idle_rounds_max": 0,  # a few seconds are thirty rounds here
}


def small(peers: int, **more: object) -> Any:
    """The configuration of a swarm that decides a round in a second or two."""
    overrides = {name: value for name, value in SMALL.items() if name != "size"}
    return resolve(size="nano", overrides={**overrides, "swarm.peers": peers, **more}).config


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisor whose peers are stopped at the end, whatever happens."""
    made = Supervisor(SwarmDirectory(tmp_path / "swarm"))
    yield made
    made.stop()


def start(supervisor: Supervisor, attacks: dict[str, str] | None = None) -> list[str]:
    """Start all peers with a directory; returns their names."""
    names = [directory.name for directory in supervisor.swarm.peers()]
    children = [
        supervisor.start(name, PeerOptions(threads=1, attack=(attacks or {}).get(name)))
        for name in names
    ]
    supervisor.await_listening(children)
    return names


def until(
    supervisor: Supervisor,
    condition: Callable[[dict[str, Any]], bool],
    seconds: float = SECONDS_MAX,
) -> dict[str, Any]:
    """Look until a condition holds; fails with the last look after a while."""
    deadline = time.monotonic() + seconds
    while True:
        now = overview(supervisor.swarm)
        if condition(now):
            return now
        assert time.monotonic() < deadline, now
        time.sleep(0.1)


def row(now: dict[str, Any], name: str) -> dict[str, Any]:
    """The row of one peer."""
    return next(row for row in now["peers"] if row["name"] == name)


def at_round(supervisor: Supervisor, number: int, names: list[str]) -> dict[str, Any]:
    """Wait until these peers hold the state of a round or a later one."""
    return until(
        supervisor, lambda now: all((row(now, n)["state_round"] or 0) >= number for n in names)
    )


def roots(supervisor: Supervisor, name: str) -> dict[int, str]:
    """The state roots that a peer's journal says were decided."""
    journal = read_journal(supervisor.swarm.peer(name).journal)
    return {e.round: e.state_root for e in journal if isinstance(e, events.RoundCommitted)}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("staleness", [0, pytest.param(1, marks=pytest.mark.deep)])
def test_a_killed_peer_comes_back_to_the_state_of_the_others(
    supervisor: Supervisor, staleness: int
) -> None:
    supervisor.found(small(4, **{"swarm.staleness": staleness}), lambda _: None)
    names = start(supervisor)
    at_round(supervisor, 2, names)
    victim = names[-1]
    supervisor.kill(victim)
    others = names[:-1]
    decided = overview(supervisor.swarm)["round"]
    at_round(supervisor, decided + 2, others)
    supervisor.await_listening([supervisor.start(victim)])
    decided = overview(supervisor.swarm)["round"]
    at_round(supervisor, decided + 2, names)
    by_peer = [roots(supervisor, name) for name in names]
    shared = set.intersection(*(set(found) for found in by_peer))
    assert len(shared) >= 3
    for number in shared:
        assert len({found[number] for found in by_peer}) == 1, number
    until(supervisor, lambda now: (row(now, victim)["utilisation"] or 0.0) > 0.0)


@pytest.mark.timeout(200)
def test_a_newcomer_joins_and_an_equivocator_is_evicted(supervisor: Supervisor) -> None:
    config = small(4)
    supervisor.found(config, lambda _: None)
    names = start(supervisor)
    newcomer = supervisor.add(None)
    until(supervisor, lambda now: row(now, newcomer)["role"] == "voter")
    at_round(supervisor, overview(supervisor.swarm)["round"] + 1, [*names, newcomer])
    liar = names[0]
    supervisor.order(liar, "lie", "equivocate")
    until(supervisor, lambda now: row(now, liar)["state"] == "evicted")
    honest = [*names[1:], newcomer]
    at_round(supervisor, overview(supervisor.swarm)["round"] + 1, honest)
    evicted = [
        event.name
        for event in read_journal(supervisor.swarm.peer(honest[0]).journal)
        if isinstance(event, events.PeerEvicted)
    ]
    assert evicted == [liar]
    supervisor.children[liar].process.join(20)
    assert supervisor.children[liar].process.exitcode == 5
    again = supervisor.start(liar)  # its own store says that it is out
    with pytest.raises(PeerformerError, match="did not come up"):
        supervisor.await_listening([again])
    again.process.join(20)
    assert again.process.exitcode == 5


@pytest.mark.timeout(200)
def test_a_voter_that_attests_garbage_is_evicted_and_anybody_can_check_why(
    supervisor: Supervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor.found(small(4), lambda _: None)
    names = [directory.name for directory in supervisor.swarm.peers()]
    liar, honest = names[0], names[1:]
    start(supervisor, {liar: "garbage"})
    until(supervisor, lambda now: row(now, liar)["state"] == "evicted")
    at_round(supervisor, overview(supervisor.swarm)["round"], honest)
    journal = list(read_journal(supervisor.swarm.peer(honest[0]).journal))
    (event,) = (event for event in journal if isinstance(event, events.PeerEvicted))
    assert event.name == liar and "does not decode" in event.evidence

    # Another program: the genesis, the evidence and the contribution are all that it has.
    genesis = supervisor.swarm.genesis()
    path = evidence_file(supervisor.swarm.peer(honest[0]).path, event)
    copied = tmp_path / "genesis-from-a-friend.bin"
    copied.write_bytes(genesis.to_bytes())
    capsys.readouterr()
    words = ["verify", str(path), "--genesis", str(copied), "--json"]
    assert main(words) == 1 and "--blob" in capsys.readouterr().out
    assert main([*words, "--blob", str(path.with_suffix(".blob"))]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in shown["convicted"]] == [liar]
    config = recipe_config(genesis.recipe, threads=1, data=None)
    parameters = sum(p.numel() for p in Transformer(config.model).parameters())
    assert parameters_of(genesis.state_size) == parameters


@pytest.mark.timeout(200)
def test_who_trains_less_than_its_share_is_found_by_those_who_repeat_it(
    supervisor: Supervisor,
) -> None:
    config = small(4, **{"swarm.audits": 1.0, "swarm.inner_steps": 24})
    supervisor.found(config, lambda _: None)
    names = [directory.name for directory in supervisor.swarm.peers()]
    lazy, honest = names[0], names[1:]
    start(supervisor, {lazy: "half-steps"})

    def told(name: str, kind: type) -> list[Any]:
        journal = read_journal(supervisor.swarm.peer(name).journal)
        return [event for event in journal if isinstance(event, kind)]

    def failed(_: dict[str, Any]) -> set[str]:
        refused = told(honest[0], events.ContributionRefused)
        return {event.name for event in refused if "auditors" in event.reason}

    until(supervisor, lambda now: bool(failed(now)))
    found = [event for name in honest for event in told(name, events.PeerAudited)]
    assert all(event.passed for event in found if event.name != lazy), found
    assert failed({}) == {lazy}
    assert not told(honest[0], events.PeerEvicted)  # it is no evidence


def test_a_peer_with_another_text_does_not_start_where_trainings_are_repeated(
    supervisor: Supervisor,
) -> None:
    supervisor.found(small(4, **{"swarm.audits": 0.5}), lambda _: None)
    name = supervisor.swarm.peers()[0].name
    other = PeerOptions(threads=1, data=DataConfig(path="synthetic:2"))
    with pytest.raises(PeerformerError, match="did not come up"):
        supervisor.await_listening([supervisor.start(name, other)])
    log = (supervisor.swarm.peer(name).path / "peerformer.log").read_text()
    assert "text is another than the one that all of this swarm train on" in log
    assert "--data" in log and "Traceback" not in log


@pytest.mark.timeout(200)
def test_what_noise_has_given_away_is_counted_over_restarts(supervisor: Supervisor) -> None:
    harm = {"swarm.harm_micronats": 10**9}  # noise does harm
    supervisor.found(small(2, **{"swarm.privacy_noise": 2.0, **harm}), lambda _: None)
    names = start(supervisor)

    def all_counted(now: dict[str, Any]) -> bool:
        """Others may tell of a contribution before its author's status does."""
        mine = row(now, names[0])
        made = mine["contributed"]
        return made >= 3 and epsilon(made, noise=2.0, delta=1e-5) <= mine["epsilon"]

    before = row(until(supervisor, all_counted), names[0])["epsilon"]
    supervisor.stop()
    start(supervisor)
    now = at_round(supervisor, overview(supervisor.swarm)["round"] + 2, names)
    assert row(now, names[0])["epsilon"] > before


@pytest.mark.timeout(200)
def test_each_source_of_the_held_out_text_is_measured_by_itself(
    supervisor: Supervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, line in (("easy", "a a a a a a a a\n"), ("hard", "q7!x zk#9 wv%3 pj&1 8fh?\n")):
        (tmp_path / "text" / folder).mkdir(parents=True)
        for number in range(30):
            words = f"{number} " + line * 40
            (tmp_path / "text" / folder / f"{number}.txt").write_text(words)
    given = {"data.path": str(tmp_path / "text"), "data.validation_fraction": 0.3}
    supervisor.found(small(2, **given), lambda _: None)
    start(supervisor)
    until(supervisor, lambda now: len(now["bits_per_byte"]) >= 3)
    now = until(supervisor, lambda now: set(now["bits_per_byte_by_source"]) == {"easy", "hard"})
    assert now["bits_per_byte_by_source"]["easy"] < now["bits_per_byte_by_source"]["hard"]
    assert main(["status", str(supervisor.swarm.path)]) == 0
    assert "held out by source: hard" in capsys.readouterr().out
    journal = list(read_journal(supervisor.swarm.peers()[0].journal))
    told = {event.source for event in journal if isinstance(event, events.SourceValidated)}
    assert told == {"easy", "hard"}


@pytest.mark.timeout(200)
def test_who_leaves_too_few_behind_says_that_they_need_its_vote(supervisor: Supervisor) -> None:
    supervisor.found(small(2), lambda _: None)
    gone, leaving = start(supervisor)
    at_round(supervisor, 1, [gone, leaving])
    supervisor.kill(gone)
    supervisor.order(leaving, "leave")
    supervisor.children[leaving].process.join(60)
    (told,) = (
        event
        for event in read_journal(supervisor.swarm.peer(leaving).journal)
        if isinstance(event, events.NodeStopped)
    )
    assert "still a member" in told.reason and "too few to decide" in told.reason


@pytest.mark.timeout(200)
def test_a_guest_contributes_without_a_vote(supervisor: Supervisor) -> None:
    supervisor.found(small(4), lambda _: None)
    names = start(supervisor)
    seed = b"\x77" * 32
    guest = name_of(KeyPair.from_seed(seed).peer_id)
    save_key(supervisor.swarm.peer(guest).make().key, seed)
    supervisor.await_listening([supervisor.start(guest, PeerOptions(threads=1, guest=True))])
    now = until(supervisor, lambda now: row(now, guest)["accepted"] > 0)
    assert row(now, guest)["role"] == "guest" and now["quorum"] == 3
    at_round(supervisor, now["round"] + 1, [*names, guest])
    joined = [
        (event.name, event.role)
        for event in read_journal(supervisor.swarm.peer(names[0]).journal)
        if isinstance(event, events.PeerJoined)
    ]
    assert joined == [(guest, "guest")]


@pytest.mark.timeout(200)
def test_a_stopped_swarm_goes_on_where_it_was(supervisor: Supervisor) -> None:
    supervisor.found(small(4), lambda _: None)
    names = start(supervisor)
    at_round(supervisor, 2, names)
    supervisor.stop()
    before = {name: roots(supervisor, name) for name in names}
    again = Supervisor(supervisor.swarm)
    try:
        start(again)
        last = max(max(found) for found in before.values())
        at_round(again, last + 1, names)
        for name in names:
            now = roots(again, name)
            assert {n: now[n] for n in before[name]} == before[name]
    finally:
        again.stop()


def test_two_whose_newest_state_was_saved_nowhere_make_it_again(supervisor: Supervisor) -> None:
    """As if their power had failed after a round was decided and before its state was on a disk."""
    supervisor.found(small(2), lambda _: None)
    names = start(supervisor)
    at_round(supervisor, 3, names)
    supervisor.stop()
    decided = {name: roots(supervisor, name) for name in names}
    last = max(max(found) for found in decided.values())
    for name in names:
        for path in supervisor.swarm.peer(name).states.glob("*.state"):
            if int(path.stem) >= last:
                path.unlink()
        assert list(supervisor.swarm.peer(name).states.iterdir())
    again = Supervisor(supervisor.swarm)
    try:
        start(again)
        at_round(again, last + 1, names)
        for name in names:
            assert roots(again, name)[last] == max(decided.values(), key=max)[last]
    finally:
        again.stop()


@pytest.mark.deep
@pytest.mark.timeout(400)
def test_a_state_that_takes_longer_to_fetch_than_many_rounds_is_brought_to_the_tip(
    supervisor: Supervisor,
) -> None:
    """Slow uplinks: what the others decide meanwhile is gathered, and computed in the end."""
    wide = {"model.hidden_size": 192, "model.intermediate_size": 768, "model.num_layers": 2}
    config = small(4, **wide, **{"swarm.codec": "sparse-2bit", "model.head_dim": 96})
    supervisor.found(config, lambda _: None)
    *names, late = [directory.name for directory in supervisor.swarm.peers()]
    slow = Reach(upload_bytes_per_second=150_000)
    options = PeerOptions(threads=1, validates=False, reach=slow)
    supervisor.await_listening([supervisor.start(name, options) for name in names])
    at_round(supervisor, 6, names)
    supervisor.await_listening([supervisor.start(late, options)])
    until(supervisor, lambda now: row(now, late)["accepted"] > 0, seconds=300)
    journal = list(read_journal(supervisor.swarm.peer(late).journal))
    (fetched,) = (event for event in journal if isinstance(event, events.SyncFinished))
    ends = next(number for number, event in enumerate(journal) if event == fetched)
    missed = [e for e in journal[:ends] if isinstance(e, events.RoundCommitted)]
    behind = max(e.round for e in missed) - fetched.round
    print(f"{fetched.bytes / 1e6:.1f} MB in {fetched.seconds:.0f} s: {behind} rounds behind")
    assert behind > ROUNDS_SERVED, "a faster line than was meant"
