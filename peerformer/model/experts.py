"""Mixture of experts: a router sends each token to a few of many feed-forward layers.

A sparse layer has E experts, and computes K of them for a token: parameters grow with E, the cost
of a token with K. The router is one matrix; the softmax of its scores chooses the experts and
weighs what they return. Left alone it soon sends most tokens to few experts, which then learn
most. Three things keep that from happening:

- the balancing loss, E * sum over experts of (share of tokens) * (mean probability), which is
  least where all are alike (Switch, equation 4; summed over the K experts of a token, and so scaled
  as Hugging Face's `router_aux_loss_coef`);
- a bias on each score, for the choice alone, moved a step after each training step: up for those
  that got less than their share, down for the others. No gradient is bent by it. It is a parameter
  without gradient, so that checkpoints, digests and a swarm's agreed state hold it;
- a capacity, beyond which an expert takes no more tokens of a pass. It holds in training only: in
  use a token's answer must not depend on which others are computed at the same time.

The router's z-loss keeps its scores small, and so its softmax exact. What a router saw is counted
while a loss is computed in training, once for each forward pass; recomputed activations are not
counted again.

Knows nothing about attention or text; the layers' places are `ModelConfig.sparse_layers`.

Sources: Shazeer et al., Outrageously Large Neural Networks, 2017; Fedus et al., Switch
Transformers, 2021, equation 4 and section 2.2; Zoph et al., ST-MoE, 2022, equation 5 (z-loss);
Dai et al., DeepSeekMoE, 2024 (shared expert); Wang et al., Auxiliary-Loss-Free Load Balancing,
2024 (arXiv 2408.15664), algorithm 1; Yang et al., Qwen3 Technical Report, 2025.

Shapes: B batch, T tokens, N = B T tokens in a row, D width, E experts, K experts of a token,
F hidden width of an expert, M assignments of tokens to experts, L sparse layers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peerformer.config import ModelConfig
from peerformer.kernels.router import group_by_expert, grouped_swiglu, mix_experts
from peerformer.model.feed_forward import make_feed_forward

BIAS = "e_score_correction_bias"  # DeepSeek-V3's name for it


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """How a layer's tokens were spread in a step.

    Attributes:
        shares: of the assignments, by expert, before any was dropped; they add up to 1.
        dropped: the share of assignments that exceeded the capacity.
    """

    shares: tuple[float, ...]
    dropped: float

    @property
    def least(self) -> float:
        """The smallest share, as a multiple of the fair one."""
        return min(self.shares) * len(self.shares)

    @property
    def most(self) -> float:
        """The largest share, as a multiple of the fair one."""
        return max(self.shares) * len(self.shares)


class MixtureOfExperts(nn.Module):
    """The feed-forward of a sparse layer: K of E experts for each token, and a shared one."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.gate = Router(config, layer)
        self.experts = Experts(config)
        shared = replace(config, intermediate_size=config.shared_expert_intermediate_size)
        self.shared_expert = make_feed_forward(shared) if shared.intermediate_size else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The layer's addition to the residual stream, (B, T, D)."""
        x_ND = x_BTD.flatten(0, 1)
        expert_NK, weight_NK, capacity = self.gate(x_ND)
        y_BTD = self.experts(x_ND, expert_NK, weight_NK, capacity).view(x_BTD.shape)
        return y_BTD if self.shared_expert is None else y_BTD + self.shared_expert(x_BTD)


def make_mlp(config: ModelConfig, layer: int) -> nn.Module:
    """The feed-forward of a layer: of experts, or dense."""
    return MixtureOfExperts(config, layer) if config.is_sparse(layer) else make_feed_forward(config)


