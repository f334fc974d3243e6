"""The outer step follows the schedule of the genesis, alike on all machines."""

from dataclasses import replace

import pytest
import torch

from peerformer.errors import ConfigError
from peerformer.settings import resolve
from peerformer.simulate.real import RealReplicas
from peerformer.train.outer import factors_of, outer_rate_q16
from peerformer.train.recipe import recipe_bytes, recipe_config


def rates(schedule: str, rounds: int) -> list[int]:
    overrides = {
        "swarm.outer_schedule": schedule,
        "swarm.outer_learning_rate": 1.0,
        "swarm.inner_steps": 10,
        "training.steps": 10 * rounds,
    }
    config = resolve(size="nano", overrides=overrides).config
    return [outer_rate_q16(config, number) for number in range(1, rounds + 3)]


def test_each_factor_holds_for_an_equal_part_and_the_last_for_ever() -> None:
    one, middle, last = (round(factor * 65_536) for factor in (1.0, 0.65, 0.4))
    assert rates("1,0.65,0.4", 6) == [one, one, middle, middle, last, last, last, last]
    assert rates("1,0.65,0.4", 1) == [one, last, last]
    assert rates("1", 3) == [one] * 5
    assert rates("1, 0", 2) == [one, 0, 0, 0]


@pytest.mark.parametrize(
    "schedule", ["", "fast", "1,,2", "-1", "nan", "1,inf", "3", ",".join(["1"] * 65)]
)
def test_what_is_no_schedule_is_refused_by_founders_and_joiners(schedule: str) -> None:
    config = resolve(size="nano").config
    odd = replace(config, swarm=replace(config.swarm, outer_schedule=schedule))
    for fails in (lambda: factors_of(odd), lambda: recipe_config(recipe_bytes(odd))):
        with pytest.raises(ConfigError, match="outer step"):
            fails()


def test_the_sparse_codec_brings_the_schedule_that_was_published_with_it() -> None:
    sparse = resolve(size="nano", overrides={"swarm.codec": "sparse-2bit"}).config
    assert factors_of(sparse) == (1.0, 0.65, 0.4)
    assert factors_of(resolve(size="nano").config) == (1.0,)


def test_a_step_at_less_of_the_rate_moves_the_state_by_less() -> None:
    moved = []
    for schedule in ("1", "0.5"):
        world = RealReplicas(8)
        swarm = replace(world.config.swarm, outer_schedule=schedule)
        world.config = replace(world.config, swarm=swarm)
        replica = world.bench(b"a" * 32, 0, poisons=False).replica
        made = replica.train(1, bytes(32), lambda: False)
        assert made is not None
        before_P = replica.state.theta_P.clone()
        found = replica.apply(1, [(b"a", made.blob)], bytes(32))
        assert found is not None
        moved.append((found[0].theta_P - before_P).double())
    assert torch.allclose(moved[0], 2 * moved[1], rtol=1e-4, atol=16.0)
    assert float(moved[0].norm()) > 0
