"""`examples/real_world_training.py` as somebody would run it, in a small size."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.interface.test_up import ENVIRONMENT, SMALL

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "real_world_training.py"
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]
SECONDS_MAX = 90.0


def start(directory: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLE), "--threads", "1", *words]
    return subprocess.Popen(
        command,
        cwd=directory,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process: subprocess.Popen[str], word: str) -> str:
    """Read lines up to one with this word in it; returns that line."""
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if word in line:
            return line
    raise AssertionError("".join(told))


def many_formats(directory: Path) -> Path:
    """The same stories in several formats."""
    folder = directory / "texts"
    folder.mkdir()
    stories = [
        f"Once a heron met {n} geese by the river, and they spoke of fish.\n" for n in range(80)
    ]
    (folder / "a.txt").write_text("".join(stories))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": s * 3}) + "\n" for s in stories))
    (folder / "c.csv").write_text("text\n" + "".join(f'"{s.strip()} By noon."\n' for s in stories))
    (folder / "d.md").write_text("# Herons\n\n" + "\n".join(s * 2 for s in stories))
    return folder


@pytest.mark.timeout(200)
def test_one_founds_a_swarm_on_files_of_many_formats_and_another_joins_it(tmp_path: Path) -> None:
    texts = many_formats(tmp_path)
    words = ("--data-path", str(texts), "--epochs", "50", "--port", "0", "--run", "first")
    first = start(tmp_path, *words, *SETTINGS)
    second = None
    try:
        files = until(first, "files")
        assert all(kind in files for kind in (".txt", ".jsonl", ".csv", ".md"))
        address = until(first, "listening").split()[1]
        joins = ("--mode", "worker", "--bootstrap", address, "--port", "0", "--run", "second")
        second = start(tmp_path, *joins, "--epochs", "0.001")
        until(second, "made-up stories")
        until(second, "state of round")
        until(second, "1/1")  # its epoch is over: it saves, and leaves
        assert "runs/second/checkpoints/step-" in until(second, "saved")
        assert second.wait(SECONDS_MAX) == 0
        until(first, "has left")
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                process.kill()
    checkpoint = next((tmp_path / "runs" / "second" / "checkpoints").iterdir())
    assert (checkpoint / "model.safetensors").is_file()


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_the_fault_demo_kills_cuts_off_and_attacks_its_own_peers_and_shows_the_recovery(
    tmp_path: Path,
) -> None:
    began = time.monotonic()
    demo = start(tmp_path, "--fault-demo", "--peers", "4", "--run", "demo", *SETTINGS)
    out, _ = demo.communicate(timeout=500)
    print(f"{time.monotonic() - began:.0f} s, pid {os.getpid()}")
    assert demo.returncode == 0, out
    for told in (
        "is back and holds the state of all",
        "the minority waits for a quorum, and says so",
        "the minority decided 0 rounds",
        "healed: all hold the state of one round",
        "is evicted",
        "evidence  signed two prepares",
        ", 0 of them with more than one state",
    ):
        assert told in out, out


def test_a_worker_without_an_address_and_epochs_of_nothing_are_refused(tmp_path: Path) -> None:
    for words in (("--mode", "worker"), ("--epochs", "0"), ("--fault-demo", "--peers", "3")):
        refused = start(tmp_path, *words)
        out, _ = refused.communicate(timeout=60)
        assert refused.returncode == 4 and "error:" in out and "Traceback" not in out, out
