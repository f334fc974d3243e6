"""Whatever bytes come as a contribution or a state, they mean what the format says or nothing.

One slice of the deep test alone:

    PEERFORMER_SEEDS=17:18 python -m pytest -m deep tests/gradients/test_fuzz.py
"""

import tracemalloc
from collections import Counter
from collections.abc import Callable
from math import ceil
from random import Random

import numpy as np
import pytest
import torch

from peerformer.gradients.compress import (
    BlobError,
    decode,
    decode_reference,
    encode,
    encoded_size,
)
from peerformer.gradients.dense import BLOCK
from peerformer.gradients.fixed_point import (
    NORMS_MAX,
    AgreedState,
    state_size_bytes,
    to_float,
)
from tests.mutations import mutate, seeds

CODEC = "dense-int8"
EXPONENT_MAX = 16
OTHER_CODECS = ("dense-int4", "sparse-2bit", "none")
OTHER_SIZES = (0, 1, 63, 64, 65, 257, 4_095, 4_096, 4_097, 4_130)
SIZES = (0, 1, 2, 255, 256, 257, 600)  # of parameters
BYTES = (0, 1, 2, 15, 16, 17, 63, 64, 127, 128, 129, 191, 192, 193, 255)  # where a rule changes
SLICE = 1_000  # inputs of one seed in the deep test
MANY = 1_000_000  # parameters, where memory is measured
SMALL_BYTES = 64 * 1024  # what numpy and Python take whatever the length is


def contribution(P: int, random: Random) -> bytes:
    """A well-formed contribution of P parameters: blocks of every exponent, loud and quiet."""
    exponents, levels = bytearray(), bytearray()
    for start in range(0, P, BLOCK):
        exponent = random.choice((0, 0, random.randint(1, EXPONENT_MAX)))
        size = min(BLOCK, P - start)
        top = random.choice((0, 1, 63, 127)) if exponent == 0 else random.choice((64, 100, 127))
        block = [random.randint(-top, top) for _ in range(size)]
        block[random.randrange(size)] = random.choice((-top, top))
        levels += np.array(block, np.int8).tobytes() + bytes(BLOCK - size)
        exponents.append(exponent)
    return bytes(exponents + levels)


def meaning(blob: bytes, P: int) -> list[int] | None:
    """The rules once more, one by one: the values, or None if it is malformed."""
    blocks = ceil(P / BLOCK)
    if len(blob) != blocks * (1 + BLOCK) or any(blob[blocks + P :]):
        return None
    for index, exponent in enumerate(blob[:blocks]):
        block = blob[blocks + index * BLOCK : blocks + (index + 1) * BLOCK]
        loudest = max(min(byte, 256 - byte) for byte in block)
        if exponent > EXPONENT_MAX or 128 in block or (exponent and loudest < 64):
            return None
    return decode_reference(blob, P, CODEC)


