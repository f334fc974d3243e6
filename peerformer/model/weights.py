"""Weights in a directory of safetensors files, none of which is trusted when it is read.

What the configuration promises is compared with the header of each file (names, shapes, types)
before a byte of a tensor is read, so that a cut, foreign or hostile file is refused for what it
says and not for what it did. Where a `state.json` stands beside them, the BLAKE3 digests that it
lists are compared first. Never reads pickle.

Knows nothing about the model but the names and shapes that it is handed.

Source: the safetensors format (8 bytes of header length, JSON header, raw tensors).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peerformer.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STATE_FILE = "state.json"
JSON_BYTES_MAX = 32_000_000  # an index of 512 layers has about 1 MB; the rest is a sign of malice
TYPES = (torch.float32, torch.float16, torch.bfloat16)
SHOWN_NAMES_MAX = 3  # of missing or unknown tensors, so that an error stays a line


def read_weights(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], unused: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, as float32 on the CPU.

    Args:
        directory: holds `model.safetensors`, or an index and its shards.
        shapes: every tensor that must be there, with its shape.
        unused: names that may be there and are not read.

    Raises:
        CheckpointError: a file is absent, damaged, or not of this model.
    """
    names = weight_files(directory)
    verify_digests(directory, names)
    weights: dict[str, Tensor] = {}
    for name in names:
        path = directory / name
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for key in file.keys():
                    if key in shapes:
                        weights[key] = _read_tensor(file, key, shapes[key], path)
                    elif key not in unused:
                        raise _foreign(path, f"config.json does not explain its tensor {key!r}")
        except FileNotFoundError as error:
            raise CheckpointError(f"{name} is not there", where=str(directory)) from error
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, f"it is cut, or not a safetensors file ({error})") from error
    if missing := [key for key in shapes if key not in weights]:
        listed = ", ".join(missing[:SHOWN_NAMES_MAX])
        raise _foreign(directory, f"{len(missing)} tensors are missing: {listed} …")
    return weights


def write_weights(directory: Path, state: dict[str, Tensor], shard_bytes_max: int | None) -> None:
    """Write tensors as one file, or as shards with an index where one would be too large.

    A tensor is never split: one that is larger than a shard may be is a shard of its own.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and shard_bytes_max is not None and size + tensor.nbytes > shard_bytes_max:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(state, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def weight_files(directory: Path) -> list[str]:
    """Names of the files that hold a checkpoint's weights.

    Raises:
        CheckpointError: there are none, or the index names a file outside the directory.
    """
    if (directory / WEIGHTS_FILE).exists() or not (directory / INDEX_FILE).exists():
        return [WEIGHTS_FILE]
    path = directory / INDEX_FILE
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(path, "it has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not _is_shard_name(name):
            raise CheckpointError(
                "a sharded checkpoint names a file that it must not",
                where=str(path),
                why=f"{name!r} is not the plain name of a .safetensors file",
                hint="do not use this checkpoint; get it from a source that you trust",
            )
    return list(dict.fromkeys(weight_map.values()))


def verify_digests(directory: Path, names: list[str]) -> None:
    """Compare files with the digests in `state.json`; nothing where there is none.

    Raises:
        CheckpointError: a file is absent, not listed, or has another digest.
    """
    state_path = directory / STATE_FILE
    if not state_path.exists():
        return
    files = read_json(state_path).get("files")
    if not isinstance(files, dict):
        raise _damaged(state_path, "it lists no files")
    optional = [name for name in ("tokenizer.json",) if name in files]
    for name in [*names, "config.json", *optional]:
        path = directory / name
        if name not in files:
            raise _damaged(state_path, f"it does not list {name}")
        try:
            digest = blake3().update_mmap(path).hexdigest()
        except OSError as error:
            raise _damaged(path, f"it cannot be read ({error.strerror})") from error
        if digest != files[name]:
            raise _damaged(path, "its content has changed since it was saved (BLAKE3 digest)")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is absent, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise _damaged(path, f"it has more than {JSON_BYTES_MAX:,} bytes")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is not there", where=str(path.parent)) from error
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _read_tensor(file: Any, key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    found = tuple(file.get_slice(key).get_shape())
    if found != shape:
        raise _foreign(path, f"its tensor {key!r} is {found}, and config.json says {shape}")
    tensor = file.get_tensor(key)
    if tensor.dtype not in TYPES:
        raise _foreign(path, f"its tensor {key!r} is {tensor.dtype}; this reads float types only")
    return tensor.float()


def _is_shard_name(name: str) -> bool:
    return name.endswith(".safetensors") and not set(name) & set("/\\\0:")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is damaged",
        where=str(path),
        why=why,
        hint="use an earlier checkpoint of the run (checkpoints/step-…), or copy it again",
    )


def _foreign(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        "the weights are not those of the model that config.json describes",
        where=str(path),
        why=why,
        hint="keep model.safetensors and config.json of one checkpoint together",
    )
