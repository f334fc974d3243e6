"""`generate`, `predict` and `export`, as typed, on a model saved to disk."""

import json
import os
import re
import sys
from dataclasses import replace

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


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_several_prompts_become_what_each_becomes_alone(capsys, checkpoint, tmp_path):
    (tmp_path / "more.txt").write_text("a dog\n\nsleeps\n")
    (tmp_path / "more.jsonl").write_text('{"prompt": "over\\nthe"}\n"lazy"\n')
    common = "--tokens", "9", "--json", "--batch", "2"
    for file, prompts in (
        ("more.txt", ["the fox", "quick", "a dog", "sleeps"]),
        ("more.jsonl", ["the fox", "quick", "over\nthe", "lazy"]),
    ):
        arguments = "generate", "the fox", "quick", "--prompts", file, "--seed", "7", *common
        rows = lines_of(run(capsys, *arguments))
        assert [row["prompt"] for row in rows] == prompts
        for number, row in enumerate(rows):
            alone = run(capsys, "generate", row["prompt"], "--seed", str(7 + number), *common)
            assert json.loads(alone) == row
    text = run(capsys, "generate", "the fox", "quick", "--seed", "7", "--tokens", "9")
    assert text.startswith("── 1 of 2 ──\nthe fox" + rows[0]["text"])
    assert text.endswith("── 2 of 2 ──\nquick" + rows[1]["text"] + "\n")


def test_generate_shows_log_probabilities_as_json_and_as_a_table(capsys, checkpoint):
    arguments = "generate", "the fox", "--tokens", "5", "--seed", "2", "--logprobs", "3"
    (row,) = lines_of(run(capsys, *arguments, "--json"))
    assert len(row["logprobs"]) == row["tokens"] == 5
    for token in row["logprobs"]:
        top = [one["logprob"] for one in token["top"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and token["logprob"] <= top[0]
    table = run(capsys, *arguments).splitlines()[-5:]
    assert [float(line.split()[0]) for line in table] == pytest.approx(
        [token["logprob"] for token in row["logprobs"]], abs=1e-3
    )


def test_generate_ends_before_a_stop_string(capsys, checkpoint):
    arguments = "generate", "the fox", "--tokens", "9", "--seed", "2", "--json"
    whole = json.loads(run(capsys, *arguments))["text"]
    stop = whole[3:5]
    cut = json.loads(run(capsys, *arguments, "--stop", "never", "--stop", stop))
    assert cut["text"] == whole[: whole.find(stop)]
    assert (cut["stopped_by"], cut["stop"]) == ("stop string", stop)


def test_beams_are_shown_with_their_scores_the_best_first(capsys, checkpoint):
    arguments = "generate", "the fox", "--beams", "4", "--n-best", "3", "--length-penalty", "0.5"
    rows = lines_of(run(capsys, *arguments, "--json"))
    scores = [row["score"] for row in rows]
    assert len(rows) == 3 and scores == sorted(scores, reverse=True)
    assert all(row["seed"] is None for row in rows)
    text = run(capsys, *arguments)
    assert text.count("── 1 of 1   score") == 3 and "the fox" + rows[0]["text"] in text


@pytest.mark.parametrize("cache", ["int8", "paged", "paged-int8"])
def test_each_cache_writes(capsys, checkpoint, cache):
    arguments = "generate", "the fox", "the dog", "--tokens", "30", "--seed", "2", "--json"
    expected = lines_of(run(capsys, *arguments))
    found = lines_of(run(capsys, *arguments, "--cache", cache))
    assert [row["tokens"] for row in found] == [30, 30]
    assert cache != "paged" or found == expected


def test_shared_beginnings_are_computed_once_and_counted(capsys, checkpoint):
    prompts = [f"the quick brown fox {word}" for word in ("a", "b", "c", "d")]
    main(
        ["generate", *prompts, "--tokens", "3", "--batch", "1", "--seed", "1"]
        + ["--cache", "paged", "--page-size", "2", "--prefix-cache", "arc", "--prefix-pages", "9"]
    )
    captured = capsys.readouterr()
    assert captured.out.count("── ") == 4
    found, asked = re.search(r"prefixes +(\d+) of (\d+)", captured.err).groups()
    assert 0 < int(found) < int(asked) and "in use at most" in captured.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--beams 3 --temperature 0.5", "--temperature does not go with --beams"),
        ("--beams 3 --top-k 5", "--top-k does not go with --beams"),
        ("--beams 3 --typical 0.5", "--typical does not go with --beams"),
        ("--beams 3 --stop x", "--stop does not go with --beams"),
        ("--beams 3 --logprobs 1", "--logprobs does not go with --beams"),
        ("--beams 3 --seed 1", "--seed does not go with --beams"),
        ("--beams 3 --batch 2", "--batch does not go with --beams"),
        ("--tokens -3 --cache paged", "-3 tokens cannot be made"),
        ("--beams 3 --n-best 4", "--n-best is 4"),
        ("--beams 1", "--temperature 0"),
        ("--beams 3 --tokens 0", "a beam of 0 tokens"),
        ("--beams 3 --tokens 99", "do not fit the context"),
        ("--n-best 2", "--n-best has no meaning without --beams"),
        ("--length-penalty 2", "--length-penalty has no meaning without --beams"),
        ("--early-stopping never", "--early-stopping has no meaning without --beams"),
        ("--temperature 0 --top-k 5", "--top-k has no meaning at temperature 0"),
        ("--page-size 4", "--cache paged --page-size 4"),
        ("--cache-pages 4", "--cache paged --cache-pages 4"),
        ("--prefix-cache lru", "--cache paged --prefix-cache lru"),
        ("--cache paged --prefix-pages 4", "--prefix-pages has no meaning without"),
        ("--cache paged --cache-pages 1 --page-size 2", "the pool of 1 pages is used up"),
        ("--stop=", "a stop string has 0 characters"),
        ("--logprobs 9999", "9999 alternatives"),
        ("--batch 0", "--batch is 0"),
        ("--min-p 2", "min-p is 2"),
        ("--repetition-penalty 0", "repetition-penalty is 0"),
        ("--cache heap", "contiguous"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_refused_with_one_error(capsys, checkpoint, flags, words):
    text = run(capsys, "generate", "the fox", *flags.split(), exit_code=2)
    assert words in text.replace("`", "") and text.count("error:") == 1


def test_prompts_that_cannot_be_read_are_named(capsys, checkpoint, tmp_path):
    (tmp_path / "bad.jsonl").write_text('"fine"\n{"text": 1}\n')
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "bad.jsonl, line 2" in run(capsys, "generate", "--prompts", "bad.jsonl", exit_code=1)
    assert "not UTF-8" in run(capsys, "generate", "--prompts", "bytes.txt", exit_code=1)
    assert "cannot be read" in run(capsys, "generate", "--prompts", "none.txt", exit_code=1)
    assert "no prompt" in run(capsys, "generate", "--prompts", "empty.txt", exit_code=2)
    assert "no prompt" in run(capsys, "generate", exit_code=2)


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


def test_export_refuses_what_hugging_face_cannot_express(capsys, checkpoint, tmp_path):
    model = load_model(checkpoint)
    config = replace(model.config, attention_sinks=True)
    save_model(checkpoint, Transformer(config), (checkpoint / "tokenizer.json").read_bytes())
    text = run(capsys, "export", "brave-otter", "--to", "out", exit_code=1)
    assert "attention_sinks is True, not False" in text
    assert sorted(os.listdir(tmp_path)) == ["runs"]
    assert run(capsys, "generate", "the quick", "--from", "brave-otter", "--tokens", "3")


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
