"""Rotary positions as a `config.json` says them, and windows by layer: read and written.

transformers 5 keeps the base and the scaling in `rope_parameters`; transformers 4 and llama.cpp
read `rope_theta` and `rope_scaling`. Both are written, and either is read. A parameter that this
model cannot compute is refused rather than ignored.
"""

from collections.abc import Mapping
from typing import Any

from peerformer.allowed import shown
from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError
from peerformer.model.positions import original_positions

# Of each scaling: our field -> its parameter.
PARAMETERS: dict[str, dict[str, str]] = {
    "none": {},
    "linear": {"rope_factor": "factor"},
    "yarn": {
        "rope_factor": "factor",
        "rope_attention_factor": "attention_factor",
        "rope_beta_fast": "beta_fast",
        "rope_beta_slow": "beta_slow",
        "rope_original_positions": "original_max_position_embeddings",
    },
    "llama3": {
        "rope_factor": "factor",
        "rope_low_frequency_factor": "low_freq_factor",
        "rope_high_frequency_factor": "high_freq_factor",
        "rope_original_positions": "original_max_position_embeddings",
    },
}
ROPE_FIELDS = frozenset(
    {"rope_theta", "rope_scaling", *(name for fields in PARAMETERS.values() for name in fields)}
)
LAYER_FIELDS = frozenset({"attention_layers", "sliding_window"})
KINDS = {"full": "full_attention", "window": "sliding_attention"}
LAYERS_MAX = 512  # as the setting's; a list is made of them
# Parameters that change nothing at these values.
NEUTRAL: dict[str, Any] = {"truncate": True, "partial_rotary_factor": 1.0, "attention_factor": None}


def rope_keys(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` says of a model's rotary positions."""
    scaling: dict[str, Any] = {
        key: getattr(config, name) for name, key in PARAMETERS[config.rope_scaling].items()
    }
    if "original_max_position_embeddings" in scaling:
        scaling["original_max_position_embeddings"] = original_positions(config)
    if not scaling.get("attention_factor", 1.0):
        del scaling["attention_factor"]  # 0, which derives it
    if not scaling:
        parameters = {"rope_type": "default", "rope_theta": config.rope_theta}
        return {"rope_parameters": parameters, "rope_theta": config.rope_theta}
    scaling = {"rope_type": config.rope_scaling, **scaling}
    return {
        "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
        "rope_scaling": scaling,
        "rope_theta": config.rope_theta,
    }


def rope_from_keys(mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our fields of a `config.json`'s rotary positions.

    Raises:
        CheckpointError: the base is missing, or the scaling is none that is known.
    """
    given, kind = _rope_parameters(mapping, where)
    theta = given.get("rope_theta", mapping.get("rope_theta"))
    if theta is None:
        raise CheckpointError("config.json has no rope_theta", where=where)
    parameters = PARAMETERS[kind]
    for key, value in given.items():
        known = key in ("rope_theta", "rope_type", "type", *parameters.values())
        if not known and (key not in NEUTRAL or value != NEUTRAL[key]):
            raise unsupported(f"rope_parameters.{key}", value, where)
    fields = {name: given[key] for name, key in parameters.items() if given.get(key) is not None}
    if kind == "none" or fields.get("rope_factor") == 1:
        return {"rope_theta": theta}
    if "rope_original_positions" in parameters:
        longest = mapping.get("max_position_embeddings")
        original: Any = fields.setdefault("rope_original_positions", longest)
        factor: Any = fields.get("rope_factor")
        numbers = type(original) is int and type(factor) in (int, float)
        if numbers and original * factor == longest:
            fields["rope_original_positions"] = 0  # which derives it
    return {"rope_theta": theta, "rope_scaling": kind, **fields}


def _rope_parameters(mapping: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """The scaling that a `config.json` asks for, and our name of it."""
    kinds = []
    for key in ("rope_scaling", "rope_parameters"):
        given = mapping.get(key) or {}
        kind = given.get("rope_type", given.get("type", "default")) if type(given) is dict else None
        kind = "none" if kind == "default" else kind
        if not isinstance(kind, str) or kind not in PARAMETERS:
            raise unsupported(key, given, where)
        if given:
            kinds.append((given, kind))
    if len({kind for _, kind in kinds}) > 1:
        raise unsupported("rope_scaling", mapping["rope_scaling"], where)
    return kinds[-1] if kinds else ({}, "none")


def window_keys(config: ModelConfig) -> dict[str, Any]:
    """What Qwen3's `config.json` says of the layers that see a window."""
    if "window" not in config.layer_kinds:
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0,
        "layer_types": [KINDS[kind] for kind in config.layer_kinds],
    }


def windows_from_keys(mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our fields of the layers that see a window.

    Raises:
        CheckpointError: a layer is of another kind, or the window has no length.
    """
    layers, uses = mapping.get("num_hidden_layers"), mapping.get("use_sliding_window", False)
    first = mapping.get("max_window_layers", 28)  # Qwen3's default: the layers before it are full
    kinds = mapping.get("layer_types")
    if type(layers) is not int or not 0 < layers <= LAYERS_MAX:
        raise unsupported("num_hidden_layers", layers, where)
    if kinds is None and uses is True and isinstance(first, int):
        kinds = [KINDS["window" if layer >= first else "full"] for layer in range(layers)]
    kinds = kinds or []
    ours = {theirs: kind for kind, theirs in KINDS.items()}
    if not isinstance(kinds, list) or any(type(k) is not str or k not in ours for k in kinds):
        raise unsupported("layer_types", kinds, where)
    if uses not in (True, False):
        raise unsupported("use_sliding_window", uses, where)
    if KINDS["window"] not in kinds:
        return {}
    if len(kinds) != layers or not uses:
        raise unsupported("layer_types", kinds, where)
    if type(mapping.get("sliding_window")) is not int or mapping["sliding_window"] < 1:
        raise unsupported("sliding_window", mapping.get("sliding_window"), where)
    names = [ours[kind] for kind in kinds]
    repeat = next(n for n in range(1, len(names) + 1) if names == (names[:n] * layers)[:layers])
    return {
        "attention_layers": ",".join(names[:repeat]),
        "sliding_window": mapping["sliding_window"],
    }


def unsupported(key: str, value: object, where: str) -> CheckpointError:
    """The refusal of a key whose value is another model's."""
    return CheckpointError(
        f"{key} is {shown(value)}, which this model cannot compute",
        where=where,
        hint="docs/model.md lists what is read",
    )
