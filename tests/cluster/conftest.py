"""What tests of ranks share: the server that forks them, and real launchers that leave nothing."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import Server, environment


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server that forks ranks."""
    running = Server()
    yield running
    running.close()


@pytest.fixture
def launched() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a real launcher; whatever of it is left after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def launch(*words: str, folder: Path, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
