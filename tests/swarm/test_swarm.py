"""A user's own module in a swarm: what is agreed, what stays local, and what goes wrong."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import peerformer
from peerformer.errors import ConfigError, DivergedError, IdentityError, NoQuorum, SwarmError
from peerformer.interface.cli import main
from peerformer.swarm import handover
from tests.swarm.together import (
    SECONDS_MAX,
    Net,
    all_at_once,
    bits,
    close,
    loss_of,
    net,
    pass_rounds,
    settled,
    sgd,
    swarms,
    train,
)

ROUNDS = 12


@pytest.fixture
def peers() -> Iterator[list]:
    """Peers that are closed at the end, whatever happens."""
    running: list[peerformer.Swarm] = []
    yield running
    close(running) if running else None


def alone(path: Path, model: nn.Module, **settings: object) -> peerformer.Swarm:
    return peerformer.Swarm.found(
        path,
        model=model,
        optimizer=sgd(model),
        settings={"inner_steps": 2, **settings},
        timeout_seconds=SECONDS_MAX,
    )


def train_all(peers: list, rounds: int = ROUNDS) -> list[list[float]]:
    """All train for so many rounds, from the first one of all of them."""
    first = peers[0].wait_for(len(peers))
    works = [lambda i=i: train(peers[i], first + rounds, i) for i in range(len(peers))]
    return all_at_once(works)


@pytest.mark.parametrize("staleness", [pytest.param(0, marks=pytest.mark.deep), 1])
def test_every_peer_holds_the_same_bits_and_the_loss_falls(
    tmp_path: Path, peers: list, staleness: int
) -> None:
    peers += swarms(tmp_path, 3, staleness=staleness)
    before = [float(loss_of(net(0), seed).detach()) for seed in range(50, 60)]
    losses = train_all(peers)
    settled(peers)
    for peer in peers:
        peer.adopt()
    assert len({bits(peer.model) for peer in peers}) == 1
    after = [float(loss_of(peers[0].model, seed).detach()) for seed in range(50, 60)]
    assert sum(after) < 0.8 * sum(before)
    # Statistics of the batches that each has seen are each one's own.
    assert len({peer.model.norm.running_mean.numpy().tobytes() for peer in peers}) == 3
    members = peers[0].status()["members"]
    assert all(member["accepted"] >= ROUNDS - 2 for member in members)
    assert all(len(taken) >= 2 * (ROUNDS - 2) for taken in losses)


def test_only_every_hth_step_contributes_and_the_module_moves_in_steps_alone(
    tmp_path: Path, peers: list
) -> None:
    peers.append(alone(tmp_path / "a", net(), inner_steps=3))
    swarm, seen = peers[0], []
    for number in range(6):
        loss_of(swarm.model, number).backward()
        before = bits(swarm.model)
        assert bits(swarm.model) == before  # nothing but a step changes it
        seen.append((swarm.step(), swarm.agreed_round))
    assert [contributed for contributed, _ in seen] == [False, False, True] * 2
    assert seen[2][1] == seen[0][1] + 1 and seen[5][1] == seen[0][1] + 2


@pytest.mark.parametrize("staleness", [0, 1])
def test_alone_and_without_an_outer_step_a_swarm_is_plain_training(
    tmp_path: Path, peers: list, staleness: int
) -> None:
    exact = {"rule": "mean", "codec": "none", "outer_learning_rate": 1.0, "outer_momentum": 0.0}
    peers.append(alone(tmp_path / "a", net(), staleness=staleness, inner_steps=3, **exact))
    taken = len(train(peers[0], peers[0].agreed_round + 6, 1))
    plain = net()
    optimizer = sgd(plain)
    for step in range(taken):
        optimizer.zero_grad()
        loss_of(plain, 1_000 + step).backward()
        optimizer.step()
    for name, parameter in plain.named_parameters():
        assert torch.allclose(parameter, peers[0].model.get_parameter(name), atol=2e-5), name


@pytest.mark.deep  # a round that the slow one leads takes as long as a view
def test_a_slow_peer_moves_along_and_its_steps_count_later(tmp_path: Path, peers: list) -> None:
    peers += swarms(tmp_path, 4)
    pass_rounds(peers, peers[0].wait_for(4) + 4)
    *others, slow = peers
    for peer in peers:
        peer.adopt()

    def step(peer: peerformer.Swarm, seed: int) -> bool:
        loss_of(peer.model, seed).backward()
        return peer.step()

    def rounds(count: int) -> None:
        until = max(peer.agreed_round for peer in others) + count
        all_at_once([lambda p=p, i=i: train(p, until, i) for i, p in enumerate(others)])

    start = bits(slow.model)
    step(slow, 1)
    own = [p.detach().clone() for p in slow.model.parameters()]
    rounds(1)
    assert bits(slow.model) != start and all(
        torch.equal(a, b) for a, b in zip(own, slow.model.parameters(), strict=True)
    )  # the others went on, and the module did not move behind its user's back
    until = others[0].agreed_round + 4
    works = [lambda p=p, i=i: train(p, until, i) for i, p in enumerate(others)]

    def go_on() -> bool:
        contributed = step(slow, 2)  # the second of two: it counts in a round of now
        train(slow, until, 9)
        return contributed

    assert all_at_once([go_on, *works])[0] is True
    rows = {member["peer_id"]: member for member in others[0].status()["members"]}
    status = slow.status()
    assert rows[status["peer_id"]]["accepted"] >= 1 and status["inner_steps_dropped"] == 0
    settled(peers)


def test_a_liar_among_four_is_refused_by_their_scores(tmp_path: Path, peers: list) -> None:
    def score(model: nn.Module) -> float:
        return sum(float(loss_of(model, seed).detach()) for seed in range(70, 78)) / 8

    peers += swarms(tmp_path, 4, own=[{"score": score}] * 4, harm_micronats=2_000)
    first = peers[0].wait_for(4)
    liar = peers[3]

    def lie() -> None:
        while liar.agreed_round < first + ROUNDS:
            with torch.no_grad():  # climbs instead of descending
                for parameter in liar.model.parameters():
                    parameter.grad = 3.0 * torch.sign(parameter)
            liar.step()

    works = [lambda i=i: train(peers[i], first + ROUNDS, i) for i in range(3)]
    all_at_once([*works, lie])
    status = peers[0].status()
    rows = {member["peer_id"]: member for member in status["members"]}
    mine, other = rows[liar.status()["peer_id"]], rows[status["peer_id"]]
    assert mine["accepted"] <= mine["contributed"] // 3
    assert other["accepted"] > other["contributed"] // 2
    peers[0].adopt()
    assert score(peers[0].model) < score(net(0))


def test_another_module_is_refused_and_its_first_parameter_named(
    tmp_path: Path, peers: list
) -> None:
    model = net()
    model.first.requires_grad_(False)
    peers.append(alone(tmp_path / "a", model))
    ticket = peers[0].invite()

    def refusal(other: nn.Module, name: str) -> str:
        with pytest.raises(ConfigError) as raised:
            peerformer.Swarm.join(
                ticket, model=other, optimizer=sgd(other), directory=tmp_path / name
            )
        return str(raised.value)

    wider = net(width=9)
    wider.first.requires_grad_(False)
    assert "norm.weight (8, float32), and this module norm.weight (9" in refusal(wider, "b")
    assert "first.weight does not fit" in refusal(net(), "c")  # trained here, frozen there
    strange = net(seed=5)
    strange.first.requires_grad_(False)
    assert "first.weight" in refusal(strange, "d") and "other values" in refusal(strange, "d")
    assert "half" not in refusal(nn.Linear(2, 2), "e")
    with pytest.raises(ConfigError, match="peers agree on float32"):
        alone(tmp_path / "f", nn.Linear(2, 2).half())
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to agree on"):
        peerformer.Swarm.found(tmp_path / "g", model=frozen, optimizer=sgd(net()))


def test_a_frozen_base_stays_bit_for_bit_what_it_was(tmp_path: Path, peers: list) -> None:
    def adapter(index: int) -> Net:
        model = net(0)  # one base for all
        model.first.requires_grad_(False)
        return model

    peers += swarms(tmp_path, 2, adapter)
    base = bits(adapter(0).first)
    train_all(peers, 4)
    settled(peers)
    for peer in peers:
        peer.adopt()
        assert bits(peer.model.first) == base
    assert bits(peers[0].model) == bits(peers[1].model) != bits(net(0))


def test_a_peer_that_stopped_goes_on_with_the_newest_agreed_state(
    tmp_path: Path, peers: list
) -> None:
    with alone(tmp_path / "a", net()) as swarm:
        train(swarm, swarm.agreed_round + 3, 1)
        root, number, agreed = swarm.state_root, swarm.agreed_round, bits(swarm.model)
    other = net(9)  # whatever it holds, it takes what was agreed
    peers.append(peerformer.Swarm.resume(tmp_path / "a", model=other, optimizer=sgd(other)))
    assert peers[0].state_root == root and peers[0].agreed_round == number
    assert bits(other) == agreed
    train(peers[0], number + 2, 2)
    assert peers[0].agreed_round >= number + 2
    taken = peers[0].address
    with alone(tmp_path / "b", net()) as other_swarm:
        other_swarm.adopt()
    with pytest.raises(SwarmError):  # what could not start holds nothing
        peerformer.Swarm.resume(tmp_path / "b", model=other, optimizer=sgd(other), listen=taken)
    peerformer.Swarm.resume(tmp_path / "b", model=net(), optimizer=sgd(net())).close()
    with pytest.raises(IdentityError):  # one store, one process: a key never votes twice
        peerformer.Swarm.resume(tmp_path / "a", model=net(), optimizer=sgd(net()))


def test_without_a_quorum_nothing_is_applied_and_later_it_goes_on(
    tmp_path: Path, peers: list
) -> None:
    peers += swarms(tmp_path, 2)
    train_all(peers, 2)
    left, gone = peers[0], peers.pop()
    gone.close()
    left.adopt()
    root, number = left.state_root, left.agreed_round
    left.timeout_seconds = 0.5
    loss_of(left.model, 1).backward()
    left.step()
    loss_of(left.model, 2).backward()
    with pytest.raises(NoQuorum, match="nothing was applied") as raised:
        left.step()
    assert raised.value.exit_code == 4 and "1 of 2 voters" in str(raised.value)
    assert (left.state_root, left.agreed_round) == (root, number)
    with_own_steps = bits(left.model)
    with pytest.raises(NoQuorum):
        left.step()
    assert bits(left.model) == with_own_steps
    left.timeout_seconds = SECONDS_MAX
    again = net(4)
    peers.append(
        peerformer.Swarm.resume(
            gone.directory, model=again, optimizer=sgd(again), timeout_seconds=SECONDS_MAX
        )
    )
    all_at_once([lambda p=p, i=i: train(p, number + 3, i) for i, p in enumerate(peers)])
    assert settled(peers) != root


def test_a_user_who_is_away_for_long_does_not_hold_the_voters_up(
    tmp_path: Path, peers: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PATIENCE_SECONDS_MIN", 0.2)
    peers += swarms(tmp_path, 2, contributions_min=1)
    train_all(peers, 3)
    here, number = peers[0], peers[0].agreed_round
    losses = train(here, number + 3, 1)  # two must vote; the other one's user does nothing at all
    assert here.agreed_round >= number + 3 and losses
    settled(peers)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also in a worker of pytest-xdist, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_while_a_step_waits_and_the_work_is_kept(
    tmp_path: Path, peers: list, interruptible: None
) -> None:
    peers += swarms(tmp_path, 2)
    one, other = peers
    waiting = threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,))
    loss_of(one.model, 1).backward()
    one.step()
    loss_of(one.model, 2).backward()
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        one.step()
    number = one.agreed_round
    all_at_once([lambda p=p, i=i: train(p, number + 2, i) for i, p in enumerate(peers)])
    settled(peers)
    rows = {member["peer_id"]: member for member in other.status()["members"]}
    assert rows[one.status()["peer_id"]]["accepted"] >= 2


def test_the_users_check_refuses_by_majority_and_never_forks(tmp_path: Path, peers: list) -> None:
    looked: list[dict[str, Tensor]] = []

    def check(update: dict[str, Tensor]) -> str | None:
        looked.append(update)
        largest = float(update["last.bias"].abs().max())
        return f"it moves the last bias by {largest:.2f}" if largest > 0.2 else None

    hooks = [{"check": check}, {"check": check}, {"check": lambda _: "nobody pleases me"}]
    peers += swarms(tmp_path, 3, own=hooks)
    first = peers[0].wait_for(3)

    def push() -> None:
        while peers[1].agreed_round < first + 6:
            loss_of(peers[1].model, 3).backward()
            peers[1].model.last.bias.grad.fill_(10.0)
            peers[1].step()

    others = [lambda i=i: train(peers[i], first + 6, i) for i in (0, 2)]
    all_at_once([push, *others])
    status = peers[0].status()
    assert any("last bias" in reason for _, reason in status["refused_by_check"])
    assert len(peers[2].status()["refused_by_check"]) > 0
    rows = {member["peer_id"]: member for member in status["members"]}
    pusher = rows[peers[1].status()["peer_id"]]
    assert pusher["contributed"] > 0 and pusher["accepted"] == 0
    # One alone refuses nobody, though the peers' checks are not the same.
    for peer in (peers[0], peers[2]):
        assert rows[peer.status()["peer_id"]]["accepted"] >= 4
    settled(peers)
    assert set(looked[0]) == {name for name, _ in net().named_parameters()}


def test_a_check_that_fails_is_told_and_stops_nobody(tmp_path: Path, peers: list) -> None:
    def check(update: dict[str, Tensor]) -> str | None:
        raise KeyError("no such tensor")

    peers += swarms(tmp_path, 2, own=[{"check": check}, {}])
    first = peers[0].wait_for(2)

    def train_on() -> int:
        told = 0
        while peers[0].agreed_round < first + 4:
            loss_of(peers[0].model, 1).backward()
            try:
                peers[0].step()
            except KeyError:
                told += 1
        return told

    told, _ = all_at_once([train_on, lambda: train(peers[1], first + 4, 1)])
    assert told > 0
    assert all(member["accepted"] > 2 for member in peers[1].status()["members"])


def test_an_error_in_the_users_loop_closes_the_peer(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "a", net()) as swarm:
        train(swarm, swarm.agreed_round + 1, 1)
        swarm.step(1 // 0)
    for call in (swarm.step, swarm.status, swarm.adopt, swarm.invite):
        with pytest.raises(SwarmError, match="this peer was closed"):
            call()
    swarm.close()
    model = net()
    with peerformer.Swarm.resume(tmp_path / "a", model=model, optimizer=sgd(model)) as again:
        assert again.agreed_round >= 1


def test_steps_that_diverge_are_not_sent(tmp_path: Path, peers: list) -> None:
    peers.append(alone(tmp_path / "a", net()))
    swarm = peers[0]
    train(swarm, swarm.agreed_round + 1, 1)
    agreed, root = bits(swarm.model), swarm.state_root
    loss_of(swarm.model, 1).backward()
    swarm.step()
    (loss_of(swarm.model, 1) * float("nan")).backward()
    with pytest.raises(DivergedError):
        swarm.step()
    assert bits(swarm.model) == agreed and swarm.state_root == root
    train(swarm, swarm.agreed_round + 1, 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"inner_step": 3}, "inner_steps"),
        ({"audits": 0.1}, "a module of its own cannot have"),
        ({"rule": "krum"}, "needs 4 contributions"),
        ({"codec": "zip"}, "codec"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_founded(
    tmp_path: Path, setting: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        alone(tmp_path / "a", net(), **setting)
    assert not (tmp_path / "a" / "genesis.bin").exists()


def test_a_swarm_is_founded_once_and_a_ticket_is_a_ticket(tmp_path: Path, peers: list) -> None:
    peers.append(alone(tmp_path / "a", net()))
    with pytest.raises(SwarmError, match="founded here already"):
        alone(tmp_path / "a", net())
    model = net()
    for ticket, message in (("peerformer1abc", "damaged"), ("127.0.0.1:1", "no peer")):
        with pytest.raises((ConfigError, SwarmError), match=message):
            peerformer.Swarm.join(
                ticket, model=model, optimizer=sgd(model), directory=tmp_path / "b"
            )
    with pytest.raises(ConfigError, match="gradients alone|parameters of a module"):
        peerformer.Coordinator.join(
            peers[0].address, like=model, directory=tmp_path / "c", timeout_seconds=SECONDS_MAX
        )
    with pytest.raises(SwarmError, match="no swarm here"):
        peerformer.Swarm.resume(tmp_path / "nowhere", model=model, optimizer=sgd(model))
    with pytest.raises(ConfigError, match="no place to listen"):
        peerformer.Swarm.resume(tmp_path / "a", model=model, optimizer=sgd(model), listen="here")


def test_the_command_line_shows_and_verifies_such_a_swarm_and_does_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with alone(tmp_path / "runs" / "mine", net()) as swarm:
        train(swarm, swarm.agreed_round + 2, 1)
        root = swarm.state_root
        assert main(["status", "mine", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["running"] == 1
    assert main(["status", "mine"]) == 0
    assert root in capsys.readouterr().out
    genesis = str(tmp_path / "runs" / "mine" / "genesis.bin")
    assert main(["verify", "mine", "--genesis", genesis]) == 0
    assert main(["log", "mine"]) == 0
    capsys.readouterr()
    assert main(["node", "--run", "mine", "--port", "0", "--no-console"]) == 2
    assert "peerformer.Swarm.join" in capsys.readouterr().err
    with ExitStack() as stack:
        model = net()
        swarm = stack.enter_context(
            peerformer.Swarm.resume(tmp_path / "runs" / "mine", model=model, optimizer=sgd(model))
        )
        words = ["join", swarm.invite(), "--port", "0", "--no-console", "--run", "other"]
        assert main(words) == 2
        assert "parameters of a module" in capsys.readouterr().err
