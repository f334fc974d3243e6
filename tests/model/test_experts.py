"""Mixture of experts: computed as its definition says, balanced, counted, and never forgotten."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from peerformer.config import ModelConfig
from peerformer.errors import ConfigError
from peerformer.kernels.router import group_by_expert
from peerformer.model.cache import KeyValueCache
from peerformer.model.experts import MixtureOfExperts, auxiliary_losses, finish_step
from peerformer.model.transformer import (
    Transformer,
    count_active_parameters,
    count_parameters,
    flops_per_token,
    initialise,
    parameter_shapes,
)
from peerformer.settings import resolve

TINY = ModelConfig(
    vocab_size=50, hidden_size=24, intermediate_size=40, num_layers=4, num_heads=4,
    num_kv_heads=2, head_dim=8, max_positions=32, num_experts=5, num_experts_per_tok=2,
    moe_intermediate_size=12,
)  # fmt: skip
VARIANTS = {
    "top 2 of 5": TINY,
    "top 1, weights as they are": replace(TINY, num_experts_per_tok=1, norm_topk_prob=False),
    "all experts": replace(TINY, num_experts=3, num_experts_per_tok=3, norm_topk_prob=False),
    "with a shared expert": replace(TINY, shared_expert_intermediate_size=20),
    "with a bias": replace(TINY, router_bias_update_rate=0.01),
    "every second layer": replace(TINY, decoder_sparse_step=2, tie_embeddings=False),
    "layers 0 and 2 dense": replace(TINY, mlp_only_layers="0, 2"),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def randomised(module, seed=4):
    """The module with weights large enough for each to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            scale = 0.05 if name.endswith("bias") else weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            if name.endswith("norm.weight"):
                weight.add_(1)
    return module


def inputs(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def dense_reference(layer, x_BTD, config):
    """All tokens through all experts, each weighed by what the router gives it, often 0."""
    gate, experts = layer.gate, layer.experts
    probability = F.linear(x_BTD, gate.weight).softmax(-1)
    bias = gate.e_score_correction_bias
    choice = probability if bias is None else probability + bias
    chosen = torch.zeros_like(probability)
    chosen.scatter_(-1, choice.topk(config.num_experts_per_tok, -1).indices, 1.0)
    weight = probability * chosen
    if config.norm_topk_prob:
        weight = weight / weight.sum(-1, keepdim=True)
    y_BTD = torch.zeros_like(x_BTD)
    for e in range(config.num_experts):
        gate_BTF, up_BTF = F.linear(x_BTD, experts.gate_up_proj[e]).chunk(2, -1)
        y = F.linear(F.silu(gate_BTF) * up_BTF, experts.down_proj[e])
        y_BTD = y_BTD + weight[..., e : e + 1] * y
    return y_BTD if layer.shared_expert is None else y_BTD + layer.shared_expert(x_BTD)


@every_variant
@pytest.mark.parametrize("shape", [(2, 17), (1, 1), (3, 1), (1, 31)], ids=str)
def test_sorting_by_expert_computes_what_all_experts_on_all_tokens_do(config, shape):
    layer = randomised(MixtureOfExperts(config, 0))
    x = inputs(*shape, config.hidden_size)
    outcomes = []
    for compute in (layer, lambda x: dense_reference(layer, x, config)):
        leaf = x.clone().requires_grad_()
        y = compute(leaf)
        (y * inputs(*y.shape, seed=2)).sum().backward()
        gradients = {n: p.grad.clone() for n, p in layer.named_parameters() if p.requires_grad}
        outcomes.append((y, leaf.grad, gradients))
        layer.zero_grad(set_to_none=True)
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-5, atol=1e-6)


def test_an_expert_without_tokens_learns_nothing_and_breaks_nothing():
    layer = randomised(MixtureOfExperts(TINY, 0))
    with torch.no_grad():
        layer.gate.weight[3] = 0
        layer.gate.weight[:, 0] = 20.0
        layer.gate.weight[3, 0] = -20.0  # on inputs whose first value is 1, it is never chosen
    x = inputs(2, 9, TINY.hidden_size)
    x[..., 0] = 1.0
    y = layer(x)
    torch.testing.assert_close(y, dense_reference(layer, x, TINY), rtol=1e-5, atol=1e-6)
    y.sum().backward()
    for gradient in (layer.experts.gate_up_proj.grad, layer.experts.down_proj.grad):
        assert not gradient[3].any() and gradient[[0, 1, 2, 4]].flatten(1).any(1).all()


def test_in_bfloat16_the_router_decides_as_in_float32():
    layer = randomised(MixtureOfExperts(TINY, 0))
    x = inputs(2, 40, TINY.hidden_size)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


@every_variant
def test_parameters_are_those_announced(config):
    model = Transformer(config)
    found = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert list(found.items()) == list(parameter_shapes(config).items())
    assert count_parameters(config) == sum(weight.numel() for weight in model.parameters())
    assert set(model.state_dict()) == set(found), "what is counted is not part of the state"
    idle = config.num_experts - config.num_experts_per_tok
    asleep = 3 * idle * config.expert_size * config.hidden_size * len(config.sparse_layers)
    assert count_active_parameters(config) == count_parameters(config) - asleep


