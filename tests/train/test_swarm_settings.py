"""What a swarm can train with, it can repeat; what it could only ignore, it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from peerformer.errors import ConfigError
from peerformer.node.directory import SwarmDirectory
from peerformer.node.founding import found
from peerformer.settings import resolve
from peerformer.simulate.real import RealReplicas
from peerformer.train.recipe import check_recipe, recipe_bytes, recipe_config
from tests.train.test_replay import SEED, cosine, go_on, replica_of, trained


@pytest.mark.parametrize(
    "given",
    [
        {"name": "lion", "learning_rate": 1e-3},
        {"name": "sgd", "learning_rate": 0.3, "nesterov": True},
        {"name": "muon", "sharpness": "sam"},
        {"name": "adamw", "sharpness": "asam"},
    ],
    ids=lambda given: "-".join(map(str, given.values())),
)
def test_local_steps_with_every_optimizer_are_found_again_by_an_auditor(given: dict) -> None:
    world = RealReplicas(8, audited=True)
    config = world.config
    world.config = replace(
        config,
        optimizer=replace(config.optimizer, **given),
        training=replace(config.training, schedule="cosine"),
    )
    author, auditor = replica_of(world, b"a"), replica_of(world, b"b")
    for number in (1, 2):
        blob, record = trained(author, number)
        found_again = auditor.repeat(number, blob, record, SEED, lambda: False)
        assert found_again.passed and cosine(found_again) >= 0.99, found_again
        go_on(number, author, auditor, blob=blob)


@pytest.mark.parametrize(
    "given",
    [
        {"training.schedule": "plateau"},
        {"training.patience": 2},
        {"training.ema_decay": 0.9},
        {"training.sample_prompt": "Once"},
        {"training.deterministic": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_a_swarm_could_only_ignore_is_refused_at_its_founding(
    given: dict, tmp_path: Path
) -> None:
    config = resolve(size="nano", overrides={"data.path": "synthetic:1", **given}).config
    with pytest.raises(ConfigError, match="which a swarm cannot have") as refused:
        found(SwarmDirectory(tmp_path / "one"), config, [bytes([n]) * 32 for n in range(4)])
    assert refused.value.hint is not None and refused.value.hint.startswith("--set training.")
    with pytest.raises(ConfigError, match="which a swarm cannot have"):
        recipe_config(recipe_bytes(config))
    assert not (tmp_path / "one").exists()


def test_the_other_schedules_are_a_swarms_too() -> None:
    for name in ("linear", "cosine", "wsd", "constant", "inverse-sqrt"):
        config = resolve(overrides={"training.schedule": name}).config
        check_recipe(config)
        assert recipe_config(recipe_bytes(config)).training.schedule == name
