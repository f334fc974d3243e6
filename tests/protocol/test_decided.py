"""Old decided rounds are kept as bytes, and nobody who asks for one can tell."""

import tracemalloc
from random import Random

import pytest

from peerformer.protocol.chain import Chain
from peerformer.protocol.codec import decode, encode
from peerformer.protocol.decided import UNPACKED, Decided
from peerformer.protocol.messages import Certified
from tests.protocol.test_chain import GENESIS, PEERS, certified, draft


def rounds(count: int) -> list[Certified]:
    chain = Chain(GENESIS)
    while chain.tip < count:
        assert chain.append(certified(chain, draft(chain, PEERS[chain.tip % 4]))) is None
    return list(chain.items)


ROUNDS = rounds(98)  # as many as the links of the hash chains allow


def test_it_is_the_sequence_that_a_list_would_be() -> None:
    random = Random(seed := Random().randrange(1 << 32))
    print("seed", seed)
    plain: list[Certified] = []
    kept = Decided()
    lengths = set()
    for step in range(2_000):
        if random.random() < 0.1 and len(plain) > 4 * UNPACKED:
            count = random.choice((1, len(kept.packed), random.randrange(len(plain))))
            kept.forget(count)
            del plain[:count]
        else:
            kept.append(ROUNDS[step % len(ROUNDS)])
            plain.append(ROUNDS[step % len(ROUNDS)])
        lengths.add((len(kept.packed) > 0, len(kept.recent) > UNPACKED))
        assert len(kept) == len(plain)
        place = random.randrange(-len(plain), len(plain)) if plain else None
        if place is not None:
            assert kept[place] == plain[place]
        ends = random.choices((None, *range(-300, 300)), k=2)
        part = slice(ends[0], ends[1], random.choice((1, 2, -1)))
        assert kept[part] == plain[part]
    assert list(kept) == plain and kept[-1] is plain[-1]
    assert len(lengths) >= 3, "it was never packed, or always"


@pytest.mark.parametrize("place", [2, -3])
def test_a_place_that_is_not_there_is_refused(place: int) -> None:
    kept = Decided()
    for item in ROUNDS[:2]:
        kept.append(item)
    with pytest.raises(IndexError):
        kept[place]


def test_a_long_chain_takes_half_the_memory_and_its_newest_rounds_are_not_decoded() -> None:
    def growth(keep: list[Certified] | Decided) -> int:
        tracemalloc.start()
        for number in range(20 * UNPACKED):
            keep.append(decode(Certified, encode(ROUNDS[number % len(ROUNDS)])))
        size_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size_bytes

    plain, packed = growth([]), growth(kept := Decided())
    print(f"{plain:,} bytes as objects, {packed:,} as kept")
    assert 2 * packed < plain
    assert kept[-UNPACKED] is kept[-UNPACKED]
