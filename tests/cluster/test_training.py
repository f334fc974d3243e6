"""The same losses on any number of ranks, whatever carries the gradients; saved once, by rank 0."""

import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from peerformer.interface.cli import main
from tests.cluster.processes import ROOT, SMALL, mpi_launcher, numbers, torchrun, validated

STEPS = 50
TRAIN = ["train", *SMALL, "--steps", str(STEPS), "--training.checkpoint_every", "25"]
SAME = 1e-4  # nats: what the order of additions may change after 50 steps, and more


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main([*TRAIN, "--run", "alone"]) == 0
    finally:
        os.chdir(before)
    return folder / "runs" / "alone"


def assert_same(run: Path, alone: Path) -> None:
    theirs, ours = numbers(alone), numbers(run)
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    assert max(abs(ours[step] - theirs[step]) for step in ours) < SAME
    assert abs(validated(run) - validated(alone)) < SAME


def test_two_ranks_make_the_losses_of_one_and_rank_0_alone_prints_and_writes(
    server, alone, tmp_path
):
    more = ("--training.accumulation", "2", "--run", "two", "--json")
    ranks = server.start(tmp_path, *TRAIN, *more)
    assert ranks.wait() == [0, 0], ranks.err(0) + ranks.err(1)
    assert_same(tmp_path / "runs" / "two", alone)
    assert json.loads(ranks.out(0))["steps"] == STEPS and "2 ranks on one host" in ranks.err(0)
    assert ranks.out(1) == "" and ranks.err(1) == ""
    events = (tmp_path / "runs" / "two" / "journal.jsonl").read_text()
    assert events.count('"checkpoint_saved"') == 2 and events.count('"run_stopped"') == 1


def test_fsdp_makes_them_too_and_its_checkpoint_goes_on_elsewhere(
    server, alone, tmp_path, monkeypatch, capsys
):
    words = [*TRAIN, "--run", "parts", "--training.engine", "fsdp"]
    ranks = server.start(tmp_path, *words)
    assert ranks.wait() == [0, 0], ranks.err(0) + ranks.err(1)
    run = tmp_path / "runs" / "parts"
    assert_same(run, alone)
    # What two ranks wrote in parts half way, one process takes up, and ends where all end.
    assert len(list((run / "checkpoints" / "step-00000025").glob("shard-*"))) == 2
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    (run / "latest").write_text("checkpoints/step-00000025\n")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "parts", "--to", "early"]) == 0
    assert "transformers loads it" in capsys.readouterr().out
    assert main([*TRAIN, "--run", "parts", "--training.engine", "auto"]) == 0
    assert_same(run, alone)
    assert main(["checkpoint", "consolidate", "parts"]) == 0
    assert "ordinary checkpoint already" in capsys.readouterr().out


@pytest.mark.timeout(240)  # waiting ranks share two cores with whatever else runs
@pytest.mark.parametrize("kind", ["mpich", "openmpi"])
def test_ranks_of_mpirun_make_them_over_mpi(launched, alone, tmp_path, kind):
    launcher = mpi_launcher(kind)
    if launcher is None:
        pytest.skip(f"there is no {kind} here")
    words = [*TRAIN, "--run", kind, "--training.engine", "mpi"]
    command = [*launcher, "-np", "2", sys.executable, "-m", "peerformer", *words]
    process = launched(*command, folder=tmp_path)
    told, _ = process.communicate(timeout=220)
    assert process.returncode == 0, told
    assert told.count("ranks       2 ranks on one host") == 1 and told.count("done  ") == 1
    assert_same(tmp_path / "runs" / kind, alone)


def test_a_killed_rank_of_torchrun_comes_back_by_itself_and_changes_nothing(
    launched, alone, tmp_path
):
    run = tmp_path / "runs" / "killed"
    words = [*TRAIN, "--run", "killed", "--training.hang_seconds", "20"]
    # Rank 1 kills itself once, after the first checkpoint, as a machine that goes would.
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import os, threading, time\n"
        "def watch():\n"
        f"    while not os.path.exists({str(run / 'latest')!r}):\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), 9)\n"
        "if os.environ.get('RANK') == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
    )
    command = torchrun(2, "--max-restarts=2", "--monitor-interval=0.2")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    process = launched(*command, *words, folder=tmp_path, PYTHONPATH=path)
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 0, told
    assert "from step 25" in told
    assert_same(run, alone)


