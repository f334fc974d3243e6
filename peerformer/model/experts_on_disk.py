"""Experts in files: one tensor each, where memory holds them stacked.

Hugging Face's tools, vLLM and llama.cpp read `experts.0.gate_proj.weight` and so on; the model
keeps gates and up projections of all experts in one parameter, and their down projections in
another. Both forms hold the same numbers, so these functions only cut and stack.

Knows nothing about layers or files: names in, names out.

Shapes: E experts, D width, F hidden width of an expert.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"
ON_DISK = re.compile(r"(.*experts\.)(\d+)\.(gate|up|down)_proj\.weight")


def split_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they stand in files; those that are no experts stay as they are."""
    split = {}
    for name, tensor in state.items():
        if name.endswith(GATE_UP):
            prefix = name.removesuffix("gate_up_proj")
            for expert, both_2FD in enumerate(tensor):
                gate_FD, up_FD = both_2FD.chunk(2)
                split[f"{prefix}{expert}.gate_proj.weight"] = gate_FD
                split[f"{prefix}{expert}.up_proj.weight"] = up_FD
        elif name.endswith(DOWN):
            prefix = name.removesuffix("down_proj")
            for expert, down_DF in enumerate(tensor):
                split[f"{prefix}{expert}.down_proj.weight"] = down_DF
        else:
            split[name] = tensor
    return split


def stack_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as memory holds them, of all those in files: the inverse of `split_experts`."""
    stacked: dict[str, Tensor] = {}
    found: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if match := ON_DISK.fullmatch(name):
            prefix, expert, part = match.groups()
            found.setdefault((prefix, part), {})[int(expert)] = tensor
        else:
            stacked[name] = tensor
    for prefix in dict.fromkeys(prefix for prefix, _ in found):
        gate, up, down = (found[prefix, part] for part in ("gate", "up", "down"))
        experts = range(len(down))
        both = [torch.cat((gate[expert], up[expert])) for expert in experts]
        stacked[f"{prefix}gate_up_proj"] = torch.stack(both)
        stacked[f"{prefix}down_proj"] = torch.stack([down[expert] for expert in experts])
    return stacked
