"""Contributions aggregated from their bytes: what the references give, in bounded memory."""

import threading
import tracemalloc
from random import Random

import numpy as np
import pytest
import torch

from peerformer.gradients import threads
from peerformer.gradients.aggregate import aggregate, plan_for, scale_factors
from peerformer.gradients.combine import Plan, combine_reference
from peerformer.gradients.compress import (
    CODECS,
    BlobError,
    check,
    decode,
    decode_reference,
    encode,
    read,
)
from peerformer.gradients.contribution import Contribution, norms
from peerformer.gradients.fixed_point import CHUNK, norm
from peerformer.gradients.rules import FACTOR_ONE, Rule
from peerformer.gradients.sketch import sketch_reference, sketches
from peerformer.gradients.sparse import CHUNK as ROW
from peerformer.gradients.sparse import PLACES, _loudest
from peerformer.gradients.threads import shared_out
from tests.gradients.test_rules import NAMES

SIZES = (1, 63, 64, 65, 257, 4_095, 4_097, 4_130, CHUNK - 1, CHUNK, CHUNK + 77)


def blobs_of(codec, K, size, seed):
    """Updates with something in common; here and there nothing happened, or one is alone."""
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, generator=generator)
    blobs = []
    for index in range(K):
        update = (common + torch.randn(size, generator=generator)) * 1e-3
        update[2 * ROW : 3 * ROW] = 0.0
        update[3 * ROW : 4 * ROW] *= index == 1
        blobs.append(encode(update, torch.zeros(size), codec=codec, feedback=1.0).blob)
    return blobs


@pytest.fixture
def three_threads(monkeypatch):
    """Vectors of any length are shared out among three threads."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "SHARED_LEAST", 1)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def reference(values, name, seed):
    """The whole rule but the cap, from plain parts; the plan's weights have tests of their own."""
    rule = Rule.named(name)
    lengths = [norm(torch.tensor(value, dtype=torch.int32)) for value in values]
    factors = scale_factors(lengths, rule) if rule.norms else [FACTOR_ONE] * len(values)
    kept = [i for i in range(len(values)) if factors[i]]
    chosen, factors = [values[i] for i in kept], [factors[i] for i in kept]
    given = [Contribution.of(torch.tensor(value, dtype=torch.int32)) for value in chosen]
    return combine_reference(chosen, factors, plan_for(given, factors, rule, seed))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", NAMES)
def test_every_rule_gives_of_the_bytes_of_every_codec_what_the_references_give(codec, name):
    size = CHUNK + 77
    blobs = blobs_of(codec, 5, size, seed=3)
    given = [read(blob, size, codec) for blob in blobs]
    result = aggregate(given, rule=Rule.named(name), seed=b"s", recent_norms=())
    plain = reference([decode_reference(blob, size, codec) for blob in blobs], name, b"s")
    assert result.update_P.tolist() == plain
    assert result.norm == norm(result.update_P)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", NAMES)
