"""The place where the user's thread and the node's meet, without a node: taken whole, or never."""

from pathlib import Path

import pytest
import torch

from peerformer.errors import NoQuorum
from peerformer.gradients.fixed_point import AgreedState, Layout
from peerformer.swarm.beginning import config_of
from peerformer.swarm.handover import Handover, Offer
from peerformer.swarm.opinion import Opinion
from peerformer.train.recipe import MODULE

LAYOUT = Layout(("weight",), ((4,),))


def handover() -> Handover:
    zeros_P = torch.zeros(4, dtype=torch.int32)
    config = config_of({"codec": "none"})
    return Handover(config, MODULE, LAYOUT, AgreedState(zeros_P, zeros_P, ()), Opinion(LAYOUT))


def is_over() -> None:
    raise NoQuorum("the time is up")


def looks(count: int):
    """A bench that is told to stop after so many looks."""
    left = iter([False] * count)
    return lambda: next(left, True)


def test_an_update_that_nobody_took_in_time_is_withdrawn() -> None:
    made = handover()
    made.asked = 1
    with pytest.raises(NoQuorum):
        made.give(lambda: Offer(torch.ones(4), 0.0), is_over)
    assert made.train(1, b"", looks(3)) is None
    assert made.feedback.pending == []


def test_an_update_is_taken_for_the_round_that_asked_and_for_no_other() -> None:
    made = handover()
    made.offer = Offer(torch.ones(4), 0.0, round=1)
    assert made.train(2, b"", looks(3)) is None  # two rounds after the agreed state: too far
    assert made.offer is None
    made.offer = Offer(torch.ones(4), 0.5, round=1)
    contribution = made.train(1, b"", looks(3))
    assert contribution is not None and contribution.loss == 0.5


def test_what_error_feedback_kept_back_outlives_a_restart(tmp_path: Path) -> None:
    made, again = handover(), handover()
    made.feedback.residual_P = torch.arange(4.0)
    made.save_local(tmp_path / "local.safetensors")
    assert again.load_local(tmp_path / "local.safetensors")
    assert torch.equal(again.feedback.residual_P, torch.arange(4.0))
    (tmp_path / "local.safetensors").write_bytes(b"torn")
    assert not handover().load_local(tmp_path / "local.safetensors")
