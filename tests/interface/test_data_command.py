"""`peerformer data` on the command line, and training on what it prepared."""

import json
from pathlib import Path

import pytest

from peerformer.config import DataConfig
from peerformer.data.prepare import prepare as prepare_text
from peerformer.interface.cli import main


def texts(folder: Path) -> Path:
    (folder / "letters").mkdir(parents=True)
    for number in range(30):
        text = f"Dear madam, parcel {number} has arrived and is in good order. " * 12
        (folder / "letters" / f"{number:02}.txt").write_text(text)
    rows = [json.dumps({"text": f"Minute {number} of the meeting."}) for number in range(20)]
    (folder / "minutes.jsonl").write_text("\n".join([*rows, "{broken"]))
    (folder / "picture.bin").write_bytes(b"\x00\x01")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_look_tells_what_was_read_and_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = texts(tmp_path / "texts")
    code, said, _ = run(capsys, "data", "look", str(folder), "--samples", "1")
    assert code == 0 and "a line that is no JSON" in said and "minutes.jsonl:21" in said
    assert "picture.bin" in said and "kept        50 documents" in said and "\n--- " in said
    code, said, _ = run(capsys, "data", "look", str(folder), "--json")
    found = json.loads(said)
    assert found["tally"]["documents"] == {"text": 30, "jsonl": 20}
    assert found["tally"]["left_out"]["binary"]["count"] == 1 and len(found["samples"]) == 3
    code, _, complaint = run(capsys, "data", "look", str(tmp_path / "nowhere"))
    assert code == 1 and complaint.startswith("error: there is no")


def test_prepared_text_is_trained_on_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = texts(tmp_path / "texts")
    prepare = ("data", "prepare", str(folder), "--to", "ready", "--data.vocab_size", "300")
    code, said, told = run(capsys, *prepare, "--json")
    made = json.loads(said)
    assert code == 0 and "skipped     1 × binary" in told and made["train_tokens"] > 1_000
    assert run(capsys, *prepare)[0] == 0  # reopened
    small = ("--size", "nano", "--steps", "2", "--training.threads", "1", "--run", "one")
    settings = ("--training.validation_sequences", "2", "--model.num_layers", "1")
    code, _, told = run(capsys, "train", "--data", "ready", *small, *settings)
    assert code == 0 and "texts, " in told
    data = tmp_path / "runs" / "one" / "data"
    assert (data / "train").is_symlink() and (data / "validation").is_symlink()
    assert (tmp_path / "ready" / "train" / "index.json").is_file()
    # Other text in the same place replaces the link and leaves alone what it led to.
    prepare_text(DataConfig(path=str(folder), vocab_size=300), data)
    assert not (data / "train").is_symlink()
    assert (tmp_path / "ready" / "train" / "index.json").is_file()


def test_another_tokenizer_than_the_text_was_prepared_with_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = texts(tmp_path / "texts")
    for name, size in (("one", "300"), ("two", "400")):
        run(capsys, "data", "prepare", str(folder), "--to", name, "--data.vocab_size", size)
    code, _, told = run(capsys, "train", "--data", "one", "--data.tokenizer", "two", "--steps", "1")
    assert code == 1 and "prepared with another tokenizer" in told


@pytest.mark.timeout(400)
def test_training_on_letters_of_known_entropy_comes_near_to_the_floor_and_never_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, told = run(
        capsys,
        *("train", "--data", "markov:1", "--data.vocab_size", "257", "--data.max_bytes", "200000"),
        *("--size", "nano", "--model.num_layers", "1", "--model.hidden_size", "64", "--run", "a"),
        *("--steps", "100", "--batch-size", "12", "--training.sequence_length", "64"),
        *("--training.validation_sequences", "4", "--training.threads", "1"),
    )
    assert code == 0 and told.count("no model can get below 2.4658 bits per byte") == 2
    code, said, _ = run(capsys, "evaluate", "a", "--json")
    found = json.loads(said)
    floor, reached = found["floor_bits_per_byte"], found["validation_bits_per_byte"]
    # The surprise of a letter deviates by about two bits; four times that of their mean.
    sampling = 4 * 2 / found["bytes"] ** 0.5
    assert code == 0 and floor - sampling < reached < 1.1 * floor
    assert "no model can get below" in run(capsys, "evaluate", "a")[1]
