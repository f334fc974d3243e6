"""Every choice of the model: it trains, it decodes as it trained, and a bad one is refused."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from peerformer.config import ModelConfig
from peerformer.errors import ConfigError
from peerformer.model.cache import KeyValueCache
from peerformer.model.positions import Sinusoidal
from peerformer.model.transformer import (
    Transformer,
    count_parameters,
    flops_per_token,
    initialise,
    parameter_shapes,
)
from peerformer.settings import resolve
from peerformer.train.recipe import recipe_bytes, recipe_config

TINY = ModelConfig(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=8, max_positions=48,
)  # fmt: skip
CHOICES = {
    "multi-head": {"num_kv_heads": 4},
    "multi-query": {"num_kv_heads": 1},
    "no qk-norm": {"qk_norm": False},
    "windows": {"attention_layers": "window,full", "sliding_window": 5},
    "blocks": {"attention_layers": "blocks", "sparse_block_size": 4, "sparse_stride": 3},
    "all three": {
        "attention_layers": "full,window,blocks", "sliding_window": 9, "sparse_block_size": 5,
        "sparse_local_blocks": 1, "sparse_stride": 0,
    },
    "sinks": {"attention_sinks": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0},
    "llama3": {"rope_scaling": "llama3", "rope_factor": 4.0},
    "learned": {"positions": "learned"},
    "sinusoidal": {"positions": "sinusoidal"},
    "no positions": {"positions": "none"},
    "layer norm": {"norm": "layer"},
    "post-norm": {"norm_placement": "post"},
    "gelu": {"feed_forward": "gelu"},
    "gelu by tanh": {"feed_forward": "gelu-tanh"},
    "relu": {"feed_forward": "relu"},
    "squared relu": {"feed_forward": "relu2"},
    "dropout": {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1},
    "classic": {
        "positions": "sinusoidal", "norm": "layer", "norm_placement": "post",
        "feed_forward": "relu", "qk_norm": False, "attention_bias": True, "mlp_bias": True,
        "num_kv_heads": 4, "tie_embeddings": False,
    },
}  # fmt: skip
CONFIGS = {name: replace(TINY, **choice) for name, choice in CHOICES.items()}
every_choice = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def tokens(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def make_model(config):
    """A model in which every weight matters."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            spread = weight.shape[1] ** -0.5 if weight.ndim == 2 else 0.2
            norm = weight.ndim < 2 and not name.endswith(("bias", "sinks"))
            weight.copy_(noise * spread + norm)
    return model


def test_every_choice_of_the_config_is_tried_here():
    values = {(f.name, c) for f in fields(ModelConfig) for c in f.metadata.get("choices") or ()}
    tried = {(name, value) for config in CONFIGS.values() for name, value in vars(config).items()}
    assert values <= tried


@every_choice
def test_every_parameter_is_announced_and_learns(config):
    model = Transformer(config)
    found = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert list(found.items()) == list(parameter_shapes(config).items())
    assert count_parameters(config) == sum(weight.numel() for weight in model.parameters())
    initialise(model, 3)
    first = model.loss(tokens(4, 20), tokens(4, 20, seed=1)).item()
    assert first == pytest.approx(math.log(50), abs=0.5)
    model = make_model(config).train()
    model.loss(tokens(4, 20), tokens(4, 20, seed=1)).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        # Softmax does not notice what is added to all scores of a query alike: with keys that
        # are not normed and not turned, their bias does that.
        if not name.endswith("k_proj.bias") or config.qk_norm or config.positions == "rotary":
            assert weight.grad.abs().max() > 0, name


