"""The codec: exact, one encoding for each value, and nothing but `BlobError` on hostile bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.gradients.compress import (
    CODECS,
    RESIDUAL_SHARE_MAX,
    VALUE_MAX,
    BlobError,
    decode,
    decode_reference,
    encode,
    encoded_size,
)
from peerformer.gradients.dense import BLOCK, Dense
from peerformer.gradients.fixed_point import to_float

CODEC = "dense-int8"
INT8 = CODECS[CODEC]
assert isinstance(INT8, Dense)
EXPONENT_MAX, LEVEL_MAX = INT8.exponent_max, INT8.level_max
UNIT = 2.0**-24


def encoded(delta, residual=None, feedback=1.0):
    residual = torch.zeros_like(delta) if residual is None else residual
    return encode(delta, residual, codec=CODEC, feedback=feedback)


def random_update(size, seed, scale=1e-3):
    print(f"seed {seed}")
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def blob_of(exponents, levels):
    return bytes(exponents) + np.array(levels, np.int8).tobytes()


def reason(blob, size):
    with pytest.raises(BlobError) as caught:
        decode(blob, size, CODEC)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 16_384, 16_385, 70_001])
def test_decoding_gives_what_the_plain_reference_gives(size):
    blob = encoded(random_update(size, size)).blob
    assert len(blob) == encoded_size(size, CODEC)
    assert decode(blob, size, CODEC).tolist() == decode_reference(blob, size, CODEC)
    assert torch.equal(decode(memoryview(blob), size, CODEC), decode(blob, size, CODEC))


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 0.1])
def test_an_update_is_what_was_sent_and_what_was_left(scale):
    delta = random_update(70_001, 3, scale)
    result = encoded(delta)
    sent = to_float(decode(result.blob, len(delta), CODEC))
    assert torch.equal(sent.double() + result.residual_P.double(), delta.double())
    loudest = delta.abs().max()
    assert result.residual_P.abs().max() <= max(loudest / 127.5, UNIT / 2)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(-VALUE_MAX, VALUE_MAX), min_size=1, max_size=600), st.integers(0, 24))
def test_decoding_and_encoding_again_gives_the_same_bytes(values, shift):
    blob = encoded(torch.tensor([value >> shift for value in values]) * UNIT).blob
    again = encoded(to_float(decode(blob, len(values), CODEC)))
    assert again.blob == blob
    assert not again.residual_P.any()


@pytest.mark.parametrize("exponent", range(EXPONENT_MAX))
def test_the_exponent_is_the_smallest_that_fits_and_ties_round_to_even(exponent):
    """127.5 rounds to 128, which does not fit; the float below it rounds to 127, which does."""
    tie = torch.tensor([127.5 * 2.0**exponent * UNIT])
    below = torch.nextafter(tie, torch.zeros(1))
    assert encoded(below).blob[:2] == bytes([exponent, 127])
    assert encoded(tie).blob[:2] == bytes([exponent + 1, 64])


def test_the_largest_values_saturate_and_the_rest_is_left_for_later():
    delta = torch.tensor([100.0, -100.0, 0.001])
    result = encoded(delta)
    value = decode(result.blob, 3, CODEC)
    assert value.tolist()[:2] == [VALUE_MAX, -VALUE_MAX]
    assert torch.equal(to_float(value).double() + result.residual_P.double(), delta.double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_an_update_that_is_not_finite_is_not_encoded(bad):
    delta = random_update(1000, 4)
    delta[777] = bad
    with pytest.raises(ValueError, match="not finite"):
        encoded(delta)


def test_error_feedback_delivers_in_the_end_what_no_single_round_can_send():
    """A value far below half a level of its block arrives by being kept until it counts."""
    delta = torch.zeros(BLOCK)
    delta[0], delta[1] = 0.1, 0.1 / 127 / 8
    total, residual = torch.zeros(BLOCK, dtype=torch.float64), torch.zeros(BLOCK)
    for _ in range(64):
        result = encoded(delta, residual)
        total += to_float(decode(result.blob, BLOCK, CODEC)).double()
        residual = result.residual_P
    assert total[1] == pytest.approx(64 * delta[1].item(), rel=0.1)
    forgetful = encoded(delta, residual, feedback=0.0)
    assert forgetful.blob == encoded(delta).blob


def test_a_refused_update_put_back_whole_does_not_double_the_next_one():
    delta = random_update(5000, 5)
    value = decode(encoded(delta, 3 * delta).blob, len(delta), CODEC)
    growth = float(to_float(value).norm() / delta.norm())
    assert growth == pytest.approx(1 + RESIDUAL_SHARE_MAX, rel=0.01)


def test_a_blob_of_another_length_is_refused_before_anything_is_allocated():
    for size in (0, 256, 258, 514):
        assert reason(bytes(size), 10) == "length"
    assert reason(b"", 10**12) == "length"
    assert encoded_size(10**12, CODEC) == -(-(10**12) // BLOCK) * 257


def test_every_second_encoding_of_a_value_is_refused():
    quiet = [63, -63] + [0] * 254
    loud = [64, -127] + [1] * 254
    assert decode(blob_of([EXPONENT_MAX], loud), 256, CODEC)[0] == 64 << EXPONENT_MAX
    assert decode(blob_of([0], quiet), 256, CODEC)[1] == -63
    assert reason(blob_of([EXPONENT_MAX + 1], loud), 256) == "exponent"
    assert reason(blob_of([255], loud), 256) == "exponent"
    assert reason(blob_of([1], quiet), 256) == "canonical"
    assert reason(blob_of([1], [0] * 256), 256) == "canonical"
    assert reason(blob_of([0], [-128] + [0] * 255), 256) == "level"
    assert reason(blob_of([0], loud), 255) == "padding"


@settings(deadline=None)  # the machine may be busy
@given(st.data())
def test_hostile_bytes_decode_within_bounds_or_are_refused(data):
    size = data.draw(st.integers(1, 600))
    length = encoded_size(size, CODEC) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    fill = data.draw(st.sampled_from([b"\0", b"\x7f", b"\x40", b"\x80"]))
    start = data.draw(st.binary(max_size=min(length, 40)))
    blob = (start + fill * length)[:length]
    try:
        value = decode(blob, size, CODEC)
    except BlobError as error:
        assert error.reason in {"length", "exponent", "level", "canonical", "padding"}
    else:
        assert int(value.abs().max()) <= LEVEL_MAX << EXPONENT_MAX
        assert encoded(to_float(value)).blob == blob


def test_an_unknown_codec_is_our_mistake_and_not_a_peers():
    with pytest.raises(ValueError, match="dense-int8") as caught:
        decode(b"", 0, "zip")
    assert not isinstance(caught.value, BlobError)