def test_many_chunks_in_several_threads_are_as_decoded_ones_in_one(codec, name, monkeypatch):
    size = 40 * CHUNK + 4_130
    blobs = blobs_of(codec, 7, size, seed=4)
    rule = Rule.named(name)
    decoded = [Contribution.of(decode(blob, size, codec)) for blob in blobs]
    plain = aggregate(decoded, rule=rule, seed=b"s", recent_norms=(1_000,) * 3)
    monkeypatch.setattr(threads, "SHARED_LEAST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    given = [read(blob, size, codec) for blob in blobs]
    shared = aggregate(given, rule=rule, seed=b"s", recent_norms=(1_000,) * 3)
    assert torch.equal(shared.update_P, plain.update_P) and shared.norm == plain.norm
    assert shared.refused == plain.refused


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_read_its_norm_and_its_sketch_are_those_of_the_decoded_values(codec, size):
    blobs = blobs_of(codec, 2, size, seed=size)
    given = [read(blob, size, codec) for blob in blobs]
    plain = [decode_reference(blob, size, codec) for blob in blobs]
    for contribution, value in zip(given, plain, strict=True):
        found = np.zeros(size, np.int64)
        for start in range(0, size, CHUNK):
            stop = min(size, start + CHUNK)
            value_V, place_V = contribution.read(start, stop)
            found[start:stop][slice(None) if place_V is None else place_V] = value_V
            assert contribution.squares(start, stop) == sum(v * v for v in value[start:stop])
        assert found.tolist() == value
    assert norms(given) == [norm(torch.tensor(value, dtype=torch.int32)) for value in plain]
    drawn = [sketch.tolist() for sketch in sketches(given, b"s")]
    assert drawn == [sketch_reference(value, b"s") for value in plain]


@pytest.mark.parametrize("codec", CODECS)
def test_the_loudest_values_of_a_codec_have_an_exact_norm(codec):
    size = 9 * CHUNK
    loud = torch.ones(size).where(torch.arange(size) % 3 > 0, torch.tensor(-1.0))
    blob = encode(loud, torch.zeros(size), codec=codec, feedback=1.0).blob
    value = decode(blob, size, codec)
    assert norms([read(blob, size, codec)]) == [norm(value)]
    assert norm(value) > 1 << 24


@pytest.mark.parametrize("codec", CODECS)
def test_threads_change_no_byte_of_what_is_sent_and_decode_it_alike(codec, request):
    size = 20 * CHUNK + 100
    generator = torch.Generator().manual_seed(6)
    update, residual = torch.randn(size, generator=generator) * 1e-3, torch.full((size,), 1e-4)
    one = encode(update, residual, codec=codec, feedback=1.0)
    value = decode(one.blob, size, codec)
    request.getfixturevalue("three_threads")
    three = encode(update, residual, codec=codec, feedback=1.0)
    assert three.blob == one.blob and torch.equal(three.residual_P, one.residual_P)
    assert torch.equal(decode(one.blob, size, codec), value)


@pytest.mark.parametrize("used", [1, 63, 64, 65, 500, ROW])
def test_the_loudest_are_those_that_sorting_finds_and_of_equals_the_first(used):
    print(f"seed {used}")
    random = np.random.default_rng(used)
    smooth = random.normal(size=(8, ROW))
    smooth[1] = np.sign(smooth[1])  # all are equal
    smooth[2] = np.rint(smooth[2])
    smooth[3] *= random.random(ROW) < 0.01  # fewer than there are places
    smooth[4] = 0.0
    smooth[5] *= np.linspace(1, 0, ROW) ** 4
    smooth[6, :-PLACES] = -0.0
    for rows in (smooth, smooth[4:5], smooth[2:3], smooth[:0]):
        value_NB = rows.astype(np.float32)
        value_NB[-1:, used:] = 0.0
        found = _loudest(value_NB, ROW * (len(rows) - 1) + used if len(rows) else 0)
        for index, row in enumerate(value_NB):
            many = used if index == len(rows) - 1 else ROW
            order = np.argsort(-np.abs(row[:many]), kind="stable")[:PLACES]
            filler = range(ROW - PLACES + len(order), ROW)
            assert found[index].tolist() == [*sorted(order.tolist()), *filler]


@pytest.mark.parametrize(("codec", "K"), [("sparse-2bit", 16), ("dense-int8", 7)])
def test_aggregation_takes_less_memory_than_three_contributions_would_decoded(codec, K):
    size = 1 << 22
    blobs = [*blobs_of(codec, 3, size, seed=8), *[b""] * (K - 3)]
    blobs = [blobs[index % 3] for index in range(K)]
    tracemalloc.start()
    try:
        given = [read(blob, size, codec) for blob in blobs]
        aggregate(given, rule=Rule.named("robust"), seed=b"s", recent_norms=())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4 * size < peak < 3 * 4 * size


@pytest.mark.parametrize("codec", CODECS)
def test_one_bad_row_is_found_wherever_it_is(codec, three_threads):
    size = (1 << 22) + (1 << 20) + 5
    update = torch.randn(size, generator=torch.Generator().manual_seed(9)) * 1e-3
    good = encode(update, torch.zeros(size), codec=codec, feedback=1.0).blob
    check(good, size, codec)
    rows = CODECS[codec].rows(size)
    for row in (0, rows // 3, rows // 2, rows - 2, rows - 1):
        bad = bytearray(good)
        parts = CODECS[codec].parts(np.frombuffer(bad, np.uint8), rows)
        parts[0 if codec == "none" else 1][row] = -(1 << 31) if codec == "none" else 0x80
        with pytest.raises(BlobError, match="order" if codec == "sparse-2bit" else "level"):
            check(bad, size, codec)


# --- sharing out ---------------------------------------------------------------------------------


def test_ranges_make_up_the_whole_in_order_and_are_multiples_of_the_step(three_threads):
    random = Random(7)
    for _ in range(200):
        count, step = random.randint(0, 500), random.randint(1, 60)
        ranges = shared_out(lambda start, stop: (start, stop), count, step)
        assert 1 <= len(ranges) <= 3
        assert [n for r in ranges for n in range(*r)] == list(range(count))
        assert all((stop - start) % step == 0 for start, stop in ranges[:-1])


def test_short_vectors_stay_on_the_callers_thread_and_long_ones_leave_it():
    def where(start, stop):
        return threading.current_thread()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert shared_out(where, threads.SHARED_LEAST - 1, 1) == [threading.current_thread()]
        assert threading.current_thread() not in shared_out(where, threads.SHARED_LEAST, 1)
    finally:
        torch.set_num_threads(before)


def test_an_update_that_is_not_finite_is_refused_in_whichever_thread_it_is(three_threads):
    update = torch.zeros(10 * CHUNK)
    update[-1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        encode(update, update.nan_to_num(), codec="sparse-2bit", feedback=1.0)


def test_every_plan_leaves_zero_what_nobody_sends():
    """What the compact rows of sparse contributions rest on."""
    for plan in (Plan(), Plan(trim=1), Plan(weights=(3, 0, 7, 1)), Plan(((0, 1), (2, 3)))):
        assert combine_reference([[0]] * 4, [70_000] * 4, plan) == [0]
