"""A run directory: found again, never another's, and honest about what it holds."""

import json
import random
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from peerformer.config import Config, OptimizerConfig
from peerformer.errors import ConfigError
from peerformer.settings import from_json, resolve
from peerformer.train import run_directory
from peerformer.train.run_directory import open_run, stored_config

DAY = date(2026, 11, 24)


def with_training(config: Config, **changes: object) -> Config:
    return replace(config, training=replace(config.training, **changes))


def finish(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (run / "latest").write_text(f"checkpoints/step-{step:08d}\n")


def test_a_new_name_is_never_that_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory, "ADJECTIVES", ["brave", "calm"])
    monkeypatch.setattr(run_directory, "ANIMALS", ["otter", "newt"])
    paths = [
        open_run(None, with_training(Config(), seed=seed), root=tmp_path, today=DAY).path
        for seed in range(7)  # more than there are pairs of words
    ]
    assert len(set(paths)) == 7 and all(p.name.startswith("2026-11-24-") for p in paths)


def test_the_name_comes_from_the_day_and_the_chance_given(tmp_path: Path) -> None:
    names = [
        open_run(None, Config(), root=tmp_path / str(i), today=DAY, chance=random.Random(5)).name
        for i in range(2)
    ]
    assert names[0] == names[1]


def test_a_finished_run_is_left_alone_and_named(tmp_path: Path) -> None:
    first = open_run(None, Config(), root=tmp_path)
    finish(first.path, Config().training.steps - 1)
    assert open_run(None, Config(), root=tmp_path).path == first.path
    finish(first.path, Config().training.steps)
    second = open_run(None, Config(), root=tmp_path)
    assert second.path != first.path and not second.resumed
    assert second.finished == first.name


def test_what_changes_neither_model_nor_text_may_change(tmp_path: Path) -> None:
    short = resolve(overrides={"training.steps": 5}).config  # which shortens the warm-up, too
    open_run("mine", short, root=tmp_path)
    longer = resolve(overrides={"training.steps": 50}).config
    gentler = replace(longer, optimizer=OptimizerConfig(learning_rate=1e-4, clip_norm=0.5))
    assert open_run("mine", gentler, root=tmp_path).resumed


@pytest.mark.parametrize(
    "setting",
    [
        {"training.seed": 5},
        {"training.batch_size": 4},
        {"training.sequence_length": 64},
        {"optimizer.name": "adamw"},
        {"data.vocab_size": 999},
        {"model.rope_theta": 5_000.0},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_changes_model_or_text_is_refused_by_name(
    setting: dict[str, object], tmp_path: Path
) -> None:
    open_run("mine", Config(), root=tmp_path)
    with pytest.raises(ConfigError) as refused:
        open_run("mine", resolve(overrides=setting).config, root=tmp_path)
    assert next(iter(setting)) in str(refused.value) and refused.value.exit_code == 2


def test_settings_are_written_only_by_who_holds_the_run(tmp_path: Path) -> None:
    open_run("mine", Config(), root=tmp_path)
    changed = with_training(Config(), steps=2_000)
    run = open_run("mine", changed, root=tmp_path)
    assert stored_config("mine", root=tmp_path) == Config()
    with run.locked():
        run.record(changed)
    assert stored_config("mine", root=tmp_path) == changed
    content = json.loads((run.path / "run.json").read_text())
    assert from_json(content["config"], where="run.json") == changed
    assert len(content["digest"]) == 64


def test_an_ending_that_fits_two_runs_is_refused(tmp_path: Path) -> None:
    for day in (1, 2):
        open_run(f"2026-11-0{day}-brave-otter", Config(), root=tmp_path)
    with pytest.raises(ConfigError, match="several"):
        open_run("brave-otter", Config(), root=tmp_path)
    assert stored_config("calm-newt", root=tmp_path) is None


@pytest.mark.parametrize("name", ["a/b", "../up", "..", ".", ""])
def test_a_name_that_is_a_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_run(name, Config(), root=tmp_path)
    with pytest.raises(ConfigError):
        stored_config(name, root=tmp_path)
    assert not list(tmp_path.iterdir())
