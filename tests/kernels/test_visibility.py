"""Who sees whom: positions and documents decide it, and nothing that is padding spoils a result."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from peerformer.kernels.attention import causal_attention, causal_attention_reference
from peerformer.kernels.visibility import FULL, Blocks, Pattern, Visibility

PATTERNS = {
    "full": FULL,
    "window": Pattern(window=5),
    "blocks": Pattern(blocks=Blocks(size=4, local=2, stride=3, first=1)),
    "blocks near by alone": Pattern(blocks=Blocks(size=3, local=1, stride=0, first=0)),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def seen_by_hand(pattern, q, k):
    """The rule in plain numbers."""
    if not 0 <= k <= q:
        return False
    if pattern.window:
        return q - k < pattern.window
    if (blocks := pattern.blocks) is None:
        return True
    ahead = q // blocks.size - k // blocks.size
    return (
        ahead < blocks.local
        or k // blocks.size < blocks.first
        or (blocks.stride > 0 and ahead % blocks.stride == 0)
    )


@every_pattern
def test_a_pattern_shows_what_its_rule_says(pattern):
    query, key = torch.arange(40), torch.arange(-1, 39)
    found = pattern.allows(query[:, None], key[None])
    expected = [[seen_by_hand(pattern, q, k) for k in range(-1, 39)] for q in range(40)]
    assert found.tolist() == expected


def make(T, H=4, G=2, K=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, H, T, K), (2, G, T, K), (2, G, T, K)
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes
    ]


@every_pattern
@pytest.mark.parametrize("with_documents", [False, True])
def test_masked_attention_and_its_gradients_equal_the_formula(pattern, with_documents):
    T = 33
    documents = torch.arange(T)[None].expand(2, -1) // 10 if with_documents else None
    fast, plain = make(T), make(T)
    mask = Visibility(torch.arange(T), None, documents).mask(pattern, T)
    found = causal_attention(*fast, mask)
    expected = causal_attention_reference(*plain, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for output in (found, expected):
        (output * torch.arange(T)[:, None]).sum().backward()
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-10)


@every_pattern
def test_decoding_by_a_cache_sees_what_training_saw(pattern):
    """One query at a time, over all keys or, in a window, over the last ones out of order."""
    T = 21
    q, k, v = (x.detach() for x in make(T))
    whole = causal_attention(q, k, v, Visibility(torch.arange(T), None, None).mask(pattern, T))
    for t in range(T):
        visibility = Visibility(torch.arange(t, t + 1), None, None)
        mask = visibility.mask(pattern, t + 1)
        one = causal_attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], mask)
        torch.testing.assert_close(one, whole[:, :, t : t + 1])
        kept = torch.arange(max(0, t + 1 - (pattern.window or T)), t + 1).flip(0)
        mask = visibility.mask(pattern, len(kept), kept[None])
        one = causal_attention(q[:, :, t : t + 1], k[:, :, kept], v[:, :, kept], mask)
        torch.testing.assert_close(one, whole[:, :, t : t + 1])


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [Pattern(window=70), Pattern(blocks=Blocks(size=128, local=1, stride=2, first=1))],
    ids=["window", "blocks"],
)
@torch.no_grad()
def test_the_block_mask_of_a_gpu_shows_the_same(pattern, with_documents):
    T = 520
    documents = torch.arange(T)[None] // 200 * torch.tensor([[1], [0]]) if with_documents else None
    visibility = Visibility(torch.arange(T), None, documents)
    mask_BTT, block_mask = visibility.mask(pattern, T), visibility.block_mask(pattern)
    assert block_mask is visibility.block_mask(pattern), "made once"
    B = len(mask_BTT)
    dense = create_mask(block_mask.mask_mod, B, None, T, T, device="cpu")[:, 0]
    assert torch.equal(dense, mask_BTT)
    assert block_mask.sparsity() > 15, "whole tiles are skipped"
    q, k, v = (x.detach() for x in make(T, K=16))
    found = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True)
    torch.testing.assert_close(found, causal_attention(q, k, v, mask_BTT), rtol=0, atol=1e-10)


def test_a_plain_causal_pass_needs_no_block_mask_either():
    assert Visibility(torch.arange(5), None, None).block_mask(FULL) is None


def test_a_sink_takes_its_share_of_the_softmax_and_gives_nothing():
    q, k, v = make(9)
    sinks = torch.tensor([-50.0, 0.0, 1.0, 50.0], dtype=torch.float64, requires_grad=True)
    found = causal_attention(q, k, v, sinks_H=sinks)
    plain = causal_attention(q, k, v)
    torch.testing.assert_close(found[:, 0], plain[:, 0])  # a sink of no weight
    assert found[:, 3].abs().max() < 1e-9  # and one of all the weight
    k_BHSK = k.repeat_interleave(2, dim=1)
    scores = (q @ k_BHSK.mT / 8**0.5).masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf)
    share = scores.exp().sum(-1) / (scores.exp().sum(-1) + sinks.exp()[:, None])
    torch.testing.assert_close(found, plain * share[..., None])
    found.sum().backward()
    assert sinks.grad.abs().min() > 0 or sinks.grad[0].abs() < 1e-12


def test_dropout_of_attention_keeps_its_mean():
    q, k, v = (x.detach() for x in make(6))
    torch.manual_seed(0)
    for sinks in (None, torch.zeros(4, dtype=torch.float64)):
        plain = causal_attention(q, k, v, sinks_H=sinks)
        drawn = torch.stack(
            [causal_attention(q, k, v, sinks_H=sinks, dropout=0.3) for _ in range(3000)]
        )
        assert drawn.std(0).min() > 0
        torch.testing.assert_close(drawn.mean(0), plain, rtol=0, atol=0.08)


def test_a_plain_causal_pass_needs_no_mask():
    assert Visibility(torch.arange(5), None, None).mask(FULL, 5) is None
    assert Visibility(torch.arange(3, 5), None, None).mask(FULL, 5) is None


def test_layers_of_one_pattern_share_a_mask():
    visibility = Visibility(torch.arange(4), None, torch.tensor([[0, 0, 1, 1]]))
    assert visibility.mask(FULL, 4) is visibility.mask(FULL, 4)


def test_a_token_sees_only_earlier_ones_of_its_document_and_padding_only_itself():
    documents = torch.tensor([[0, 0, 1, -1, 1, -1]])
    mask = Visibility(torch.arange(6), None, documents).mask(FULL, 6)
    seen = [[s for s in range(6) if mask[0, t, s]] for t in range(6)]
    assert seen == [[0], [0, 1], [2], [3], [2, 4], [5]]


def test_keys_are_seen_by_where_they_stand_and_empty_slots_never():
    positions, keys = torch.tensor([[4, 5], [1, 2]]), torch.tensor([[5, 3, 4], [-1, 1, 2]])
    mask = Visibility(torch.arange(4, 6), positions, None).mask(FULL, 3, keys)
    assert mask.tolist() == [
        [[False, True, True], [True, True, True]],
        [[False, True, False], [False, True, True]],
    ]
