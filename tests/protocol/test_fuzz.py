"""Whatever bytes come, a decoder gives the value they encode or says that they are malformed.

The inputs are valid messages damaged at random: bit by bit, and knowingly, at the counts, lengths,
flags and fields that their layout has. A slice of inputs is made from one seed; one alone:

    PEERFORMER_SEEDS=17:18 python -m pytest -m deep tests/protocol/test_fuzz.py
"""

import contextlib
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.protocol.codec import MalformedError, decode, encode
from peerformer.protocol.genesis import Founder, Genesis, Limits
from peerformer.protocol.membership import Members
from peerformer.protocol.merkle import (
    LEAF_SIZE_BYTES,
    MerkleTree,
    check_leaf,
    leaf_count,
    leaf_span,
)
from peerformer.protocol.messages import (
    PACKET_SIZE_MAX,
    PACKETS,
    STATEMENTS,
    Contradiction,
    Envelope,
    Evidence,
    FalseHolding,
    pack,
    unpack,
)
from tests.mutations import mutate, seeds
from tests.protocol.layouts import Spelled, crowded, damaged, draw, kinds_in, spell

KINDS = kinds_in((*PACKETS, *STATEMENTS, Genesis, Evidence, Members))
SLICE = 10_000  # inputs of one seed in the deep test
POOL, RENEWED_SHARE = 4, 0.02  # good samples of each decoder at a time; how often one is replaced
SHOWN_BYTES_MAX = 2_000  # of an input that was not judged well
ACCEPTED_SHARE_MIN = 0.05  # or the damage is so rough that only the first checks are tried

# Memory while n bytes are decoded: so much for each byte, and at the outset. All that a decoder
# makes stands for bytes it has read, since a count makes nothing and its items do; so what counts
# is the record that costs most for its length among those that may be repeated. That is `Envelope`:
# 103 bytes with a body of two become three byte strings (33 bytes each beyond their content), an
# object with a dictionary, and a place in a list and in the tuple made of it: 370 bytes, or four
# for each. The frame is copied once, without its kind; two more leave room for other interpreters.
# Nested readers hold a few fields each, whatever comes.
MEMORY_PER_BYTE, MEMORY_ANYWAY = 7, 8 * 1024


@dataclass(frozen=True, slots=True)
class Decoder:
    """Something that reads what others send: how, the way back, and good samples of it."""

    name: str
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]
    sample: Callable[[Random], Spelled]


def tagged(kinds: tuple[type, ...], random: Random) -> Spelled:
    """A value of one of these kinds behind a byte that says which."""
    number = random.randrange(len(kinds))
    to = Spelled(bytearray((number,)), flags=[(0, len(kinds))])
    return spell(kinds[number], draw(kinds[number], random), to)


def genesis_that_founds(random: Random) -> Spelled:
    """What `Genesis.from_bytes` asks for beyond the layout: founders in order, limits to be met."""
    drawn = draw(Genesis, random)
    peers = sorted({random.randbytes(32) for _ in range(random.choice((1, 2, 3)))})
    founders = tuple(Founder(peer, random.randbytes(32)) for peer in peers)
    most = max(1, drawn.limits.contributions_max)
    limits = replace(
        drawn.limits, contributions_min=1, contributions_max=most, vouchers=1, admission=2
    )
    ahead = random.choice((0, 1))
    audits = 0 if ahead else random.randrange(1_001)
    possible = replace(limits, staleness=ahead, audit_permille=audits)
    limits = random.choice((Limits(), possible))
    return spell(Genesis, replace(drawn, founders=founders, limits=limits), Spelled())


def read_statement(data: bytes) -> Any:
    """What the envelope with this kind and body says."""
    if not data:
        raise MalformedError("nothing")
    return Envelope(bytes(32), data[0], data[1:], bytes(64)).statement


def write_statement(value: Any) -> bytes:
    """The kind and the body of a statement."""
    return bytes((STATEMENTS.index(type(value)),)) + encode(value)


def decoder_of(kind: type) -> Decoder:
    """The decoder of one dataclass by itself, as stored records are read."""

    def sample(random: Random) -> Spelled:
        return spell(kind, draw(kind, random), Spelled())

    return Decoder(kind.__name__, lambda data: decode(kind, data), encode, sample)


