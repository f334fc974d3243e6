"""Adapters on disk, in the form that Hugging Face's PEFT writes and reads, and trusted no further.

`adapter_config.json` says rank, scale and which layers; `adapter_model.safetensors` holds both
factors of each. What it does not hold is the model that it adapts: that of a run lies beside its
checkpoints, in `base`, and for an adapter from elsewhere it is named by whoever uses it. The path
that a configuration names is never followed. Options of PEFT that change what is computed (DoRA,
scales by rank, trained biases, …) are refused by name, and pickled weights are not read.

Knows nothing about training.
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peerformer.allowed import shown
from peerformer.config import LoraConfig
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.find import ADAPTER_CONFIG
from peerformer.model.lora import A, B, adapted_layers, add_adapters
from peerformer.model.transformer import Transformer
from peerformer.model.weights import TYPES, read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
RANK_MAX = 1_024
PREFIX = "base_model.model.model."  # PEFT's wrapper, then Hugging Face's
# Keys of PEFT's configuration that must have one of these values where they are given.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_rslora": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "exclude_modules": (None, []),
}


def write_adapter(directory: Path, model: Transformer, base: str) -> None:
    """Write the adapters of a model, and nothing of the model itself.

    Args:
        directory: an existing one; files of these names are replaced.
        model: one with adapters.
        base: where the adapted model is, for a person who reads the file.
    """
    layers = adapted_layers(model)
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "target_modules": list(dict.fromkeys(name.rpartition(".")[2] for name in layers)),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    save_file(adapter_tensors(model), directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (directory / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def adapter_tensors(model: Transformer) -> dict[str, Tensor]:
    """The factors of all adapters by PEFT's names, on the CPU."""
    return {
        f"{PREFIX}{name}.{end}.weight": getattr(layer, end).detach().float().cpu().contiguous()
        for name, layer in adapted_layers(model).items()
        for end in (A, B)
    }


def with_adapter(model: Transformer, directory: Path) -> Transformer:
    """Give a model the adapters of a directory.

    Raises:
        CheckpointError: they are damaged, hostile, of another kind or of another model.
    """
    config = _read_config(directory)
    try:
        add_adapters(model, config, seed=0)
    except ConfigError as error:
        raise _foreign(directory, error.what) from error
    model.load_state_dict(read_factors(model, directory), strict=False)
    return model


def read_factors(model: Transformer, directory: Path) -> dict[str, Tensor]:
    """The factors of a model's adapters, by their names in the model.

    Raises:
        CheckpointError: the file is damaged, or its tensors are not those of these adapters.
    """
    wanted = adapter_tensors(model)
    found = _read_tensors(directory, {name: tuple(t.shape) for name, t in wanted.items()})
    return {
        f"{name}.{end}": found[f"{PREFIX}{name}.{end}.weight"]
        for name in adapted_layers(model)
        for end in (A, B)
    }


def _read_config(directory: Path) -> LoraConfig:
    path = directory / ADAPTER_CONFIG
    content = read_json(path)
    for key, values in REQUIRED.items():
        if key in content and content[key] not in values:
            raise CheckpointError(
                f"{key} is {shown(content[key])}, which is no adapter that this can compute",
                where=str(path),
                hint="use a LoRA adapter with one rank and plain scaling (PEFT's defaults)",
            )
    rank, alpha, targets = (content.get(key) for key in ("r", "lora_alpha", "target_modules"))
    names = [targets] if isinstance(targets, str) else targets
    if type(rank) is not int or not 1 <= rank <= RANK_MAX:
        raise _foreign(path, f"r is {shown(rank)}, and must be from 1 to {RANK_MAX}")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):  # type: ignore[arg-type]
        raise _foreign(path, f"lora_alpha is {shown(alpha)}, and must be a number")
    is_list = isinstance(names, list) and names and all(isinstance(n, str) for n in names)
    if not is_list or any(not n.replace("_", "").isalnum() for n in names):  # type: ignore[union-attr]
        raise _foreign(path, f"target_modules is {shown(targets)}, and must be names of layers")
    return LoraConfig(rank, float(alpha), 0.0, ",".join(names))  # type: ignore[arg-type]


def _read_tensors(directory: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        pickled = (directory / PICKLED_WEIGHTS).exists()
        raise CheckpointError(
            f"{ADAPTER_WEIGHTS} is not there",
            where=str(directory),
            why=f"{PICKLED_WEIGHTS} is a pickle, which could run any code" if pickled else None,
            hint="save the adapter with PEFT's safe_serialization=True" if pickled else None,
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = set(file.keys())
            if odd := sorted(names ^ shapes.keys()):
                what = "is not" if odd[0] in names else "is missing, and is"
                raise _foreign(path, f"{odd[0]} {what} one of the adapters' tensors")
            for name, shape in shapes.items():
                if (found := tuple(file.get_slice(name).get_shape())) != shape:
                    raise _foreign(path, f"its tensor {name!r} is {found}, and must be {shape}")
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{ADAPTER_WEIGHTS} is damaged",
            where=str(path),
            why=f"it is cut, or not a safetensors file ({error})",
            hint="use an earlier checkpoint of the run (checkpoints/step-…), or copy it again",
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES or not tensor.isfinite().all():
            raise _foreign(
                path, f"its tensor {name!r} does not hold finite numbers of a float type"
            )
    return {name: tensor.float() for name, tensor in tensors.items()}


def _foreign(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        "the adapter cannot be used",
        where=str(path),
        why=why,
        hint="keep adapter_config.json, adapter_model.safetensors and the model that they adapt",
    )
