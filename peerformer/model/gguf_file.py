"""Writing GGUF, the one file that llama.cpp and its relatives run.

Weights keep their values and get llama.cpp's names; experts stay stacked, gate and up projection
apart; with `llama` the rows of queries and keys change places, because its readers rotate
neighbours. Vectors and routers stay float32. With `q8_0` the matrices are quantised in blocks of
32 of a row with one half-precision scale each; with `q4_0` too, but for embedding and head, which
are `q8_0`: they are the most sensitive and a small share of a larger model. A matrix whose rows do
not divide into blocks stays f16. What a file says is read back and compared before it is trusted.

A configuration that the readers of the architecture cannot compute is refused by the field's name;
fields of which this page knows nothing must have their default.

Sources: the GGUF specification, version 3; llama.cpp's ggml-quants (block formats).
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from peerformer.allowed import shown
from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.gguf_vocabulary import Vocabulary
from peerformer.model.positions import original_positions
from peerformer.model.transformer import Transformer, parameter_shapes

KINDS = ("f16", "q8_0", "q4_0")
BLOCK = 32  # values that share a scale
Array = NDArray[Any]
# Written down as metadata, or of no consequence outside of training.
EXPRESSED = {
    "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
    "head_dim", "max_positions", "rope_theta", "rms_norm_epsilon", "tie_embeddings", "num_experts",
    "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef",
    "router_z_loss_coef", "moe_capacity_factor", "attention_dropout", "residual_dropout",
    "embedding_dropout", "qk_norm", "rope_scaling", "rope_factor", "rope_original_positions",
}  # fmt: skip
ROPE_SCALINGS = ("none", "linear", "yarn")
HALF_EPSILON = 2.0**-11  # half a unit in the last place of a half-precision number, relative
HALF_TINY = 2.0**-24  # of its smallest numbers, the step


def package() -> Any:
    """The `gguf` package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "GGUF files are written with the package gguf, which is not installed",
            hint="pip install 'peerformer[gguf]'",
        ) from error
    return gguf


def architecture(config: ModelConfig) -> str:
    """The name of the architecture by which readers know a model.

    Raises:
        CheckpointError: none of those that are written here computes it.
    """
    defaults = ModelConfig()
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name not in EXPRESSED and value != getattr(defaults, item.name):
            raise _inexpressible(item.name, value, "its architectures have no such thing")
    if config.rope_scaling not in ROPE_SCALINGS:
        raise _inexpressible("rope_scaling", config.rope_scaling, "this page writes no other")
    if not config.num_experts:
        return "qwen3" if config.qk_norm else "llama"
    if not config.qk_norm:
        raise _inexpressible("qk_norm", False, "readers of qwen3moe always norm queries and keys")
    if not config.norm_topk_prob:
        raise _inexpressible("norm_topk_prob", False, "readers of qwen3moe always renormalise")
    return "qwen3moe"


def write_gguf(
    path: Path, model: Transformer, kind: str, vocabulary: Vocabulary | None, name: str
) -> dict[str, str]:
    """Write a model; not atomic, that is the caller's part.

    Args:
        path: the file.
        model: its weights.
        kind: one of `KINDS`.
        vocabulary: its tokenizer's; None writes none.
        name: what the file calls the model.

    Returns:
        the type in which each tensor is stored, by its name there.

    Raises:
        CheckpointError: GGUF cannot express the model.
    """
    assert kind in KINDS, kind
    gguf, config = package(), model.config
    writer = gguf.GGUFWriter(path, architecture(config))
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_file_type(kind)])
    if kind != "f16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_shape(writer, config)
    if vocabulary is not None:
        _write_vocabulary(writer, vocabulary)
    stored = {}
    for key, values in tensors_of(model):
        type_name = stored_type(key, values.shape, kind)
        stored_as = gguf.GGMLQuantizationType[type_name]
        data = gguf.quantize(np.ascontiguousarray(values), stored_as)
        writer.add_tensor(key, data, raw_dtype=stored_as)
        stored[key] = type_name
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def check_gguf(path: Path, model: Transformer, stored: Mapping[str, str]) -> float:
    """Read a file back and compare all tensors with the model's.

    Returns:
        the root of the mean squared error of all values, as a share of their own.

    Raises:
        CheckpointError: a tensor is absent, or differs by more than its type explains.
    """
    gguf = package()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if set(found) != set(stored):
        raise CheckpointError("the file holds other tensors than were written", where=str(path))
    error, power = 0.0, 0.0
    for key, values in tensors_of(model):
        tensor = found[key]
        read = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        difference = np.abs(read - values)
        is_as_written = tensor.tensor_type.name == stored[key]
        if not is_as_written or not (difference <= error_bound(values, stored[key])).all():
            raise CheckpointError(
                f"the tensor {key} is not what was written", where=str(path), why="a bug, or a disk"
            )
        error += float(np.square(difference, dtype=np.float64).sum())
        power += float(np.square(values, dtype=np.float64).sum())
    return (error / max(power, 1e-30)) ** 0.5