FRAME = Decoder("a frame", unpack, pack, lambda random: tagged(PACKETS, random))
STATEMENT = Decoder(
    "a statement", read_statement, write_statement, lambda random: tagged(STATEMENTS, random)
)
GENESIS = Decoder("a genesis", Genesis.from_bytes, Genesis.to_bytes, genesis_that_founds)
EACH = tuple(decoder_of(kind) for kind in KINDS)
DECODERS = (*EACH, *[FRAME] * len(EACH), *[STATEMENT] * (len(EACH) // 2), *[GENESIS] * 9)


# --- the judge -----------------------------------------------------------------------------------


def is_accepted(decoder: Decoder, data: bytes) -> bool:
    """Whether the bytes decode; if so they are the one encoding of what they decode to."""
    try:
        value = decoder.read(data)
    except MalformedError:
        return False
    assert decoder.write(value) == data, f"another encoding of {value!r:.500}"
    return True


def inputs(random: Random, count: int) -> Iterator[tuple[Decoder, bytes]]:
    """Damaged bytes, each with the decoder that they are for."""
    pools: dict[str, list[Spelled]] = {}
    for _ in range(count):
        decoder, stranger = random.choice(DECODERS), random.choice(DECODERS)
        for each in (decoder, stranger):
            pool = pools.setdefault(each.name, [])
            if len(pool) < POOL:
                pool.append(each.sample(random))
            elif random.random() < RENEWED_SHARE:
                pool[random.randrange(POOL)] = each.sample(random)
        other = random.choice(pools[random.choice((decoder, stranger)).name])
        yield decoder, damaged(random.choice(pools[decoder.name]), other, random)


def try_slice(seed: int, count: int) -> None:
    """Judge what one seed makes."""
    print(f"seed {seed}")
    accepted = 0
    for decoder, data in inputs(Random(seed), count):
        try:
            accepted += is_accepted(decoder, data)
        except Exception as error:
            shown = f"{len(data)} bytes {data[:SHOWN_BYTES_MAX].hex()}"
            raise AssertionError(f"seed {seed}: {decoder.name} of {shown}: {error!r}") from error
    print(f"{accepted} of {count} accepted")
    assert accepted >= ACCEPTED_SHARE_MIN * count


@pytest.mark.parametrize("seed", range(2))
def test_damaged_messages_are_malformed_or_the_one_encoding_of_another(seed: int) -> None:
    try_slice(1_000_000 + seed, 2_500)


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", seeds("0:100"))
def test_a_slice_of_damaged_messages_is_malformed_or_the_one_encoding_of_another(seed: int) -> None:
    try_slice(seed, SLICE)


# --- good messages -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_value_has_the_bytes_that_its_annotations_spell_and_is_what_they_decode_to(
    kind: type,
) -> None:
    @settings(max_examples=15, deadline=None, print_blob=True)
    @given(st.randoms(use_true_random=False))
    def check(random: Random) -> None:
        value = draw(kind, random)
        data = bytes(spell(kind, value, Spelled()).data)
        assert encode(value) == data
        assert decode(kind, data) == value

    check()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_cut_short_or_goes_on_is_malformed(kind: type) -> None:
    random = Random(13)
    for _ in range(10):
        data = encode(draw(kind, random))
        for wrong in (data[:-1], data[: random.randrange(len(data))], data + b"\0", data + data):
            with pytest.raises(MalformedError):
                decode(kind, wrong)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_count_may_reach_its_limit(kind: type) -> None:
    value = crowded(kind)
    assert decode(kind, encode(value)) == value


def test_a_genesis_that_can_found_a_swarm_is_read_as_it_was_written() -> None:
    random = Random(11)
    for _ in range(50):
        data = bytes(genesis_that_founds(random).data)
        assert Genesis.from_bytes(data).to_bytes() == data


def test_every_class_that_a_table_names_is_covered() -> None:
    assert {*PACKETS, *STATEMENTS, Genesis, Contradiction, FalseHolding} <= set(KINDS)
    assert {decoder.name for decoder in EACH} == {kind.__name__ for kind in KINDS}


# --- memory --------------------------------------------------------------------------------------


def assert_bounded(tried: Iterable[tuple[Decoder, bytes]]) -> None:
    """Check the most memory in use while each is read, beyond what was in use before."""
    for kind in KINDS:  # the readers are built now, and counted to nobody
        decode(kind, encode(draw(kind, Random(0))))
    tracemalloc.start()
    try:
        for decoder, data in tried:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(MalformedError):
                decoder.read(data)
            peak = tracemalloc.get_traced_memory()[1] - before
            bound = MEMORY_PER_BYTE * len(data) + MEMORY_ANYWAY
            assert peak <= bound, f"{decoder.name} of {len(data)} bytes took {peak}"
    finally:
        tracemalloc.stop()


def test_no_damaged_message_takes_more_memory_than_its_length_allows() -> None:
    seed = 5
    print(f"seed {seed}")
    assert_bounded(list(inputs(Random(seed), 4_000)))


def test_nor_does_a_message_full_of_the_shortest_items_whole_or_damaged() -> None:
    random = Random(6)
    tried = []
    for number, kind in enumerate(PACKETS):
        good = spell(kind, crowded(kind), Spelled(bytearray((number,)), flags=[(0, len(PACKETS))]))
        assert len(good.data) <= PACKET_SIZE_MAX
        tried += [bytes(good.data), *(damaged(good, good, random) for _ in range(2))]
    assert_bounded((FRAME, data) for data in tried)


# --- proofs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proven:
    """A state, and its tree."""

    data: bytes
    tree: MerkleTree

    def claim(self, index: int) -> tuple[bytes, int, int, bytes, bytes]:
        """What `check_leaf` is asked of a leaf, and grants."""
        start, end = leaf_span(len(self.data), index)
        return self.tree.root, len(self.data), index, self.data[start:end], self.tree.proof(index)


@pytest.fixture(scope="module")
def states() -> list[Proven]:
    """States of one leaf and more, whose last leaf is short: little needs to be hashed."""
    random = Random(9)
    sizes = (0, 1, 63, *(leaves * LEAF_SIZE_BYTES + 33 for leaves in range(1, 8)))
    datas = [random.randbytes(size) for size in sizes]
    return [Proven(d, MerkleTree(len(d), lambda a, b, d=d: d[a:b])) for d in datas]


def try_proofs(states: list[Proven], seed: int, count: int) -> None:
    """Change some part of a claim that holds: it holds no more, unless nothing was changed."""
    print(f"seed {seed}")
    random = Random(seed)
    for _ in range(count):
        state, other = random.choice(states), random.choice(states)
        last = leaf_count(len(state.data)) - 1
        good = state.claim(last if random.random() < 0.98 else random.randint(0, last))
        last = leaf_count(len(other.data)) - 1
        root, size, index, leaf, proof = claim = list(good)
        foreign = other.claim(last)
        for part in random.choices(range(5), k=random.choice((1, 1, 2, 4))):
            claim[part] = (
                mutate(root, foreign[0], random),
                random.choice((size - 1, size + 1, 0, 2**64 - 1, size + LEAF_SIZE_BYTES)),
                random.choice((index - 1, index + 1, index ^ 1, -1, 2**32, index + 8)),
                mutate(leaf, foreign[3], random),
                mutate(proof, foreign[4], random),
            )[part]
            if random.random() < 0.3:
                claim[part] = foreign[part]
        claim[1] = max(0, claim[1])
        try:
            check_leaf(*claim)
        except MalformedError:
            continue
        assert tuple(claim) in (good, foreign), f"seed {seed}: {claim[:3]}, {claim[4].hex()}"


def test_a_proof_holds_for_its_leaf_place_size_and_state_only(states: list[Proven]) -> None:
    for state in states:
        for index in range(leaf_count(len(state.data))):
            check_leaf(*state.claim(index))
    try_proofs(states, 1_000_000, 1_000)


@pytest.mark.deep
@pytest.mark.parametrize("seed", seeds("0:100"))
def test_a_slice_of_false_proofs_is_refused(states: list[Proven], seed: int) -> None:
    try_proofs(states, seed, 1_000)
