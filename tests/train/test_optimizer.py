"""AdamW, Muon, Lion and SGD: bounded, resumable, and what they claim to be."""

import pytest
import torch
from torch import nn

from peerformer.config import OptimizerConfig
from peerformer.errors import ConfigError
from peerformer.settings import resolve
from peerformer.train.muon import SINGULAR_VALUE_MAX, orthogonalise
from peerformer.train.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
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


@pytest.mark.parametrize("name", ["muon", "adamw", "lion", "sgd"])
def test_the_loss_falls(name: str) -> None:
    one = model()
    losses = steps(one, build_optimizer(one, OptimizerConfig(name=name)), 60)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("name", ["muon", "adamw", "lion", "sgd"])
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
    assert [set(part.named) for part in optimizer.parts] == [
        {"embed_tokens.weight", "inner.bias"},
        {"inner.weight"},
    ]
    assert len(build_optimizer(model(), OptimizerConfig(name="adamw")).parts) == 1


def test_the_state_of_another_model_is_refused() -> None:
    optimizer = build_optimizer(model(), OptimizerConfig(name="muon"))
    with pytest.raises(ValueError, match="unknown parameters"):
        load_optimizer_tensors(optimizer, {"other.weight/momentum": torch.zeros(6, 8)})
    with pytest.raises(ValueError, match="another optimizer"):
        load_optimizer_tensors(optimizer, {"inner.weight/exp_avg": torch.zeros(6, 8)})
    with pytest.raises(ValueError, match="another shape"):
        load_optimizer_tensors(optimizer, {"inner.weight/momentum": torch.zeros(5, 8)})


# --- against others' ------------------------------------------------------------------------------


def gradients_of(one: Small, seed: int) -> None:
    """Random gradients, the same for every copy of the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in one.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def same_as(one: Small, other: Small, *, atol: float = 1e-6) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=atol, rtol=1e-5), name


def grouped(one: Small, decay: float) -> list[dict]:
    matrices = [p for p in one.parameters() if p.ndim >= 2]
    vectors = [p for p in one.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_that_of_pytorch(momentum: float, nesterov: bool, decay: float) -> None:
    one, two = model(), model()
    config = OptimizerConfig(
        "sgd", learning_rate=0.1, weight_decay=decay, momentum=momentum, nesterov=nesterov
    )
    ours = build_optimizer(one, config)
    theirs = torch.optim.SGD(grouped(two, decay), lr=0.1, momentum=momentum, nesterov=nesterov)
    for seed in range(5):
        gradients_of(one, seed)
        gradients_of(two, seed)
        ours.step(1.0)
        theirs.step()
    same_as(one, two)


def test_adamw_is_that_of_pytorch_at_every_scale_of_the_rate() -> None:
    one, two = model(), model()
    config = OptimizerConfig("adamw", learning_rate=0.01, weight_decay=0.1)
    ours = build_optimizer(one, config)
    theirs = torch.optim.AdamW(grouped(two, 0.1), lr=0.01, betas=(0.9, 0.95))
    for seed, scale in enumerate((0.5, 1.0, 0.25)):
        gradients_of(one, seed)
        gradients_of(two, seed)
        for group in theirs.param_groups:
            group["lr"] = 0.01 * scale
        ours.step(scale)
        theirs.step()
    same_as(one, two)


def test_muon_is_that_of_pytorch_within_the_rounding_of_its_bfloat16() -> None:
    one, two = model(), model()
    ours = build_optimizer(one, OptimizerConfig("muon", muon_learning_rate=0.02))
    theirs = torch.optim.Muon([two.inner.weight], lr=0.02, weight_decay=0.01, momentum=0.95)
    start = two.inner.weight.detach().clone()
    for seed in range(5):
        gradients_of(one, seed)
        gradients_of(two, seed)
        ours.step(1.0, torch.bfloat16)
        theirs.step()
    moved = (two.inner.weight - start).norm()
    assert (one.inner.weight - two.inner.weight).norm() < 0.01 * moved


def test_lion_is_the_algorithm_of_its_paper() -> None:
    one, two = model(), model()
    config = OptimizerConfig("lion", learning_rate=0.01, weight_decay=0.1, beta1=0.9, beta2=0.99)
    ours, momenta = build_optimizer(one, config), [torch.zeros_like(p) for p in two.parameters()]
    for seed in range(5):
        gradients_of(one, seed)
        gradients_of(two, seed)
        ours.step(0.5)
        with torch.no_grad():
            for w, m in zip(two.parameters(), momenta, strict=True):
                decay = 0.1 if w.ndim >= 2 else 0.0
                w -= 0.005 * ((0.9 * m + 0.1 * w.grad).sign() + decay * w)
                m.copy_(0.99 * m + 0.01 * w.grad)
    same_as(one, two)


def test_what_lion_keeps_is_nothing_to_sgd() -> None:
    lion, sgd = (build_optimizer(model(), OptimizerConfig(name)) for name in ("lion", "sgd"))
    with pytest.raises(ValueError, match="another optimizer"):
        load_optimizer_tensors(sgd, optimizer_tensors(lion))


def test_the_choice_of_an_optimizer_derives_a_rate_that_suits_it() -> None:
    assert resolve(overrides={"optimizer.name": "lion"}).config.optimizer.learning_rate == 3e-4
    chosen = {"optimizer.name": "lion", "optimizer.learning_rate": 0.01}
    assert resolve(overrides=chosen).config.optimizer.learning_rate == 0.01
    for wrong in (
        {"optimizer.nesterov": True},
        {"optimizer.nesterov": True, "optimizer.name": "sgd", "optimizer.momentum": 0.0},
        {"optimizer.sharpness_rho": 0.1},
    ):
        with pytest.raises(ConfigError) as refused:
            resolve(overrides=wrong)
        assert refused.value.hint and refused.value.hint.startswith("--set optimizer.")


def test_muon_takes_each_expert_as_a_matrix_of_its_own() -> None:
    torch.manual_seed(9)
    gradients = {"gate_up_proj": torch.randn(3, 20, 8), "down_proj": torch.randn(3, 8, 10)}

    def step(parameters: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
        """The parameters after a step from 0, by their names in a module."""
        holder = nn.Module()
        holder.add_module("experts", nn.Module())
        for name, gradient in parameters.items():
            holder.experts.register_parameter(name, nn.Parameter(torch.zeros_like(gradient)))
        optimizer = build_optimizer(holder, OptimizerConfig())
        assert [len(part.named) for part in optimizer.parts] == [0, len(parameters)], prefix
        for name, gradient in parameters.items():
            holder.experts.get_parameter(name).grad = gradient.clone()
        optimizer.step(1.0)
        return {name: p.detach() for name, p in holder.experts.named_parameters()}

    stacked = step(gradients, "stacked")
    alone = {
        f"{half}_{e}": gradients["gate_up_proj"][e].chunk(2)[index]
        for e in range(3)
        for index, half in enumerate(("gate", "up"))
    } | {f"down_{e}": gradients["down_proj"][e] for e in range(3)}
    single = step(alone, "single")
    for e in range(3):
        both = torch.cat((single[f"gate_{e}"], single[f"up_{e}"]))
        torch.testing.assert_close(stacked["gate_up_proj"][e], both)
        torch.testing.assert_close(stacked["down_proj"][e], single[f"down_{e}"])
