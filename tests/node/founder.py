"""A swarm of one, founded by `init` and run by `node` in a process of its own, for others to meet.

Not a test: others import its fixture.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peerformer.interface.cli import main
from tests.interface.test_up import SMALL

SECONDS_MAX = 90.0
WORDS = ("--size", "nano", "--data", "synthetic:1", *(w for s in SMALL for w in ("--set", s)))
WITH_ANOTHER_CLOCK = "import time; real = time.time; time.time = lambda: real() + {seconds}; "
WITH_ANOTHER_VERSION = (
    "import peerformer; peerformer.__version__ = '7.8.9'; "
    "import peerformer.protocol.messages as m; m.PROTOCOL_VERSION = 7; "
)


@dataclass
class Founder:
    """Where it lies, and how others come to it."""

    directory: Path
    process: subprocess.Popen[str]

    @property
    def status(self) -> dict[str, Any]:
        path = self.directory / "runs" / "mine" / "peers" / "me" / "status.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return found if isinstance(found, dict) else {}

    def say(self, line: str) -> None:
        """Type a line into its console; `train` pauses its training, or lets it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    @property
    def address(self) -> str:
        return str(self.status["address"])


def command(*words: str, before: str = "") -> list[str]:
    """Return the command line of a `peerformer` whose Python first does something else."""
    call = f"{before}from peerformer.interface.cli import main; raise SystemExit(main())"
    return [sys.executable, "-P", "-c", call, *words]


def started(directory: Path, *words: str, before: str = "") -> subprocess.Popen[str]:
    """Start a command in a directory; its words come on `stderr`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*words, before=before),
        cwd=directory,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def founder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founder]:
    """A swarm that admits by invitation, has decided a round, and has paused."""
    directory = tmp_path_factory.mktemp("founder")
    with contextlib.chdir(directory):
        assert main(["init", "mine", "--admission", "invite", *WORDS]) == 0
    process = started(directory, "node", "--run", "mine", "--port", "0")
    made = Founder(directory, process)
    try:
        deadline = time.monotonic() + SECONDS_MAX
        while not made.status.get("round"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, made.status
            time.sleep(0.1)
        made.say("train")  # a round takes no time, and a core as long as it goes on
        yield made
    finally:
        process.kill()
        process.communicate()


def ticket_of(founder: Founder, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Let the founder invite."""
    capsys.readouterr()
    with contextlib.chdir(founder.directory):
        assert main(["invite", "mine", *words]) == 0
    return capsys.readouterr().out.strip()
