"""A checkpoint on disk: found by its run's name, loaded, and refused where it is not whole."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError
from peerformer.model.convert import (
    config_from_hf,
    from_hf_state,
    hf_config,
    load_model,
    save_model,
    to_hf_state,
    tokenizer_facts,
)
from peerformer.model.transformer import Transformer, initialise

TINY = ModelConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=8, max_positions=16, rope_theta=777.0, rms_norm_epsilon=1e-5,
)  # fmt: skip
TOKENIZER = json.dumps(
    {"added_tokens": [{"id": 3, "content": "<|end|>", "special": True}]}
).encode()


def make_model(config=TINY, seed=1):
    model = Transformer(config).eval()
    initialise(model, seed)
    return model


def save(directory, model=None, *, state=False):
    directory.mkdir(parents=True)
    save_model(directory, model or make_model(), TOKENIZER)
    if state:
        files = {p.name: blake3(p.read_bytes()).hexdigest() for p in directory.iterdir()}
        (directory / "state.json").write_text(json.dumps({"step": 1, "files": files}))
    return directory


def refusal(function, *arguments):
    with pytest.raises(CheckpointError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_comes_back_the_same(tmp_path, tie):
    model = make_model(replace(TINY, tie_embeddings=tie))
    loaded = load_model(save(tmp_path / "m", model, state=True))
    assert loaded.config == model.config and not loaded.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    names = {path.name for path in (tmp_path / "m").iterdir()} - {"state.json"}
    assert names == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    saved = load_file(tmp_path / "m" / "model.safetensors")
    assert ("lm_head.weight" in saved) is not tie and "model.norm.weight" in saved
    assert json.loads((tmp_path / "m" / "config.json").read_text())["eos_token_id"] == 3


def test_a_model_without_a_tokenizer_is_saved_without_one(tmp_path):
    save_model(tmp_path, make_model(), None)
    assert not list(tmp_path.glob("tokenizer*"))
    load_model(tmp_path)


def test_a_half_precision_checkpoint_is_read_as_float32(tmp_path):
    model = make_model()
    save(tmp_path / "m", model)
    half = {name: weight.bfloat16() for name, weight in to_hf_state(model).items()}
    save_file(half, tmp_path / "m" / "model.safetensors")
    weight = load_model(tmp_path / "m").norm.weight
    assert weight.dtype == torch.float32


def test_the_configuration_survives_both_ways():
    for config in (TINY, replace(TINY, tie_embeddings=False, num_kv_heads=2)):
        assert config_from_hf(json.loads(json.dumps(hf_config(config))), "x") == config


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma"},
        {"model_type": ["qwen3"]},
        {"attention_bias": 1},
        {"use_sliding_window": True, "max_window_layers": 0},
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 0},
        {"use_sliding_window": 3},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": ["full_attention", "chunked_attention"]},
        {"layer_types": [["full_attention"]]},
        {"layer_types": 5},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": "4"}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "mscale": 1}},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": [1]},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"quantization_config": {"bits": 4}},
        {"hidden_size": "16"},
        {"hidden_size": -1},
        {"hidden_size": True},
        {"num_hidden_layers": 10**9},
        {"max_position_embeddings": 10**9},
        {"rms_norm_eps": float("nan")},
        {"num_key_value_heads": 3},
        {"head_dim": 7},
        {"vocab_size": 0},
        {"head_dim": None},
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_refused(change):
    text = refusal(config_from_hf, hf_config(TINY) | change, "there/config.json")
    assert "there/config.json" in text


@pytest.mark.parametrize("key", ["model_type", "num_hidden_layers", "head_dim"])
def test_a_configuration_that_lacks_a_key_is_refused(key):
    mapping = hf_config(TINY)
    del mapping[key]
    refusal(config_from_hf, mapping, "config.json")


def test_rope_theta_is_read_where_older_configurations_have_it():
    mapping = hf_config(TINY)
    del mapping["rope_parameters"]
    assert config_from_hf(mapping, "x").rope_theta == 777.0
    del mapping["rope_theta"]
    refusal(config_from_hf, mapping, "x")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_is_found_and_the_file_named(tmp_path, name):
    path = save(tmp_path / "m", state=True) / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 4  # in a weight, or in the text at the end
    path.write_bytes(data)
    assert f"{name} is damaged" in refusal(load_model, tmp_path / "m")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"step": 1}', '{"files": {}}', "[" * 100_000])
def test_a_damaged_state_file_is_refused(tmp_path, content):
    (save(tmp_path / "m", state=True) / "state.json").write_text(content)
    assert "state.json is damaged" in refusal(load_model, tmp_path / "m")


def test_a_truncated_checkpoint_is_refused_and_named_wherever_it_is_cut(tmp_path):
    path = save(tmp_path / "m") / "model.safetensors"
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert "model.safetensors is damaged" in refusal(load_model, tmp_path / "m"), length


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8 - 8])
def test_a_header_of_hostile_size_is_refused(tmp_path, length):
    path = save(tmp_path / "m") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    assert "model.safetensors is damaged" in refusal(load_model, tmp_path / "m")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"model.norm.weight": torch.ones(3)}, tmp_path / "pickle")
    save(tmp_path / "m")
    (tmp_path / "pickle").rename(tmp_path / "m" / "model.safetensors")
    assert "model.safetensors is damaged" in refusal(load_model, tmp_path / "m")


def test_weights_of_another_model_are_refused_before_they_are_read(tmp_path):
    config = save(tmp_path / "m") / "config.json"
    for change in ({"vocab_size": 10**12}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1},
                   {"tie_word_embeddings": False}):  # fmt: skip
        config.write_text(json.dumps(hf_config(TINY) | change))
        assert "are not those of the model" in refusal(load_model, tmp_path / "m"), change


def test_weights_that_are_no_floats_are_refused(tmp_path):
    state = to_hf_state(make_model())
    state["model.norm.weight"] = torch.ones(16, dtype=torch.int32)
    save_file(state, save(tmp_path / "m") / "model.safetensors")
    assert "int32" in refusal(load_model, tmp_path / "m")


def shard(directory, rename=lambda name: name):
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate(to_hf_state(make_model())):
        file = f"model-{number % 3}.safetensors"
        weight_map[name] = file
    for file in set(weight_map.values()):
        part = {n: w for n, w in to_hf_state(make_model()).items() if weight_map[n] == file}
        save_file(part, directory / file)
    index = {"weight_map": {name: rename(file) for name, file in weight_map.items()}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_sharded_checkpoint_is_loaded_whole_or_not_at_all(tmp_path):
    shard(save(tmp_path / "m"))
    loaded = load_model(tmp_path / "m")
    assert torch.equal(loaded.norm.weight, make_model().norm.weight)
    assert torch.equal(
        loaded.layers[1].mlp.up_proj.weight, make_model().layers[1].mlp.up_proj.weight
    )
    (tmp_path / "m" / "model-1.safetensors").unlink()
    assert "model-1.safetensors is not there" in refusal(load_model, tmp_path / "m")


def test_a_checkpoint_is_written_in_shards_that_come_back_whole(tmp_path):
    model = make_model(replace(TINY, num_layers=4))
    save_model(tmp_path, model, None, shard_bytes_max=6_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and not (tmp_path / "model.safetensors").exists()
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in
                     range(1, len(files) + 1)]  # fmt: skip
    parts = [load_file(tmp_path / file) for file in files]
    assert all(sum(w.nbytes for w in part.values()) <= 6_000 or len(part) == 1 for part in parts)
    total = sum(weight.nbytes for part in parts for weight in part.values())
    assert index["metadata"]["total_size"] == total
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())
    (tmp_path / "one").mkdir()
    save_model(tmp_path / "one", model, None, shard_bytes_max=10**6)
    assert (tmp_path / "one" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin", "", 3, [],
             "a\\b.safetensors", "x\0.safetensors", "C:x.safetensors"],
    ids=repr,
)  # fmt: skip
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    shard(save(tmp_path / "m"), rename=lambda _: name)
    text = refusal(load_model, tmp_path / "m")
    assert "names a file that it must not" in text or "is damaged" in text


@pytest.mark.parametrize("text", ["", "null", "{", "\udcff", "9" * 5000, '{"a": ' * 9999])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path, text):
    (save(tmp_path / "m") / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "config.json is damaged" in refusal(load_model, tmp_path / "m")


def test_missing_tensors_are_named():
    state = to_hf_state(make_model())
    del state["model.norm.weight"]
    assert "model.norm.weight is missing" in refusal(from_hf_state, state, TINY)


def test_the_end_of_text_is_the_first_special_token_of_the_tokenizer():
    facts = tokenizer_facts(TOKENIZER)
    assert (facts.end_of_text, facts.end_of_text_id) == ("<|end|>", 3)
    assert tokenizer_facts(b"{}") is None
    for text in (b"", b"[]", b'{"added_tokens": [3]}', b"\xff"):
        refusal(tokenizer_facts, text)


ODD = [None, True, -1, 0, 1, 3, 1.5, 10**30, 1e308, float("nan"), "", "x", "16", [], [1], {},
       {"a": 1}, ["full_attention"] * 2, "\ud800", {"rope_type": "yarn"},
       {"rope_type": ["yarn"]}]  # fmt: skip
KINDS = {
    "qwen3": replace(
        TINY, attention_layers="full,window", sliding_window=4, rope_scaling="yarn",
        rope_factor=2.0,
    ),
    "llama": replace(TINY, qk_norm=False, rope_scaling="llama3", rope_factor=2.0),
    "gpt2": replace(
        TINY, qk_norm=False, num_kv_heads=2, positions="learned", norm="layer", rope_theta=1e4,
        feed_forward="relu", attention_bias=True, mlp_bias=True,
    ),
    "peerformer": replace(TINY, attention_sinks=True),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "config"), KINDS.items(), ids=KINDS)
def test_a_configuration_with_odd_values_is_refused_or_a_model_that_can_be(kind, config):
    good = json.loads(json.dumps(hf_config(config)))
    assert good["model_type"] == kind and config_from_hf(good, "x") == config
    places = [(good, key) for key in good]
    places += [
        (good[key], name) for key in good if isinstance(good[key], dict) for name in good[key]
    ]
    tried = refused = 0
    for holder, key in places:
        before = holder[key]
        for odd in ODD:
            holder[key] = odd
            tried += 1
            try:
                Transformer(config_from_hf(json.loads(json.dumps(good)), "x"))
            except CheckpointError:
                refused += 1
        holder[key] = before
    assert tried > refused > tried / 3, f"{refused} of {tried}"