def test_ctrl_c_on_all_ranks_saves_once_and_the_same_command_goes_on(server, alone, tmp_path):
    words = [*TRAIN, "--run", "stopped", "--training.checkpoint_every", "1000"]
    ranks = server.start(tmp_path, *words)
    run = tmp_path / "runs" / "stopped"
    ranks.await_text(run / "metrics.csv", "\n5,")
    for pid in ranks.pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGINT)  # launchers send it several times
    assert ranks.wait() == [130, 130], ranks.err(0) + ranks.err(1)
    assert "saved" in ranks.err(0) and ranks.err(1) == ""
    assert (run / "journal.jsonl").read_text().count('"checkpoint_saved"') == 1
    assert len(list((run / "checkpoints").iterdir())) == 1
    again = server.start(tmp_path, *words)
    assert again.wait() == [0, 0], again.err(0)
    assert_same(run, alone)
    assert not math.isnan(validated(run))


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_four_ranks_make_the_losses_of_one(server, alone, tmp_path, engine):
    ranks = server.start(tmp_path, *TRAIN, "--run", "four", "--training.engine", engine, size=4)
    assert ranks.wait() == [0] * 4, ranks.err(0)
    assert_same(tmp_path / "runs" / "four", alone)


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["mpich", "openmpi"])
def test_four_ranks_of_mpirun_make_them_too(launched, alone, tmp_path, kind):
    launcher = mpi_launcher(kind)
    if launcher is None:
        pytest.skip(f"there is no {kind} here")
    words = [*TRAIN, "--run", kind, "--training.engine", "mpi"]
    command = [*launcher, "-np", "4", sys.executable, "-m", "peerformer", *words]
    process = launched(*command, folder=tmp_path)
    told, _ = process.communicate(timeout=110)
    assert process.returncode == 0, told
    assert_same(tmp_path / "runs" / kind, alone)


@pytest.mark.deep
def test_what_two_ranks_saved_in_parts_four_take_up(server, alone, tmp_path):
    words = ["--run", "parts", "--training.engine", "fsdp", "--training.ema_decay", "0.9"]
    # The schedule goes by the steps of the whole run: the first half is one that was stopped.
    ranks = server.start(tmp_path, *TRAIN, *words)
    assert ranks.wait() == [0, 0], ranks.err(0)
    run = tmp_path / "runs" / "parts"
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    (run / "latest").write_text("checkpoints/step-00000025\n")
    words = [*TRAIN, *words]
    more = server.start(tmp_path, *words, size=4)
    assert more.wait() == [0] * 4, more.err(0)
    ours, theirs = numbers(tmp_path / "runs" / "parts"), numbers(alone)
    assert max(abs(ours[step] - theirs[step]) for step in range(26, STEPS + 1)) < SAME


@pytest.mark.deep
@pytest.mark.parametrize("balance", [("model.router_bias_update_rate", "0.001"), ()])
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_mixtures_of_experts_make_the_same_losses_on_four_ranks(server, tmp_path, engine, balance):
    experts = ["--model.num_experts", "4", "--run", "experts"]
    if balance:
        experts += [f"--{balance[0]}", balance[1], "--model.router_aux_loss_coef", "0"]
    found = {}
    for size in (1, 4):
        (tmp_path / str(size)).mkdir()
        words = [*TRAIN, *experts, "--training.engine", engine]
        ranks = server.start(tmp_path / str(size), *words, size=size)
        assert ranks.wait() == [0] * size, ranks.err(0)
        found[size] = validated(tmp_path / str(size) / "runs" / "experts")
    assert abs(found[1] - found[4]) < SAME, found
