"""What must be the same on every machine: `python benchmarks/same_bits.py [THREADS]`.

Encodes, decodes, judges and aggregates made-up updates by every codec and several rules, and prints
the vector instructions, the threads and two digests: of what decides about the agreed state, and of
long vectors, which are shared out among threads, with what encoders choose as well.
`tests/gradients/test_sameness.py` holds what they are. Needs torch, numpy and blake3 only.
"""

import sys

import numpy as np
import torch
from blake3 import blake3

from peerformer.gradients.aggregate import Aggregate, aggregate
from peerformer.gradients.audit import similarity_permille
from peerformer.gradients.compress import CODECS, decode, encode, read
from peerformer.gradients.fixed_point import AgreedState, outer_step, to_fixed
from peerformer.gradients.rules import Rule
from peerformer.gradients.threads import SHARED_LEAST

SHORT, PEERS = 100_003, 7
LONG = SHARED_LEAST + 4_099


def drawn(name: str, bits: int, size: int) -> np.ndarray:
    """Return signed integers of so many bits: the same everywhere, unlike drawn floats."""
    words = np.frombuffer(blake3(name.encode()).digest(4 * size), "<i4").astype(np.int32)
    return words >> (31 - bits)


def update(common: np.ndarray, noise: str, bits: int) -> torch.Tensor:
    """Return what a peer trained: something common and something of its own."""
    own = drawn(noise, bits, len(common))
    return torch.from_numpy((common + own).astype(np.float32) / 2**24)


def stepped(state: AgreedState, result: Aggregate) -> AgreedState:
    """Return the state after an outer step."""
    return outer_step(
        state,
        result.update_P,
        learning_rate_q16=45_875,
        momentum_q16=32_768,
        nesterov=True,
        update_norm=result.norm,
    )


def short_digest() -> str:
    """Return the digest of some rounds of one codec."""
    start = drawn("start", 23, SHORT).astype(np.float32) / 2**24
    common = drawn("common", 14, SHORT)
    hasher = blake3()
    blobs, contributions = [], []
    for index in range(PEERS):
        delta = update(common, f"noise {index}", 15)
        blob = encode(delta, torch.zeros(SHORT), codec="dense-int8", feedback=1.0).blob
        hasher.update(blob)
        blobs.append(blob)
        contributions.append(read(blob, SHORT, "dense-int8"))
    momentum = torch.zeros(SHORT, dtype=torch.int32)
    state = AgreedState(to_fixed(torch.from_numpy(start)), momentum, (1, 2, 3))
    for rule in ("mean", "robust"):
        result = aggregate(
            contributions, rule=Rule.named(rule), seed=b"seed", recent_norms=(10**6,) * 3
        )
        state = stepped(state, result)
        hasher.update(state.to_bytes())
    decoded = [decode(blob, SHORT, "dense-int8") for blob in blobs[:2]]
    hasher.update(str(similarity_permille(*decoded)).encode())
    return hasher.hexdigest()


def long_digest() -> str:
    """Return the digest of one round of every codec."""
    common, hasher = drawn("long", 14, LONG), blake3()
    for codec in CODECS:
        contributions = []
        for index in range(4):
            delta = update(common, f"long noise {index}", 15)
            blob = encode(delta, torch.zeros(LONG), codec=codec, feedback=1.0).blob
            hasher.update(blob)
            contributions.append(read(blob, LONG, codec))
        hasher.update(decode(blob, LONG, codec).numpy().astype("<i4").tobytes())
        for rule in ("robust", "bucketing+geometric-median"):
            result = aggregate(contributions, rule=Rule.named(rule), seed=b"seed", recent_norms=())
            state = stepped(AgreedState(result.update_P, result.update_P, ()), result)
            hasher.update(result.update_P.numpy().astype("<i4").tobytes())
            hasher.update(state.to_bytes())
    return hasher.hexdigest()


def main() -> None:
    """Print all on one line."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    capability = torch.backends.cpu.get_cpu_capability()
    print(capability, torch.get_num_threads(), short_digest(), long_digest())


if __name__ == "__main__":
    main()