@every_variant
def test_flops_of_a_token_are_those_that_torch_counts(config):
    config, T = replace(config, vocab_size=211), 20
    model = Transformer(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(tokens(2, T), tokens(2, T)).backward()
    masked = 12 * config.num_layers * config.num_heads * config.head_dim * (T - 1) / 2
    counted = counter.get_total_flops() / (2 * T) - masked
    assert flops_per_token(config, T) == pytest.approx(counted, rel=0.02)


@every_variant
def test_cached_decoding_equals_the_full_forward_pass(config):
    model = randomised(Transformer(replace(config, moe_capacity_factor=0.5))).eval()
    x, cache = tokens(2, 20), KeyValueCache(config, 2, 20)
    with torch.no_grad():
        pieces = x.split([7, *[1] * 13], dim=1)
        logits = torch.cat([model(piece, cache) for piece in pieces], dim=1)
        torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)


def test_which_layers_are_sparse_is_as_qwen3_moe_has_it():
    assert TINY.sparse_layers == (0, 1, 2, 3)
    assert replace(TINY, decoder_sparse_step=2).sparse_layers == (1, 3)
    assert replace(TINY, mlp_only_layers="3,0").sparse_layers == (1, 2)
    assert replace(TINY, num_experts=0).sparse_layers == ()


def test_weights_are_made_of_the_seed_alone():
    config = VARIANTS["with a bias"]
    one, other = Transformer(config), Transformer(config)
    initialise(one, 7)
    initialise(other, 7)
    assert all(torch.equal(w, other.get_parameter(name)) for name, w in one.named_parameters())
    deviation = one.layers[0].mlp.experts.gate_up_proj.std().item()
    assert deviation == pytest.approx(0.02, rel=0.1)
    assert one.layers[0].mlp.experts.down_proj.std().item() == pytest.approx(0.002, rel=0.1)
    assert not one.layers[0].mlp.gate.e_score_correction_bias.any()


# --- capacity ---------------------------------------------------------------------------------


def test_over_capacity_the_later_tokens_are_dropped():
    expert_NK = torch.tensor([[1, 0], [1, 2], [1, 0], [0, 2], [1, 2]])
    order_M, count_E = group_by_expert(expert_NK, 4, capacity=2)
    assert count_E.tolist() == [2, 2, 2, 0]
    assert order_M.tolist() == [1, 5, 0, 2, 3, 7]  # of each expert the first two, in their order
    order_M, count_E = group_by_expert(expert_NK, 4)
    assert count_E.tolist() == [3, 4, 3, 0] and sorted(order_M.tolist()) == list(range(10))


def test_a_dropped_token_passes_by_its_expert_and_is_counted():
    config = replace(TINY, num_experts_per_tok=1, moe_capacity_factor=1.0)
    layer = randomised(MixtureOfExperts(config, 0))
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[2, 0] = 9.0
    x = inputs(1, 15, config.hidden_size)
    x[..., 0] = 1.0  # all 15 want expert 2, which takes 3
    with auxiliary_losses(layer):
        y = layer(x)
    assert y[0, :3].abs().sum(-1).all() and not y[0, 3:].any()
    finish_step(layer)
    assert layer.gate.load.shares == (0.0, 0.0, 1.0, 0.0, 0.0)
    assert layer.gate.load.dropped == pytest.approx(12 / 15)
    assert layer.gate.load.most == 5.0 and layer.gate.load.least == 0.0
    assert layer.eval()(x).abs().sum(-1).all(), "in use nothing is dropped"


def test_with_a_capacity_too_no_token_learns_from_later_ones():
    model = randomised(Transformer(replace(TINY, moe_capacity_factor=0.6))).train()
    x = tokens(1, 24)
    changed = x.clone()
    changed[0, 15:] = (changed[0, 15:] + 1) % 50
    # The capacity depends on the number of tokens alone, which is the same.
    torch.testing.assert_close(model(x)[:, :15], model(changed)[:, :15])


# --- balance ----------------------------------------------------------------------------------


def test_the_auxiliary_losses_are_those_of_the_papers():
    config = replace(TINY, num_layers=1, router_aux_loss_coef=0.3, router_z_loss_coef=0.07)
    model = randomised(Transformer(config)).train()
    x, y = tokens(2, 11), tokens(2, 11, seed=1)
    seen = []
    model.layers[0].mlp.gate.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    loss = model.loss(x, y)
    scores = F.linear(seen[0], model.layers[0].mlp.gate.weight)
    probability = scores.softmax(-1)
    sent = torch.zeros_like(probability).scatter_(-1, probability.topk(2, -1).indices, 1.0)
    balance = 5 * sum(sent[:, e].mean() * probability[:, e].mean() for e in range(5))
    z = scores.exp().sum(-1).log().square().mean()
    expected = model.eval().loss(x, y) + 0.3 * balance + 0.07 * z
    torch.testing.assert_close(loss, expected)


