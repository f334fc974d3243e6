"""One result on every machine: whatever the threads, the vector instructions and the library's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
import numpy as np
import torch
from blake3 import blake3
from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.rules import Rule
from peerformer.gradients.audit import similarity_permille
from peerformer.gradients.compress import CODECS, decode, encode, read
from peerformer.gradients.fixed_point import AgreedState, outer_step, to_fixed
from peerformer.gradients.threads import SHARED_LEAST

torch.set_num_threads(int(sys.argv[1]))
P, K = 100_003, 7

def drawn(name, bits, size=P):
    words = np.frombuffer(blake3(name.encode()).digest(4 * size), "<i4").astype(np.int32)
    return words >> (31 - bits)  # integers, so that the input is the same everywhere

start = drawn("start", 23).astype(np.float32) / 2**24
common = drawn("common", 14)
hasher = blake3()
blobs, contributions = [], []
for index in range(K):
    noise = drawn(f"noise {index}", 15)
    delta = torch.from_numpy((common + noise).astype(np.float32) / 2**24)
    blob = encode(delta, torch.zeros(P), codec="dense-int8", feedback=1.0).blob
    hasher.update(blob)
    blobs.append(blob)
    contributions.append(read(blob, P, "dense-int8"))
state = AgreedState(to_fixed(torch.from_numpy(start)), torch.zeros(P, dtype=torch.int32), (1, 2, 3))
for rule in ("mean", "robust"):
    result = aggregate(
        contributions, rule=Rule.named(rule), seed=b"seed", recent_norms=(10**6,) * 3
    )
    state = outer_step(
        state,
        result.update_P,
        learning_rate_q16=45_875,
        momentum_q16=32_768,
        nesterov=True,
        update_norm=result.norm,
    )
    hasher.update(state.to_bytes())
decoded = [decode(blob, P, "dense-int8") for blob in blobs[:2]]
hasher.update(str(similarity_permille(*decoded)).encode())

# So long that it is shared out among threads, by every codec.
long, long_hasher = SHARED_LEAST + 4_099, blake3()
common = drawn("long", 14, long)
for codec in CODECS:
    contributions = []
    for index in range(4):
        delta = (common + drawn(f"long noise {index}", 15, long)).astype(np.float32) / 2**24
        blob = encode(torch.from_numpy(delta), torch.zeros(long), codec=codec, feedback=1.0).blob
        long_hasher.update(blob)
        contributions.append(read(blob, long, codec))
    long_hasher.update(decode(blob, long, codec).numpy().astype("<i4").tobytes())
    for rule in ("robust", "bucketing+geometric-median"):
        result = aggregate(contributions, rule=Rule.named(rule), seed=b"seed", recent_norms=())
        state = outer_step(
            AgreedState(result.update_P, result.update_P, ()),
            result.update_P,
            learning_rate_q16=45_875,
            momentum_q16=32_768,
            nesterov=True,
            update_norm=result.norm,
        )
        long_hasher.update(result.update_P.numpy().astype("<i4").tobytes())
        long_hasher.update(state.to_bytes())
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), hasher.hexdigest(),
      long_hasher.hexdigest())
"""
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
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(threads)]
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
