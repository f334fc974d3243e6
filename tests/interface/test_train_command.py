"""`train` and `evaluate` as typed: progress, Ctrl-C, resuming, refusals, JSON."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peerformer.interface.cli import main
from peerformer.interface.progress import duration, si

SMALL = [
    *("--size", "nano", "--data", "synthetic:1", "--batch-size", "4"),
    *("--model.hidden_size", "32", "--model.intermediate_size", "64", "--model.num_layers", "1"),
    *("--model.num_heads", "2", "--model.num_kv_heads", "1", "--model.head_dim", "16"),
    *("--model.max_positions", "32", "--training.sequence_length", "32"),
    *("--data.vocab_size", "300", "--training.validation_sequences", "4"),
    *("--training.dtype", "float32", "--training.threads", "1"),
]
FIELDS = {
    "steps", "loss", "validation_bits_per_byte", "tokens_per_second", "seconds", "checkpoint",
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    """Run a command in this process: what it wrote to stdout and to stderr."""
    found = main(list(words))
    captured = capsys.readouterr()
    assert found == code, captured.err
    return captured.out, captured.err


def test_a_run_says_what_it_does_and_ends_with_one_object(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "train", *SMALL, "--steps", "6", "--run", "one", "--json")
    result = json.loads(out)
    assert set(result) == FIELDS and result["steps"] == 6
    assert 0 < result["validation_bits_per_byte"] < 8 and result["tokens_per_second"] > 0
    assert (here / result["checkpoint"] / "model.safetensors").is_file()
    first_words = [line.split()[0] for line in err.splitlines()]
    assert [w for w in first_words if w in ("data", "model", "run")] == ["data", "model", "run"]
    assert "1 layers, 32 wide" in err and "step 6/6" in err
    without, _ = run(capsys, "train", *SMALL, "--steps", "6", "--run", "two")
    assert without == ""


def test_a_run_goes_on_by_its_name_alone_with_the_settings_it_had(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "train", *SMALL, "--steps", "3", "--run", "2026-11-24-brave-otter")
    out, err = run(capsys, "train", "--run", "brave-otter", "--steps", "7", "--json")
    assert json.loads(out)["steps"] == 7
    assert "from step 3" in err and "32 wide" in err
    rows = (here / "runs" / "2026-11-24-brave-otter" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *"1234567"]
    again, _ = run(capsys, "train", "--run", "brave-otter", "--json")
    assert json.loads(again)["steps"] == 7 and json.loads(again)["loss"] == json.loads(out)["loss"]
    _, err = run(capsys, "train", "--run", "brave-otter", "--model.num_layers", "2", code=2)
    assert "model.num_layers was 1, now 2" in err and "Traceback" not in err


def test_the_same_command_takes_up_what_is_not_finished_and_says_when_it_is(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "train", *SMALL, "--steps", "3")
    _, err = run(capsys, "train", *SMALL, "--steps", "3")
    assert "finished" in err and "a new run begins" in err
    assert len(list((here / "runs").iterdir())) == 2


def started(here: Path, *more: str) -> subprocess.Popen[str]:
    """A long run in a process of its own, some steps old."""
    process = subprocess.Popen(
        [sys.executable, "-m", "peerformer", "train", *SMALL, "--run", "long", *more],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, deadline = here / "runs" / "long" / "metrics.csv", time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return process


def test_ctrl_c_saves_and_says_how_to_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = started(here, "--steps", "100000", "--json")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    result = json.loads(out.splitlines()[-1])
    assert result["validation_bits_per_byte"] is None or result["steps"] >= 100
    assert (here / result["checkpoint"] / "state.json").is_file()
    said = [line for line in err.splitlines() if "peerformer train --run long" in line]
    assert said and f"stopped after step {result['steps']}" in err
    goal = str(result["steps"] + 2)
    words = said[0].split("peerformer ")[1].split()
    out, err = run(capsys, *words, "--steps", goal, "--json")
    assert str(json.loads(out)["steps"]) == goal and f"from step {result['steps']}" in err


def test_two_processes_do_not_train_in_one_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = started(here, "--steps", "100000")
    before = (here / "runs" / "long" / "run.json").read_bytes()
    try:
        _, err = run(capsys, "train", "--run", "long", "--steps", "99", code=2)
    finally:
        process.kill()
        process.communicate()
    assert "another process" in err
    assert (here / "runs" / "long" / "run.json").read_bytes() == before


def test_evaluate_reads_the_whole_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "train", *SMALL, "--steps", "5", "--run", "one")
    own = json.loads(run(capsys, "evaluate", "one", "--json")[0])
    facts = {"validation_bits_per_byte", "loss", "perplexity", "bytes", "tokens"}
    assert set(own) == {*facts, "floor_bits_per_byte"} and own["floor_bits_per_byte"] is None
    text = "One day a small dog found a red ball near the old house.\n" * 7
    (here / "text.txt").write_text(text)
    given = json.loads(run(capsys, "evaluate", "one", "--data", "text.txt", "--json")[0])
    assert len(text) - 12 <= given["bytes"] <= len(text) + 20, "all but the first token"
    assert given["tokens"] % 32 != 0, "the last window is shorter, and counts"
    plain, _ = run(capsys, "evaluate", "one", "--data", "text.txt")
    assert f"{given['validation_bits_per_byte']:.4f} bits per byte" in plain


def test_a_damaged_checkpoint_is_named_with_the_way_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ["--training.checkpoint_every", "2"]
    run(capsys, "train", *SMALL, *every, "--steps", "4", "--run", "one")
    path = here / "runs" / "one" / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    _, err = run(capsys, "train", "--run", "one", "--steps", "5", code=1)
    assert "optimizer.safetensors" in err
    command = next(line for line in err.splitlines() if "try:" in line).split("try: ")[1]
    subprocess.run(command.split("   (")[0], shell=True, check=True, cwd=here)
    out, err = run(capsys, "train", "--run", "one", "--steps", "5", "--json")
    assert json.loads(out)["steps"] == 5 and "from step 2" in err


def test_numbers_are_shown_short() -> None:
    assert [si(n) for n in (0, 999, 999.6, 9_812, 4.92e6)] == ["0", "999", "1k", "9.81k", "4.92M"]
    assert [duration(s) for s in (0.4, 91, 3_660)] == ["0s", "1m31s", "1h01m"]
