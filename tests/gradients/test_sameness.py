"""One result on every machine: whatever the threads, the vector instructions and the library's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = ROOT / "benchmarks" / "same_bits.py"
# Of these very inputs; a change of this digest is a change of the protocol.
DIGEST = "99d7d80eb418c561bce08907911d8b59237771ae9258998100cdda4b39998094"
# This one holds what encoders choose as well.
LONG_DIGEST = "c62769f3537da43f110b41e8d522264bbc760edca1aaf02b2a0352d3a95747a9"


def start(threads, capability, numpy_disabled):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "ATEN_CPU_CAPABILITY": capability,
        "NPY_DISABLE_CPU_FEATURES": " ".join(numpy_disabled),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(threads)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def outputs():
    """All at once: most of their time is spent importing."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    worlds = [(1, "default", found), (2, "avx2", found[1:]), (4, "avx512", [])]
    processes = [start(*world) for world in worlds]
    return [process.communicate()[0].split() for process in processes]


def test_threads_and_vector_instructions_do_not_change_a_bit(outputs):
    assert [int(threads) for _, threads, *_ in outputs] == [1, 2, 4]
    assert outputs[0][0].upper() in ("DEFAULT", "NO")
    assert {digest for *_, digest, _ in outputs} == {DIGEST}
    assert {digest for *_, digest in outputs} == {LONG_DIGEST}
