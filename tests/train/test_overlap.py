"""Training ahead of the vote: what the local model holds, and what becomes of own work."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peerformer.config import Config
from peerformer.data.batches import Batches
from peerformer.data.shards import ShardSet
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import train_tokenizer
from peerformer.gradients.compress import decode
from peerformer.gradients.dense import BLOCK
from peerformer.gradients.fixed_point import FRACTION_BITS, AgreedState, to_float
from peerformer.model.transformer import Transformer, initialise
from peerformer.settings import resolve
from peerformer.train.agreed import AgreedReplica, Contribution, initial_state
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica
from peerformer.train.schedule import learning_rate_scale

STEPS = 4
TEXTS = [document.text for document in synthetic_documents(1, 120)]
TOKENIZER = train_tokenizer(TEXTS, 300)
TOKENS = np.array([token for text in TEXTS for token in TOKENIZER.encode(text)], np.uint16)
TEXT = Batches(ShardSet((TOKENS,), TOKENIZER.vocab_size, 1, ""), 32)
NANO = {
    "model.vocab_size": TOKENIZER.vocab_size,
    "data.vocab_size": TOKENIZER.vocab_size,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 32,
    "training.sequence_length": 32,
    "training.batch_size": 4,
    "training.steps": 40,
    "training.warmup_steps": 4,
    "swarm.inner_steps": STEPS,
    "swarm.staleness": 1,
}
PLAIN = {"swarm.rule": "mean", "swarm.outer_learning_rate": 1.0, "swarm.outer_momentum": 0.0}


class Slope(nn.Module):
    """A model whose gradient does not depend on its parameters: steps add up whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.linspace(-1, 1, TOKENIZER.vocab_size))

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return (self.height[tokens_BT] - self.height[targets_BT]).mean()


def config_of(**more: object) -> Config:
    return resolve(size="nano", overrides={**NANO, **more}).config


def transformer(config: Config) -> nn.Module:
    model = Transformer(config.model)
    initialise(model, 3)
    return model


def replica(make: Callable[[Config], nn.Module] = transformer, **more: object) -> AgreedReplica:
    config = config_of(**more)
    model = make(config)
    return AgreedReplica(config, model, make(config), initial_state(model), TEXT, TEXT)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def seed_of(number: int, peer: int) -> bytes:
    return bytes((number, peer)) * 16


@dataclass
class Rounds:
    """A few replicas that decide rounds; each round is adopted at a step of the next training."""

    peers: list[AgreedReplica]
    adopted_at: int  # step of the next training; STEPS + 1: after it
    accepts: Callable[[int, int], bool] = lambda number, peer: True
    decided: AgreedState | None = None  # not yet adopted by those that train
    accepted: set[int] = field(default_factory=set)
    number: int = 0
    made: list[Contribution] = field(default_factory=list)
    on_step: Callable[[int, AgreedReplica], None] = lambda peer, replica: None

    def adopt(self, index: int) -> None:
        if self.decided is not None and self.peers[index].round < self.number:
            accepted = index in self.accepted
            self.peers[index].move_to(self.number, self.decided, accepted=accepted)

    def train(self, index: int) -> Contribution:
        calls = 0

        def should_stop() -> bool:
            nonlocal calls
            if calls == self.adopted_at:
                self.adopt(index)
            calls += 1
            self.on_step(index, self.peers[index])
            return False

        number = self.number + 1
        made = self.peers[index].train(number, seed_of(number, index), should_stop)
        assert made is not None
        return made

    def round(self) -> None:
        """All train for the next round, meanwhile adopt the last one, and then decide."""
        self.made = [self.train(index) for index in range(len(self.peers))]
        for index in range(len(self.peers)):
            self.adopt(index)
        self.number += 1
        mine = set(range(len(self.peers)))
        self.accepted = {index for index in mine if self.accepts(self.number, index)}
        blobs = [(bytes((index,)), self.made[index].blob) for index in sorted(self.accepted)]
        self.decided = self.peers[0].state
        if blobs:
            outcome = self.peers[0].apply(self.number, blobs, b"s" * 32)
            assert outcome is not None and not outcome[1]
            self.decided = outcome[0]

    def run(self, count: int) -> None:
        for _ in range(count):
            self.round()
        for index in range(len(self.peers)):
            self.adopt(index)


