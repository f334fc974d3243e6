"""A GGUF file: read back by the `gguf` package, it says and holds what the model does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.data.tokenizer import END_OF_TEXT, train_tokenizer
from peerformer.errors import CheckpointError, ConfigError
from peerformer.interface.commands.export import export
from peerformer.model.convert import save_model
from peerformer.model.gguf_file import KINDS, error_bound
from peerformer.model.gguf_vocabulary import CONTROL, NORMAL, UNUSED, vocabulary_of
from peerformer.model.transformer import Transformer

gguf = pytest.importorskip("gguf")

TINY = ModelConfig(
    vocab_size=290, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=32, rope_theta=5_000.0, rms_norm_epsilon=1e-5,
)  # fmt: skip
SPARSE = replace(TINY, num_experts=3, moe_intermediate_size=32, tie_embeddings=False)
TEXTS = ["the quick brown fox jumps over the lazy dog; naïve ünïcode", "2 + 2 = 4\n\n"] * 4
TOKENIZER = train_tokenizer(TEXTS, 280)
LLAMA = replace(TINY, qk_norm=False)


def make_model(config):
    """A model in which every weight matters, and no two tensors are alike."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def saved(directory, config):
    model = make_model(config)
    directory.mkdir()
    save_model(directory, model, TOKENIZER.to_bytes())
    return model


