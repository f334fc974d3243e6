"""Killed at any moment and taken up again, a run goes on exactly, whatever state it has."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peerformer.config import Config
from peerformer.data.synthetic import synthetic_documents
from peerformer.settings import to_json
from peerformer.train.loop import train
from tests.train.test_loop import losses, small

WHAT = {
    "muon": {},
    "muon, asam, averaged, plateau": {
        "optimizer.sharpness": "asam",
        "training.ema_decay": 0.9,
        "training.schedule": "plateau",
        "training.plateau_patience": 0,
        "optimizer.learning_rate": 1.0,
        "optimizer.muon_learning_rate": 2.0,
    },
    "lion in float16, stopping early": {
        "optimizer.name": "lion",
        "training.dtype": "float16",
        "training.loss_scale": 2.0**26,  # it overflows and is halved for some steps
        "training.patience": 1_000,
    },
    "sgd, sam, wsd, accumulated, deterministic": {
        "optimizer.name": "sgd",
        "optimizer.nesterov": True,
        "optimizer.sharpness": "sam",
        "training.schedule": "wsd",
        "training.accumulation": 2,
        "training.deterministic": True,
    },
}
GOAL = 24  # steps; the process is killed after a dozen


def stopping_at(goal: int):
    """What ends an unbroken run after so many steps: asked once a step."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= goal


def text_in(here: Path) -> str:
    """A little text to learn from: preparing it is not what is tested."""
    stories = [document.text for document in synthetic_documents(3, 100)]
    (here / "text.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in stories))
    return str(here / "text.jsonl")


def killed(config: Config, here: Path) -> None:
    """Run in a process of its own, killed in the middle of some step."""
    (here / "settings.json").write_text(json.dumps(to_json(config)))
    process = subprocess.Popen(
        [sys.executable, "-m", "peerformer", "train", "--run", "one", "--config", "settings.json"],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    run, deadline = here / "runs" / "one", time.monotonic() + 90
    while not (run / "latest").exists() or len(losses(run)) < 12:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(w, marks=[] if "float16" in w or "asam" in w else pytest.mark.deep)
        for w in WHAT
    ],
)
def test_killed_in_the_middle_and_resumed_it_goes_on_exactly(what: str, tmp_path: Path) -> None:
    config = small(
        **{
            "data.path": text_in(tmp_path),
            "training.steps": 400,
            "training.checkpoint_every": 5,
            "training.validate_every": 4,
            **WHAT[what],
        }
    )
    killed(config, tmp_path)
    whole_events: list = []
    train(
        config,
        run="whole",
        root=tmp_path,
        should_stop=stopping_at(GOAL),
        on_event=whole_events.append,
    )
    events: list = []
    run = tmp_path / "runs" / "one"
    done = int((run / "latest").read_text().strip()[-8:])
    train(
        config,
        run="one",
        root=tmp_path / "runs",
        should_stop=stopping_at(max(1, GOAL - done)),
        on_event=events.append,
    )
    whole, again = dict(losses(tmp_path / "whole")), dict(losses(run))
    assert len(again) >= GOAL and all(again[step] == whole[step] for step in range(1, GOAL + 1))
    if done < GOAL:  # else the process had been quick
        end = [e.digest for e in events if type(e).__name__ == "CheckpointSaved"][-1]
        assert end == [e.digest for e in whole_events if type(e).__name__ == "CheckpointSaved"][-1]
    validated = {e.step: e.loss for e in whole_events if type(e).__name__ == "Validated"}
    found = {e.step: e.loss for e in events if type(e).__name__ == "Validated"}
    assert all(validated[step] == loss for step, loss in found.items() if step in validated)
    if "plateau" in what:
        rates = {e.learning_rate for e in whole_events if type(e).__name__ == "StepDone"}
        assert 0.5 in rates, "the rate was cut, not only warmed up"


def test_a_stop_that_falls_on_a_validation_loses_none(tmp_path: Path) -> None:
    """Ctrl-C leaves at once; what was due is looked at when the run is taken up."""
    config = small(**{"training.schedule": "plateau", "training.validate_every": 4})
    seen: list = []
    train(config, run="whole", root=tmp_path, on_event=seen.append)
    whole = [(e.step, e.loss) for e in seen if type(e).__name__ == "Validated"]
    seen.clear()
    train(config, run="parts", root=tmp_path, on_event=seen.append, should_stop=stopping_at(4))
    assert not [e for e in seen if type(e).__name__ == "Validated"]
    train(config, run="parts", root=tmp_path, on_event=seen.append)
    assert [(e.step, e.loss) for e in seen if type(e).__name__ == "Validated"] == whole
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
