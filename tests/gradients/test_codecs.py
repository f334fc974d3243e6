"""All codecs alike: exact integers, known lengths, error feedback; and the sparse one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.gradients.compress import (
    CODECS,
    VALUE_MAX,
    BlobError,
    check,
    decode,
    decode_reference,
    encode,
    encoded_size,
)
from peerformer.gradients.fixed_point import to_float
from peerformer.gradients.sparse import CHUNK, PLACES, Sparse

SIZES = (0, 1, 5, 63, 64, 65, 256, 257, 4_095, 4_096, 4_097, 4_161, 70_001)


def update(size, seed, scale=1e-3):
    print(f"seed {seed}")
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def encoded(delta, codec, residual=None, feedback=1.0):
    residual = torch.zeros_like(delta) if residual is None else residual
    return encode(delta, residual, codec=codec, feedback=feedback)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_sent_and_what_is_left_are_the_update_and_decoding_is_exact(codec, size):
    delta = update(size, size)
    result = encoded(delta, codec)
    assert len(result.blob) == encoded_size(size, codec)
    value = decode(result.blob, size, codec)
    assert value.dtype == torch.int32
    assert value.tolist() == decode_reference(result.blob, size, codec)
    both = to_float(value).double() + result.residual_P.double()
    assert torch.allclose(both, delta.double(), rtol=0, atol=1e-9)
    assert encoded(to_float(value), codec).blob == result.blob


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_an_update_that_is_not_finite_is_not_encoded(codec, bad):
    delta = update(10_000, 4)
    delta[7_777] = bad
    with pytest.raises(ValueError, match="not finite"):
        encoded(delta, codec)


@pytest.mark.parametrize("codec", CODECS)
def test_another_length_is_refused_before_anything_is_allocated(codec):
    for blob in (b"", bytes(encoded_size(5_000, codec) + 1)):
        with pytest.raises(BlobError, match="length"):
            check(blob, 5_000, codec)
    with pytest.raises(BlobError, match="length"):
        decode(b"", 10**12, codec)


def test_the_ratios_of_bytes_are_what_the_table_says():
    size = 50 * CHUNK
    ratio = {codec: 4 * size / encoded_size(size, codec) for codec in CODECS}
    assert ratio["none"] == 1
    assert ratio["dense-int8"] == pytest.approx(3.98, abs=0.01)  # about 75 % less
    assert ratio["dense-int4"] == pytest.approx(7.94, abs=0.01)
    assert ratio["sparse-2bit"] == pytest.approx(138.8, abs=0.1)


@pytest.mark.parametrize("codec", ["dense-int4", "sparse-2bit"])
def test_error_feedback_delivers_in_the_end_what_no_single_round_can_send(codec):
    delta = update(2 * CHUNK, 8)
    total, residual = torch.zeros(len(delta), dtype=torch.float64), torch.zeros(len(delta))
    rounds = 400
    for _ in range(rounds):
        result = encoded(delta, codec, residual)
        total += to_float(decode(result.blob, len(delta), codec)).double()
        residual = result.residual_P
    error = (total / rounds - delta.double()).norm() / delta.double().norm()
    print(codec, float(error))
    assert error < 0.2
    one = to_float(decode(encoded(delta, codec).blob, len(delta), codec)).double()
    assert (one - delta.double()).norm() / delta.double().norm() > error


# --- sparse --------------------------------------------------------------------------------------


def test_the_loudest_of_each_chunk_are_sent_with_their_signs():
    delta = update(3 * CHUNK + 100, 9)
    value = decode(encoded(delta, Sparse.name).blob, len(delta), Sparse.name)
    for start in range(0, len(delta), CHUNK):
        chunk, sent = delta[start : start + CHUNK], value[start : start + CHUNK]
        loudest = set(chunk.abs().topk(PLACES).indices.tolist())
        assert set(sent.nonzero()[:, 0].tolist()) == loudest
        assert torch.equal(sent.sign(), chunk.sign().int() * (sent != 0))
        assert len(set(sent.abs().tolist()) - {0}) <= 2


def test_two_loudnesses_are_the_means_of_the_quieter_and_the_louder():
    delta = torch.zeros(CHUNK)
    delta[10:42], delta[100:132] = 3.0 / 2**24, -9.0 / 2**24
    value = decode(encoded(delta, Sparse.name).blob, CHUNK, Sparse.name)
    assert value[10:42].tolist() == [3] * 32 and value[100:132].tolist() == [-9] * 32


def test_a_chunk_in_which_nothing_happened_sends_nothing():
    delta = torch.zeros(2 * CHUNK)
    delta[CHUNK] = 0.25
    value = decode(encoded(delta, Sparse.name).blob, len(delta), Sparse.name)
    assert not value[:CHUNK].any() and value[CHUNK] == 1 << 22
    assert value[CHUNK + 1 :].abs().max() <= 1  # the places that are left are as good as silent


def packed(quiet, loud, places, codes):
    """One chunk, bit by bit."""
    place = sum(p << 12 * k for k, p in enumerate(places))
    code = sum(c << 2 * k for k, c in enumerate(codes))
    sizes = quiet.to_bytes(3, "little") + loud.to_bytes(3, "little")
    return sizes + place.to_bytes(96, "little") + code.to_bytes(16, "little")


def reason(blob, size=CHUNK):
    with pytest.raises(BlobError) as caught:
        check(blob, size, Sparse.name)
    return caught.value.reason


def test_every_second_encoding_of_a_sparse_value_is_refused():
    first, mixed = list(range(PLACES)), [0, 1, 2, 3] * 16
    good = packed(5, 9, first, mixed)
    assert decode(good, CHUNK, Sparse.name)[:4].tolist() == [5, 9, -5, -9]
    assert decode(packed(7, 7, first, [0, 2] * 32), CHUNK, Sparse.name)[:2].tolist() == [7, -7]
    assert not decode(packed(0, 0, first, [0] * 64), CHUNK, Sparse.name).any()
    assert reason(packed(9, 5, first, mixed)) == "loudness"
    assert reason(packed(5, VALUE_MAX + 1, first, mixed)) == "loudness"
    assert reason(packed(5, 9, [0, 0, *first[2:]], mixed)) == "order"
    assert reason(packed(5, 9, first[::-1], mixed)) == "order"
    assert reason(packed(5, 9, first, [0] * 64)) == "canonical"  # none is louder
    assert reason(packed(5, 9, first, [1] * 64)) == "canonical"  # none is quieter
    assert reason(packed(7, 7, first, mixed)) == "canonical"  # louder by nothing
    assert reason(packed(0, 9, first, mixed)) == "canonical"  # silence in any place
    assert reason(packed(0, 0, first, [2] + [0] * 63)) == "canonical"  # minus nothing
    assert reason(packed(0, 0, [*first[:-1], 99], [0] * 64)) == "canonical"


def test_padding_holds_no_place_and_left_over_places_are_where_they_belong():
    first, mixed = list(range(PLACES)), [0, 1, 2, 3] * 16
    assert reason(packed(5, 9, first[:-1] + [100], mixed), size=100) == "range"
    filler = list(range(CHUNK - 60, CHUNK))
    short = packed(5, 9, [0, 1, 2, 3, *filler], [0, 1, 2, 3] + [0] * 60)
    assert decode(short, 4, Sparse.name).tolist() == [5, 9, -5, -9]
    assert reason(packed(5, 9, first, mixed), size=4) == "range"
    assert reason(packed(5, 9, [0, 1, 2, 3, *filler], mixed), size=4) == "padding"


@settings(deadline=None)  # the machine may be busy
@given(st.data())
def test_hostile_bytes_decode_within_bounds_or_are_refused(data):
    codec = data.draw(st.sampled_from(sorted(CODECS)))
    size = data.draw(st.sampled_from(SIZES[1:-1]))
    length = encoded_size(size, codec)
    start = data.draw(st.binary(max_size=min(length, 40)))
    fill = data.draw(st.sampled_from([b"\0", b"\x7f", b"\x40", b"\x11"]))
    blob = (start + fill * length)[:length]
    try:
        value = decode(blob, size, codec)
    except BlobError:
        return
    assert int(value.abs().max()) <= VALUE_MAX
    assert value.tolist() == decode_reference(blob, size, codec)
    assert np.array_equal(decode(encoded(to_float(value), codec).blob, size, codec), value)
