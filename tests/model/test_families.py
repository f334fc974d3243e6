"""Every family against transformers: the same logits, losses and gradients, in both directions."""

import json
from dataclasses import replace

import pytest
import torch

from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError
from peerformer.kernels.attention import causal_attention
from peerformer.model.convert import config_from_hf, load_model, save_model
from peerformer.model.formats import OWN, format_of, refuse_export
from peerformer.model.transformer import Transformer
from peerformer.settings import resolve

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

QWEN3 = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=64, rope_theta=500.0, rms_norm_epsilon=1e-5,
)  # fmt: skip
LLAMA = replace(QWEN3, qk_norm=False, tie_embeddings=False)
GPT2 = replace(
    QWEN3, qk_norm=False, num_kv_heads=4, head_dim=8, positions="learned", norm="layer",
    feed_forward="gelu-tanh", attention_bias=True, mlp_bias=True, rope_theta=10_000.0,
)  # fmt: skip
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0}
MODELS = {
    "qwen3 with biases": replace(QWEN3, attention_bias=True),
    "qwen3 linear": replace(QWEN3, rope_scaling="linear", rope_factor=2.0),
    "qwen3 yarn": replace(QWEN3, **YARN),
    "qwen3 yarn, all of it": replace(
        QWEN3, **YARN, rope_original_positions=24, rope_attention_factor=1.3, rope_beta_fast=8.0,
        rope_beta_slow=0.5, rope_theta=50.0,
    ),
    "qwen3 windows": replace(QWEN3, attention_layers="window", sliding_window=7),
    "qwen3 windows in two of three": replace(
        QWEN3, attention_layers="window,window,full", sliding_window=5
    ),
    "llama": LLAMA,
    "llama with biases": replace(LLAMA, attention_bias=True, mlp_bias=True, tie_embeddings=True),
    "llama multi-query": replace(LLAMA, num_kv_heads=1, head_dim=8),
    "llama multi-head": replace(LLAMA, num_kv_heads=4, num_layers=1),
    "llama3": replace(
        LLAMA, rope_scaling="llama3", rope_factor=8.0, rope_original_positions=32,
        rope_low_frequency_factor=0.5, rope_high_frequency_factor=3.0,
    ),
    "gpt2": GPT2,
    "gpt2 relu": replace(GPT2, feed_forward="relu", tie_embeddings=False),
    "gpt2 gelu": replace(GPT2, feed_forward="gelu", intermediate_size=40),
    "gpt2 squared relu": replace(GPT2, feed_forward="relu2"),
}  # fmt: skip
every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


def make_model(config, seed=4):
    """A model in which every weight matters: large matrices, norms and biases that differ."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                weight.copy_(noise * weight.shape[1] ** -0.5)
            else:
                weight.copy_(noise * 0.2 + (0.0 if name.endswith(("bias", "sinks")) else 1.0))
    return model


def tokens(seed=5):
    return torch.randint(96, (2, 61), generator=torch.Generator().manual_seed(seed))


def load_theirs(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    ).eval()


@every_model
def test_transformers_gives_our_logits_losses_and_gradients(tmp_path, config):
    model = make_model(config)
    save_model(tmp_path, model, None)
    theirs, x = load_theirs(tmp_path), tokens()
    assert type(theirs).__name__ == format_of(config).architecture
    found = theirs(x[:, :-1]).logits
    torch.testing.assert_close(found, model(x[:, :-1]), rtol=1e-5, atol=1e-5)
    loss = model.loss(x[:, :-1], x[:, 1:])
    expected = theirs(x, labels=x).loss
    assert abs(loss.item() - expected.item()) <= 1e-5
    loss.backward()
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    named = dict(theirs.named_parameters())
    for name, gradient in format_of(config).to_theirs(gradients, config).items():
        torch.testing.assert_close(gradient, named[name].grad, rtol=1e-5, atol=1e-5, msg=name)


@every_model
@torch.no_grad()
def test_a_random_model_of_transformers_gives_its_logits_here(tmp_path, config):
    save_model(tmp_path, make_model(config), None)
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(6)
    theirs = transformers.AutoModelForCausalLM.from_config(settings).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model = load_model(tmp_path / "theirs")
    assert model.config == config
    torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 9}),
        ("Qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                    "original_max_position_embeddings": 16}}),
        ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
        ("Llama", {"num_key_value_heads": None}),
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_what_transformers_writes_of_a_configuration_is_understood(tmp_path, kind, settings):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=64,
        **{"num_key_value_heads": 2, **settings},
    )  # fmt: skip
    torch.manual_seed(6)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)
    # Configurations of transformers 4 have neither `rope_parameters` nor, if old, a base.
    mapping = json.loads((tmp_path / "config.json").read_text())
    rope = mapping.pop("rope_parameters")
    mapping |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": settings.get("rope_scaling")}
    assert config_from_hf(mapping, "old") == model.config


def test_an_old_llama_without_heads_or_base_is_read():
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=64,
    ).to_dict()  # fmt: skip
    for key in ("head_dim", "num_key_value_heads", "rope_parameters", "mlp_bias"):
        del config[key]
    read = config_from_hf(config, "old")
    assert (read.num_kv_heads, read.head_dim, read.rope_theta) == (4, 8, 10_000.0)


@torch.no_grad()
def test_sinks_are_those_of_gpt_oss():
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.num_key_value_groups, module.training = 2, False
    module.sinks = torch.randn(4, generator=generator)
    hidden = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    theirs, _ = eager_attention_forward(module, q, k, v, hidden, scaling=8**-0.5)
    ours = causal_attention(q, k, v, sinks_H=module.sinks)
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=1e-5, atol=1e-5)


OWN_MODELS = {
    "blocks": (replace(LLAMA, attention_layers="blocks"), "attention_layers has blocks"),
    "sinks": (replace(QWEN3, attention_sinks=True), "attention_sinks is True, not False"),
    "post-norm": (replace(QWEN3, norm_placement="post"), "norm_placement is 'post', not pre"),
    "layer norm": (replace(LLAMA, norm="layer"), "norm is 'layer', not rms"),
    "sinusoidal": (
        replace(GPT2, positions="sinusoidal"), "positions is 'sinusoidal', not learned",
    ),
    "no positions": (replace(GPT2, positions="none"), "positions is 'none', not learned"),
    "grouped gpt2": (replace(GPT2, num_kv_heads=2), "num_kv_heads is 2"),
    "window llama": (
        replace(LLAMA, attention_layers="window", sliding_window=4), "qk_norm is False, not True",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "reason"), OWN_MODELS.values(), ids=OWN_MODELS)
@torch.no_grad()
def test_what_hugging_face_cannot_express_is_kept_here_and_not_exported(tmp_path, config, reason):
    model = make_model(config)
    save_model(tmp_path, model, None)
    loaded = load_model(tmp_path)
    assert loaded.config == config and torch.equal(loaded(tokens()), model(tokens()))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == OWN.model_type
    with pytest.raises(CheckpointError, match=reason):
        refuse_export(config, "here")


def test_every_family_is_written_in_its_own_format():
    for family, architecture in (
        ("qwen3", "Qwen3ForCausalLM"),
        ("qwen3-moe", "Qwen3MoeForCausalLM"),
        ("llama", "LlamaForCausalLM"),
        ("gpt2-classic", "GPT2LMHeadModel"),
    ):
        for size in ("nano", "tiny", "small", "medium", "large"):
            config = resolve(size=size, family=family).config.model
            assert format_of(config).architecture == architecture, (family, size)
            refuse_export(config, "here")
