"""The compiled loops give NumPy's bits, for every codec and rule; they are never needed."""

import os
import random
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from peerformer.gradients import native
from peerformer.gradients.aggregate import aggregate
from peerformer.gradients.compress import BlobError, decode, encode, read
from peerformer.gradients.contribution import norms
from peerformer.gradients.rules import Rule
from peerformer.gradients.sketch import sketches
from peerformer.kernels.compiled import library_of

CODECS = ("dense-int8", "dense-int4", "sparse-2bit")
RULES = (
    "mean",
    "robust",
    "cheap",
    "coordinate-median",
    "bucketing+trimmed-mean",
    "equal-norms+bucketing+nearest-neighbour-mixing+coordinate-median",
    "multi-krum",
    "geometric-median",
    "nearest-neighbour-mixing+centred-clipping",
)
SIZES = (1, 255, 256, 4_095, 16_384, 50_000)


@pytest.fixture
def compiled(monkeypatch):
    """Let even short vectors be the compiled loops' business."""
    if native.library() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(native, "COORDINATES_LEAST", 1)


def updates(size, count, seed, loud=1.0):
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, generator=generator)
    noise = [torch.randn(size, generator=generator) for _ in range(count)]
    lengths = [loud * 10.0 ** random.Random(seed + k).uniform(-3, -2.5) for k in range(count)]
    return [length * (common + 2 * one) for length, one in zip(lengths, noise, strict=True)]


def blobs_of(codec, size, count, seed):
    made = []
    for index, update in enumerate(updates(size, count, seed)):
        update[:: 7 + index] = 0
        made.append(encode(update, 0.1 * update.flip(0), codec=codec, feedback=0.9))
    return made


def without(monkeypatch, work):
    with monkeypatch.context() as plain:
        plain.setattr(native, "COORDINATES_LEAST", 1 << 40)
        return work()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_bytes_and_what_is_left_over_are_the_same(codec, size, compiled, monkeypatch):
    fast = blobs_of(codec, size, 3, seed=size)
    plain = without(monkeypatch, lambda: blobs_of(codec, size, 3, seed=size))
    for one, other in zip(fast, plain, strict=True):
        assert one.blob == other.blob and torch.equal(one.residual_P, other.residual_P)


@pytest.mark.parametrize("length", [0.4, 0.4999, 0.5001, 3.0])
@pytest.mark.parametrize("codec", ["dense-int8", "dense-int4"])
def test_a_residual_too_long_is_shortened_alike(codec, length, compiled, monkeypatch):
    update, other = updates(20_000, 2, seed=5)
    residual = other * (length * update.norm() / other.norm())

    def made():
        return encode(update, residual, codec=codec, feedback=1.0)

    fast, plain = made(), without(monkeypatch, made)
    assert fast.blob == plain.blob and torch.equal(fast.residual_P, plain.residual_P)
    bounded = encode(update, residual * min(1, 0.5 / length), codec=codec, feedback=1.0)
    near = (decode(fast.blob, 20_000, codec) - decode(bounded.blob, 20_000, codec)).abs().double()
    assert near.mean() < 0.01 * decode(fast.blob, 20_000, codec).abs().double().mean()


def told(blob, size, codec):
    try:
        return decode(blob, size, codec).tolist()
    except BlobError as error:
        return str(error)


@pytest.mark.parametrize("codec", ["dense-int8", "dense-int4"])
def test_bytes_are_decoded_or_refused_for_the_same_reason(codec, compiled, monkeypatch):
    size, found = 1_000, set()
    (made,) = blobs_of(codec, size, 1, seed=9)
    rng = random.Random(9)
    for _ in range(600):
        blob = bytearray(made.blob)
        if rng.random() < 0.1:
            blob[4 : 4 + len(blob) // 4] = bytes(len(blob) // 4)  # a block with nothing loud
        places = rng.choices((range(4), range(len(blob)), range(len(blob) - 12, len(blob))), k=2)
        for place in map(rng.choice, places):
            blob[place] = rng.choice((0, 7, 0x78, 0x80, 0x88, 255, rng.randrange(256)))
        fast = told(blob, size, codec)
        assert fast == without(monkeypatch, lambda data=blob: told(data, size, codec))
        found.add(fast if isinstance(fast, str) else "decoded")
    assert found == {"decoded", "exponent", "level", "canonical", "padding"}


def test_encoding_refuses_what_is_not_finite(compiled):
    for bad in (float("nan"), float("inf")):
        update = torch.zeros(1_000)
        update[999] = bad
        with pytest.raises(ValueError, match="not finite"):
            encode(update, torch.zeros(1_000), codec="dense-int8", feedback=1.0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_norms_and_sketches_are_the_same(codec, size, compiled, monkeypatch):
    contributions = [read(one.blob, size, codec) for one in blobs_of(codec, size, 4, seed=size)]
    plain = without(monkeypatch, lambda: (norms(contributions), sketches(contributions, b"draw")))
    assert norms(contributions) == plain[0]
    for one, other in zip(sketches(contributions, b"draw"), plain[1], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_comes_to_the_same_update(codec, rule, compiled, monkeypatch):
    for size, count in ((40_000, 4), (16_384, 7), (5_000, 16), (257, 11)):
        encoded = blobs_of(codec, size, count, seed=size + count)
        contributions = [read(one.blob, size, codec) for one in encoded]

        def whole(contributions=contributions):
            chosen = Rule.named(rule)
            return aggregate(contributions, rule=chosen, seed=b"draw", recent_norms=())

        fast, plain = whole(), without(monkeypatch, whole)
        assert torch.equal(fast.update_P, plain.update_P)
        assert fast.update_P.any() or codec == "sparse-2bit"  # its median is mostly nothing
        assert (fast.norm, fast.refused) == (plain.norm, plain.refused)


def test_the_largest_values_of_many_contributions_do_not_overflow(compiled, monkeypatch):
    size, count = 3_000, 64
    sign = torch.ones(size)
    sign[::3] = -1
    encoded = [encode(sign * 0.49, torch.zeros(size), codec="dense-int8", feedback=1.0)] * count
    contributions = [read(one.blob, size, "dense-int8") for one in encoded]
    for rule in ("mean", "robust", "geometric-median"):

        def whole(rule=rule):
            return aggregate(contributions, rule=Rule.named(rule), seed=b"draw", recent_norms=())

        assert torch.equal(whole().update_P, without(monkeypatch, whole).update_P)


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path, monkeypatch):
    folder = tmp_path / "native"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("PEERFORMER_CACHE", str(tmp_path))
    assert library_of.__wrapped__(native.SOURCE) is None and not any(folder.iterdir())
    folder.chmod(0o700)
    if native.library() is not None:
        assert library_of.__wrapped__(native.SOURCE) is not None
        (made,) = folder.iterdir()
        assert stat.S_ISREG(made.stat().st_mode) and made.suffix == ".so"


def test_without_a_compiler_or_by_wish_numpy_does_it(tmp_path):
    program = (
        "from peerformer.gradients import native; import sys; "
        "sys.exit(native.library() is not None)"
    )
    here = {"PYTHONPATH": os.pathsep.join(sys.path), "PEERFORMER_CACHE": str(tmp_path)}
    for environment in ({"PATH": ""}, {"PATH": os.environ["PATH"], "PEERFORMER_NATIVE": "0"}):
        command = [sys.executable, "-c", program]
        assert subprocess.run(command, env={**here, **environment}).returncode == 0
