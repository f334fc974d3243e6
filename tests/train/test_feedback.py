"""Error feedback: what is refused goes back once, whenever that is learnt."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peerformer.train.feedback import Feedback


def send(feedback: Feedback, number: int, update_P: Tensor) -> Tensor:
    """Send whole numbers only, rounded up; returns what was sent."""
    value_P = update_P + feedback.unsent_P()
    sent_P = value_P.ceil()
    feedback.sent(number, residual_P=value_P - sent_P, whole_P=update_P)
    return sent_P


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_whatever_is_refused_and_whenever_known_nothing_is_lost_or_sent_twice(
    rounds: list[tuple[bool, bool]], seed: int
) -> None:
    """Accepted plus residual is all that was trained, if what went back arrives before the next."""
    generator = torch.Generator().manual_seed(seed)
    feedback = Feedback(torch.zeros(5, dtype=torch.float64))
    trained_P, arrived_P = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    open_rounds: list[tuple[int, Tensor, bool]] = []
    refused_last = -3
    for number, (refused, waits) in enumerate(rounds, 1):
        update_P = 100 + torch.rand(5, generator=generator, dtype=torch.float64)
        trained_P = trained_P + update_P
        refused = refused and number > refused_last + 2
        open_rounds.append((number, send(feedback, number, update_P), refused))
        refused_last = number if refused else refused_last
        last = number == len(rounds)
        while open_rounds and (last or not waits or len(open_rounds) > 1):
            first, sent_P, was_refused = open_rounds.pop(0)
            feedback.settle(first, accepted=not was_refused)
            arrived_P = arrived_P + (0 if was_refused else sent_P)
    assert not feedback.pending
    assert torch.allclose(arrived_P + feedback.residual_P, trained_P, rtol=0, atol=1e-9)


def test_refusal_upon_refusal_never_makes_the_residual_longer_than_one_update() -> None:
    feedback = Feedback(torch.zeros(4))
    for number in range(1, 9):
        update_P = torch.full((4,), float(number))
        send(feedback, number, update_P)
        feedback.settle(number, accepted=False)
        assert feedback.residual_P.norm() <= update_P.norm() * 1.0001


def test_a_round_that_was_skipped_counts_as_refused() -> None:
    feedback = Feedback(torch.zeros(4))
    send(feedback, 1, torch.full((4,), 7.5))
    feedback.settle(3, accepted=True)
    assert torch.equal(feedback.residual_P, torch.full((4,), 7.5)) and not feedback.pending


def test_after_a_blow_up_nothing_is_left_to_send() -> None:
    feedback = Feedback(torch.full((4,), 0.5))
    send(feedback, 1, torch.full((4,), 7.75))
    feedback.reset()
    feedback.settle(1, accepted=True)
    assert not feedback.residual_P.any() and not feedback.unsent_P().any()
