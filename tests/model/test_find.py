"""A checkpoint is found by what a person would call it, and nothing outside a run is."""

import os

import pytest

from peerformer.errors import CheckpointError
from peerformer.model.find import resolve_checkpoint


def make_checkpoint(directory):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


def make_run(runs, name, step=1, age_seconds=0):
    checkpoint = make_checkpoint(runs / name / "checkpoints" / f"step-{step:08}")
    latest = runs / name / "latest"
    latest.write_text(f"checkpoints/step-{step:08}\n")
    os.utime(latest, (1_000_000 - age_seconds,) * 2)
    return checkpoint


def refusal(*arguments):
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(*arguments)
    return str(caught.value)


def test_a_checkpoint_is_found_by_directory_run_and_name(tmp_path):
    first = make_run(tmp_path, "2026-11-23-brave-otter", age_seconds=60)
    second = make_run(tmp_path, "2026-11-24-calm-otter", step=20)
    for name, expected in (
        (first, first),
        (tmp_path / "2026-11-23-brave-otter", first),
        (str(tmp_path / "2026-11-23-brave-otter"), first),
        ("2026-11-23-brave-otter", first),
        ("brave-otter", first),
        ("calm-otter", second),
        (None, second),
    ):
        assert resolve_checkpoint(name, tmp_path) == expected, name


def test_what_fits_no_run_or_several_is_refused_with_a_list(tmp_path):
    make_run(tmp_path, "2026-11-23-brave-otter")
    make_run(tmp_path, "2026-11-24-calm-otter")
    text = refusal("otter", tmp_path)
    assert "2 runs" in text and "brave-otter" in text and "calm-otter" in text
    text = refusal("ter", tmp_path)
    assert "there is no run 'ter'" in text and "brave-otter" in text
    assert "peerformer train" in refusal(None, tmp_path / "nothing")
    refusal("x" * 5000, tmp_path)


def test_a_swarm_run_gives_the_newest_checkpoint_of_its_peers(tmp_path):
    make_run(tmp_path / "swarm-dusk" / "peers", "amber-finch", step=9)
    newest = make_run(tmp_path / "swarm-dusk" / "peers", "dusty-wren", step=10, age_seconds=9)
    assert resolve_checkpoint("swarm-dusk", tmp_path) == newest
    assert resolve_checkpoint(None, tmp_path) == newest


@pytest.mark.parametrize("latest", ["../../outside", "/tmp", "checkpoints/step-00000099", "", "\0"])
def test_a_run_that_names_no_checkpoint_of_its_own_is_refused(tmp_path, latest):
    make_checkpoint(tmp_path / "outside")
    make_run(tmp_path / "runs", "brave-otter")
    (tmp_path / "runs" / "brave-otter" / "latest").write_text(latest)
    text = refusal("brave-otter", tmp_path / "runs")
    assert "is not there" in text and "step-00000001" in text


def test_a_directory_that_is_neither_is_refused(tmp_path):
    assert "neither a checkpoint nor a run" in refusal(tmp_path, tmp_path)
