"""Qwen3-MoE in Hugging Face's transformers: the same logits, losses and gradients both ways."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from peerformer.config import ModelConfig
from peerformer.errors import CheckpointError
from peerformer.generate.engine import generate
from peerformer.generate.sampling import Sampling
from peerformer.interface.commands.export import export
from peerformer.model.convert import config_from_hf, hf_config, hf_shapes, load_model, save_model
from peerformer.model.experts_on_disk import split_experts, stack_experts
from peerformer.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=32, rope_theta=5_000.0, rms_norm_epsilon=1e-5,
    num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, router_aux_loss_coef=0.02,
)  # fmt: skip
CONFIGS = {
    "top 2 of 6": TINY,
    "weights as they are": replace(TINY, norm_topk_prob=False, tie_embeddings=False),
    "every second layer": replace(TINY, decoder_sparse_step=2, num_experts_per_tok=3),
    "stretched positions": replace(TINY, rope_scaling="yarn", rope_factor=4.0),
    "dense layers by name": replace(TINY, mlp_only_layers="0,2", num_experts_per_tok=1),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make_model(config):
    """A model in which every weight matters: large matrices, and norms that are not 1."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            random = torch.randn(weight.shape, generator=generator)
            weight.copy_(random * weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1 + random / 4)
    return model


def tokens():
    return torch.randint(96, (2, 30), generator=torch.Generator().manual_seed(5))


def load_theirs(directory, **settings):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, **settings
    ).eval()


@every_config
@torch.no_grad()
def test_transformers_gives_the_logits_of_our_experts(tmp_path, config):
    model = make_model(config)
    save_model(tmp_path, model, None)
    theirs = load_theirs(tmp_path)
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), rtol=1e-5, atol=1e-5)


@every_config
@pytest.mark.parametrize("shard_size", ["1GB", "30KB"])
@torch.no_grad()
def test_experts_of_transformers_give_its_logits_here(tmp_path, config, shard_size):
    settings = json.loads(json.dumps(hf_config(config)))
    torch.manual_seed(6)
    theirs = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**settings)).eval()
    for weight in theirs.parameters():  # its own are so small that any expert would do
        weight.copy_(torch.randn(weight.shape) * weight.shape[-1] ** -0.5)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    model = load_model(tmp_path / "theirs")
    assert model.config == config
    torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_greedy_decoding_makes_the_text_that_transformers_makes(tmp_path):
    model = make_model(TINY)
    save_model(tmp_path, model, None)
    prompt = tokens()[0, :5].tolist()
    greedy = Sampling(temperature=0)
    ours = generate(model, prompt, sampling=greedy, tokens_max=20, stop_ids=set(), seed=0)
    theirs = load_theirs(tmp_path).generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False
    )
    assert list(ours) == theirs[0, 5:].tolist()


def test_loss_and_gradients_with_the_balancing_loss_are_those_of_transformers(tmp_path):
    # With one sparse layer, because transformers averages over layers before it multiplies.
    config = replace(TINY, mlp_only_layers="0,2", router_z_loss_coef=0.0, router_aux_loss_coef=0.5)
    model = make_model(config).train()
    save_model(tmp_path, model, None)
    theirs = load_theirs(tmp_path, output_router_logits=True).train()
    loss = model.loss(tokens()[:, :-1], tokens()[:, 1:])
    their_loss = theirs(tokens()[:, :-1], labels=None, output_router_logits=True)
    cross_entropy = torch.nn.functional.cross_entropy(
        their_loss.logits.flatten(0, 1), tokens()[:, 1:].flatten()
    )
    total = cross_entropy + 0.5 * their_loss.aux_loss
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)
    loss.backward()
    total.backward()
    gradients = {f"model.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, parameter in theirs.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-4, atol=1e-5)
    assert not gradients, "transformers names all of them"


def test_on_disk_every_expert_has_tensors_of_its_own_and_they_come_back(tmp_path):
    model = make_model(replace(TINY, mlp_only_layers="1"))
    save_model(tmp_path, model, None)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["model.layers.2.mlp.experts.5.up_proj.weight"].shape == (20, 32)
    expected = model.layers[2].mlp.experts.gate_up_proj[5, 20:]
    assert torch.equal(saved["model.layers.2.mlp.experts.5.up_proj.weight"], expected)
    assert not [name for name in saved if "gate_up" in name]
    assert hf_shapes(model.config) == {name: tuple(t.shape) for name, t in saved.items()}
    state = dict(model.named_parameters())
    again = stack_experts(split_experts(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(loaded.get_parameter(name), tensor) for name, tensor in state.items())


def test_a_checkpoint_without_one_expert_is_refused_by_its_name(tmp_path):
    from safetensors.torch import save_file

    save_model(tmp_path, make_model(TINY), None)
    saved = load_file(tmp_path / "model.safetensors")
    del saved["model.layers.1.mlp.experts.3.down_proj.weight"]
    save_file(saved, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.3\.down_proj"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"num_experts_per_tok": 7},
        {"num_local_experts": 0},
        {"moe_intermediate_size": "wide"},
        {"mlp_only_layers": "0"},
        {"mlp_only_layers": [0, 1, 2]},
        {"decoder_sparse_step": 9},
        {"num_experts_per_tok": True, "num_experts": -3},
    ],
    ids=str,
)
def test_experts_that_cannot_be_are_refused(change):
    with pytest.raises(CheckpointError):
        config_from_hf({**hf_config(TINY), **change}, "x")


OWN = {
    "shared_expert_intermediate_size": replace(TINY, shared_expert_intermediate_size=24),
    "router_bias_update_rate": replace(TINY, router_bias_update_rate=0.01),
}


@pytest.mark.parametrize("field", OWN)
@torch.no_grad()
def test_what_no_model_of_theirs_has_is_kept_whole_and_never_taken_for_one(tmp_path, field):
    model = make_model(OWN[field])
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", model, None)
    loaded = load_model(tmp_path / "ours")
    assert loaded.config == model.config and torch.equal(loaded(tokens()), model(tokens()))
    with pytest.raises(ValueError, match="peerformer"):
        load_theirs(tmp_path / "ours")
    with pytest.raises(CheckpointError) as caught:
        export(str(tmp_path / "ours"), to=tmp_path / "out")
    assert f"qwen3_moe: model.{field} is" in str(caught.value) and not (tmp_path / "out").exists()


def test_an_exported_mixture_is_checked(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    save_model(tmp_path / "in", make_model(TINY), None)
    export(str(tmp_path / "in"), to=tmp_path / "out")
    assert "Checked: transformers loads it and gives the same logits" in capsys.readouterr().out
