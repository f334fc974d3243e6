"""The caches: every kind holds what the plain computation would compute anew."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peerformer.config import ModelConfig
from peerformer.errors import ConfigError
from peerformer.model.cache import KeyValueCache
from peerformer.model.paged_cache import PagedCache, PagePool
from peerformer.model.prefix_cache import PrefixCache
from peerformer.model.replacement import POLICIES, LeastRecentlyUsed
from peerformer.model.stored_vectors import StoredVectors
from peerformer.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=32, intermediate_size=40, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=48,
)  # fmt: skip
PAGE = 4


KINDS = {
    "full": CONFIG,
    "windows": replace(CONFIG, attention_layers="window,full", sliding_window=5),
    "windows only": replace(CONFIG, attention_layers="window", sliding_window=3),
    "blocks, learned positions": replace(
        CONFIG, attention_layers="blocks,window", sliding_window=7, sparse_block_size=2,
        sparse_local_blocks=1, sparse_stride=3, positions="learned",
    ),
}  # fmt: skip


def make_model(config):
    made = Transformer(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                scale = weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return made


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIG)


def texts_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(50, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def logits_after(model, text):
    return model(torch.tensor([text]))[0, -1]


@torch.no_grad()
def feed(model, cache, rows):
    return model(torch.tensor(rows), cache)[:, -1]


def begin(model, cache, texts):
    """Read texts of unequal length as the engine does; the logits after each."""
    held = cache.begin(texts)
    rest = [text[known:] for text, known in zip(texts, held, strict=True)]
    longest = max(len(tokens) for tokens in rest)
    cache.pad([longest - len(tokens) for tokens in rest])
    return feed(model, cache, [[0] * (longest - len(tokens)) + tokens for tokens in rest])


def make_cache(kind, batch_size, pages=64, config=CONFIG):
    rounded = kind.endswith("int8")
    if kind.startswith("paged"):
        pool = PagePool(config, pages, PAGE, rounded=rounded)
        prefixes = PrefixCache(pool, LeastRecentlyUsed(8)) if kind == "paged, shared" else None
        return PagedCache(pool, batch_size, prefixes)
    return KeyValueCache(config, batch_size, 40, rounded=rounded)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", ["contiguous", "paged", "paged, shared"])
def test_texts_of_unequal_length_give_the_logits_of_each_alone(kind, config):
    model = make_model(config)
    texts = texts_of([3, 9, 1, 8])
    cache = make_cache(kind, 4, config=config)
    for again in range(2):  # the second time beginnings may be shared
        found = begin(model, cache, texts)
        grown = [list(text) for text in texts]
        for step in range(12):
            expected = torch.stack([logits_after(model, text) for text in grown])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            for text, more in zip(grown, texts_of([1] * 4, seed=step), strict=True):
                text += more
            found = feed(model, cache, [text[-1:] for text in grown])
        assert again or cache.length == 9 + 12


@pytest.mark.parametrize("kind", ["contiguous", "paged", "paged, shared"])
def test_sequences_are_dropped_swapped_and_forked(model, kind):
    texts = texts_of([5, 7, 6], seed=3)
    cache = make_cache(kind, 3)
    begin(model, cache, texts)
    grown = texts
    for rows in ([2, 0, 1], [1, 1, 0, 2], [3, 0, 0], [0, 0, 0, 0], [2]):
        cache.select(rows)
        grown = [
            list(grown[row]) + more
            for row, more in zip(rows, texts_of([1] * len(rows), seed=len(rows)), strict=True)
        ]
        found = feed(model, cache, [text[-1:] for text in grown])
        expected = torch.stack([logits_after(model, text) for text in grown])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@given(
    window=st.integers(1, 9),
    chunks=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    padding=st.lists(st.integers(0, 3), min_size=2, max_size=2),
)
@settings(max_examples=80, deadline=None)
def test_a_window_layer_returns_all_that_its_window_sees_in_constant_memory(
    window, chunks, padding
):
    """Keys are their own positions, so that what comes back can be read off."""
    config = replace(CONFIG, attention_layers="window,full", sliding_window=window)
    cache = KeyValueCache(config, 2, 48)
    cache.begin([[0], [0]])
    padding[0] = 0
    padding[1] = min(padding[1], chunks[0] - 1)
    cache.pad(padding)
    size_bytes, start = cache.size_bytes, 0
    chunks = chunks[: next((i for i in range(len(chunks)) if sum(chunks[: i + 1]) > 48), None)]
    for T in chunks:
        queries_BT = cache.positions_BT(T)
        slots_BT = torch.arange(start, start + T) - torch.tensor(padding)[:, None]
        if queries_BT is None:
            queries_BT = slots_BT
        assert torch.equal(queries_BT, slots_BT.clamp(min=0))
        for layer, width in ((0, window), (1, 48)):
            new = slots_BT[:, None, :, None].float().expand(-1, 2, -1, 16)
            k_BGSK, v_BGSK, positions_BS = cache.extend(layer, new, -new)
            if positions_BS is None:
                positions_BS = torch.arange(k_BGSK.shape[2]).expand(2, -1)
            assert torch.equal(v_BGSK, -k_BGSK)
            for row in range(2):
                for query in (slots_BT[row, slots_BT[row] >= 0]).tolist():
                    seen = [
                        (position, k_BGSK[row, 1, slot, 5].item())
                        for slot, position in enumerate(positions_BS[row].tolist())
                        if 0 <= position <= query and position > query - width
                    ]
                    wanted = range(max(0, query - width + 1), query + 1)
                    assert sorted(seen) == [(n, float(n)) for n in wanted], (layer, query)
        cache.advance(T)
        start += T
    assert cache.size_bytes == size_bytes
    one_slot = 2 * 2 * 2 * 16 * 4  # keys and values, sequences, heads, head dimension, float32
    assert size_bytes == one_slot * (window + 48)


def test_eight_bits_a_value_move_logits_by_less_than_one_percent(model):
    """Of the logits' deviation, after 20 to 35 tokens: 0.64 % (root mean square), at most 4.4 %."""
    for kind in ("int8", "paged-int8"):
        texts = texts_of([20] * 16, seed=9)
        rounded = make_cache(kind, 16, pages=160)
        begin(model, rounded, texts)
        exact = make_cache("contiguous", 16)
        begin(model, exact, texts)
        changes = []
        for step in range(15):
            rows = texts_of([1] * 16, seed=100 + step)
            expected, found = feed(model, exact, rows), feed(model, rounded, rows)
            changes.append((found - expected) / expected.std())
        change = torch.stack(changes)
        print(f"{kind}: {change.square().mean().sqrt():.4f}, at most {change.abs().max():.4f}")
        assert 0.001 < change.square().mean().sqrt() < 0.01
        assert change.abs().max() < 0.06


