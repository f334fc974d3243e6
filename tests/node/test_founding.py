"""A founding that cannot work is refused before anything is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from peerformer.errors import ConfigError
from peerformer.node.directory import SwarmDirectory
from peerformer.node.founding import found
from peerformer.settings import resolve
from peerformer.train.recipe import recipe_bytes, recipe_config


def seeds(count: int) -> list[bytes]:
    return [bytes([number]) * 32 for number in range(count)]


@pytest.mark.parametrize(
    ("rule", "founders", "contributions_min", "what", "hint"),
    [
        ("best", 4, 2, "unknown rule 'best'", "coordinate-median"),
        ("krum", 3, 4, "needs 4 contributions, and there are 3 founders", "--peers 4"),
        ("bucketing+mean", 7, 2, "a round may have 2", "--swarm.contributions-min 4"),
    ],
)
def test_a_rule_that_so_few_cannot_feed_is_refused(
    rule: str, founders: int, contributions_min: int, what: str, hint: str, tmp_path: Path
) -> None:
    overrides = {"swarm.rule": rule, "swarm.contributions_min": contributions_min}
    config = resolve(size="nano", overrides=overrides).config
    directory = SwarmDirectory(tmp_path / "swarm")
    with pytest.raises(ConfigError) as caught:
        found(directory, config, seeds(founders))
    assert what in str(caught.value) and hint in (caught.value.hint or "")
    assert not directory.path.exists()


def test_a_recipe_with_a_rule_that_is_not_known_here_is_refused() -> None:
    config = resolve(size="nano").config
    odd = replace(config, swarm=replace(config.swarm, rule="krum+mean"))
    with pytest.raises(ConfigError, match="unknown rule"):
        recipe_config(recipe_bytes(odd))


@pytest.mark.parametrize(
    ("overrides", "what", "hint"),
    [
        ({"swarm.audits": 0.5, "swarm.staleness": 1}, "ran ahead", "--swarm.staleness 0"),
        ({"swarm.audits": 0.0001}, "less than the least", "0.001"),
        ({"swarm.audits": 0.5, "swarm.privacy_noise": 1.0}, "noise", "--swarm.audits 0"),
    ],
)
def test_audits_that_nobody_can_do_are_refused(
    overrides: dict[str, object], what: str, hint: str, tmp_path: Path
) -> None:
    config = resolve(size="nano", overrides=overrides).config
    directory = SwarmDirectory(tmp_path / "swarm")
    with pytest.raises(ConfigError) as caught:
        found(directory, config, seeds(4))
    assert what in str(caught.value) and hint in (caught.value.hint or "")
    assert not directory.path.exists()
