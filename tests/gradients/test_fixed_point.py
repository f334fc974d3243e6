"""The agreed state: exact, saturating, and one encoding for each state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.gradients.fixed_point import (
    CHUNK,
    INT32_MAX,
    INT32_MIN,
    NORMS_MAX,
    AgreedState,
    Layout,
    dot,
    dot_reference,
    norm,
    outer_step,
    outer_step_reference,
    state_size_bytes,
    to_fixed,
    to_float,
)

INT32 = st.integers(INT32_MIN, INT32_MAX)
INT32_LISTS = st.lists(st.one_of(INT32, st.sampled_from([INT32_MIN, INT32_MAX, 0, -1])), max_size=9)


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def state_of(theta, momentum, norms=()):
    return AgreedState(int32(theta), int32(momentum), norms)


def test_a_layout_splits_a_flat_vector_into_views_of_every_parameter():
    layout = Layout.of({"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(0, 4)})
    flat = torch.arange(7.0)
    pieces = layout.split(flat)
    assert layout.size == 7
    assert {name: tuple(piece.shape) for name, piece in pieces.items()} == {
        "a": (2, 3),
        "b": (),
        "c": (0, 4),
    }
    pieces["b"].fill_(42)
    assert flat[6] == 42
    with pytest.raises(ValueError, match="expected 7 parameters"):
        layout.split(torch.zeros(8))


def test_rounding_to_fixed_point_is_half_to_even_and_saturates():
    unit = 2.0**-24
    value = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5], dtype=torch.float64) * unit
    assert to_fixed(value.float()).tolist() == [0, 2, 0, -2, 2]
    extremes = torch.tensor([1e30, -1e30, float("inf"), 127.99999, 128.0])
    assert to_fixed(extremes).tolist() == [INT32_MAX, INT32_MIN, INT32_MAX, 2**31 - 128, INT32_MAX]


def test_a_parameter_that_is_not_a_number_is_refused_wherever_it_stands():
    value = torch.zeros(CHUNK + 5)
    value[-1] = float("nan")
    with pytest.raises(ValueError, match="not a number"):
        to_fixed(value)


def test_floats_of_24_bits_survive_the_way_to_fixed_point_and_back():
    torch.manual_seed(print("seed 1") or 1)
    value = (torch.randint(-(2**23), 2**23, (1000,)).float()) * 2.0**-24
    assert torch.equal(to_float(to_fixed(value)), value)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(INT32, INT32), max_size=9))
def test_the_inner_product_is_exact(pairs):
    a, b = int32([x for x, _ in pairs]), int32([y for _, y in pairs])
    assert dot(a, b) == dot_reference(a, b)


def test_the_norm_of_the_largest_vector_does_not_overflow():
    size = 3 * CHUNK + 1
    lowest = torch.full((size,), INT32_MIN, dtype=torch.int32)
    assert dot(lowest, lowest) == size * 2**62
    assert dot(lowest, torch.full_like(lowest, INT32_MAX)) == size * INT32_MIN * INT32_MAX
    assert norm(int32([3, -4])) == 5
    assert norm(int32([])) == 0


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(INT32, INT32, st.integers(-(2**40), 2**40)), min_size=1, max_size=5),
    st.integers(0, 2**18),
    st.integers(0, 2**16),
    st.booleans(),
)
def test_the_outer_step_equals_the_plain_one_and_saturates(rows, rate, momentum_q16, nesterov):
    theta, momentum, update = (list(column) for column in zip(*rows, strict=True))
    after = outer_step(
        state_of(theta, momentum),
        torch.tensor(update, dtype=torch.int64),
        learning_rate_q16=rate,
        momentum_q16=momentum_q16,
        nesterov=nesterov,
        update_norm=1,
    )
    expected = [
        outer_step_reference(*row, rate_q16=rate, momentum_q16=momentum_q16, nesterov=nesterov)
        for row in rows
    ]
    assert list(zip(after.theta_P.tolist(), after.momentum_P.tolist(), strict=True)) == expected


def test_the_outer_step_rounds_down_and_goes_against_the_update():
    options = {"momentum_q16": 0, "nesterov": False, "update_norm": 1}
    after = outer_step(
        state_of([0, 0, 0], [0, 0, 0]), int32([3, -3, 100]), learning_rate_q16=2**15, **options
    )
    assert after.theta_P.tolist() == [-1, 2, -50]
    assert after.momentum_P.tolist() == [3, -3, 100]


def test_the_outer_step_leaves_the_state_before_it_alone_and_remembers_sixteen_norms():
    state = state_of([1] * (CHUNK + 3), [2] * (CHUNK + 3))
    before = state.to_bytes()
    update = torch.full_like(state.theta_P, 5)
    for norm_of_update in range(1, 21):
        after = outer_step(
            state,
            update,
            learning_rate_q16=2**16,
            momentum_q16=2**15,
            nesterov=True,
            update_norm=norm_of_update,
        )
        assert state.to_bytes() == before
        state, before = after, after.to_bytes()
    assert state.norms == tuple(range(5, 21)) and len(state.norms) == NORMS_MAX
    assert state.theta_P.unique().numel() == 1  # the last, short chunk moved like the others


def test_a_null_round_leaves_the_state_as_it_is():
    state = state_of([7, 8], [9, -9], (5, 6))
    options = {"learning_rate_q16": 2**16, "momentum_q16": 2**15, "nesterov": True}
    after = outer_step(state, int32([0, 0]), update_norm=0, **options)
    assert after.to_bytes() == state.to_bytes()


@settings(deadline=None)  # the machine may be busy
@given(INT32_LISTS, st.lists(st.integers(0, 2**64 - 1), max_size=NORMS_MAX))
def test_a_state_survives_its_encoding(theta, norms):
    state = state_of(theta, theta[::-1], tuple(norms))
    data = state.to_bytes()
    assert len(data) == state_size_bytes(len(theta))
    again = AgreedState.from_bytes(data, len(theta))
    assert again.to_bytes() == data
    assert again.norms == state.norms
    assert torch.equal(again.theta_P, state.theta_P)
    assert torch.equal(again.momentum_P, state.momentum_P)


def test_the_encoding_is_little_endian_with_zero_padding():
    data = state_of([1], [-2], (3,)).to_bytes()
    assert data[:16] == b"\1\0\0\0\xfe\xff\xff\xff\1\0\0\0\0\0\0\0"
    assert data[16:] == b"\3" + bytes(8 * NORMS_MAX - 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:8] + b"\x11" + data[9:],  # seventeen norms
        lambda data: data[:8] + b"\2\1" + data[10:],
        lambda data: data[:-1] + b"\1",  # padding
    ],
    ids=["short", "long", "seventeen norms", "huge count", "padding"],
)
def test_a_damaged_state_is_refused(damage):
    data = state_of([1], [-2], (3, 4)).to_bytes()
    with pytest.raises(ValueError):
        AgreedState.from_bytes(damage(data), 1)


def test_a_state_read_from_bytes_may_be_trained_from():
    state = AgreedState.from_bytes(state_of([1, 2], [3, 4]).to_bytes(), 2)
    state.theta_P.clone().add_(1)
    assert state.theta_P.numpy().flags.writeable