def test_rounded_vectors_are_within_half_a_level_and_take_a_third_of_the_memory():
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(3, 2, 5, 64, generator=generator)
    vectors *= 10.0 ** torch.arange(-2, 3).reshape(1, 1, 5, 1)  # one token's size is its own
    vectors[0, 0, 0] = 0
    stored = StoredVectors(vectors.shape, torch.float32, "cpu", rounded=True)
    stored[:, :, :] = vectors
    limit = vectors.abs().amax(-1, keepdim=True) / 254 * 1.001
    assert ((stored[:, :, :] - vectors).abs() <= limit).all()
    assert torch.equal(stored[0, 0, 0], torch.zeros(64))
    plain = StoredVectors(vectors.shape, torch.float32, "cpu")
    assert stored.size_bytes == plain.size_bytes * 68 / 256


def test_a_pool_never_grows_and_says_when_it_is_used_up(model):
    pool = PagePool(CONFIG, 6, PAGE)
    size_bytes = pool.size_bytes
    cache = PagedCache(pool, 2)
    begin(model, cache, texts_of([9, 3]))
    statistics = cache.statistics()
    assert (statistics.pages, statistics.used, statistics.free) == (6, 4, 2)
    assert statistics.tokens == 12 and statistics.fragmentation == pytest.approx(1 - 12 / 16)
    for _ in range(5):  # up to 14 and 8 tokens: four pages and two
        feed(model, cache, [[1], [2]])
    assert cache.statistics().free == 0 and cache.statistics().used_most == 6
    with pytest.raises(ConfigError, match="pool of 6 pages is used up") as caught:
        feed(model, cache, [[1], [2]])
    assert "--cache-pages" in str(caught.value)
    cache.clear()
    assert pool.statistics().free == 6 and pool.statistics().used_most == 6
    assert pool.size_bytes == size_bytes


