"""The model on disk: a directory that Hugging Face's tools load as it is.

A checkpoint is `model.safetensors`, or shards of it and their index, `config.json`,
`generation_config.json`, `tokenizer.json` and `tokenizer_config.json`, in the form of Qwen3, Llama
or GPT-2, whichever expresses the model; a model that none of them expresses is written in our own
form, which only Peerformer reads. What a `config.json` asks for and this model cannot compute is
refused by name.

The formats are in `formats.py`, finding a checkpoint in `find.py`, reading and writing its tensors
in `weights.py`. Knows nothing about optimizers, or how tokens are made.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peerformer.allowed import SETTINGS, Given, parse
from peerformer.config import TEXT_ENDS, ModelConfig
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.adapter import with_adapter
from peerformer.model.find import ADAPTER_CONFIG, CONFIG, base_of_adapter, resolve_checkpoint
from peerformer.model.formats import format_named, format_of
from peerformer.model.lora import merge
from peerformer.model.rope_keys import unsupported
from peerformer.model.transformer import Transformer, parameter_shapes
from peerformer.model.weights import (
    INDEX_FILE,
    WEIGHTS_FILE,
    read_json,
    read_weights,
    write_weights,
)
from peerformer.model_conflicts import model_conflicts

POSITIONS_MAX = 262_144  # Qwen3's longest; the rotary table is made for all of them


@dataclass(frozen=True)
class TokenizerFacts:
    """What the model's files must know of its tokenizer: the token that ends a text."""

    end_of_text: str
    end_of_text_id: int


def to_hf_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights by Hugging Face's names, on the CPU; a tied head is left out."""
    assert isinstance(model.config, ModelConfig)
    state = {name: weight.cpu() for name, weight in model.state_dict().items()}
    return format_of(model.config).to_theirs(state, model.config)


def from_hf_state(state: Mapping[str, Tensor], config: ModelConfig) -> Transformer:
    """A model with weights by Hugging Face's names, as float32, in eval mode.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    for name, shape in hf_shapes(config).items():
        weight = state.get(name)
        if weight is None or tuple(weight.shape) != shape:
            found = "missing" if weight is None else str(tuple(weight.shape))
            raise CheckpointError(f"the tensor {name} is {found}, and must be {shape}")
    model = Transformer(config)
    ours = format_of(config).to_ours(state, config)
    model.load_state_dict({name: ours[name] for name in model.state_dict()})
    return model.eval()


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model's checkpoint."""
    state = {
        name: torch.empty(shape, device="meta") for name, shape in parameter_shapes(config).items()
    }
    theirs = format_of(config).to_theirs(state, config)
    return {name: tuple(weight.shape) for name, weight in theirs.items()}


def hf_config(config: ModelConfig, facts: TokenizerFacts | None = None) -> dict[str, Any]:
    """`config.json` of a model."""
    form = format_of(config)
    return {
        "architectures": [form.architecture],
        "model_type": form.model_type,
        **{key: getattr(config, field) for field, key in form.keys.items()},
        **form.write(config),
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": facts.end_of_text_id if facts else None,
    }


def config_from_hf(mapping: Mapping[str, Any], where: str) -> ModelConfig:
    """The shape that a `config.json` describes.

    Raises:
        CheckpointError: it is of a kind that is not known, or one that this code cannot compute.
    """
    if "model_type" not in mapping:
        raise CheckpointError("config.json does not say which model it is of", where=where)
    form = format_named(mapping["model_type"], where)
    for key, values in form.required.items():
        if key in mapping and mapping[key] not in values:
            raise unsupported(key, mapping[key], where)
    present = {**form.absent, **{key: value for key, value in mapping.items()}}
    if missing := [key for key in form.keys.values() if key not in present]:
        raise CheckpointError(f"config.json has no {missing[0]}", where=where)
    given = {
        **{field: values[0] for field, values in form.fixed.items()},
        **{field: present[key] for field, key in form.keys.items()},
        **form.read(mapping, where),
    }
    try:
        fields = {
            field: parse(SETTINGS[f"model.{field}"], Given(value, where))
            for field, value in given.items()
        }
    except ConfigError as error:
        raise CheckpointError(error.what, where=where) from error
    config = ModelConfig(**fields)
    for conflict in model_conflicts(config):
        raise CheckpointError(
            "config.json describes a model that cannot be", where=where, why=conflict.what
        )
    if not config.vocab_size:
        raise CheckpointError("config.json describes a model without a vocabulary", where=where)
    if config.max_positions > POSITIONS_MAX:
        raise unsupported("max_position_embeddings", config.max_positions, where)
    if format_of(config) is not form and form.refusals(config):
        raise CheckpointError(
            "config.json describes another model than its model_type can be",
            where=where,
            why="; ".join(form.refusals(config)),
        )
    return config


