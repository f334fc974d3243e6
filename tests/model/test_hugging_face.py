"""The same model in Hugging Face's transformers: same logits, same text, in both directions.

Everything that imports transformers is in this file, because the import takes seconds.
"""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

from peerformer.config import ModelConfig
from peerformer.generate.engine import generate
from peerformer.generate.sampling import Sampling
from peerformer.model.convert import config_from_hf, load_model, save_model
from peerformer.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=32, rope_theta=5_000.0, rms_norm_epsilon=1e-5,
)  # fmt: skip
CONFIGS = {
    "tied": TINY,
    "untied": replace(TINY, tie_embeddings=False),
    "every head its own keys": replace(TINY, num_kv_heads=4),
    "one key-value head": replace(TINY, num_kv_heads=1, tie_embeddings=False, head_dim=6),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make_model(config):
    """A model in which every weight matters: large matrices, and norms that are not 1."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                deviation = weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
            else:
                weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
    return model


def tokens():
    return torch.randint(96, (2, 30), generator=torch.Generator().manual_seed(5))


def load_theirs(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    ).eval()


@every_config
@torch.no_grad()
def test_transformers_gives_the_logits_of_our_checkpoint(tmp_path, config):
    model = make_model(config)
    save_model(tmp_path, model, None)
    theirs = load_theirs(tmp_path)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), rtol=1e-5, atol=1e-5)


@every_config
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
@torch.no_grad()
def test_a_checkpoint_of_transformers_gives_its_logits_here(tmp_path, config, shard_size):
    save_model(tmp_path, make_model(config), None)
    settings = json.loads((tmp_path / "config.json").read_text())
    torch.manual_seed(6)
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings)).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    model = load_model(tmp_path / "theirs")
    assert model.config == config
    torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)


@every_config
@torch.no_grad()
def test_greedy_decoding_makes_the_text_that_transformers_makes(tmp_path, config):
    model = make_model(config)
    save_model(tmp_path, model, None)
    prompt = tokens()[0, :5].tolist()
    greedy = Sampling(temperature=0)
    ours = generate(model, prompt, sampling=greedy, tokens_max=20, stop_ids=set(), seed=0)
    theirs = load_theirs(tmp_path).generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False
    )
    assert list(ours) == theirs[0, 5:].tolist()


def test_an_exported_run_is_checked_and_its_tokenizer_is_read_alike(tmp_path, capsys):
    from peerformer.data.tokenizer import load_tokenizer
    from peerformer.interface.commands.export import export

    texts = ["the quick brown fox jumps over the lazy dog"] * 4
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=300, special_tokens=["<|endoftext|>"])
    config = replace(TINY, vocab_size=tokenizer.get_vocab_size())
    (tmp_path / "in").mkdir()
    save_model(tmp_path / "in", make_model(config), tokenizer.to_str().encode())
    export(str(tmp_path / "in"), to=tmp_path / "out")
    assert "Checked: transformers loads it and gives the same logits" in capsys.readouterr().out
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    ours = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    text = "The lazy fox\n jumps — naïve ünïcode 🦊"
    assert theirs(text)["input_ids"] == list(ours.encode(text))
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token == "<|endoftext|>" and theirs.eos_token_id == ours.end_of_text_id


def test_the_configuration_that_transformers_writes_is_understood(tmp_path):
    for name, config in CONFIGS.items():
        save_model(tmp_path, make_model(config), None)
        transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / name)
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert config_from_hf(written, name) == config
