"""GPT-2's names and layout of tensors: one matrix for queries, keys and values, all transposed.

transformers keeps GPT-2's matrices as (inputs, outputs), where a linear layer has (outputs,
inputs), and the three projections of attention side by side.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019, and its code.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from peerformer.config import ModelConfig

NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
MATRICES = {
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
PROJECTIONS = tuple(f"self_attn.{name}_proj" for name in "qkv")
JOINED = "attn.c_attn"
OUTER = {
    "embed_tokens.weight": "transformer.wte.weight",
    "embed_positions.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "lm_head.weight": "lm_head.weight",
}
ACTIVATIONS = {"gelu-tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}


def to_theirs(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors by GPT-2's names, from ours."""
    theirs = {there: _turned(state[here]) for here, there in _names(config)}
    for layer, kind in _layers(config):
        three = [state[f"layers.{layer}.{name}.{kind}"] for name in PROJECTIONS]
        theirs[f"transformer.h.{layer}.{JOINED}.{kind}"] = _turned(torch.cat(three))
    outer = {OUTER[name]: weight for name, weight in state.items() if name in OUTER}
    return theirs | outer


def to_ours(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors by our names, from GPT-2's; the inverse of `to_theirs`."""
    ours = {here: _turned(state[there]) for here, there in _names(config)}
    for layer, kind in _layers(config):
        three = _turned(state[f"transformer.h.{layer}.{JOINED}.{kind}"]).chunk(len(PROJECTIONS))
        for name, weight in zip(PROJECTIONS, three, strict=True):
            ours[f"layers.{layer}.{name}.{kind}"] = weight
    outer = {name: state[there] for name, there in OUTER.items() if there in state}
    return ours | outer


def _layers(config: ModelConfig) -> Iterator[tuple[int, str]]:
    for layer in range(config.num_layers):
        yield layer, "weight"
        yield layer, "bias"


def _names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Our name and GPT-2's of each tensor within the layers that is one in both."""
    for layer, kind in _layers(config):
        for here, there in {**NORMS, **MATRICES}.items():
            yield f"layers.{layer}.{here}.{kind}", f"transformer.h.{layer}.{there}.{kind}"


def _turned(weight: Tensor) -> Tensor:
    """A matrix transposed, a bias as it is."""
    return weight.T if weight.ndim == 2 else weight