def tensors_of(model: Transformer) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor under llama.cpp's name, in float32, one after the other."""
    gguf, config = package(), model.config
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture(config))
    names = gguf.get_tensor_name_map(arch, config.num_layers)
    state = model.state_dict()
    for ours in parameter_shapes(config):
        theirs = ours if ours.startswith("lm_head.") else f"model.{ours}"
        for name, tensor in _parts(theirs, state[ours]):
            if arch == gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
                tensor = _interleaved(tensor, config.head_dim)
            key = names.get_name(name, try_suffixes=(".weight",))
            assert key is not None, f"llama.cpp has no name for {name}"
            yield key, tensor.detach().float().cpu().numpy()


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Gate and up projection of experts apart; all else as it is."""
    if name.endswith("experts.gate_up_proj"):
        gate_EFD, up_EFD = tensor.chunk(2, dim=1)
        prefix = name.removesuffix("gate_up_proj")
        yield f"{prefix}gate_proj.weight", gate_EFD
        yield f"{prefix}up_proj.weight", up_EFD
    else:
        yield name if name.endswith(".weight") else f"{name}.weight", tensor


def _interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of each head in the order in which readers of `llama` rotate: pairs lie together."""
    return tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(tensor.shape)


def stored_type(key: str, shape: tuple[int, ...], kind: str) -> str:
    """The type in which a tensor is stored."""
    if len(shape) == 1 or "ffn_gate_inp" in key:
        return "F32"  # vectors, and the router, whose choices hang on small differences
    if kind == "f16" or shape[-1] % BLOCK:
        return "F16"
    is_outer = key.startswith(("token_embd", "output"))
    return "Q8_0" if kind == "q8_0" or is_outer else "Q4_0"


def error_bound(values: NDArray[np.float32], type_name: str) -> Array:
    """The most by which each value may differ once stored."""
    size = np.abs(values)
    if type_name == "F32":
        return np.zeros_like(size)
    if type_name == "F16":
        return size * HALF_EPSILON + HALF_TINY
    blocks = size.reshape(-1, BLOCK)
    # Rounding to the nearest of 2 * 127 or of 15 steps; of the latter one end is a step short.
    step = blocks.max(1, keepdims=True) * (0.5 / 127 if type_name == "Q8_0" else 1.0 / 8)
    bound = np.broadcast_to(step, blocks.shape) + blocks * 2 * HALF_EPSILON + 128 * HALF_TINY
    return bound.reshape(values.shape)


def _write_shape(writer: Any, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_epsilon)
    if config.rope_scaling != "none":
        writer.add_rope_scaling_type(package().RopeScalingType(config.rope_scaling))
        writer.add_rope_scaling_factor(config.rope_factor)
        writer.add_rope_scaling_orig_ctx_len(int(original_positions(config)))
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.expert_size)


def _write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.end_of_text_id)
    writer.add_pad_token_id(vocabulary.end_of_text_id)
    writer.add_add_bos_token(False)


def _file_type(kind: str) -> str:
    return "MOSTLY_" + kind.upper()


def _inexpressible(field: str, value: object, why: str) -> CheckpointError:
    return CheckpointError(
        f"GGUF cannot express model.{field} = {shown(value)}",
        why=why,
        hint="export as safetensors (without --gguf)",
    )