class Experts(nn.Module):
    """E feed-forward layers in two parameters, as transformers holds Qwen3-MoE's in memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, hidden = config.num_experts, config.hidden_size, config.expert_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * hidden, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, hidden))

    def forward(
        self, x_ND: Tensor, expert_NK: Tensor, weight_NK: Tensor, capacity: int | None
    ) -> Tensor:
        """What the chosen experts add to each token, weighted, (N, D)."""
        order_M, count_E = group_by_expert(expert_NK, len(self.down_proj), capacity)
        x_MD = x_ND.index_select(0, order_M // expert_NK.shape[1])
        y_MD = grouped_swiglu(x_MD, count_E, self.gate_up_proj, self.down_proj)
        return mix_experts(x_ND, order_M, y_MD, weight_NK)


class Router(nn.Module):
    """Chooses and weighs the experts of each token, and counts what it chose in training."""

    tokens_E: Tensor
    dropped: Tensor

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        E = config.num_experts
        self.top_k, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.capacity_factor = config.moe_capacity_factor
        # Shares of the mean over layers, so that the weights mean the same in any model.
        self.balance_weight = config.router_aux_loss_coef / len(config.sparse_layers)
        self.z_weight = config.router_z_loss_coef / len(config.sparse_layers)
        self.bias_step = config.router_bias_update_rate
        self.weight = nn.Parameter(torch.empty(E, config.hidden_size))
        bias_E = nn.Parameter(torch.zeros(E), requires_grad=False) if self.bias_step else None
        self.register_parameter(BIAS, bias_E)
        self.register_buffer("tokens_E", torch.zeros(E, dtype=torch.int64), persistent=False)
        self.register_buffer("dropped", torch.zeros((), dtype=torch.int64), persistent=False)
        self.terms: list[Tensor] | None = None  # where a loss collects what routers add to it
        # Of several ranks that share a pass: puts the sums over all of them in a tensor's place.
        self.add_up: Callable[[Tensor], None] = lambda _: None
        self.sent_E: Tensor | None = None  # to each expert, a token of the last pass, all ranks
        self.load: ExpertLoad | None = None  # of the last step

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, int | None]:
        """Experts and weights of each token, (N, K) each, and the capacity of an expert."""
        with torch.autocast(x_ND.device.type, enabled=False):  # Switch, section 2.4
            score_NE = F.linear(x_ND.float(), self.weight.float())
        probability_NE = score_NE.softmax(-1)
        bias_E = self.get_parameter(BIAS) if self.bias_step else 0.0
        expert_NK = (probability_NE + bias_E).topk(self.top_k, dim=-1).indices
        weight_NK = probability_NE.gather(-1, expert_NK)
        if self.renormalise:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        capacity = None
        if self.training:
            if self.capacity_factor:
                fair = x_ND.shape[0] * self.top_k / len(self.weight)
                capacity = math.ceil(self.capacity_factor * fair)
            self._account(score_NE, probability_NE, expert_NK, capacity)
        return expert_NK, weight_NK, capacity

    def _account(
        self, score_NE: Tensor, probability_NE: Tensor, expert_NK: Tensor, capacity: int | None
    ) -> None:
        """Compute what this pass adds to the loss; keep it, and count, where a loss collects."""
        E = score_NE.shape[1]
        count_E = torch.bincount(expert_NK.flatten(), minlength=E)
        if self.terms is not None or self.sent_E is None:
            # Over all ranks, else the loss of many small passes is another than that of a large
            # one. Where a pass is computed again, for its gradients, this is what it was.
            all_E = count_E.clone()
            self.add_up(all_E)
            self.sent_E = all_E * self.top_k / all_E.sum().clamp(min=1)
        balance = E * self.sent_E.dot(probability_NE.mean(0))
        z = score_NE.logsumexp(-1).square().mean()
        if self.terms is not None:
            self.terms.append(self.balance_weight * balance + self.z_weight * z)
            self.tokens_E += count_E
            if capacity is not None:
                self.dropped += (count_E - capacity).clamp(min=0).sum()

    @torch.no_grad()
    def finish_step(self, tokens_E: Tensor, dropped: int) -> None:
        """Take the loads of a whole step in: move the bias, and count anew."""
        total = int(tokens_E.sum())
        if total:
            shares_E = tokens_E / total
            self.load = ExpertLoad(tuple(shares_E.tolist()), dropped / total)
            if self.bias_step:
                behind_E = (shares_E.mean() - shares_E).sign()
                bias_E = self.get_parameter(BIAS)
                bias_E.add_(_divided_like(bias_E, self.bias_step * behind_E))
        self.tokens_E.zero_()
        self.dropped.zero_()


def _divided_like(parameter: Tensor, values: Tensor) -> Tensor:
    """Values that every rank holds, divided among ranks if the parameter is."""
    mesh = getattr(parameter, "device_mesh", None)  # a DTensor's
    if mesh is None:
        return values
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(parameter, DTensor)
    whole = DTensor.from_local(values, mesh, [Replicate()], run_check=False)
    return whole.redistribute(mesh, parameter.placements)


def routers_of(model: nn.Module) -> list[Router]:
    """The routers of a model, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, Router)]


@contextmanager
def auxiliary_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the routers of a model add to its loss, in passes made meanwhile.

    The list stays empty in eval mode, and where there are no routers.
    """
    terms: list[Tensor] = []
    routers = routers_of(model)
    for router in routers:
        router.terms = terms
    try:
        yield terms
    finally:
        for router in routers:
            router.terms = None


def expert_load(model: nn.Module) -> dict[int, ExpertLoad]:
    """By sparse layer, how its tokens were spread in the last training step, once there is one."""
    return {router.layer: router.load for router in routers_of(model) if router.load is not None}


def finish_step(model: nn.Module, add_up: Callable[[Tensor], None] = lambda _: None) -> None:
    """Tell the routers of a model that a training step is over.

    `add_up` puts the sums over all ranks that shared the step in the place of its loads.
    """
    routers = routers_of(model)
    if not routers:
        return
    counts_LE = torch.stack([torch.cat((r.tokens_E, r.dropped[None])) for r in routers])
    add_up(counts_LE)
    for router, count_E in zip(routers, counts_LE, strict=True):
        router.finish_step(count_E[:-1], int(count_E[-1]))


def load_columns(config: ModelConfig) -> tuple[str, ...]:
    """The metrics that `load_metrics` gives of a model; none where there are no experts."""
    if not config.sparse_layers:
        return ()
    by_layer = (f"layer_{n}_{end}" for n in config.sparse_layers for end in ("least", "most"))
    return tuple(f"experts_{name}" for name in ("least", "most", "dropped", *by_layer))


def load_metrics(loads: Mapping[int, ExpertLoad]) -> dict[str, float]:
    """Loads as plain numbers: shares in fair shares, over all layers and by layer."""
    if not loads:
        return {}
    metrics = {
        "experts_least": min(load.least for load in loads.values()),
        "experts_most": max(load.most for load in loads.values()),
        "experts_dropped": sum(load.dropped for load in loads.values()) / len(loads),
    }
    for layer, load in loads.items():
        metrics[f"experts_layer_{layer}_least"] = load.least
        metrics[f"experts_layer_{layer}_most"] = load.most
    return metrics


def active_size(name: str, shape: tuple[int, ...], config: ModelConfig) -> int:
    """How many values of a parameter one token meets: of the experts K in E."""
    size = math.prod(shape)
    is_experts = ".mlp.experts." in name
    return size // config.num_experts * config.num_experts_per_tok if is_experts else size