def test_evaluation_never_sees_the_auxiliary_losses():
    config = replace(TINY, router_aux_loss_coef=0.5)
    plain = replace(TINY, router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
    model, other = randomised(Transformer(config)), randomised(Transformer(plain))
    x, y = tokens(2, 11), tokens(2, 11, seed=1)
    assert model.train().loss(x, y) > other.train().loss(x, y) + 0.4
    assert torch.equal(model.eval().loss(x, y), other.loss(x, y))


def test_the_bias_moves_towards_the_experts_that_got_less():
    config = replace(TINY, num_layers=1, router_bias_update_rate=0.01, router_aux_loss_coef=0.0)
    model = randomised(Transformer(config)).train()
    gate = model.layers[0].mlp.gate
    with torch.no_grad():
        gate.e_score_correction_bias.zero_()
    assert not any(p is gate.e_score_correction_bias for p in model.parameters() if p.requires_grad)
    x, uneven = tokens(8, 32), None
    for step in range(60):
        model.loss(x, x)
        model.after_step()
        load = model.expert_load()[0]
        if step == 0:
            uneven = load
            fair = 1 / 5
            signs = [0.01 if share < fair else -0.01 for share in load.shares]
            torch.testing.assert_close(gate.e_score_correction_bias.tolist(), signs)
    assert uneven.least < 0.6 and load.least > 0.85, (uneven, load)


def test_loads_are_those_of_one_step_and_add_up():
    model = randomised(Transformer(replace(TINY, decoder_sparse_step=2))).train()
    assert model.expert_load() == {}
    for seed in (0, 1):  # two passes of one step
        model.loss(tokens(2, 9, seed=seed), tokens(2, 9)).backward()
    assert int(model.layers[1].mlp.gate.tokens_E.sum()) == 2 * 2 * 9 * 2
    model.after_step()
    loads = model.expert_load()
    assert list(loads) == [1, 3]
    assert all(
        sum(load.shares) == pytest.approx(1) and load.dropped == 0 for load in loads.values()
    )
    model.after_step()
    assert model.expert_load() == loads, "a step in which nothing was computed changes nothing"
    model.eval().loss(tokens(2, 9), tokens(2, 9))
    assert not any(model.layers[i].mlp.gate.tokens_E.any() for i in (1, 3))


def test_recomputed_activations_are_not_counted_again_and_change_no_gradient():
    from torch.utils.checkpoint import checkpoint

    config = replace(TINY, num_layers=1)
    model, twin = (randomised(Transformer(config)).train() for _ in range(2))
    plain = twin.layers[0].forward
    twin.layers[0].forward = lambda *given: checkpoint(plain, *given, use_reentrant=False)
    x = tokens(2, 9)
    for one in (model, twin):
        one.loss(x, x).backward()
    assert torch.equal(model.layers[0].mlp.gate.tokens_E, twin.layers[0].mlp.gate.tokens_E)
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_a_mixture_learns_a_rule_with_every_expert_at_work():
    model = Transformer(replace(TINY, num_layers=2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = (torch.arange(20) + torch.arange(16)[:, None]) % 50  # counting
    for _ in range(120):
        optimizer.zero_grad()
        loss = model.loss(x[:, :-1], x[:, 1:])
        loss.backward()
        optimizer.step()
        model.after_step()
    assert loss.item() < 0.3
    assert all(load.least > 0.2 for load in model.expert_load().values())


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok=4"),
        ({"num_experts": 4, "mlp_only_layers": "0,nine"}, "mlp_only_layers=0"),
        ({"num_experts": 4, "mlp_only_layers": "6"}, "mlp_only_layers=0"),
        ({"num_experts": 4, "mlp_only_layers": "0,1,2,3,4,5"}, "mlp_only_layers="),
        ({"num_experts": 4, "decoder_sparse_step": 7}, "decoder_sparse_step=1"),
        ({"num_experts": 4, "feed_forward": "gelu"}, "feed_forward=swiglu"),
        ({"num_experts": 4, "mlp_bias": True}, "mlp_bias=False"),
        ({"shared_expert_intermediate_size": 64}, "num_experts=8"),
        ({"router_bias_update_rate": 0.1}, "num_experts=8"),
    ],
    ids=str,
)
def test_experts_that_make_no_sense_are_refused_with_what_would(given, hint):
    with pytest.raises(ConfigError) as caught:
        resolve(overrides={f"model.{name}": value for name, value in given.items()})
    assert f"model.{list(given)[-1]}" in str(caught.value)
    assert caught.value.hint and hint in caught.value.hint


def test_the_family_has_experts_at_every_size_and_its_cost_is_that_of_the_dense_one():
    for size in ("nano", "tiny", "small", "medium", "large"):
        sparse, dense = (
            replace(resolve(size=size, family=family).config.model, vocab_size=512)
            for family in ("qwen3-moe", "qwen3")
        )
        assert sparse.sparse_layers == tuple(range(sparse.num_layers))
        assert count_parameters(sparse) > 2 * count_parameters(dense)
        routers = sparse.num_layers * sparse.num_experts * sparse.hidden_size
        assert count_active_parameters(sparse) == count_parameters(dense) + routers
