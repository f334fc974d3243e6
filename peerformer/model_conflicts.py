"""Which shapes a model cannot have: values that are allowed alone and impossible together.

Two kinds of rule. A setting that has no effect beside the others is refused rather than ignored;
those stand in one table. The rest are conditions between numbers. Each refusal names the fields,
the rule and the nearest choice that would do.

Knows the shape of a model and nothing of the run around it.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from peerformer.config import ModelConfig

LAYER_KINDS = ("full", "window", "blocks")
DEFAULTS = {item.name: item.default for item in fields(ModelConfig)}


@dataclass(frozen=True)
class Conflict:
    """Values that are allowed alone and impossible together."""

    fields: tuple[str, ...]
    what: str
    hint: str


@dataclass(frozen=True)
class Dependent:
    """Fields that have an effect only where something else holds."""

    fields: tuple[str, ...]
    needs: str
    holds: Callable[[ModelConfig], bool]
    hint: str


EXPERT_FIELDS = (
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts_per_tok",
    "shared_expert_intermediate_size",
    "decoder_sparse_step",
    "mlp_only_layers",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "router_bias_update_rate",
    "moe_capacity_factor",
)
DEPENDENT = (
    Dependent(
        EXPERT_FIELDS,
        "experts",
        lambda model: model.num_experts > 0,
        "--set model.num_experts=8",
    ),
    Dependent(
        ("sliding_window",),
        "a window layer in model.attention_layers",
        lambda model: "window" in model.layer_kinds,
        "--set model.attention_layers=window",
    ),
    Dependent(
        ("sparse_block_size", "sparse_local_blocks", "sparse_stride", "sparse_global_blocks"),
        "a blocks layer in model.attention_layers",
        lambda model: "blocks" in model.layer_kinds,
        "--set model.attention_layers=blocks",
    ),
    Dependent(
        ("rope_theta", "rope_scaling"),
        "rotary positions",
        lambda model: model.positions == "rotary",
        "--set model.positions=rotary",
    ),
    Dependent(
        ("rope_factor",),
        "model.rope_scaling",
        lambda model: model.rope_scaling != "none",
        "--set model.rope_scaling=yarn",
    ),
    Dependent(
        ("rope_original_positions",),
        "model.rope_scaling=yarn or llama3",
        lambda model: model.rope_scaling in ("yarn", "llama3"),
        "--set model.rope_scaling=yarn",
    ),
    Dependent(
        ("rope_attention_factor", "rope_beta_fast", "rope_beta_slow"),
        "model.rope_scaling=yarn",
        lambda model: model.rope_scaling == "yarn",
        "--set model.rope_scaling=yarn",
    ),
    Dependent(
        ("rope_low_frequency_factor", "rope_high_frequency_factor"),
        "model.rope_scaling=llama3",
        lambda model: model.rope_scaling == "llama3",
        "--set model.rope_scaling=llama3",
    ),
)


def model_conflicts(model: ModelConfig) -> Iterator[Conflict]:
    """What no two settings of a model may be at once."""
    yield from _heads(model)
    yield from _layers(model)
    yield from _positions(model)
    if model.num_experts:
        yield from _experts(model)
    for dependent in DEPENDENT:
        for field in dependent.fields:
            value = getattr(model, field)
            if value != DEFAULTS[field] and not dependent.holds(model):
                yield Conflict(
                    (f"model.{field}",),
                    f"model.{field} ({value}) has no effect without {dependent.needs}",
                    f"{dependent.hint}  or  --set model.{field}={DEFAULTS[field]}",
                )


def divisors(number: int) -> str:
    """Its divisors, as a list to choose from."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _heads(model: ModelConfig) -> Iterator[Conflict]:
    if model.num_heads % model.num_kv_heads:
        yield Conflict(
            ("model.num_kv_heads", "model.num_heads"),
            f"model.num_kv_heads ({model.num_kv_heads}) does not divide"
            f" model.num_heads ({model.num_heads})",
            f"choose one of: {divisors(model.num_heads)}",
        )
    if model.positions == "rotary" and model.head_dim % 2:
        yield Conflict(
            ("model.head_dim",),
            f"model.head_dim ({model.head_dim}) is odd, and rotary positions turn pairs",
            f"--set model.head_dim={model.head_dim + 1}",
        )
    if model.positions == "sinusoidal" and model.hidden_size % 2:
        yield Conflict(
            ("model.hidden_size",),
            f"model.hidden_size ({model.hidden_size}) is odd, and sinusoidal positions are pairs"
            " of a sine and a cosine",
            f"--set model.hidden_size={model.hidden_size + 1}",
        )


