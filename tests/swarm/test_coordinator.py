"""Agreement on gradients alone: the same bits everywhere, in order, or nothing at all."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import peerformer
from peerformer.errors import ConfigError, DivergedError, NoQuorum, SwarmError
from peerformer.node.directory import SwarmDirectory
from peerformer.protocol.effects import Command
from peerformer.protocol.light_client import certificate_file_fault, read_document, show_document
from peerformer.protocol.merkle import state_root
from peerformer.swarm.coordinator import ConsensusGradients
from peerformer.swarm.handover import REACHED_MAX
from tests.swarm.together import (
    SECONDS_MAX,
    all_at_once,
    close,
    coordinators,
    loss_of,
    net,
    pass_rounds,
    settled,
)

LIKE = {"weight": torch.zeros(4, 3), "bias": torch.zeros(3)}
STEP = 8 * 2.0**-24  # the finest that is told, where values reach 3.9
Gradients = dict[str, Tensor]


@pytest.fixture
def peers() -> Iterator[list]:
    """Peers that are closed at the end, whatever happens."""
    running: list[peerformer.Coordinator] = []
    yield running
    close(running) if running else None


def gradients(seed: int, scale: float = 0.1) -> Gradients:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(like.shape, generator=generator) for name, like in LIKE.items()
    }


def bits(found: Gradients) -> bytes:
    return b"".join(found[name].numpy().tobytes() for name in sorted(found))


def together(peers: list, given: list[Gradients]) -> list[ConsensusGradients]:
    """All give their gradients for one step at once."""
    return all_at_once(
        [lambda p=p, g=g: p.coordinate_training_step(g) for p, g in zip(peers, given, strict=True)]
    )


def test_all_get_the_same_bits_with_a_certificate_that_anybody_can_check(
    tmp_path: Path, peers: list
) -> None:
    peers += coordinators(tmp_path, 3, LIKE, rule="mean")
    genesis = SwarmDirectory(tmp_path / "0").genesis()
    for step in range(4):
        given = [gradients(10 * step + index) for index in range(3)]
        found = together(peers, given)
        assert len({bits(one) for one in found}) == 1
        assert len({one.round for one in found}) == 1
        assert all(one.included for one in found)
        for name in LIKE:
            mean = torch.stack([one[name] for one in given]).mean(0)
            assert float((found[0][name] - mean).abs().max()) <= 4 * STEP
        # Genesis, certificate and gradients prove each other, without a peer to believe.
        for one in found:
            document = read_document(show_document(one.certificate))
            assert certificate_file_fault(document, genesis) is None
            assert state_root(one.state) == document.header.state_root
        header = found[0].certificate.header
        forged = replace(found[0].certificate, header=replace(header, state_root=bytes(32)))
        assert certificate_file_fault(forged, genesis) is not None


def test_a_module_trained_on_consensus_gradients_is_the_same_everywhere_and_learns(
    tmp_path: Path, peers: list
) -> None:
    peers += coordinators(tmp_path, 2, net(), codec="dense-int8")
    models = [net(), net()]

    def train(index: int) -> bytes:
        model = models[index]
        optimizer = torch.optim.AdamW(model.parameters(), 0.02)
        for step in range(12):
            optimizer.zero_grad()
            loss_of(model, 100 * step + index).backward()
            local = {name: p.grad for name, p in model.named_parameters()}
            for name, agreed in peers[index].coordinate_training_step(local).items():
                model.get_parameter(name).grad = agreed
            optimizer.step()
        return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    first, second = all_at_once([lambda: train(0), lambda: train(1)])
    assert first == second
    before, after = (
        sum(float(loss_of(m, s).detach()) for s in range(50, 60)) for m in (net(), models[0])
    )
    assert after < 0.8 * before


def test_in_time_or_not_at_all_and_what_came_too_late_belongs_to_its_round(
    tmp_path: Path, peers: list
) -> None:
    peers += coordinators(tmp_path, 2, LIKE, rule="mean")
    one, other = peers
    agreed = together(peers, [gradients(1), gradients(2)])[0]
    root = one.state_root
    # The other does not come: nothing is decided, nothing is handed out.
    early, later, late = gradients(3), gradients(4), gradients(5)
    for given in (early, later):
        with pytest.raises(NoQuorum, match="nothing was applied") as raised:
            one.coordinate_training_step(given, timeout_seconds=0.5)
        assert raised.value.exit_code == 4
    assert one.state_root == root and one.agreed_round == agreed.round
    # It comes after all. The round is decided on what was given to it, not on what was given later.
    theirs = other.coordinate_training_step(late)
    mine = one.coordinate_training_step(gradients(6))
    assert theirs.round == mine.round == agreed.round + 1 and bits(theirs) == bits(mine)
    mean = (early["bias"] + late["bias"]) / 2
    assert float((mine["bias"] - mean).abs().max()) <= 4 * STEP
    # Those given while the round stood still are in no later round either.
    after = together(peers, [gradients(7), gradients(8)])[0]
    mean = (gradients(7)["bias"] + gradients(8)["bias"]) / 2
    assert float((after["bias"] - mean).abs().max()) <= 4 * STEP


def test_gradients_that_were_not_sent_in_time_never_are(tmp_path: Path, peers: list) -> None:
    peers += coordinators(tmp_path, 1, LIKE, rule="mean")
    alone = peers[0]

    def order(command: str) -> None:
        alone._host.ask(lambda running: running.node.post(Command(command)))

    order("pause")
    alone.coordinate_training_step(gradients(1))  # the round that was in hand
    with pytest.raises(NoQuorum):  # and no other begins
        alone.coordinate_training_step(gradients(2), timeout_seconds=0.3)
    order("resume")
    found = alone.coordinate_training_step(gradients(3))
    assert float((found["bias"] - gradients(3)["bias"]).abs().max()) <= STEP


@pytest.mark.deep  # a round that the late one leads takes as long as a view
def test_whoever_is_late_gets_the_others_rounds_in_order(tmp_path: Path, peers: list) -> None:
    peers += coordinators(tmp_path, 4, LIKE, contributions_min=2)
    pass_rounds(peers, peers[0].wait_for(4) + 4)
    *others, late = peers
    decided = [together(others, [gradients(10 * n + i) for i in range(3)])[0] for n in range(3)]
    caught_up = [late.coordinate_training_step(gradients(99)) for _ in range(3)]
    assert [one.round for one in caught_up] == [one.round for one in decided]
    assert [bits(one) for one in caught_up] == [bits(one) for one in decided]
    assert not any(one.included for one in caught_up)
    for step in range(REACHED_MAX + 1):  # more than is kept for whoever stays away
        together(others, [gradients(10 * step + i) for i in range(3)])
    settled(peers)
    with pytest.raises(SwarmError, match="their gradients are gone"):
        late.coordinate_training_step(gradients(98))
    found = together(peers, [gradients(50 + i) for i in range(4)])
    assert found[0].included and len({bits(one) for one in found}) == 1


def test_a_restarted_peer_goes_on_with_the_next_round(tmp_path: Path, peers: list) -> None:
    peers += coordinators(tmp_path, 1, LIKE)
    first = peers[0].coordinate_training_step(gradients(1))
    peers.pop().close()
    peers.append(
        peerformer.Coordinator.resume(tmp_path / "0", like=LIKE, timeout_seconds=SECONDS_MAX)
    )
    assert peers[0].agreed_round == first.round
    assert peers[0].coordinate_training_step(gradients(2)).round == first.round + 1


def test_a_check_judges_gradients_as_they_were_given(tmp_path: Path, peers: list) -> None:
    seen: list[float] = []

    def check(given: Gradients) -> str | None:
        seen.append(float(given["weight"].abs().max()))
        return None

    peers += coordinators(tmp_path, 2, LIKE, own=[{"check": check}, {}])
    theirs = gradients(2, scale=1.0)
    together(peers, [gradients(1, scale=1.0), theirs])
    assert abs(seen[-1] - float(theirs["weight"].abs().max())) <= STEP


def test_what_cannot_be_agreed_on_is_refused_with_its_name(tmp_path: Path, peers: list) -> None:
    peers += coordinators(tmp_path, 1, LIKE)
    alone = peers[0]
    for given, message in (
        ({"weight": torch.zeros(4, 3)}, "names are not those of the swarm: bias"),
        ({**LIKE, "bias": torch.zeros(4)}, r"gradient of bias has shape \(4,\), not \(3,\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            alone.coordinate_training_step(given)
    with pytest.raises(DivergedError):
        alone.coordinate_training_step({**LIKE, "bias": torch.full((3,), float("inf"))})
    assert bits(alone.coordinate_training_step({"weight": gradients(1)["weight"], "bias": None}))
    for settings in ({"codec": "sparse-2bit"}, {"inner_steps": 4}, {"staleness": 1}):
        with pytest.raises(ConfigError):
            peerformer.Coordinator.found(tmp_path / "b", like=LIKE, settings=settings)
    with pytest.raises(ConfigError, match="largest"):
        peerformer.Coordinator.found(tmp_path / "b", like=LIKE, largest=0.0)
    alone.close()
    with pytest.raises(SwarmError, match="closed"):
        alone.coordinate_training_step(gradients(1))