def plainly(make: Callable[[Config], nn.Module], rounds: int, **more: object) -> Tensor:
    """The parameters after as many steps on the same data without any rounds."""
    config = config_of(**more)
    model = make(config)
    settings = config.training
    alone = Replica(model, build_optimizer(model, config.optimizer), clip_norm=1.0)
    for number in range(1, rounds + 1):
        for step in range(STEPS):
            seed = int.from_bytes(seed_of(number, 0)[:7], "little")
            alone.gradients([TEXT.batch(seed, step, batch_size=settings.batch_size)])
            alone.apply(learning_rate_scale((number - 1) * STEPS + step, settings))
    return flat(model)


def half_quantum(blob: bytes, size: int) -> Tensor:
    """The largest error of each value in an encoded contribution."""
    exponents = torch.frombuffer(bytearray(blob[: -(-size // BLOCK)]), dtype=torch.uint8)
    return (0.5 * 2.0 ** (exponents.float() - FRACTION_BITS)).repeat_interleave(BLOCK)[:size]


@pytest.mark.parametrize("adopted_at", [0, 2, STEPS + 1])
def test_one_peer_alone_trains_as_if_there_were_no_rounds(adopted_at: int) -> None:
    """With the plain mean at rate 1, exactly but for the rounding of the newest contribution.

    The bound: half a step of the codec's 8 bits, and for each round of float32 arithmetic four
    units in the last place of the largest parameter.
    """
    rounds, peer = 6, replica(lambda _: Slope(), **PLAIN)
    swarm = Rounds([peer], adopted_at)
    swarm.run(rounds)
    plain_P = plainly(lambda _: Slope(), rounds, **PLAIN)
    error_P = (to_float(peer.state.theta_P) - plain_P).abs()
    float_error = rounds * 4 * 2.0**-24 * float(plain_P.abs().max())
    bound_P = half_quantum(swarm.made[0].blob, peer.layout.size) + float_error
    assert bool((error_P <= bound_P).all()), float((error_P / bound_P).max())
    moved = (plain_P - flat(Slope())).norm()
    assert moved > 100 * error_P.norm()
    assert (plain_P - flat(peer.model)).abs().max() <= 2 * bound_P.max()


def test_a_transformer_alone_stays_beside_its_own_plain_training() -> None:
    rounds, peer = 6, replica(**PLAIN)
    Rounds([peer], 2).run(rounds)
    plain_P, first_P = plainly(transformer, rounds, **PLAIN), flat(transformer(config_of()))
    apart = (to_float(peer.state.theta_P) - plain_P).norm() / (plain_P - first_P).norm()
    print("apart", float(apart))
    assert apart < 0.05


@pytest.mark.parametrize("adopted_at", [0, 1, STEPS + 1])
def test_the_local_model_is_the_agreed_one_but_for_own_work_that_is_not_agreed(
    adopted_at: int,
) -> None:
    """Exactly at the end of a training; where the next departs, but for one rounding of a float."""
    swarm = Rounds([replica() for _ in range(4)], adopted_at)
    departed: set[tuple[int, int]] = set()

    def look(index: int, peer: AgreedReplica) -> None:
        if (swarm.number, index) in departed or not swarm.number or adopted_at == 0:
            return
        departed.add((swarm.number, index))
        apart_P = to_float(peer.state.theta_P) - flat(peer.model)
        work_P = peer.feedback.pending[-1].whole_P
        assert peer.round == swarm.number - 1 and (apart_P - work_P).abs().max() < 1e-6

    swarm.on_step = look
    for number in range(1, 9):
        swarm.round()
        for peer in swarm.peers:
            assert peer.feedback.pending[-1].round == number and peer.round == number - 1
            if adopted_at <= STEPS or number == 1:
                apart_P = to_float(peer.state.theta_P) - flat(peer.model)
                assert torch.equal(apart_P, peer.feedback.pending[-1].whole_P)
    assert len({peer.state.to_bytes() for peer in swarm.peers}) == 1
    assert len(departed) == (4 * 7 if adopted_at else 0)


def test_steps_are_taken_at_the_own_parameters_before_the_vote_and_at_the_agreed_ones_after() -> (
    None
):
    seen: list[Tensor] = []
    swarm = Rounds([replica(), replica()], 2)
    swarm.round()
    one = swarm.peers[0]
    ended_P, start_P = flat(one.model), to_float(one.state.theta_P)
    swarm.on_step = lambda index, peer: seen.append(flat(peer.model)) if index == 0 else None
    swarm.round()
    assert torch.equal(seen[0], ended_P) and not torch.equal(ended_P, start_P)
    # `seen[2]` is taken when the round is adopted, just before the model follows.
    move_P, step_P = to_float(one.state.theta_P) - ended_P, seen[2] - seen[1]
    next_step_P = seen[3] - seen[2] - move_P
    assert torch.equal(one.local.start_P, to_float(one.state.theta_P))  # type: ignore[union-attr]
    assert 0.3 < next_step_P.norm() / step_P.norm() < 3 and move_P.norm() > step_P.norm()


def test_what_is_sent_is_the_sum_of_the_own_steps_without_the_moves() -> None:
    """Steps that do not depend on where they are taken: the contributions are the same."""
    sent: dict[int, list[bytes]] = {}
    for staleness in (0, 1):
        config = {"swarm.staleness": staleness, "optimizer.name": "adamw", **PLAIN}
        peer = replica(lambda _: Slope(), **config)
        swarm = Rounds([peer], 2 if staleness else 0)
        blobs = []
        for _ in range(4):
            swarm.round()
            if not staleness:
                swarm.adopt(0)
            blobs.append(swarm.made[0].blob)
        sent[staleness] = blobs
    size = peer.layout.size
    for one, other in zip(sent[0], sent[1], strict=True):
        difference = to_float(decode(one, size, "dense-int8") - decode(other, size, "dense-int8"))
        assert bool((difference.abs() <= 4 * half_quantum(one, size) + 1e-6).all())


@pytest.mark.parametrize("adopted_at", [1, STEPS + 1])
def test_a_refused_contribution_goes_back_into_the_residual_once(adopted_at: int) -> None:
    """Round 3 is refused: all of it arrives in the end, with a later contribution, and once."""
    peer = replica(lambda _: Slope(), **PLAIN)
    swarm = Rounds([peer], adopted_at, accepts=lambda number, _: number != 3)
    swarm.run(7)
    plain_P = plainly(lambda _: Slope(), 7, **PLAIN)
    gone_P = to_float(peer.state.theta_P) - plain_P - peer.feedback.residual_P
    path = {number: plainly(lambda _: Slope(), number, **PLAIN) for number in (2, 3, 4, 5)}
    refused_P, carrier = path[2] - path[3], 4 if adopted_at <= STEPS else 5
    carrier_P = path[carrier - 1] - path[carrier]  # the first that was encoded after the refusal
    assert not peer.feedback.pending
    # Encoding takes up a residual of half an update's length at most; the rest is let go.
    arrived = 1 - float(gone_P @ refused_P / (refused_P @ refused_P))
    print("arrived", arrived)
    assert abs(arrived - 0.5 * float(carrier_P.norm() / refused_P.norm())) < 0.02


def test_a_null_round_takes_own_work_out_of_the_model_and_back_into_the_residual() -> None:
    swarm = Rounds([replica(), replica()], 1, accepts=lambda number, _: number != 2)
    swarm.run(2)
    one = swarm.peers[0]
    before_P, work_P = to_float(one.state.theta_P), one.feedback.residual_P
    assert work_P.norm() > 0
    swarm.round()
    assert torch.equal(to_float(one.state.theta_P), before_P)  # round 2 was null
    assert torch.equal(before_P - flat(one.model), one.feedback.pending[-1].whole_P)


def test_a_restarted_peer_departs_from_the_agreed_state_and_has_no_own_work_in_it() -> None:
    swarm = Rounds([replica(), replica()], STEPS + 1)
    swarm.round()
    swarm.round()  # round 2 is trained ahead and sent; round 1 is adopted
    old = swarm.peers[0]
    again = replica()
    again.move_to(1, old.state, accepted=None)
    seen: list[Tensor] = []

    def should_stop() -> bool:
        seen.append(flat(again.model))
        if len(seen) == 3:
            again.move_to(2, swarm.decided, accepted=True)  # type: ignore[arg-type]
        return False

    assert again.train(3, seed_of(3, 0), should_stop) is not None
    assert torch.equal(seen[0], to_float(old.state.theta_P))
    apart_P = to_float(again.state.theta_P) - flat(again.model)
    assert torch.equal(apart_P, again.feedback.pending[-1].whole_P)


def test_a_fetched_state_is_started_anew_from_by_a_training_in_hand_too() -> None:
    swarm = Rounds([replica(), replica()], STEPS + 1)
    swarm.round()
    swarm.round()
    one, other = swarm.peers
    other_P = to_float(other.state.theta_P)
    seen: list[Tensor] = []

    def should_stop() -> bool:
        seen.append(flat(one.model))
        if len(seen) == 3:
            one.move_to(2, other.state, accepted=None)
        return False

    assert one.train(3, seed_of(3, 0), should_stop) is not None
    assert len(seen) == 3 + STEPS  # all steps again
    assert torch.equal(seen[3], other_P) and not torch.equal(seen[2], other_P)
    assert [pending.round for pending in one.feedback.pending] == [3]


def stop_after(steps: int, act: Callable[[], Any] = lambda: None) -> Callable[[], bool]:
    calls = 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        if calls == steps + 1:
            act()
        return calls > steps

    return should_stop


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_overtaken_training_goes_on_for_the_next_round(staleness: int) -> None:
    one = replica(**{"swarm.staleness": staleness})
    assert one.train(1, seed_of(1, 0), stop_after(3)) is None
    one.move_to(1, replace(one.state), accepted=False)
    calls: list[int] = []
    assert one.train(2, seed_of(2, 0), lambda: bool(calls.append(1))) is not None
    assert len(calls) == (1 if staleness else STEPS)


def test_steps_that_are_too_old_are_not_gone_on_with() -> None:
    one = replica()
    for number in (1, 2, 3):  # departed from state 0; state 2 is the newest for round 3
        assert one.train(number, seed_of(number, 0), stop_after(1)) is None
        assert one.local is not None and len(one.local.losses) == number
        one.move_to(number, one.state, accepted=False)
    assert one.train(4, seed_of(4, 0), stop_after(1)) is None
    assert one.local is not None and len(one.local.losses) == 1


def test_training_is_one_round_ahead_and_no_more_nor_for_a_round_that_is_over() -> None:
    for staleness in (0, 1):
        one = replica(**{"swarm.staleness": staleness})
        assert one.train(2 + staleness, seed_of(2, 0), lambda: False) is None
        over = stop_after(2, lambda one=one: one.move_to(1, one.state, accepted=False))  # type: ignore[misc]
        assert one.train(1, seed_of(1, 0), lambda over=over: over() and False) is None  # type: ignore[misc]


def test_what_blew_up_is_dropped_and_the_next_training_starts_from_the_agreed_state() -> None:
    one = replica()
    one.norms = [1e-9] * 3
    assert one.train(1, seed_of(1, 0), lambda: False) is None and one.local is None
    seen: list[Tensor] = []
    one.norms = []
    made = one.train(2, seed_of(2, 0), lambda: bool(seen.append(flat(one.model))))
    assert made is not None and torch.equal(seen[0], to_float(one.state.theta_P))


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_state_adopted_in_the_middle_of_a_step_moves_the_model_after_it(moment: int) -> None:
    """Others are scored, aggregated and adopted between any two layers, forward or backward."""
    made: dict[bool, Contribution] = {}
    for within in (False, True):
        swarm = Rounds([replica(), replica()], STEPS + 1)
        swarm.round()
        one, other = swarm.peers
        calls: list[bool] = []

        def between_layers(one=one, other=other, swarm=swarm, calls=calls, within=within) -> None:  # type: ignore[no-untyped-def]
            calls.append(torch.is_grad_enabled())
            if within and len(calls) == moment:
                assert one.check(swarm.made[1].blob, b"q" * 32, b"k").fault is None
                swarm.adopt(0)

        one.between_layers = between_layers
        made[within] = swarm.train(0)
        assert len(calls) == 2 * STEPS and len(set(calls)) == 2  # forward and backward
        if within:
            apart_P = to_float(one.state.theta_P) - flat(one.model)
            followed = moment <= 2 * (STEPS - 1)  # the last step is followed by the next training
            work_P = one.feedback.pending[-1].whole_P
            assert torch.equal(apart_P, work_P) == followed and one.round == 1
    assert made[False].blob != made[True].blob or moment > 2 * (STEPS - 1)


def test_a_state_fetched_within_the_last_step_is_started_anew_from_all_the_same() -> None:
    swarm = Rounds([replica(), replica()], 0)
    swarm.round()
    one, calls = swarm.peers[0], 0

    def between_layers() -> None:
        nonlocal calls
        calls += 1
        if calls == 2 * STEPS:
            one.move_to(1, swarm.decided, accepted=None)  # type: ignore[arg-type]

    one.between_layers = between_layers
    assert one.train(2, seed_of(2, 0), lambda: False) is not None
    assert calls == 4 * STEPS
    apart_P = to_float(one.state.theta_P) - flat(one.model)
    assert torch.equal(apart_P, one.feedback.pending[-1].whole_P)