def save_model(
    directory: Path,
    model: Transformer,
    tokenizer_bytes: bytes | None,
    *,
    shard_bytes_max: int | None = None,
) -> None:
    """Write a checkpoint into an existing directory; not atomic, that is the caller's part.

    Args:
        directory: where to write; files of these names are replaced.
        model: its weights are written as float32.
        tokenizer_bytes: the content of `tokenizer.json`; None writes no tokenizer.
        shard_bytes_max: the largest file of weights; None writes one file whatever its size.
    """
    state = {name: weight.float().contiguous() for name, weight in to_hf_state(model).items()}
    write_weights(directory, state, shard_bytes_max)
    save_configuration(directory, model, tokenizer_bytes)


def save_configuration(directory: Path, model: Transformer, tokenizer_bytes: bytes | None) -> None:
    """Write what is beside the weights in a checkpoint; as `save_model` without them."""
    facts = tokenizer_facts(tokenizer_bytes) if tokenizer_bytes is not None else None
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


def load_model(path: Path | str, base: Path | str | None = None) -> Transformer:
    """The model of a checkpoint or run, in eval mode, as float32; an adapter is merged into its.

    Args:
        path: as `resolve_checkpoint` takes it.
        base: the model that an adapter from elsewhere belongs to; None is that of its run.

    Raises:
        CheckpointError: nothing is there, or it is damaged, hostile or of another kind of model.
    """
    directory = resolve_checkpoint(path)
    if not (directory / ADAPTER_CONFIG).is_file():
        return _load_whole(directory)
    below = base_of_adapter(directory) if base is None else resolve_checkpoint(base)
    return merge(with_adapter(_load_whole(below), directory))


def load_config(path: Path | str) -> ModelConfig:
    """The shape of the model of a checkpoint or run.

    Raises:
        CheckpointError: nothing is there, or it is of another kind of model.
    """
    directory = resolve_checkpoint(path)
    if (directory / ADAPTER_CONFIG).is_file():
        directory = base_of_adapter(directory)
    return config_from_hf(read_json(directory / CONFIG), str(directory / CONFIG))


def _load_whole(directory: Path) -> Transformer:
    whole = any((directory / name).exists() for name in (WEIGHTS_FILE, INDEX_FILE))
    if not whole and any(directory.glob("shard-*.safetensors")):
        raise CheckpointError(
            "the checkpoint is in the parts that ranks wrote",
            where=str(directory),
            hint=f"peerformer checkpoint consolidate {directory}",
        )
    config = config_from_hf(read_json(directory / CONFIG), str(directory / CONFIG))
    tied = frozenset({"lm_head.weight"}) if config.tie_embeddings else frozenset()
    return from_hf_state(read_weights(directory, hf_shapes(config), unused=tied), config)


def tokenizer_facts(tokenizer_bytes: bytes) -> TokenizerFacts | None:
    """The token that ends a text: a special token of that name, or the first of all.

    Raises:
        CheckpointError: it is not the JSON of a tokenizer.
    """
    try:
        added = json.loads(tokenizer_bytes).get("added_tokens") or []
        special = [(token["content"], token["id"]) for token in added if token["special"]]
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError("tokenizer.json is not that of a tokenizer") from error
    known = dict(special)
    end = next((name for name in TEXT_ENDS if name in known), special[0][0] if special else None)
    return TokenizerFacts(end, known[end]) if end is not None else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
