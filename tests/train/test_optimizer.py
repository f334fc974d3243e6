"""AdamW and Muon: bounded, resumable, and what they claim to be."""

import pytest
import torch
from torch import nn

from peerformer.config import OptimizerConfig
from peerformer.train.optimizer import (
    SINGULAR_VALUE_MAX,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    orthogonalise,
)


class Small(nn.Module):
    """A matrix in the middle, an embedding and a bias around it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 8)
        self.inner = nn.Linear(8, 6)

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.inner(self.embed_tokens(tokens)).pow(2).mean() + targets.float().mean() * 0


def model() -> Small:
    torch.manual_seed(3)
    return Small()


def steps(one: Small, optimizer: object, count: int, first: int = 0) -> list[float]:
    losses = []
    for index in range(first, first + count):
        tokens = torch.tensor([[index % 10, (index + 3) % 10]])
        optimizer.zero_grad()
        loss = one.loss(tokens, tokens)
        loss.backward()
        optimizer.step(1.0)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 128, 128), (2, 96, 32), (2, 32, 96), (1, 1, 64)])
def test_the_result_is_nearly_orthogonal_and_bounded(shape: tuple, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(11)
    full = torch.randn(shape, generator=generator).to(dtype)
    values = torch.linalg.svdvals(orthogonalise(full))
    assert values.max() < SINGULAR_VALUE_MAX and values.median() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-6, 1e-4, 1e-2])
def test_near_rank_one_input_cannot_blow_an_update_up(noise: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    thin = torch.randn(1, 128, 1, generator=generator) @ torch.randn(1, 1, 128, generator=generator)
    gradient = (1e3 * thin + noise * torch.randn(1, 128, 128, generator=generator)).to(dtype)
    update = orthogonalise(gradient)
    assert torch.isfinite(update).all()
    assert update.norm() <= SINGULAR_VALUE_MAX * 128**0.5 * 1.001
    assert torch.linalg.svdvals(update).max() < 2 * SINGULAR_VALUE_MAX


def test_zero_and_huge_gradients_give_finite_updates() -> None:
    assert orthogonalise(torch.zeros(1, 8, 8)).abs().max() == 0
    assert torch.isfinite(orthogonalise(torch.full((1, 8, 8), 1e18))).all()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_loss_falls(name: str) -> None:
    one = model()
    losses = steps(one, build_optimizer(one, OptimizerConfig(name=name)), 60)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str) -> None:
    config = OptimizerConfig(name=name)
    one, two = model(), model()
    whole = build_optimizer(one, config)
    losses = steps(one, whole, 12)
    first = build_optimizer(two, config)
    start = steps(two, first, 7)
    kept = {key: tensor.clone() for key, tensor in optimizer_tensors(first).items()}
    second = build_optimizer(two, config)
    load_optimizer_tensors(second, kept)
    assert start + steps(two, second, 5, first=7) == losses


def test_muon_takes_the_hidden_matrices_only() -> None:
    optimizer = build_optimizer(model(), OptimizerConfig(name="muon"))
    assert set(optimizer.momentum) == {"inner.weight"}
    assert not build_optimizer(model(), OptimizerConfig(name="adamw")).momentum


def test_the_state_of_another_model_is_refused() -> None:
    optimizer = build_optimizer(model(), OptimizerConfig(name="muon"))
    with pytest.raises(ValueError, match="unknown parameters"):
        load_optimizer_tensors(optimizer, {"other.weight/momentum": torch.zeros(6, 8)})
    with pytest.raises(ValueError, match="another optimizer"):
        load_optimizer_tensors(optimizer, {"inner.weight/exp_avg": torch.zeros(6, 8)})
    with pytest.raises(ValueError, match="another shape"):
        load_optimizer_tensors(optimizer, {"inner.weight/momentum": torch.zeros(5, 8)})
