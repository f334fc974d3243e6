"""Activations computed again: less is kept, and the gradients are the same to the bit."""

import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.model.recompute import recompute
from peerformer.model.transformer import Transformer

DEEP = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=96, num_layers=12, num_heads=4,
    num_kv_heads=2, head_dim=8, max_positions=32, residual_dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
TOKENS = torch.arange(64).view(2, 32)


def trained(what: str) -> tuple[int, list[torch.Tensor]]:
    """Bytes kept for the backward pass, and the gradients, of a pass that draws random numbers."""
    model = Transformer(DEEP).train()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    recompute(model, what)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(TOKENS, TOKENS.roll(1))
        size = sum(kept.values())
    loss.backward()
    return size, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("what", "share_max"), [("blocks", 0.25), ("attention", 0.8), ("feed_forward", 0.8)]
)
def test_less_is_kept_on_12_layers_and_the_gradients_are_the_same(
    what: str, share_max: float
) -> None:
    all_kept, expected = trained("none")
    kept, found = trained(what)
    assert kept < share_max * all_kept, f"{kept} of {all_kept} bytes"
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_without_gradients_nothing_is_different() -> None:
    model = Transformer(DEEP).eval()
    before = model(TOKENS)
    recompute(model, "blocks")
    assert torch.equal(model(TOKENS), before)
