"""`peerformer tokenizer …`, as typed: files are written whole, what cannot be is refused."""

import base64
import io
import json

import pytest
import sentencepiece
import torch

from peerformer.config import ModelConfig
from peerformer.data.synthetic import synthetic_documents
from peerformer.data.tokenizer import load_tokenizer, train_tokenizer
from peerformer.interface.cli import main
from peerformer.model.convert import load_model, save_model
from peerformer.model.transformer import Transformer

STORIES = "synthetic:3"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments, exit_code=0):
    found = main(["tokenizer", *arguments])
    captured = capsys.readouterr()
    assert found == exit_code, captured.err
    return captured.err if exit_code else captured.out


def trained(capsys, to, *more):
    arguments = ("--data", STORIES, "--data.max_bytes", "60000", "--data.vocab_size", "400")
    run(capsys, "train", "--to", to, *arguments, *more)
    return load_tokenizer(to)


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "unigram"])
def test_a_trained_vocabulary_is_shown_with_its_kind_and_special_tokens(capsys, kind):
    made = trained(
        capsys, "a.json", "--data.tokenizer_kind", kind, "--data.special_tokens", "<|user|>,<|bot|>"
    )
    shown = json.loads(run(capsys, "show", "a.json", "--json", "--all", "--text", "Ada ran"))
    assert shown["kind"] == kind and shown["vocab_size"] == made.vocab_size
    assert shown["special_tokens"] == {"<|endoftext|>": 0, "<|user|>": 1, "<|bot|>": 2}
    assert len(shown["tokens"]) == made.vocab_size
    assert "".join(row["text"] for row in shown["text"]) == "Ada ran"
    told = run(capsys, "show", "a.json", "--text", "Ada ran")
    assert kind in told and "(ends a text)" in told and "bytes a token" in told


def test_a_file_of_ranks_and_a_sentencepiece_model_are_imported(capsys, tmp_path):
    lines = [base64.b64encode(bytes((byte,))) + b" %d" % byte for byte in range(256)]
    lines.append(base64.b64encode(b"Ad") + b" 256")
    (tmp_path / "made.tiktoken").write_bytes(b"\n".join(lines))
    run(capsys, "import", "made.tiktoken", "--to", "t.json", "--special", "<|endoftext|>=300")
    ranks = load_tokenizer("t.json")
    assert ranks.encode("Ada") == [256, ord("a")] and ranks.end_of_text_id == 300
    out = io.BytesIO()
    texts = (d.text.replace("\n", " ") for d in synthetic_documents(1, 60))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=out, vocab_size=300, minloglevel=2, model_type="bpe"
    )
    (tmp_path / "made.model").write_bytes(out.getvalue())
    run(capsys, "import", "made.model", "--to", "s.json")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    assert load_tokenizer("s.json").encode("Ada ran") == theirs.encode("Ada ran")


def test_vocabularies_are_merged_and_trimmed_with_the_model_of_one(capsys, tmp_path):
    tokenizer = trained(capsys, "a.json")
    trained(capsys, "b.json", "--data.vocab_size", "500")
    run(capsys, "merge", "a.json", "b.json", "--to", "c.json")
    assert load_tokenizer("c.json").vocab_size >= 500
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=8, max_positions=24,
    )  # fmt: skip
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", Transformer(shape), tokenizer.to_bytes())
    text = "Ada ran to the harbour."
    (tmp_path / "corpus.txt").write_text(text)
    run(
        capsys, "trim", "a.json", "--data", "corpus.txt", "--to", "small.json",
        "--model", "model", "--model-to", "small",
    )  # fmt: skip
    small, model = load_tokenizer("small"), load_model("small")
    assert small.digest() == load_tokenizer("small.json").digest()
    assert small.vocab_size == model.config.vocab_size < tokenizer.vocab_size
    before, after = tokenizer.encode(text), small.encode(text)
    assert [small.token_bytes(t) for t in after] == [tokenizer.token_bytes(t) for t in before]
    with torch.inference_mode():
        whole_TV = load_model("model")(torch.tensor([before]))[0]
        kept_TV = model(torch.tensor([after]))[0]
    assert torch.equal(kept_TV[:, after], whole_TV[:, before])


def test_what_cannot_be_is_one_clear_error(capsys, tmp_path):
    trained(capsys, "a.json")
    trained(capsys, "u.json", "--data.tokenizer_kind", "unigram")
    (tmp_path / "junk.model").write_bytes(b"\x00\x01\x02" * 50)
    (tmp_path / "cut.json").write_bytes((tmp_path / "a.json").read_bytes()[:900])
    for expected, arguments in (
        ("cannot be merged with", ("merge", "a.json", "u.json", "--to", "c.json")),
        ("SentencePiece model cannot be read", ("import", "junk.model", "--to", "c.json")),
        ("cannot be read", ("import", "nowhere.model", "--to", "c.json")),
        ("cannot be read", ("show", "cut.json")),
        ("cannot be read", ("import", "cut.json", "--to", "c.json")),
    ):
        told = run(capsys, *arguments, exit_code=1)
        assert expected in told and told.count("error:") == 1 and not (tmp_path / "c.json").exists()
    for expected, arguments in (
        ("go together", ("trim", "a.json", "--to", "c.json", "--model", "x")),
        ("has its special", ("import", "a.json", "--to", "c.json", "--special", "<|x|>=9")),
        ("has no id", ("import", "a.json", "--to", "c.json", "--special", "<|x|>")),
        ("tokenizer_kind", ("train", "--to", "c.json", "--data.tokenizer_kind", "wordpiece")),
    ):
        assert expected in run(capsys, *arguments, exit_code=2)
    arguments = ("--data.special_tokens", "word", "--data", STORIES)
    assert "cannot be a special token" in run(
        capsys, "train", "--to", "c.json", *arguments, exit_code=1
    )


def test_the_model_of_another_tokenizer_is_not_trimmed(capsys, tmp_path):
    trained(capsys, "a.json")
    other = train_tokenizer(["something else"], 270)
    (tmp_path / "model").mkdir()
    shape = ModelConfig(vocab_size=other.vocab_size, hidden_size=16, num_layers=1)
    save_model(tmp_path / "model", Transformer(shape), other.to_bytes())
    told = run(
        capsys, "trim", "a.json", "--data", STORIES, "--to", "c.json", "--model", "model",
        "--model-to", "small", exit_code=1,
    )  # fmt: skip
    assert "trained with another tokenizer" in told