def _layers(model: ModelConfig) -> Iterator[Conflict]:
    kinds = [kind.strip() for kind in model.attention_layers.split(",")]
    for kind in kinds:
        if kind not in LAYER_KINDS:
            near = difflib.get_close_matches(kind, LAYER_KINDS, n=1, cutoff=0.0)[0]
            yield Conflict(
                ("model.attention_layers",),
                f"model.attention_layers names {kind!r}, but a layer is one of:"
                f" {', '.join(LAYER_KINDS)}",
                f"did you mean {near}?",
            )
            return
    if len(kinds) > model.num_layers:
        yield Conflict(
            ("model.attention_layers", "model.num_layers"),
            f"model.attention_layers names {len(kinds)} layers, and model.num_layers is"
            f" {model.num_layers}",
            f"--set model.attention_layers={','.join(kinds[: model.num_layers])}",
        )
    elif "window" in kinds and not model.sliding_window:
        yield Conflict(
            ("model.attention_layers", "model.sliding_window"),
            "model.attention_layers has a window layer, and model.sliding_window is 0",
            f"--set model.sliding_window={max(1, model.max_positions // 4)}",
        )


def _positions(model: ModelConfig) -> Iterator[Conflict]:
    if model.rope_scaling != "none" and model.rope_factor <= 1:
        yield Conflict(
            ("model.rope_scaling", "model.rope_factor"),
            f"model.rope_scaling ({model.rope_scaling}) stretches nothing by a model.rope_factor"
            f" of {model.rope_factor:g}",
            "--set model.rope_factor=4  or  --set model.rope_scaling=none",
        )
    if model.rope_scaling == "yarn" and model.rope_theta == 1:
        yield Conflict(
            ("model.rope_theta", "model.rope_scaling"),
            "model.rope_theta (1) turns all pairs alike, and yarn tells them apart by their turns",
            f"--set model.rope_theta={DEFAULTS['rope_theta']:g}",
        )
    if model.rope_original_positions > model.max_positions:
        yield Conflict(
            ("model.rope_original_positions", "model.max_positions"),
            f"model.rope_original_positions ({model.rope_original_positions}) is more than"
            f" model.max_positions ({model.max_positions})",
            f"--set model.rope_original_positions={model.max_positions}",
        )
    for low, high in (
        ("rope_beta_slow", "rope_beta_fast"),
        ("rope_low_frequency_factor", "rope_high_frequency_factor"),
    ):
        if getattr(model, low) >= getattr(model, high):
            yield Conflict(
                (f"model.{low}", f"model.{high}"),
                f"model.{low} ({getattr(model, low):g}) is not less than"
                f" model.{high} ({getattr(model, high):g})",
                f"--set model.{low}={DEFAULTS[low]:g} --set model.{high}={DEFAULTS[high]:g}",
            )


def _experts(model: ModelConfig) -> Iterator[Conflict]:
    if model.num_experts_per_tok > model.num_experts:
        yield Conflict(
            ("model.num_experts_per_tok", "model.num_experts"),
            f"model.num_experts_per_tok ({model.num_experts_per_tok}) is more than"
            f" model.num_experts ({model.num_experts})",
            f"--set model.num_experts_per_tok={model.num_experts}",
        )
    if model.feed_forward != "swiglu" or model.mlp_bias:
        field = "mlp_bias" if model.mlp_bias else "feed_forward"
        yield Conflict(
            (f"model.{field}", "model.num_experts"),
            f"model.{field} is {getattr(model, field)}, and experts are SwiGLU without biases",
            f"--set model.{field}={DEFAULTS[field]}  or  --set model.num_experts=0",
        )
    words = [word.strip() for word in model.mlp_only_layers.split(",") if word.strip()]
    layers = set(map(str, range(model.num_layers)))
    if wrong := [word for word in words if word not in layers]:
        yield Conflict(
            ("model.mlp_only_layers", "model.num_layers"),
            f"model.mlp_only_layers names {wrong[0][:20]!r}, which is none of the layers 0 to"
            f" {model.num_layers - 1}",
            "--set model.mlp_only_layers=0   (numbers with commas between)",
        )
    elif not model.sparse_layers:
        yield Conflict(
            ("model.mlp_only_layers", "model.decoder_sparse_step", "model.num_experts"),
            f"no layer would have experts: model.decoder_sparse_step is"
            f" {model.decoder_sparse_step}, and model.mlp_only_layers is"
            f" {model.mlp_only_layers or 'empty'}",
            "--set model.decoder_sparse_step=1 --set model.mlp_only_layers=",
        )
