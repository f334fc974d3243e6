"""Each example as three processes over real sockets; all must come to the same state."""

import multiprocessing
import os
import re
import runpy
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("swarm_cnn", "swarm_transformers", "swarm_lora")
# What they show, the other tests of this folder show as well; each takes half a minute.
EXAMPLES_OF_WHAT_IS_TRIED = ("swarm_module", "coordinate")
PEERS, ROUNDS = 3, 8
SECONDS_MAX = 90.0
PRELOADED = [
    "peerformer.swarm.training",
    "peerformer.swarm.coordinator",
    "torch._dynamo",  # the first step of an optimizer imports it
    "transformers.models.llama.modeling_llama",
]
LINES_MAX = 80


def run_example(path: Path, words: list[str], output: Path) -> None:
    """Be one process that runs an example, as `python examples/...` would."""
    with output.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
        sys.argv = [str(path), *words]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")


def server() -> multiprocessing.context.ForkServerContext:
    """Processes that have imported what is slow to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def said(output: Path, pattern: str, process: multiprocessing.process.BaseProcess) -> str:
    """Wait until an example prints something."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        text = output.read_text() if output.exists() else ""
        if found := re.search(pattern, text):
            return found[1]
        assert process.is_alive() and time.monotonic() < deadline, text
        time.sleep(0.05)


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "name",
    [
        *EXAMPLES,
        *(pytest.param(name, marks=pytest.mark.deep) for name in EXAMPLES_OF_WHAT_IS_TRIED),
    ],
)
def test_three_processes_of_an_example_agree_and_learn(name: str, tmp_path: Path) -> None:
    path = ROOT / "examples" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= LINES_MAX
    outputs = [tmp_path / f"{index}.txt" for index in range(PEERS)]
    processes: list[multiprocessing.process.BaseProcess] = []

    def start(index: int, *first: str) -> None:
        numbers = {"--peers": PEERS, "--rounds": ROUNDS, "--seed": 100 + index}
        words = [*first, *(str(word) for pair in numbers.items() for word in pair)]
        words += ["--directory", str(tmp_path / f"peer-{index}")]
        process = server().Process(target=run_example, args=(path, words, outputs[index]))
        process.start()
        processes.append(process)

    try:
        start(0)
        ticket = said(outputs[0], r"ticket (\S+)\n", processes[0])
        for index in range(1, PEERS):
            start(index, ticket)
        for process in processes:
            process.join(SECONDS_MAX)
        texts = [output.read_text() for output in outputs]
        assert [process.exitcode for process in processes] == [0] * PEERS, texts
    finally:
        for process in processes:
            process.kill()
    for what in ("state root", "parameters") if name == "coordinate" else ("state root",):
        assert len({re.search(rf"{what} (\w+)\n", text)[1] for text in texts}) == 1, texts
    for text in texts:
        losses = [float(loss) for loss in re.findall(r"loss (\S+)", text)]
        assert len(losses) >= ROUNDS - 1 and losses[-1] < losses[0], text
