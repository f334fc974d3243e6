"""Pairs from the command line: trained on, ranked beside baselines, and asked for by word."""

import json
import random
import sys

import pytest

from peerformer.interface.cli import main

SEED = 4
SOUNDS = dict(
    cat="meows", dog="barks", cow="moos", owl="hoots", frog="croaks", duck="quacks",
    bee="buzzes", lion="roars", mouse="squeaks", horse="neighs",
)  # fmt: skip
PLACES = ["the river", "the old barn", "a market", "that hill", "the forest"]
DAYS = ["on Monday", "on Friday", "at noon", "at night"]
STEPS = 45


def made_pairs(count: int, delimiter: str = "|") -> list[str]:
    """What an animal does is told by its name, which stands too far back for an n-gram."""
    generator = random.Random(SEED)
    lines: set[str] = set()
    while len(lines) < count:
        animal, place, day = map(generator.choice, (list(SOUNDS), PLACES, DAYS))
        filler = " ".join(generator.choices(["and", "then", "so", "well"], k=3))
        lines.add(f"one {animal} near {place} {day} {filler} often {delimiter}{SOUNDS[animal]}")
    return sorted(lines, key=lambda _: generator.random())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on pairs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = made_pairs(900)
    (folder / "pairs.txt").write_text("\n".join([*lines[:800], "no pair here"]))
    (folder / "unseen.txt").write_text("\n".join(lines[800:]).replace("|", "#"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = (
            f"train --data pairs.txt --size nano --run pairs --steps {STEPS} --data.vocab_size 320"
            " --training.sequence_length 64 --model.num_layers 2 --training.validate_every 1000"
        )
        assert main(arguments.split()) == 0
    return folder


@pytest.fixture(autouse=True)
def in_its_folder(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it is slow


def run(capsys, *arguments, exit_code=0):
    capsys.readouterr()
    found = main(list(arguments))
    captured = capsys.readouterr()
    assert found == exit_code, captured.err
    return captured


def test_a_model_knows_completions_that_no_ngram_can(capsys, trained):
    found = json.loads(run(capsys, "evaluate", "pairs", "--data", "unseen.txt", "--json").out)
    model, ngram, unigram = (found["pairs"][name] for name in found["pairs"])
    assert list(found["pairs"])[1].startswith("n-gram, order") and model["words"] == 100
    assert model["top5"] > 0.9 > 0.75 > max(ngram["top5"], unigram["top5"]), f"seed {SEED}"
    assert model["mean_reciprocal_rank"] > max(
        ngram["mean_reciprocal_rank"], unigram["mean_reciprocal_rank"]
    )
    assert model["perplexity"] < unigram["perplexity"]
    assert found["perplexity"] >= 1 and found["validation_bits_per_byte"] > 0
    asked = (trained / "unseen.txt").read_text().splitlines()
    assert found["bytes"] == sum(1 + len(line.split("#")[1]) for line in asked)


def test_what_a_run_held_out_is_ranked_as_a_table(capsys):
    told = run(capsys, "evaluate", "pairs").out
    for word in ("bits per byte", "perplexity", "top-1", "top-5", "MRR", "unigram", "n-gram"):
        assert word in told


def test_without_the_pairs_of_the_run_there_are_no_baselines_unless_they_are_given(
    capsys, trained, tmp_path
):
    checkpoint = trained / "runs" / "pairs" / (trained / "runs/pairs/latest").read_text().strip()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (moved / name).write_bytes((checkpoint / name).read_bytes())
    told = run(capsys, "evaluate", str(moved), "--data", "unseen.txt").out
    assert "no baselines" in told and "n-gram" not in told
    arguments = ("--data", "unseen.txt", "--baseline-data", "pairs.txt")
    captured = run(capsys, "evaluate", str(moved), *arguments)
    assert "n-gram" in captured.out and "pairs.txt:801" in captured.err


def test_lines_that_are_no_pairs_are_plain_text_where_pairs_are_switched_off(capsys):
    arguments = ("--data", "unseen.txt", "--pairs", "off", "--json")
    found = json.loads(run(capsys, "evaluate", "pairs", *arguments).out)
    assert "pairs" not in found and found["bytes"] > 5_000
    refused = run(capsys, "evaluate", "pairs", "--data", "unseen.txt", "--pairs", ";", exit_code=2)
    assert "data.pairs" in refused.err


def test_whole_words_are_predicted_with_their_probabilities(capsys):
    prompt = "one owl near the river at noon so then well often"
    rows = json.loads(run(capsys, "predict", "pairs", prompt, "--words", "--json").out)
    assert len(rows) == 5 and rows[0]["word"] == "hoots"
    assert (
        rows[0]["probability"] > rows[1]["probability"]
        and sum(row["probability"] for row in rows) <= 1 + 1e-6
    )
    assert "hoots" in run(capsys, "predict", "pairs", prompt, "--words", "--top", "1").out
    refused = run(capsys, "predict", "pairs", prompt, "--words", "--top", "0", exit_code=2)
    assert "0 words" in refused.err


def test_a_run_on_chats_is_exported_with_the_template_that_it_learned(capsys, tmp_path):
    def chat(number: int) -> dict[str, object]:
        says = [("user", f"What is {number}?"), ("assistant", f"It is {number}.")]
        return {"messages": [{"role": role, "content": content} for role, content in says]}

    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(chat(n)) for n in range(120)))
    shape = (
        "--size nano --steps 1 --data.vocab_size 320 --training.sequence_length 16"
        " --model.num_layers 1 --training.validation_sequences 2"
    )
    run(capsys, "train", "--data", str(tmp_path / "chats.jsonl"), "--run", "chats", *shape.split())
    run(capsys, "export", "chats", "--to", str(tmp_path / "exported"))
    template = (tmp_path / "exported" / "chat_template.jinja").read_text()
    assert "<|im_start|>" in template
    arguments = ("--data", str(tmp_path / "chats.jsonl"), "--json")
    found = json.loads(run(capsys, "evaluate", "chats", *arguments).out)
    assert found["bytes"] == sum(len(f"It is {n}.") for n in range(120))
