"""Adapters: what is frozen, what is learned, merged, written, and read by others and by us."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peerformer.config import LoraConfig, ModelConfig, OptimizerConfig
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.adapter import ADAPTER_WEIGHTS, with_adapter, write_adapter
from peerformer.model.convert import load_model, save_model
from peerformer.model.find import ADAPTER_CONFIG
from peerformer.model.lora import adapted_layers, add_adapters, merge
from peerformer.model.transformer import Transformer, initialise
from peerformer.train.optimizer import build_optimizer

TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_positions=32,
)  # fmt: skip
LORA = LoraConfig(rank=4, alpha=8.0)


def tokens() -> torch.Tensor:
    return torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(5))


def base(config: ModelConfig = TINY) -> Transformer:
    model = Transformer(config)
    initialise(model, 3)
    return model.eval()


def adapted(lora: LoraConfig = LORA, config: ModelConfig = TINY) -> Transformer:
    """A model whose adapters have learned something large."""
    model = base(config)
    add_adapters(model, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def test_new_adapters_change_nothing_and_learned_ones_do() -> None:
    model = base()
    before = model(tokens())
    add_adapters(model, LORA, seed=1)
    assert torch.equal(model(tokens()), before)
    assert (adapted()(tokens()) - before).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, attention_bias=True, mlp_bias=True, tie_embeddings=False)],
    ids=["plain", "with biases"],
)
def test_merged_a_model_computes_the_same_within_1e5(config: ModelConfig) -> None:
    model = adapted(config=config)
    merged = merge(model)
    assert not adapted_layers(merged) and set(merged.state_dict()) == set(base(config).state_dict())
    assert (merged(tokens()) - model(tokens())).abs().max() < 1e-5


def test_only_adapters_are_trained_and_the_model_below_stays_bit_by_bit() -> None:
    model = adapted(replace(LORA, targets="q_proj,up_proj"))
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw"))
    assert len(optimizer.named) == 2 * 2 * 2, "two factors of two layers in two blocks"
    assert all(name.endswith(("lora_A", "lora_B")) for name in optimizer.named)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.loss(tokens(), tokens()).backward()
    optimizer.step(1.0)
    changed = {n for n, weight in model.state_dict().items() if not torch.equal(weight, before[n])}
    assert changed == set(optimizer.named)


def test_a_target_that_means_no_layer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as refused:
        add_adapters(base(), replace(LORA, targets="q_porj"), seed=0)
    assert "did you mean q_proj?" in str(refused.value) and "down_proj" in str(refused.value)
    parts = adapted(replace(LORA, targets="attention"))
    assert {name.split(".")[2] for name in adapted_layers(parts)} == {"self_attn"}


def test_experts_of_a_mixture_are_left_out_and_that_is_said() -> None:
    model = base()
    model.layers[1].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(32, 32)])
    with pytest.raises(ConfigError, match="experts of a mixture") as refused:
        add_adapters(model, LORA, seed=0)
    assert "--lora.targets attention" in str(refused.value)
    add_adapters(model, replace(LORA, targets="attention"), seed=0)
    assert len(adapted_layers(model)) == 8


@torch.no_grad()
def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    model = adapted()
    write_adapter(tmp_path, model, "base")
    assert {path.name for path in tmp_path.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    again = with_adapter(base(), tmp_path)
    assert torch.equal(again(tokens()), model(tokens()))


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_peft_reads_our_adapter_and_we_read_peft_s(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    transformers = pytest.importorskip("transformers")
    config = TINY if family == "qwen3" else replace(TINY, qk_norm=False)
    ours, model = tmp_path / "ours", adapted(config=config)
    ours.mkdir()
    save_model(tmp_path, base(config), None)
    write_adapter(ours, model, str(tmp_path))

    def theirs() -> torch.nn.Module:
        return transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float32, local_files_only=True
        )

    loaded = peft.PeftModel.from_pretrained(theirs(), ours).eval()
    assert (loaded(tokens()).logits - model(tokens())).abs().max() < 1e-5
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["v_proj", "gate_proj"], init_lora_weights=False
    )
    torch.manual_seed(0)
    made = peft.get_peft_model(theirs(), settings).eval()
    made.save_pretrained(tmp_path / "peft")
    merged = load_model(tmp_path / "peft", base=tmp_path)
    assert (merged(tokens()) - made(tokens()).logits).abs().max() < 1e-5


# --- hostile and damaged ones --------------------------------------------------------------------


def rewritten(directory: Path, **changes: object) -> None:
    path = directory / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(directory: Path) -> None:
    path = directory / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-7])


def huge_header(directory: Path) -> None:
    (directory / ADAPTER_WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def another_shape(directory: Path) -> None:
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    save_file({name: t[..., :-1].contiguous() for name, t in tensors.items()}, weights(directory))


def not_a_number(directory: Path) -> None:
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    save_file({name: t * float("nan") for name, t in tensors.items()}, weights(directory))


def one_more(directory: Path) -> None:
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    save_file({**tensors, "model.embed_tokens.weight": torch.zeros(96, 32)}, weights(directory))


def weights(directory: Path) -> Path:
    return directory / ADAPTER_WEIGHTS


def pickled(directory: Path) -> None:
    weights(directory).rename(directory / "adapter_model.bin")


HARM = {
    "cut": (cut, "cut"),
    "a header without end": (huge_header, "not a safetensors file"),
    "other shapes": (another_shape, "must be"),
    "not numbers": (not_a_number, "finite"),
    "a tensor more": (one_more, "embed_tokens"),
    "a pickle": (pickled, "pickle"),
    "a rank beyond measure": (lambda d: rewritten(d, r=10**9), "r is"),
    "no scale": (lambda d: rewritten(d, lora_alpha="much"), "lora_alpha"),
    "a pattern for names": (lambda d: rewritten(d, target_modules=".*(?:a+)+$"), "target_modules"),
    "another kind": (lambda d: rewritten(d, peft_type="IA3"), "peft_type"),
    "DoRA": (lambda d: rewritten(d, use_dora=True), "use_dora"),
    "not JSON": (lambda d: (d / ADAPTER_CONFIG).write_text("{" * 9999), "not JSON"),
}


@pytest.mark.parametrize(("harm", "said"), HARM.values(), ids=HARM)
def test_an_adapter_that_is_none_is_refused_by_what_is_wrong(harm, said, tmp_path: Path) -> None:
    save_model(tmp_path, base(), None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter, adapted(), "base")
    harm(adapter)
    with pytest.raises(CheckpointError) as refused:
        load_model(adapter, base=tmp_path)
    assert said in str(refused.value), refused.value
