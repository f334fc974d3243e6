"""The model on disk: a directory that Hugging Face's tools load as it is.

A checkpoint is `model.safetensors`, `config.json`, `generation_config.json`, `tokenizer.json`
and `tokenizer_config.json`, in Qwen3's form. Our parameter names are Qwen3's without the prefix
`model.`, so conversion renames and permutes nothing; a configuration that Qwen3 has and this
model cannot compute (sliding windows, scaled rotary positions, biases) is refused by name.

Finding a checkpoint is in `find.py`, reading its tensors in `weights.py`. Knows nothing about
optimizers, or how tokens are made.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from peerformer.allowed import SETTINGS, Given, parse, shown
from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.find import resolve_checkpoint
from peerformer.model.transformer import Transformer, parameter_shapes
from peerformer.model.weights import WEIGHTS_FILE, read_json, read_weights

POSITIONS_MAX = 262_144  # Qwen3's longest; the rotary table is made for all of them

# Our field -> Hugging Face's key.
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
}
# Keys that must have one of these values where they are given: all else is another model.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
    "rope_scaling": (None,),
}


@dataclass(frozen=True)
class TokenizerFacts:
    """What the model's files must know of its tokenizer: the token that ends a text."""

    end_of_text: str
    end_of_text_id: int


def to_hf_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights by Hugging Face's names, on the CPU; a tied head is left out."""
    return {_hf_name(name): weight.cpu() for name, weight in model.state_dict().items()}


def from_hf_state(state: Mapping[str, Tensor], config: ModelConfig) -> Transformer:
    """A model with weights by Hugging Face's names, as float32, in eval mode.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    model = Transformer(config)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        weight = state.get(_hf_name(name))
        if weight is None or tuple(weight.shape) != shape:
            found = "missing" if weight is None else str(tuple(weight.shape))
            raise CheckpointError(f"the tensor {_hf_name(name)} is {found}, and must be {shape}")
        weights[name] = weight
    model.load_state_dict(weights)
    return model.eval()


def hf_config(config: ModelConfig, facts: TokenizerFacts | None = None) -> dict[str, Any]:
    """`config.json` of a model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **{key: getattr(config, field) for field, key in KEYS.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        # The first is how transformers 5 says it, the second transformers 4 and llama.cpp.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": facts.end_of_text_id if facts else None,
    }


def config_from_hf(mapping: Mapping[str, Any], where: str) -> ModelConfig:
    """The shape that a `config.json` describes.

    Raises:
        CheckpointError: it is not a Qwen3 model, or one that this code cannot compute.
    """
    if "model_type" not in mapping:
        raise CheckpointError("config.json does not say which model it is of", where=where)
    for key, values in REQUIRED.items():
        if key in mapping and mapping[key] not in values:
            raise _unsupported(key, mapping[key], where)
    kinds = mapping.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise _unsupported("layer_types", kinds, where)
    rope = mapping.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise _unsupported("rope_parameters", rope, where)
    given = {field: mapping[key] for field, key in KEYS.items() if key in mapping}
    given.setdefault("tie_embeddings", False)  # Hugging Face's default, where ours is True
    if missing := [KEYS[field] for field in KEYS if field not in given]:
        raise CheckpointError(f"config.json has no {missing[0]}", where=where)
    theta = rope.get("rope_theta", mapping.get("rope_theta"))
    if theta is None:
        raise CheckpointError("config.json has no rope_theta", where=where)
    try:
        fields = {
            field: parse(SETTINGS[f"model.{field}"], Given(value, where))
            for field, value in {**given, "rope_theta": theta}.items()
        }
    except ConfigError as error:
        raise CheckpointError(error.what, where=where) from error
    config = ModelConfig(**fields)
    if config.num_heads % config.num_kv_heads or config.head_dim % 2 or not config.vocab_size:
        raise CheckpointError(
            "config.json describes a model that cannot be: the key-value heads must divide the"
            " heads, and the size of a head be even",
            where=where,
        )
    if config.max_positions > POSITIONS_MAX:
        raise _unsupported("max_position_embeddings", config.max_positions, where)
    return config


def save_model(directory: Path, model: Transformer, tokenizer_bytes: bytes | None) -> None:
    """Write a checkpoint into an existing directory; not atomic, that is the caller's part.

    Args:
        directory: where to write; files of these names are replaced.
        model: its weights are written as float32.
        tokenizer_bytes: the content of `tokenizer.json`; None writes no tokenizer.
    """
    facts = tokenizer_facts(tokenizer_bytes) if tokenizer_bytes is not None else None
    state = {name: weight.float().contiguous() for name, weight in to_hf_state(model).items()}
    save_file(state, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    end_id, end = (facts.end_of_text_id, facts.end_of_text) if facts else (None, None)
    _write_json(directory / "config.json", hf_config(model.config, facts))
    _write_json(
        directory / "generation_config.json", {"eos_token_id": end_id, "pad_token_id": end_id}
    )
    if tokenizer_bytes is not None:
        (directory / "tokenizer.json").write_bytes(tokenizer_bytes)
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.max_positions,
            "clean_up_tokenization_spaces": False,
            "eos_token": end,
            "pad_token": end,
        }
        _write_json(directory / "tokenizer_config.json", tokenizer_config)


def load_model(path: Path | str) -> Transformer:
    """The model of a checkpoint or run, in eval mode, as float32.

    Args:
        path: as `resolve_checkpoint` takes it.

    Raises:
        CheckpointError: nothing is there, or it is damaged, hostile or of another kind of model.
    """
    directory = resolve_checkpoint(path)
    where = str(directory / "config.json")
    config = config_from_hf(read_json(directory / "config.json"), where)
    shapes = {_hf_name(name): shape for name, shape in parameter_shapes(config).items()}
    tied = frozenset({"lm_head.weight"}) if config.tie_embeddings else frozenset()
    return from_hf_state(read_weights(directory, shapes, unused=tied), config)


def tokenizer_facts(tokenizer_bytes: bytes) -> TokenizerFacts | None:
    """The token that ends a text: the first special token of a `tokenizer.json`.

    Raises:
        CheckpointError: it is not the JSON of a tokenizer.
    """
    try:
        added = json.loads(tokenizer_bytes).get("added_tokens") or []
        special = [(token["content"], token["id"]) for token in added if token["special"]]
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError("tokenizer.json is not that of a tokenizer") from error
    return TokenizerFacts(*special[0]) if special else None


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _unsupported(key: str, value: object, where: str) -> CheckpointError:
    return CheckpointError(
        f"{key} is {shown(value)}, which this model cannot compute",
        where=where,
        hint="use a dense Qwen3 model with full attention and plain rotary positions",
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
