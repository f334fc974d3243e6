"""The kinds of checkpoint that are read and written: Hugging Face's Qwen3, Llama, GPT-2, our own.

A format is a table: which of our settings it may choose and how it calls them, which it has fixed,
what its `config.json` must say beside them, and how it names the tensors. A model is written in
the first format that can express it; ours expresses everything, and only Peerformer reads it. To
add a format is to add a table.

Knows nothing about files.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from peerformer.allowed import shown
from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError
from peerformer.model import gpt2
from peerformer.model.experts_on_disk import split_experts, stack_experts
from peerformer.model.rope_keys import (
    LAYER_FIELDS,
    ROPE_FIELDS,
    rope_from_keys,
    rope_keys,
    unsupported,
    window_keys,
    windows_from_keys,
)
from peerformer.model_conflicts import DEFAULTS

Keys = Mapping[str, Any]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint.

    Attributes:
        model_type: as `config.json` calls it.
        architecture: the class of transformers that computes it.
        keys: our field -> its key, for settings that it may choose freely.
        fixed: our field -> the values that it can express, for those that it may not; a checkpoint
            that is read has the first, unless `read` says another.
        carried: our fields that `write` and `read` treat.
        lacks: what else of a model it cannot express, in words.
        required: its key -> the values that it must have where it is given.
        absent: its key -> what it means that the key is absent.
        write: keys beside `keys`.
        read: fields beside `keys`; refuses what it cannot read.
        to_theirs, to_ours: tensors from our names to theirs, and back.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    carried: frozenset[str]
    lacks: Callable[[ModelConfig], list[str]]
    required: Mapping[str, tuple[Any, ...]]
    write: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Keys, str], dict[str, Any]]
    to_theirs: Callable[[State, ModelConfig], dict[str, Tensor]]
    to_ours: Callable[[State, ModelConfig], dict[str, Tensor]]
    absent: Mapping[str, Any] = field(default_factory=dict)

    def refusals(self, config: ModelConfig) -> list[str]:
        """What a model has that this format cannot express, in words; nothing: it can."""
        found = []
        for name, default in DEFAULTS.items():
            free = name in self.keys or name in self.carried
            values = self.fixed.get(name, (default,))
            if not free and getattr(config, name) not in values:
                words = " or ".join(str(value) for value in values)
                found.append(f"model.{name} is {shown(getattr(config, name))}, not {words}")
        return found + self.lacks(config)


def format_of(config: ModelConfig) -> Format:
    """The first format that can express a model; ours can express any."""
    return next((item for item in FORMATS if not item.refusals(config)), OWN)


def format_named(model_type: object, where: str) -> Format:
    """The format of a `config.json`.

    Raises:
        CheckpointError: there is none of that name.
    """
    for item in (*FORMATS, OWN):
        if item.model_type == model_type:
            return item
    raise CheckpointError(
        f"model_type is {shown(model_type)}, which this model cannot compute",
        where=where,
        hint=f"use a checkpoint of: {', '.join(item.model_type for item in FORMATS)}",
    )


def refuse_export(config: ModelConfig, where: str) -> None:
    """Refuse a model that none of Hugging Face's formats expresses.

    Raises:
        CheckpointError: with what the nearest format lacks.
    """
    if format_of(config) is not OWN:
        return
    nearest = min(FORMATS, key=lambda item: len(item.refusals(config)))
    raise CheckpointError(
        "Hugging Face has no format that this project writes and that expresses this model",
        where=where,
        why=f"the nearest is {nearest.model_type}: {'; '.join(nearest.refusals(config))}",
        hint="Peerformer itself reads the checkpoint as it is; docs/model.md lists what can be"
        " exported",
    )


def _prefixed(state: State, config: ModelConfig) -> dict[str, Tensor]:
    return {
        name if name.startswith("lm_head.") else f"model.{name}": weight
        for name, weight in state.items()
    }


def _unprefixed(state: State, config: ModelConfig) -> dict[str, Tensor]:
    return {name.removeprefix("model."): weight for name, weight in state.items()}


def _dropouts(config: ModelConfig) -> dict[str, Any]:
    """Keys that transformers keeps and does not use: it trains these models without."""
    return {name: getattr(config, name) for name in DROPOUTS if getattr(config, name)}


def _read_dropouts(mapping: Keys) -> dict[str, Any]:
    return {name: mapping[name] for name in DROPOUTS if name in mapping}


DROPOUTS = ("residual_dropout", "embedding_dropout")
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
    "rms_norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "attention_bias": "attention_bias",
    "attention_dropout": "attention_dropout",
}
FIXED = {
    "positions": ("rotary",),
    "norm": ("rms",),
    "norm_placement": ("pre",),
    "feed_forward": ("swiglu",),
    "attention_sinks": (False,),
}
REQUIRED = {"hidden_act": ("silu",), "quantization_config": (None,)}
ABSENT = {"tie_word_embeddings": False, "attention_bias": False, "attention_dropout": 0.0}


def _only(*kinds: str) -> Callable[[ModelConfig], list[str]]:
    """The refusal of layers of other kinds."""

    def lacks(config: ModelConfig) -> list[str]:
        others = sorted(set(config.layer_kinds) - set(kinds))
        return [f"model.attention_layers has {' and '.join(others)}"] if others else []

    return lacks


QWEN3 = Format(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    keys=KEYS,
    fixed={**FIXED, "qk_norm": (True,), "mlp_bias": (False,)},
    carried=ROPE_FIELDS | LAYER_FIELDS | {*DROPOUTS},
    lacks=_only("full", "window"),
    required=REQUIRED,
    absent=ABSENT,
    write=lambda config: {
        "hidden_act": "silu",
        **window_keys(config),
        **rope_keys(config),
        **_dropouts(config),
    },
    read=lambda mapping, where: {
        **rope_from_keys(mapping, where),
        **windows_from_keys(mapping, where),
        **_read_dropouts(mapping),
    },
    to_theirs=_prefixed,
    to_ours=_unprefixed,
)


EXPERT_FIELDS = (
    "num_experts_per_tok",
    "norm_topk_prob",
    "decoder_sparse_step",
    "router_aux_loss_coef",
    # transformers keeps what it does not know; these matter to training alone.
    "router_z_loss_coef",
    "moe_capacity_factor",
)


def _expert_keys(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_experts": config.num_experts,
        "moe_intermediate_size": config.expert_size,
        "mlp_only_layers": sorted(config.dense_layers),
    }


def _read_experts(mapping: Keys, where: str) -> dict[str, Any]:
    experts = mapping.get("num_local_experts", mapping.get("num_experts"))  # transformers 5's first
    size, dense = mapping.get("moe_intermediate_size"), mapping.get("mlp_only_layers") or []
    for key, value in (("num_experts", experts), ("moe_intermediate_size", size)):
        if type(value) is not int or value < 1:
            raise unsupported(key, value, where)
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise unsupported("mlp_only_layers", dense, where)
    return {
        "num_experts": experts,
        "moe_intermediate_size": size,
        "mlp_only_layers": ",".join(map(str, dense)),
    }


QWEN3_MOE = Format(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    keys={**KEYS, **{name: name for name in EXPERT_FIELDS}},
    fixed={**FIXED, "qk_norm": (True,), "mlp_bias": (False,)},
    carried=ROPE_FIELDS
    | {"num_experts", "moe_intermediate_size", "mlp_only_layers", "attention_layers", *DROPOUTS},
    lacks=lambda config: _only("full")(config) + ([] if config.num_experts else ["no experts"]),
    required={**REQUIRED, "use_sliding_window": (False,)},
    absent={
        **ABSENT,
        **{name: DEFAULTS[name] for name in EXPERT_FIELDS},
        "norm_topk_prob": False,
    },
    write=lambda config: {
        "hidden_act": "silu",
        "use_sliding_window": False,
        **_expert_keys(config),
        **rope_keys(config),
        **_dropouts(config),
    },
    read=lambda mapping, where: {
        **rope_from_keys(mapping, where),
        **_read_experts(mapping, where),
        **_read_dropouts(mapping),
    },
    to_theirs=lambda state, config: split_experts(_prefixed(state, config)),
    to_ours=lambda state, config: stack_experts(_unprefixed(state, config)),
)


def _read_llama(mapping: Keys, where: str) -> dict[str, Any]:
    heads, width = mapping.get("num_attention_heads"), mapping.get("hidden_size")
    fields = {**rope_from_keys({"rope_theta": 10_000.0, **mapping}, where)}
    if mapping.get("num_key_value_heads") is None:
        fields["num_kv_heads"] = heads
    if mapping.get("head_dim") is None and isinstance(heads, int) and isinstance(width, int):
        fields["head_dim"] = width // max(heads, 1)
    return fields | _read_dropouts(mapping)


LLAMA = Format(
    model_type="llama",
    architecture="LlamaForCausalLM",
    keys={**KEYS, "mlp_bias": "mlp_bias"},
    fixed={**FIXED, "qk_norm": (False,)},
    carried=ROPE_FIELDS | {"attention_layers", *DROPOUTS},
    lacks=_only("full"),
    required=REQUIRED,
    absent={**ABSENT, "mlp_bias": False, "num_key_value_heads": 1, "head_dim": 2},
    write=lambda config: {"hidden_act": "silu", **rope_keys(config), **_dropouts(config)},
    read=_read_llama,
    to_theirs=_prefixed,
    to_ours=_unprefixed,
)


def _gpt2_lacks(config: ModelConfig) -> list[str]:
    found = _only("full")(config)
    if config.num_kv_heads != config.num_heads:
        found.append(f"model.num_kv_heads is {config.num_kv_heads}, not model.num_heads")
    if config.num_heads * config.head_dim != config.hidden_size:
        found.append("the heads together are not as wide as model.hidden_size")
    return found


def _read_gpt2(mapping: Keys, where: str) -> dict[str, Any]:
    names = {theirs: name for name, theirs in gpt2.ACTIVATIONS.items()}
    activation = mapping.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in names:
        raise unsupported("activation_function", activation, where)
    width, heads = mapping.get("n_embd"), mapping.get("n_head")
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise unsupported("n_head", heads, where)
    return {
        "intermediate_size": mapping.get("n_inner") or 4 * width,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "feed_forward": names[activation],
    }


GPT2 = Format(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "max_positions": "n_positions",
        "rms_norm_epsilon": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
        "attention_dropout": "attn_pdrop",
        "residual_dropout": "resid_pdrop",
        "embedding_dropout": "embd_pdrop",
    },
    fixed={
        "positions": ("learned",),
        "norm": ("layer",),
        "norm_placement": ("pre",),
        "qk_norm": (False,),
        "attention_bias": (True,),
        "attention_sinks": (False,),
        "mlp_bias": (True,),
        "feed_forward": tuple(gpt2.ACTIVATIONS),
    },
    carried=frozenset({"intermediate_size", "num_kv_heads", "head_dim", "attention_layers"}),
    lacks=_gpt2_lacks,
    required={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "quantization_config": (None,),
    },
    absent={
        "tie_word_embeddings": True,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
    },
    write=lambda config: {
        "n_inner": config.intermediate_size,
        "activation_function": gpt2.ACTIVATIONS[config.feed_forward],
    },
    read=_read_gpt2,
    to_theirs=gpt2.to_theirs,
    to_ours=gpt2.to_ours,
)


def _read_own(mapping: Keys, where: str) -> dict[str, Any]:
    fields = mapping.get("model")
    if not isinstance(fields, dict) or not {"vocab_size"} <= fields.keys() <= DEFAULTS.keys():
        names = fields.keys() - DEFAULTS.keys() if isinstance(fields, dict) else fields
        raise CheckpointError(
            "config.json has settings of a model that this version does not know",
            where=where,
            why=f"{shown(names)}",
            hint="use the version of Peerformer that wrote it",
        )
    return fields


OWN = Format(
    model_type="peerformer",
    architecture="Peerformer",
    keys={},
    fixed={},
    carried=frozenset(DEFAULTS),
    lacks=lambda config: [],
    required={},
    write=lambda config: {"model": asdict(config)},
    read=_read_own,
    to_theirs=_prefixed,
    to_ours=_unprefixed,
)

FORMATS = (QWEN3, QWEN3_MOE, LLAMA, GPT2)
