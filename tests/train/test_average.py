"""Averaged weights: what they are, what is validated and saved, and how a run goes on with them."""

import json
import math
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file
from torch import nn

from peerformer.errors import CheckpointError
from peerformer.model.convert import load_model
from peerformer.train.average import Average
from peerformer.train.checkpoint import LIVE, load_checkpoint
from peerformer.train.loop import train
from tests.train.test_fuzz import sealed
from tests.train.test_guards import replica, save, steps
from tests.train.test_loop import small


def test_it_is_an_exponential_mean_with_a_short_memory_at_first() -> None:
    layer = nn.Linear(1, 1, bias=False)
    named = {"weight": layer.weight}
    nn.init.zeros_(layer.weight)
    average, expected = Average(named, 0.5), 0.0
    for step in range(1, 9):
        nn.init.constant_(layer.weight, float(step))
        average.update(named)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert math.isclose(average.weights["weight"].item(), expected, rel_tol=1e-6)
    with average.in_place(named):
        assert math.isclose(layer.weight.item(), expected, rel_tol=1e-6)
    assert layer.weight.item() == 8.0 and math.isclose(
        average.weights["weight"].item(), expected, rel_tol=1e-6
    )


def averaging(seed: int):
    one = replica(seed, "adamw")
    one.average = Average(one.optimizer.named, 0.9)
    return one


def test_a_checkpoint_is_the_average_and_training_goes_on_from_the_parameters(
    tmp_path: Path,
) -> None:
    whole, other = averaging(1), averaging(2)
    steps(whole, 6)
    path = save(tmp_path, whole)
    saved, named = load_model(path), dict(whole.model.named_parameters())
    for name, weight in saved.named_parameters():
        assert torch.equal(weight, whole.average.weights[name]), "what everybody loads"
        assert not torch.equal(weight, named[name])
    load_checkpoint(path, other)
    assert other.digest() == whole.digest() and other.average.steps == 6
    assert steps(whole, 3, first=6) == steps(other, 3, first=6)
    for name, average in whole.average.weights.items():
        assert torch.equal(average, other.average.weights[name])


def test_averaging_may_begin_and_end_with_a_new_session(tmp_path: Path) -> None:
    averaged = averaging(1)
    steps(averaged, 3)
    plain = replica(2, "adamw")
    load_checkpoint(save(tmp_path / "a", averaged), plain)
    assert plain.digest() == averaged.digest(), "the parameters, not the average"
    begins = averaging(3)
    load_checkpoint(save(tmp_path / "b", plain), begins)
    assert begins.digest() == plain.digest() and begins.average.steps == 0
    named = dict(plain.model.named_parameters())
    assert all(torch.equal(w, named[name]) for name, w in begins.average.weights.items())


def test_parameters_of_another_model_are_refused_and_change_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, averaging(1))
    live = load_file(path / LIVE)
    live.pop("norm.weight")
    save_file(live, path / LIVE)
    state = json.loads((path / "state.json").read_text())
    state["files"][LIVE] = blake3((path / LIVE).read_bytes()).hexdigest()
    (path / "state.json").write_bytes(sealed(state))
    one = averaging(2)
    before = one.digest()
    with pytest.raises(CheckpointError, match="other parameters"):
        load_checkpoint(path, one)
    assert one.digest() == before


def test_validations_are_of_the_average(tmp_path: Path) -> None:
    seen: dict[str, list] = {}
    for name, decay in (("plain", 0.0), ("averaged", 0.9)):
        seen[name] = []
        config = small(**{"training.ema_decay": decay})
        train(config, run=name, root=tmp_path, on_event=seen[name].append)
    losses = {
        name: [e.loss for e in events if type(e).__name__ == "StepDone"]
        for name, events in seen.items()
    }
    held = {
        name: [e.loss for e in events if type(e).__name__ == "Validated"]
        for name, events in seen.items()
    }
    assert losses["plain"] == losses["averaged"], "training is as it was"
    assert held["plain"] != held["averaged"]
