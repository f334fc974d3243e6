"""The loop: stopping between steps, runs found again or refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peerformer.config import Config
from peerformer.errors import ConfigError, DivergedError
from peerformer.settings import resolve
from peerformer.train.loop import train
from peerformer.train.run_directory import open_run

SMALL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.head_dim": 16,
    "model.max_positions": 32,
    "data.path": "synthetic:1",
    "data.vocab_size": 300,
    "training.sequence_length": 32,
    "training.batch_size": 4,
    "training.steps": 12,
    "training.warmup_steps": 3,
    "training.checkpoint_every": 4,
    "training.validate_every": 6,
    "training.validation_sequences": 4,
    "training.dtype": "float32",
    "training.threads": 1,
}


def small(**more: object) -> Config:
    return resolve(size="nano", overrides={**SMALL, **more}).config


def losses(run: Path) -> list[tuple[int, str]]:
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    return [(int(row.split(",")[0]), row.split(",")[1]) for row in rows]


def test_a_run_trains_saves_and_says_so(tmp_path: Path) -> None:
    seen: list[object] = []
    result = train(small(), run="one", on_event=seen.append, root=tmp_path)
    assert result.steps == 12 and not result.stopped and result.loss < 5.8
    assert Path(result.checkpoint).name == "step-00000012"
    kinds = {type(event).__name__ for event in seen}
    assert {"RunStarted", "StepDone", "Validated", "CheckpointSaved", "RunStopped"} <= kinds
    journal = (tmp_path / "one" / "journal.jsonl").read_text().splitlines()
    assert json.loads(journal[-1])["reason"] == "finished"


def test_stopped_between_two_steps_and_resumed_it_goes_on_exactly(tmp_path: Path) -> None:
    train(small(), run="whole", root=tmp_path)
    asked = iter([False] * 4 + [True])
    first = train(small(), run="parts", root=tmp_path, should_stop=lambda: next(asked))
    assert first.stopped and first.steps == 5
    second = train(small(), run="parts", root=tmp_path)
    assert second.steps == 12
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_loss_that_is_not_finite_any_more_ends_the_run_and_keeps_what_was_saved(
    tmp_path: Path,
) -> None:
    wild = {"optimizer.learning_rate": 1e30, "optimizer.muon_learning_rate": 1e30}
    with pytest.raises(DivergedError) as ended:
        train(small(**{"training.steps": 60, **wild}), run="wild", root=tmp_path)
    assert "not finite" in str(ended.value) and ended.value.exit_code == 3


def test_the_same_settings_find_the_unfinished_run_again(tmp_path: Path) -> None:
    config = small()
    first = open_run(None, config, root=tmp_path)
    assert not first.resumed
    again = open_run(None, config, root=tmp_path)
    assert again.resumed and again.path == first.path
    by_ending = open_run(first.name.split("-", 3)[3], config, root=tmp_path)
    assert by_ending.path == first.path
    other = replace(config, training=replace(config.training, seed=9))
    assert open_run(None, other, root=tmp_path).path != first.path


def test_a_run_of_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    open_run("mine", small(), root=tmp_path)
    longer = small(**{"training.steps": 99})
    assert open_run("mine", longer, root=tmp_path).resumed
    with pytest.raises(ConfigError) as refused:
        open_run("mine", small(**{"model.num_layers": 2}), root=tmp_path)
    assert "model.num_layers was 1, now 2" in str(refused.value)


def test_two_processes_do_not_train_in_one_run(tmp_path: Path) -> None:
    run = open_run("mine", small(), root=tmp_path)
    with run.locked(), pytest.raises(ConfigError, match="another process"), run.locked():
        raise AssertionError("both hold it")
