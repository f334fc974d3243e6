"""`generate`, `predict` and `export`, as typed, on a model saved to disk."""

import json
import os
import sys

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

from peerformer.config import ModelConfig
from peerformer.data.tokenizer import load_tokenizer
from peerformer.interface.cli import main
from peerformer.model.convert import load_model, save_model
from peerformer.model.transformer import Transformer

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps"
EXPORTED = {
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint_bytes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT] * 4, vocab_size=300, special_tokens=["<|endoftext|>"])
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=24,
        num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, max_positions=24,
    )  # fmt: skip
    save_model(directory, Transformer(config), tokenizer.to_str().encode())
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch, checkpoint_bytes):
    """A run named brave-otter under ./runs, and nothing else in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)  # not installed; importing it is slow
    directory = tmp_path / "runs" / "2026-11-24-brave-otter" / "checkpoints" / "step-00000005"
    directory.mkdir(parents=True)
    for name, data in checkpoint_bytes.items():
        (directory / name).write_bytes(data)
    (directory.parents[1] / "latest").write_text("checkpoints/step-00000005")
    return directory


def run(capsys, *arguments, exit_code=0):
    found = main(list(arguments))
    captured = capsys.readouterr()
    assert found == exit_code, captured.err
    return captured.err if exit_code else captured.out


def test_generate_continues_the_prompt_with_the_newest_run(capsys, checkpoint):
    text = run(capsys, "generate", "the fox", "--tokens", "40", "--seed", "5")
    assert text.startswith("the fox") and text.endswith("\n") and len(text) > len("the fox\n")
    assert text == run(capsys, "generate", "the fox", "--tokens", "40", "--seed", "5")
    named = run(
        capsys, "generate", "the fox", "--tokens", "40", "--seed", "5", "--from", "brave-otter"
    )
    assert named == text
    others = [run(capsys, "generate", "the fox", "--tokens", "40") for _ in range(3)]
    assert len(set(others)) > 1, "without a seed each text is another"


def test_generate_says_as_json_what_it_did(capsys, checkpoint):
    arguments = "generate", "the fox", "--tokens", "40", "--seed", "2", "--top-k", "20"
    result = json.loads(run(capsys, *arguments, "--json"))
    assert result["prompt"] == "the fox" and result["seed"] == 2
    assert result["tokens"] == 40 and result["stopped_by"] == "length"
    assert run(capsys, *arguments) == "the fox" + result["text"] + "\n"


def test_generate_at_temperature_zero_needs_no_seed(capsys, checkpoint):
    arguments = "generate", "a dog", "--tokens", "12", "--temperature", "0"
    assert run(capsys, *arguments) == run(capsys, *arguments)


def test_generate_starts_a_text_from_nothing(capsys, checkpoint):
    result = json.loads(run(capsys, "generate", "", "--tokens", "5", "--seed", "3", "--json"))
    assert result["tokens"] > 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["generate", "x", "--temperature", "-1"], 2, "temperature is -1"),
        (["generate", "x", "--top-p", "2"], 2, "top-p is 2"),
        (["generate", "x", "--seed", "-1"], 2, "seed"),
        (["generate", "x", "--from", "calm-otter"], 1, "brave-otter"),
        (["predict", "calm-otter", "x"], 1, "brave-otter"),
        (["predict", "brave-otter", "x", "--top", "0"], 2, "--top 5"),
        (["export", "brave-otter"], 2, "--to"),
    ],
    ids=str,
)
def test_wrong_usage_is_refused_in_plain_words(capsys, checkpoint, arguments, exit_code, words):
    assert words in run(capsys, *arguments, exit_code=exit_code)


def test_generate_without_any_run_says_how_to_make_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "peerformer train" in run(capsys, "generate", "x", exit_code=1)


def test_predict_lists_the_likeliest_tokens(capsys, checkpoint):
    rows = json.loads(run(capsys, "predict", "brave-otter", "the quick", "--top", "4", "--json"))
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    with torch.no_grad():
        logits = load_model(checkpoint)(torch.tensor([list(tokenizer.encode("the quick"))]))
    values, ids = logits[0, -1].softmax(-1).topk(4)
    assert [row["token"] for row in rows] == ids.tolist()
    assert [row["probability"] for row in rows] == pytest.approx(values.tolist(), abs=1e-6)
    assert [row["text"] for row in rows] == [tokenizer.decode([i]) for i in ids.tolist()]
    assert len(run(capsys, "predict", str(checkpoint), "the quick").splitlines()) == 5


def test_export_writes_a_checkpoint_and_says_that_it_was_not_checked(capsys, checkpoint):
    text = run(capsys, "export", "brave-otter", "--to", "out/model")
    assert "Not checked" in text and "out/model" in text
    assert {name for name in os.listdir("out/model")} == EXPORTED
    assert os.listdir("out") == ["model"], "nothing is left beside it"
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json").to_bytes()
    with open("out/model/tokenizer.json", "rb") as file:
        assert file.read() == tokenizer
    assert torch.equal(load_model("out/model").norm.weight, load_model(checkpoint).norm.weight)


def test_export_replaces_only_an_earlier_export_and_only_when_told(capsys, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    run(capsys, "export", "brave-otter", "--to", "out")
    (out / "config.json").write_text("old")
    assert "--overwrite" in run(capsys, "export", "brave-otter", "--to", "out", exit_code=2)
    assert (out / "config.json").read_text() == "old"
    run(capsys, "export", "brave-otter", "--to", "out", "--overwrite")
    load_model(out)
    (out / "thesis.tex").write_text("years of work")
    text = run(capsys, "export", "brave-otter", "--to", "out", "--overwrite", exit_code=2)
    assert "thesis.tex" in text and (out / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    run(capsys, "export", "brave-otter", "--to", "file", "--overwrite", exit_code=2)


def test_a_damaged_checkpoint_exports_nothing(capsys, checkpoint, tmp_path):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    text = run(capsys, "export", "brave-otter", "--to", "out", exit_code=1)
    assert "model.safetensors is damaged" in text and str(path.name) in text
    assert sorted(os.listdir(tmp_path)) == ["runs"]
