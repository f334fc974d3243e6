"""Tokens sorted by expert, and one matrix product per expert.

Top-k routing sends each token to K of E experts. Sorted by expert, the tokens of each lie together
and go through its two matrices at once: as many operations as the tokens need, where a pass of all
tokens through all experts takes E / K times as many. An expert without tokens costs nothing.

Knows nothing about how the experts were chosen.

Sources: Gale et al., MegaBlocks, 2022, section 4 (grouping instead of padding); Fedus et al.,
Switch Transformers, 2021, section 2.2 (capacity).

Shapes: N tokens, K experts of a token, M = N K assignments (less those dropped), E experts,
D width, F hidden width of an expert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_by_expert(
    expert_NK: Tensor, experts: int, capacity: int | None = None
) -> tuple[Tensor, Tensor]:
    """Assignments in the order of their experts, and how many each expert takes.

    Of an expert's assignments beyond `capacity` the last are left out. The order is that of the
    tokens, so that whether a token is dropped depends on those before it, never on later ones.

    Args:
        expert_NK: the experts of each token.
        experts: how many there are.
        capacity: the most that one takes; None takes all.

    Returns:
        order_M: positions in the flattened `expert_NK`, expert by expert.
        count_E: how many of them are each expert's.
    """
    expert_M = expert_NK.flatten()
    order_M = expert_M.argsort(stable=True)
    count_E = torch.bincount(expert_M, minlength=experts)
    if capacity is None:
        return order_M, count_E
    first_E = count_E.cumsum(0) - count_E
    place_M = torch.arange(len(order_M), device=order_M.device) - first_E[expert_M[order_M]]
    return order_M[place_M < capacity], count_E.clamp(max=capacity)


def grouped_swiglu(x_MD: Tensor, count_E: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """Each expert's SwiGLU on its rows, (M, D): `down(silu(gate(x)) * up(x))`.

    Args:
        x_MD: the rows of expert 0, then those of expert 1, and so on.
        count_E: how many are whose.
        gate_up_E2FD: each expert's gate, its F rows before those of its up projection.
        down_EDF: each expert's down projection.
    """
    pieces = []
    # Unbound, because the gradient of each indexed slice would be as large as all experts.
    weights = zip(gate_up_E2FD.unbind(0), down_EDF.unbind(0), strict=True)
    for rows_RD, (gate_up, down) in zip(x_MD.split(count_E.tolist()), weights, strict=True):
        if len(rows_RD):
            gate_RF, up_RF = F.linear(rows_RD, gate_up).chunk(2, dim=-1)
            pieces.append(F.linear(F.silu(gate_RF) * up_RF, down))
    return torch.cat(pieces) if pieces else x_MD.new_zeros(x_MD.shape)


def mix_experts(x_ND: Tensor, order_M: Tensor, y_MD: Tensor, weight_NK: Tensor) -> Tensor:
    """The weighted sum of what the experts made of each token, (N, D), in the type of `x_ND`.

    Args:
        x_ND: the tokens.
        order_M: as `group_by_expert` gave it.
        y_MD: (M, D), the experts' results in that order.
        weight_NK: the weight of each expert of a token.
    """
    weighted_MD = y_MD * weight_NK.flatten()[order_M][:, None]
    token_M = order_M // weight_NK.shape[1]
    return torch.zeros_like(x_ND).index_add(0, token_M, weighted_MD.to(x_ND.dtype))