def read(path):
    """The metadata and the tensors of a file, dequantised, by their names."""
    reader = gguf.GGUFReader(path)
    tensors = {
        t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors
    }
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def rotated_as_read(weight, config):
    """Rows in the order of neighbours that llama.cpp rotates, where it is a Llama."""
    if config.qk_norm:
        return weight
    K = config.head_dim
    order = [h * K + i + half for h in range(len(weight) // K) for i in range(K // 2)
             for half in (0, K // 2)]  # fmt: skip
    return weight[order]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [TINY, SPARSE, LLAMA], ids=["qwen3", "experts", "llama"])
def test_the_file_holds_every_tensor_under_its_name_within_its_types_error(tmp_path, config, kind):
    model = saved(tmp_path / "in", config)
    export(str(tmp_path / "in"), gguf=kind, to=tmp_path / "out.gguf")
    _, tensors = read(tmp_path / "out.gguf")
    layer = model.layers[1]
    expected = {
        "token_embd.weight": model.embed_tokens.weight,
        "output_norm.weight": model.norm.weight,
        "blk.1.attn_norm.weight": layer.input_layernorm.weight,
        "blk.1.ffn_norm.weight": layer.post_attention_layernorm.weight,
        "blk.1.attn_q.weight": rotated_as_read(layer.self_attn.q_proj.weight, config),
        "blk.1.attn_k.weight": rotated_as_read(layer.self_attn.k_proj.weight, config),
        "blk.1.attn_v.weight": layer.self_attn.v_proj.weight,
        "blk.1.attn_output.weight": layer.self_attn.o_proj.weight,
    }
    if config.qk_norm:
        expected["blk.1.attn_q_norm.weight"] = layer.self_attn.q_norm.weight
        expected["blk.1.attn_k_norm.weight"] = layer.self_attn.k_norm.weight
    if config.num_experts:
        expected |= {
            "output.weight": model.lm_head.weight,
            "blk.1.ffn_gate_inp.weight": layer.mlp.gate.weight,
            "blk.1.ffn_gate_exps.weight": layer.mlp.experts.gate_up_proj[:, :32],
            "blk.1.ffn_up_exps.weight": layer.mlp.experts.gate_up_proj[:, 32:],
            "blk.1.ffn_down_exps.weight": layer.mlp.experts.down_proj,
        }
    else:
        expected |= {
            "blk.1.ffn_gate.weight": layer.mlp.gate_proj.weight,
            "blk.1.ffn_up.weight": layer.mlp.up_proj.weight,
            "blk.1.ffn_down.weight": layer.mlp.down_proj.weight,
        }
    assert {name for name in tensors if "blk.0" not in name} == set(expected)
    assert {name.replace("blk.0", "blk.1") for name in tensors} == set(expected)
    relative = {"f16": 0.001, "q8_0": 0.01, "q4_0": 0.12}[kind]
    for name, weight in expected.items():
        stored, values = tensors[name]
        wanted = weight.detach().numpy()
        assert values.shape == wanted.shape, name
        if wanted.ndim == 1 or "ffn_gate_inp" in name:
            assert stored == "F32" and np.array_equal(values, wanted), name
            continue
        outer = name in ("token_embd.weight", "output.weight")
        assert stored == ("Q8_0" if kind == "q4_0" and outer else kind.upper()), name
        error = np.sqrt(np.mean((values - wanted) ** 2) / np.mean(wanted**2))
        assert 0 < error < relative, (name, error)
        assert (np.abs(values - wanted) <= error_bound(wanted, stored)).all(), name


def test_the_file_says_the_shape_and_the_tokenizer(tmp_path):
    saved(tmp_path / "in", SPARSE)
    export(str(tmp_path / "in"), gguf="q8_0", to=tmp_path / "out.gguf")
    said, _ = read(tmp_path / "out.gguf")
    shape = {name.removeprefix("qwen3moe."): value for name, value in said.items()}
    assert said["general.architecture"] == "qwen3moe" and said["general.file_type"] == 7
    assert shape["block_count"] == 2 and shape["embedding_length"] == 64
    assert shape["attention.head_count"] == 4 and shape["attention.head_count_kv"] == 2
    assert shape["attention.key_length"] == 16 and shape["attention.value_length"] == 16
    assert shape["context_length"] == 32 and shape["rope.freq_base"] == 5_000.0
    assert shape["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert shape["expert_count"] == 3 and shape["expert_used_count"] == 2
    assert shape["expert_feed_forward_length"] == 32
    said = {k.removeprefix("tokenizer.ggml."): v for k, v in said.items()}
    assert said["model"] == "gpt2" and said["pre"] == "gpt-2" and said["add_bos_token"] is False
    assert said["eos_token_id"] == TOKENIZER.end_of_text_id
    assert len(said["tokens"]) == len(said["token_type"]) == 290
    assert said["tokens"][TOKENIZER.end_of_text_id] == END_OF_TEXT
    types = dict.fromkeys(range(TOKENIZER.vocab_size), NORMAL)
    types |= dict.fromkeys(range(TOKENIZER.vocab_size, 290), UNUSED)
    types[TOKENIZER.end_of_text_id] = CONTROL
    assert said["token_type"] == list(types.values())
    pairs = json.loads(TOKENIZER.to_bytes())["model"]["merges"]
    assert said["merges"] == [" ".join(pair) for pair in pairs]


def test_stretched_positions_are_said(tmp_path):
    saved(tmp_path / "in", replace(LLAMA, rope_scaling="yarn", rope_factor=4.0))
    export(str(tmp_path / "in"), gguf="f16", to=tmp_path / "out.gguf")
    said, _ = read(tmp_path / "out.gguf")
    assert said["general.architecture"] == "llama" and said["llama.rope.scaling.type"] == "yarn"
    assert said["llama.rope.scaling.factor"] == 4.0
    assert said["llama.rope.scaling.original_context_length"] == 8


def test_rows_that_do_not_divide_into_blocks_stay_f16(tmp_path):
    saved(tmp_path / "in", replace(TINY, hidden_size=40))
    export(str(tmp_path / "in"), gguf="q4_0", to=tmp_path / "out.gguf")
    _, tensors = read(tmp_path / "out.gguf")
    assert tensors["blk.0.ffn_up.weight"][0] == "F16"  # rows of 40
    assert tensors["blk.0.ffn_down.weight"][0] == "Q4_0"  # rows of 96


@pytest.mark.parametrize(
    "change",
    [
        {"shared_expert_intermediate_size": 32},
        {"router_bias_update_rate": 0.01},
        {"decoder_sparse_step": 2},
        {"mlp_only_layers": "0"},
        {"norm_topk_prob": False},
        {"qk_norm": False},
        {"attention_sinks": True},
        {"rope_scaling": "llama3", "rope_factor": 4.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_gguf_cannot_express_is_refused_by_name_before_anything_is_written(tmp_path, change):
    saved(tmp_path / "in", replace(SPARSE, **change))
    with pytest.raises(CheckpointError, match=f"GGUF cannot express model.{next(iter(change))} = "):
        export(str(tmp_path / "in"), gguf="f16", to=tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def changed_tokenizer(**changes):
    content = json.loads(TOKENIZER.to_bytes())
    for place, value in changes.items():
        section, _, key = place.rpartition("__")
        (content[section] if section else content)[key] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model__type": "Unigram"}, "type 'Unigram'"),
        ({"model__byte_fallback": True}, "byte_fallback"),
        ({"model__ignore_merges": True}, "ignore_merges"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"added_tokens": []}, "no special token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tokenizer_that_readers_would_take_for_another_is_refused(changes, named):
    with pytest.raises(CheckpointError, match=named):
        vocabulary_of(changed_tokenizer(**changes), 290)


def test_the_cuts_of_qwen_and_llama_are_written_by_their_names():
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits, name in (("", "qwen2"), ("{1,3}", "llama-bpe")):
        split = {
            "type": "Split", "pattern": {"Regex": words + digits + rest}, "behavior": "Isolated",
            "invert": False,
        }  # fmt: skip
        last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        entry = {"type": "Sequence", "pretokenizers": [split, last]}
        assert vocabulary_of(changed_tokenizer(pre_tokenizer=entry), 290).pre == name


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path):
    saved(tmp_path / "in", TINY)
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        export(str(tmp_path / "in"), gguf="f16", to=out)
    assert out.read_text() == "mine"
    export(str(tmp_path / "in"), gguf="f16", to=out, overwrite=True)
    assert out.read_bytes()[:4] == b"GGUF"
    with pytest.raises(ConfigError, match="directory"):
        export(str(tmp_path / "in"), gguf="f16", to=tmp_path / "in", overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out.gguf"}, "nothing is left beside"
