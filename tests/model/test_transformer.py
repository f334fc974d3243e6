"""The model: its shapes, its weights from a seed, its cache, its cost."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from peerformer.config import ModelConfig
from peerformer.model.cache import KeyValueCache
from peerformer.model.transformer import (
    Transformer,
    count_parameters,
    flops_per_token,
    initialise,
    parameter_shapes,
)

TINY = ModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=24,
)
VARIANTS = [
    TINY,
    replace(TINY, tie_embeddings=False, num_kv_heads=4),
    replace(TINY, num_kv_heads=1, head_dim=6, num_layers=1, rope_theta=500.0),
]
VARIANT_NAMES = ["tied", "untied", "one key-value head"]


def make_model(config):
    """A model in which every weight matters: large matrices, and norms that are not 1."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                deviation = weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
            else:
                weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
    return model


def tokens(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", VARIANTS, ids=VARIANT_NAMES)
def test_parameters_are_those_announced(config):
    model = Transformer(config)
    found = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert list(found.items()) == list(parameter_shapes(config).items())
    assert count_parameters(config) == sum(weight.numel() for weight in model.parameters())
    assert set(model.state_dict()) == set(found), "the rotary table is not part of the state"


@pytest.mark.parametrize("config", VARIANTS, ids=VARIANT_NAMES)
def test_flops_of_a_token_are_those_that_torch_counts(config):
    config, T = replace(config, vocab_size=211), 20
    model = Transformer(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(tokens(2, T), tokens(2, T)).backward()
    # Torch counts the whole (T, T) square of scores; the mask leaves T (T + 1) / 2 of it.
    masked = 12 * config.num_layers * config.num_heads * config.head_dim * (T - 1) / 2
    counted = counter.get_total_flops() / (2 * T) - masked
    assert flops_per_token(config, T) == pytest.approx(counted, rel=0.02)


def test_the_seed_decides_every_weight_and_nothing_else_does():
    model = Transformer(TINY)
    initialise(model, 7)
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = Transformer(TINY)
    initialise(again, 7)
    assert torch.equal(state, torch.get_rng_state()), "no global randomness is used up"
    assert all(torch.equal(first[name], w) for name, w in again.state_dict().items())
    initialise(again, 8)
    assert not torch.equal(first["embed_tokens.weight"], again.embed_tokens.weight)


def test_the_first_loss_is_that_of_guessing():
    model = Transformer(replace(TINY, hidden_size=64))
    loss = model.loss(tokens(4, 20), tokens(4, 20, seed=1))
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)


def test_ignored_targets_do_not_count():
    model = Transformer(TINY)
    x, y = tokens(2, 8), tokens(2, 8, seed=1)
    masked = y.clone()
    masked[:, 3:] = -100
    expected = model.loss(x[:, :3], y[:, :3])  # causal: the later tokens do not matter
    torch.testing.assert_close(model.loss(x, masked), expected)
    assert model.loss(x, torch.full_like(y, -100)).item() == 0


def test_a_token_does_not_see_the_future():
    model = make_model(TINY)
    x = tokens(1, 12)
    changed = x.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 50
    a, b = model(x), model(changed)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])


def test_attention_depends_on_distances_of_tokens_alone():
    model, moved = make_model(TINY), make_model(TINY)
    moved.cosines_PK, moved.signed_sines_PK = model.cosines_PK[5:], model.signed_sines_PK[5:]
    x = tokens(1, 6)
    torch.testing.assert_close(moved(x), model(x), rtol=1e-4, atol=1e-5)
    moved.cosines_PK = moved.cosines_PK * 0  # and yet the table matters
    assert not torch.allclose(moved(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", VARIANTS, ids=VARIANT_NAMES)
@pytest.mark.parametrize("pieces", [[24], [1] * 24, [10] + [1] * 14, [5, 7, 1, 11]], ids=str)
def test_cached_decoding_equals_the_full_forward_pass(config, pieces):
    model = make_model(config)
    x = tokens(2, 24)
    cache = KeyValueCache(config, 2, 24)
    with torch.no_grad():
        expected = model(x)
        logits = torch.cat([model(piece, cache) for piece in x.split(pieces, dim=1)], dim=1)
    assert cache.length == 24
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_cleared_cache_has_forgotten():
    model = make_model(TINY)
    cache = KeyValueCache(TINY, 1, 16)
    with torch.no_grad():
        model(tokens(1, 9, seed=3), cache)
        cache.clear()
        torch.testing.assert_close(model(tokens(1, 6), cache), model(tokens(1, 6)))
    assert cache.length == 6 and cache.length_max == 16


def test_mixed_precision_computes_the_same_without_a_warning(recwarn):
    model = Transformer(TINY)
    x, y = tokens(2, 20), tokens(2, 20, seed=1)
    exact = model.loss(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, y)
        assert model(x).dtype == torch.bfloat16
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), abs=0.02)
    assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters())
    assert not [w for w in recwarn if "dtype" in str(w.message)]


def test_the_model_learns_a_rule():
    model = Transformer(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = (torch.arange(20) + torch.arange(16)[:, None]) % 50  # counting
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(x[:, :-1], x[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_packed_documents_give_the_logits_of_each_alone():
    model = make_model(TINY)
    x, documents = tokens(2, 12), torch.tensor([[0] * 5 + [1] * 7, [4] * 9 + [-1] * 3])
    packed = model(x, documents_BT=documents)
    for row, start, end in ((0, 0, 5), (0, 5, 12), (1, 0, 9)):
        alone = model(x[row : row + 1, start:end])
        torch.testing.assert_close(packed[row : row + 1, start:end], alone, rtol=1e-4, atol=1e-5)
    y = tokens(2, 12, seed=1)
    assert model.loss(x, y, documents_BT=documents).isfinite()
    assert model.loss(x, y, documents_BT=documents) != model.loss(x, y)
    one = torch.zeros(2, 12, dtype=torch.long)
    torch.testing.assert_close(model(x, documents_BT=one), model(x), rtol=1e-5, atol=1e-5)


def test_a_prompt_padded_on_the_left_is_read_as_if_it_were_not():
    model = make_model(TINY)
    x = tokens(2, 9)
    positions = torch.stack([torch.arange(9), torch.arange(9) - 4])  # the second has 5 tokens
    positions = positions.clamp(min=-1)
    found = model(x, positions_BT=positions)
    torch.testing.assert_close(found[:1], model(x[:1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1:, 4:], model(x[1:, 4:]), rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert all(w.grad.isfinite().all() for w in model.parameters())