def test_forks_share_pages_until_one_writes(model):
    pool = PagePool(CONFIG, 16, PAGE)
    cache = PagedCache(pool, 1)
    begin(model, cache, texts_of([6]))
    cache.select([0, 0, 0])
    assert cache.statistics().used == 2
    feed(model, cache, [[1], [2], [3]])
    # The full page is still shared; of the other one two copies were made, the third wrote on it.
    assert cache.statistics().used == 4
    cache.select([1])
    assert cache.statistics().used == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_prefixes_are_computed_once_and_pages_are_given_back(model, policy):
    pool = PagePool(CONFIG, 40, PAGE)
    prefixes = PrefixCache(pool, POLICIES[policy](4))
    system = texts_of([13], seed=5)[0]  # three full pages and one token
    texts = [system + rest for rest in texts_of([2, 6], seed=6)]
    cache = PagedCache(pool, 2, prefixes)
    found = begin(model, cache, texts)
    assert cache.begin(texts) == [12, 16]
    torch.testing.assert_close(begin(model, cache, texts), found, rtol=1e-4, atol=1e-4)
    other = [texts_of([13], seed=seed)[0] for seed in (7, 8)]
    for _ in range(3):
        begin(model, cache, other)  # six more pages than are kept
    cache.clear()
    statistics = prefixes.statistics()
    assert statistics.pages_held == len(prefixes.policy) <= 4
    assert pool.statistics().used == statistics.pages_held, "nothing else holds a page"


def test_a_text_is_never_taken_whole_and_another_beginning_is_another_page(model):
    pool = PagePool(CONFIG, 40, PAGE)
    cache = PagedCache(pool, 1, PrefixCache(pool, LeastRecentlyUsed(20)))
    text = texts_of([8], seed=1)[0]
    begin(model, cache, [text])
    assert cache.begin([text]) == [4], "the last token's logits have to be computed"
    assert cache.begin([[*text, 1]]) == [8]
    other = [(text[0] + 1) % 50, *text[1:], 1]
    assert cache.begin([other]) == [0], "the second page depends on the first"


def test_equal_pages_after_unequal_ones_are_not_mistaken_for_each_other(model):
    pool = PagePool(CONFIG, 40, PAGE)
    cache = PagedCache(pool, 1, PrefixCache(pool, LeastRecentlyUsed(20)))
    first, second, page = texts_of([4, 4, 4], seed=2)
    for text in ([*first, *page, 1], [*second, *page, 1], [*second, *page, 1]):
        found = begin(model, cache, [text])
        torch.testing.assert_close(found[0], logits_after(model, text), rtol=1e-4, atol=1e-4)


def test_statistics_of_prefixes_count_whole_pages(model):
    pool = PagePool(CONFIG, 40, PAGE)
    prefixes = PrefixCache(pool, LeastRecentlyUsed(20))
    cache = PagedCache(pool, 1, prefixes)
    text = texts_of([11], seed=1)[0]
    for _ in range(4):
        begin(model, cache, [text])
    statistics = prefixes.statistics()
    assert (statistics.pages_asked, statistics.pages_found) == (8, 6)
    assert statistics.hit_rate == 0.75