@every_choice
@pytest.mark.parametrize("pieces", [[1] * 30, [10] + [1] * 20, [5, 13, 1, 11]], ids=str)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward_pass(config, pieces):
    model, x = make_model(config), tokens(2, 30)
    cache = KeyValueCache(config, 2, 30)
    logits = torch.cat([model(piece, cache) for piece in x.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)


@every_choice
@torch.no_grad()
def test_no_token_sees_the_future_or_another_document(config):
    model, x = make_model(config), tokens(1, 20)
    changed = x.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 50
    torch.testing.assert_close(model(x)[:, :12], model(changed)[:, :12])
    assert not torch.allclose(model(x)[:, 12:], model(changed)[:, 12:])
    documents = torch.tensor([[0] * 8 + [1] * 12])
    changed[0, :8] = (x[0, :8] + 1) % 50
    changed[0, 8:] = x[0, 8:]
    apart, other = model(x, documents_BT=documents), model(changed, documents_BT=documents)
    torch.testing.assert_close(apart[:, 8:], other[:, 8:])
    assert not torch.allclose(model(x)[:, 8:], model(changed)[:, 8:])


@every_choice
def test_flops_of_a_token_are_those_that_torch_counts(config):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    config, T = replace(config, vocab_size=211, attention_dropout=0.0), 40
    model = Transformer(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(tokens(2, T), tokens(2, T)).backward()
    # Torch counts the whole (T, T) square of scores; the patterns leave a part of it.
    whole = 12 * config.num_layers * config.num_heads * config.head_dim * T
    full = flops_per_token(replace(config, attention_layers="full"), T)
    seen = flops_per_token(config, T)
    counted = counter.get_total_flops() / (2 * T) - whole * (1 - (T + 1) / 2 / T)
    assert full == pytest.approx(counted, rel=0.02)
    assert (seen < full) == (config.attention_layers != "full")


@torch.no_grad()
def test_dropout_works_while_training_and_not_after():
    model = make_model(CONFIGS["dropout"])
    x = tokens(2, 20)
    assert torch.equal(model(x), model(x))
    for field in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        one = Transformer(replace(TINY, **{field: 0.3}))
        one.load_state_dict(model.state_dict())
        torch.manual_seed(0)
        assert not torch.equal(one.train()(x), one(x)), field
        torch.testing.assert_close(one.eval()(x), model(x))


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@torch.no_grad()
def test_a_classic_block_is_the_layer_of_pytorch(placement, activation):
    config = replace(
        CONFIGS["classic"], norm_placement=placement, positions="none", feed_forward=activation
    )
    model, x = make_model(config), tokens(2, 11)
    hidden = torch.nn.Transformer.generate_square_subsequent_mask(11)
    y = model.embed_tokens(x)
    for block in model.layers:
        theirs = torch.nn.TransformerEncoderLayer(
            32, 4, 48, 0.0, activation, layer_norm_eps=config.rms_norm_epsilon, batch_first=True,
            norm_first=placement == "pre",
        )  # fmt: skip
        ours = {name: weight for name, weight in block.named_parameters()}
        for kind in ("weight", "bias"):
            three = [ours[f"self_attn.{name}_proj.{kind}"] for name in "qkv"]
            getattr(theirs.self_attn, f"in_proj_{kind}").copy_(torch.cat(three))
            for name, module in (
                ("self_attn.o_proj", theirs.self_attn.out_proj),
                ("mlp.up_proj", theirs.linear1), ("mlp.down_proj", theirs.linear2),
                ("input_layernorm", theirs.norm1), ("post_attention_layernorm", theirs.norm2),
            ):  # fmt: skip
                getattr(module, kind).copy_(ours[f"{name}.{kind}"])
        y = theirs(y, src_mask=hidden, is_causal=True)
    logits = model.lm_head(model.norm(y))
    torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-5)


def test_sinusoidal_positions_are_those_of_the_paper():
    table = Sinusoidal(replace(TINY, hidden_size=16)).table_PD
    for position in (0, 1, 47):
        for i in range(8):
            angle = position / 10_000 ** (2 * i / 16)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


REFUSED = [
    ({"num_kv_heads": 3}, "does not divide", "choose one of: 1, 2, 4"),
    ({"head_dim": 63}, "is odd", "model.head_dim=64"),
    ({"positions": "sinusoidal", "hidden_size": 255}, "is odd", "model.hidden_size=256"),
    ({"attention_layers": "full,windows"}, "names 'windows'", "did you mean window?"),
    ({"attention_layers": ""}, "names ''", "did you mean"),
    ({"attention_layers": ",".join(["full"] * 7)}, "names 7 layers", "full,full,full,full,full,f"),
    ({"attention_layers": "window"}, "sliding_window is 0", "model.sliding_window=64"),
    ({"sliding_window": 5}, "no effect without a window layer", "attention_layers=window"),
    ({"sparse_stride": 2}, "no effect without a blocks layer", "attention_layers=blocks"),
    ({"rope_factor": 2.0}, "no effect without model.rope_scaling", "rope_scaling=yarn"),
    ({"rope_scaling": "yarn"}, "stretches nothing", "model.rope_factor=4"),
    ({"rope_scaling": "linear", "rope_factor": 2.0, "rope_beta_fast": 9.0}, "without", "yarn"),
    ({"rope_scaling": "yarn", "rope_factor": 2.0, "rope_beta_slow": 99.0}, "not less", "slow=1"),
    ({"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original_positions": 999}, "more than",
     "rope_original_positions=256"),
    ({"positions": "learned", "rope_theta": 9.0}, "without rotary positions", "positions=rotary"),
    ({"positions": "none", "rope_scaling": "yarn", "rope_factor": 2.0}, "rotary", "rotary"),
    ({"norm": "batch"}, "one of: rms, layer", ""),
    ({"residual_dropout": 1.0}, "at most 0.9", ""),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "what", "hint"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_what_cannot_be_together_is_refused_with_the_nearest_choice(choice, what, hint):
    overrides = {f"model.{name}": value for name, value in choice.items()}
    with pytest.raises(ConfigError) as caught:
        resolve(overrides=overrides)
    text = str(caught.value)
    assert what in text and hint in text
    assert any(f"model.{name}" in text for name in choice)


CHOSEN = {"model.attention_layers": "full,window", "model.sliding_window": "16"}


def test_a_swarm_that_repeats_trainings_has_no_dropout():
    with pytest.raises(ConfigError, match="nobody can repeat a training"):
        resolve(overrides={"model.residual_dropout": 0.1, "swarm.audits": 0.1})


def test_a_swarm_agrees_on_what_its_model_is_made_of():
    config = resolve(size="nano", family="gpt2-classic", overrides=CHOSEN).config
    read = recipe_config(recipe_bytes(config))
    assert (read.model, read.family) == (config.model, "gpt2-classic")
    assert read.model.attention_layers == "full,window"


def test_a_family_derives_what_a_model_is_made_of_and_says_so():
    resolved = resolve(size="small", family="gpt2-classic")
    model, origins = resolved.config.model, resolved.origins
    assert (model.positions, model.norm, model.feed_forward) == ("learned", "layer", "gelu-tanh")
    assert model.num_kv_heads == model.num_heads == 8 and model.intermediate_size == 4 * 512
    for name in ("num_kv_heads", "intermediate_size", "norm", "mlp_bias"):
        assert origins[f"model.{name}"] == "family gpt2-classic"
    assert origins["model.hidden_size"] == "size small"
    wider = resolve(family="gpt2-classic", overrides={"model.num_heads": "8"}).config.model
    assert wider.num_kv_heads == 8, "it follows what is given"
    own = resolve(family="gpt2-classic", overrides={"model.num_kv_heads": "2"})
    assert (
        own.config.model.num_kv_heads == 2 and own.origins["model.num_kv_heads"] == "command line"
    )
    assert not resolve(environment={"PEERFORMER_FAMILY": "llama"}).config.model.qk_norm
    with pytest.raises(ConfigError, match="did you mean llama"):
        resolve(family="lama")