def touched(data: bytes, head: int, random: Random) -> bytes:
    """The same length with a few bytes changed, often among the first `head` or the last."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        places = (random.randrange(len(data)), random.randrange(min(head, len(data))), -1)
        damaged[random.choice(places)] = random.choice(BYTES)
    return bytes(damaged)


def try_contributions(seed: int, count: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    for _ in range(count):
        P = random.choice(SIZES)
        good = contribution(P, random)
        blob, chance = good, random.random()
        if chance < 0.2:
            blob = mutate(good, contribution(random.choice(SIZES), random), random)
        elif chance < 0.8 and good:
            blob = touched(good, ceil(P / BLOCK), random)
        wanted = meaning(blob, P)
        try:
            value_P = decode(blob, P, CODEC)
        except BlobError as error:
            assert wanted is None, (seed, P, error.reason, blob.hex())
            continue
        assert value_P.tolist() == wanted, (seed, P, blob.hex())
        again = encode(to_float(value_P), torch.zeros(P), codec=CODEC, feedback=1.0)
        assert again.blob == blob, (seed, P, blob.hex())


def other_contribution(codec: str, P: int, random: Random) -> bytes:
    """What an honest peer makes of an update, smooth, spiky, or mostly zero."""
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    update_P = torch.randn(P, generator=generator) * 10.0 ** random.randint(-8, 0)
    if random.random() < 0.5:
        update_P *= torch.rand(P, generator=generator) < random.choice((0.0, 0.01, 0.1))
    return encode(update_P, torch.zeros(P), codec=codec, feedback=1.0).blob


def try_other_codecs(seed: int, count: int) -> Counter[str]:
    """What is not refused is what the plain reference says, and has one encoding."""
    print(f"seed {seed}")
    random, found = Random(seed), Counter[str]()
    for _ in range(count):
        codec, P = random.choice(OTHER_CODECS), random.choice(OTHER_SIZES)
        blob, chance = other_contribution(codec, P, random), random.random()
        if chance < 0.2:
            blob = mutate(blob, other_contribution(codec, P, random), random)
        elif chance < 0.9 and blob:
            blob = touched(blob, len(blob), random)
        try:
            value_P = decode(blob, P, codec)
        except BlobError as error:
            found[f"{codec}: {error.reason}"] += 1
            continue
        found[codec] += 1
        assert value_P.tolist() == decode_reference(blob, P, codec), (seed, codec, P)
        again = encode(to_float(value_P), torch.zeros(P), codec=codec, feedback=1.0)
        assert again.blob == blob, (seed, codec, P)
    return found


def state(P: int, random: Random) -> bytes:
    """A well-formed state of P parameters."""
    norms = [random.choice((0, 1, 2**64 - 1)) for _ in range(random.choice((0, 1, NORMS_MAX)))]
    words = [len(norms), *norms, *[0] * (NORMS_MAX - len(norms))]
    return random.randbytes(8 * P) + b"".join(word.to_bytes(8, "little") for word in words)


def try_states(seed: int, count: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    for _ in range(count):
        P = random.choice(SIZES[:4])
        good = state(P, random)
        data = mutate(good, state(random.choice(SIZES[:4]), random), random)
        if random.random() < 0.7:
            data = good[: 8 * P] + touched(good[8 * P :], 8, random)
        words = np.frombuffer(data[8 * P :][: 8 + 8 * NORMS_MAX].ljust(8 + 8 * NORMS_MAX), "<u8")
        count_said = int(words[0])
        is_good = len(data) == state_size_bytes(P) and count_said <= NORMS_MAX
        is_good = is_good and not any(words[1 + count_said :])
        try:
            read = AgreedState.from_bytes(data, P)
        except ValueError:
            assert not is_good, (seed, P, data.hex())
            continue
        assert is_good and read.to_bytes() == data, (seed, P, data.hex())


def test_a_damaged_contribution_means_what_the_rules_say_or_is_refused() -> None:
    try_contributions(1_000_000, 1_000)


def test_a_damaged_contribution_of_any_codec_has_one_encoding_or_is_refused() -> None:
    found = try_other_codecs(2_000_000, 1_000)
    wanted = {"dense-int4", "sparse-2bit", "none", "sparse-2bit: order", "sparse-2bit: canonical"}
    more = {"sparse-2bit: loudness", "dense-int4: canonical", "none: level", "none: length"}
    assert wanted | more <= set(found), found


def test_a_damaged_state_is_refused_or_the_one_encoding_of_another() -> None:
    try_states(1_000_000, 500)


@pytest.mark.deep
@pytest.mark.parametrize("seed", seeds("0:100"))
def test_a_slice_of_damaged_contributions_and_states(seed: int) -> None:
    try_contributions(seed, SLICE)
    try_other_codecs(seed, SLICE // 4)
    try_states(seed, SLICE)


def peak_bytes(read: Callable[[], object], error: type[ValueError] | None) -> int:
    """The most memory in use while something is read, or refused with `error`."""
    tracemalloc.start()
    try:
        if error is None:
            read()
        else:
            with pytest.raises(error):
                read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_contribution_takes_the_memory_of_its_values_and_a_refused_one_of_its_checks() -> None:
    blocks = ceil(MANY / BLOCK)
    # Four bytes a value, padding too, and some for every block: its extremes, factor and tests.
    checks = 16 * blocks + SMALL_BYTES
    good = contribution(MANY, Random(1))
    assert peak_bytes(lambda: decode(good, MANY, CODEC), None) <= 4 * BLOCK * blocks + checks
    for place, byte in ((0, 17), (blocks, 128), (-1, 1)):
        bad = bytearray(good)
        bad[place] = byte
        assert peak_bytes(lambda bad=bad: decode(bytes(bad), MANY, CODEC), BlobError) <= (
            len(bad) + checks  # the copy made here
        )
    for wrong in (good + b"\0", good[:-1], b""):
        assert peak_bytes(lambda wrong=wrong: decode(wrong, MANY, CODEC), BlobError) <= SMALL_BYTES
    assert encoded_size(MANY, CODEC) == len(good)


def test_a_state_takes_the_memory_of_one_copy_and_one_of_a_wrong_length_none() -> None:
    good = state(MANY, Random(2))
    assert peak_bytes(lambda: AgreedState.from_bytes(good, MANY), None) <= 8 * MANY + SMALL_BYTES
    for wrong in (good + b"\0", good[:-1], b""):
        assert (
            peak_bytes(lambda wrong=wrong: AgreedState.from_bytes(wrong, MANY), ValueError)
            <= SMALL_BYTES
        )
