"""Weights on the grid of int8 and int4: few levels, stable, those of GGUF, with a gradient."""

import numpy as np
import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.model.quantise import quantise_layers, quantised_layers, rounded
from peerformer.model.transformer import Transformer

KINDS = {"int8": ("Q8_0", 255), "int4": ("Q4_0", 16)}
every_kind = pytest.mark.parametrize("kind", KINDS)


def weights(seed: int, deviation: float = 0.02) -> torch.Tensor:
    print(f"seed {seed}")
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(seed)) * deviation


@every_kind
def test_a_group_has_few_levels_and_its_loudest_weight_hardly_moves(kind: str) -> None:
    found = rounded(weights(1), kind).view(-1, 32)
    assert max(len(set(group.tolist())) for group in found) <= KINDS[kind][1]
    loudest = weights(1).view(-1, 32).abs().max(-1).values
    assert torch.allclose(found.abs().max(-1).values, loudest, rtol=2e-3)
    error = (found - weights(1).view(-1, 32)).abs().max(-1).values / loudest
    assert error.max() < (0.005 if kind == "int8" else 0.13), "half a level, or one at the far end"


@every_kind
@pytest.mark.parametrize("deviation", [1.0, 0.02, 0.002])
def test_what_is_on_the_grid_stays_where_it_is(kind: str, deviation: float) -> None:
    once = rounded(weights(2, deviation), kind)
    assert torch.equal(rounded(once, kind), once)


@every_kind
def test_it_is_the_grid_of_gguf(kind: str) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
    form = getattr(gguf.GGMLQuantizationType, KINDS[kind][0])
    once = rounded(weights(3), kind).numpy()
    theirs = gguf.quants.dequantize(gguf.quants.quantize(once, form), form)
    assert np.array_equal(theirs, once)


@every_kind
def test_zeros_stay_zeros(kind: str) -> None:
    assert not rounded(torch.zeros(2, 64), kind).any()


def test_the_gradient_is_that_of_the_rounded_weights() -> None:
    model = Transformer(
        ModelConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            max_positions=16,
        )  # fmt: skip
    )
    plain = Transformer(model.config)
    quantise_layers(model, "int4", "all")
    layers = quantised_layers(model)
    assert len(layers) == 7
    plain.load_state_dict(
        model.state_dict() | {f"{n}.weight": layer.exported() for n, layer in layers.items()}
    )
    tokens = torch.arange(32).view(2, 16)
    losses = [m.loss(tokens, tokens + 1) for m in (model, plain)]
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
