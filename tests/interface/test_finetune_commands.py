"""Starting from a model, adapters, rounded weights, and the checks of a training, as typed."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from peerformer.data.batches import Batches
from peerformer.data.shards import open_shards
from peerformer.data.tokenizer import load_tokenizer
from peerformer.interface.cli import main
from peerformer.model.adapter import ADAPTER_WEIGHTS
from peerformer.model.convert import load_model
from peerformer.model.quantise import rounded
from peerformer.train.checkpoint import OPTIMIZER, STATE
from peerformer.train.evaluate import evaluate

SHAPE = [
    *("--model.hidden_size", "32", "--model.intermediate_size", "64", "--model.num_layers", "1"),
    *("--model.num_heads", "2", "--model.num_kv_heads", "1", "--model.head_dim", "16"),
    *("--model.max_positions", "32", "--data.vocab_size", "300"),
]
QUICK = [
    *("--batch-size", "4", "--training.validation_sequences", "4", "--training.threads", "1"),
    *("--training.dtype", "float32", "--training.peak_gflops", "1", "--data.workers", "1"),
    *("--training.warmup_steps", "0"),
]
ALL_WINDOWS = 1_000
TEXTS = ("The cat sat on a mat and saw a rat. ", "A dog ran in the fog by a log. ")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with two folders of text and a run `base` of a few steps."""
    monkeypatch.chdir(tmp_path)
    for name, text in zip(("cats", "dogs"), TEXTS, strict=True):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.txt").write_text(f"{number}. " + text * (20 + number))
    return tmp_path


@pytest.fixture
def base(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The newest checkpoint of that run."""
    train(capsys, "--data", "cats", *SHAPE, *LENGTH, "--steps", "20", "--run", "base")
    return newest(here, "base")


LENGTH = ("--training.sequence_length", "32")


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    """Run a command in this process: what it wrote to stdout and to stderr."""
    found = main(list(words))
    captured = capsys.readouterr()
    assert found == code and "Traceback" not in captured.err, captured.err
    return captured.out, captured.err


def train(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    return run(capsys, "train", *QUICK, *words, code=code)


def newest(here: Path, name: str) -> Path:
    run_directory = here / "runs" / name
    return run_directory / (run_directory / "latest").read_text().strip()


def losses(here: Path, name: str) -> list[str]:
    rows = (here / "runs" / name / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss")
    return [row.split(",")[column] for row in rows[1:]]


def evaluated(capsys: pytest.CaptureFixture[str], source: object, data: str) -> float:
    return json.loads(run(capsys, "evaluate", str(source), "--data", data, "--json")[0])["loss"]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


# --- from a model --------------------------------------------------------------------------------


def test_training_goes_on_from_the_weights_and_the_tokenizer_of_a_run(
    here: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(base)
    _, err = train(capsys, "--from", "base", "--data", "dogs", "--steps", "6", "--run", "tuned")
    assert "base: 1 layers, 32 wide" in err
    start = load_model(here / "runs" / "tuned" / "base")
    source = load_model(base).state_dict()
    assert all(torch.equal(weight, source[n]) for n, weight in start.state_dict().items())
    assert (newest(here, "tuned") / "tokenizer.json").read_bytes() == (
        base / "tokenizer.json"
    ).read_bytes()
    assert evaluated(capsys, "tuned", "dogs") < evaluated(capsys, "base", "dogs")
    assert contents(base) == before
    for path in base.rglob("*"):  # a run does not need the model that it came from any more
        path.unlink()
    _, err = train(capsys, "--run", "tuned", "--steps", "7")
    assert "from step 6" in err


def test_an_exported_directory_is_a_model_to_start_from(
    here: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", "base", "--to", "exported")
    train(capsys, "--from", "exported", "--data", "dogs", "--steps", "2", "--run", "tuned")
    train(capsys, "--from", "base", "--data", "dogs", "--steps", "2", "--run", "same")
    assert losses(here, "tuned") == losses(here, "same")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.num_layers", "2"], "model.num_layers is 2, and the model's is 1"),
        (["--size", "small"], "model.hidden_size is 512, and the model's is 32"),
        (["--family", "llama"], "model.qk_norm is False, and the model's is True"),
        (["--data.vocab_size", "999"], "data.vocab_size is 999"),
        (["--training.sequence_length", "64"], "training.sequence_length (64) is more than"),
        (["--data.tokenizer", "other.json"], "is not the tokenizer of the model"),
        (["--lora.rank", "4", "--training.quantise", "int8"], "are frozen"),
        (["--lora.rank", "4", "--lora.targets", "qproj"], "did you mean q_proj?"),
        (["--lora.alpha", "4"], "lora.rank is 0"),
    ],
)
def test_settings_that_contradict_the_model_are_refused_by_name(
    here: Path, base: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = json.loads((base / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (here / "other.json").write_text(json.dumps(other))
    _, err = train(capsys, "--from", "base", "--data", "dogs", *words, "--run", "bad", code=2)
    assert said in err
    assert not (here / "runs" / "bad" / "latest").exists()


def test_adapters_and_rounding_need_what_they_work_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = train(capsys, "--data", "cats", "--lora.rank", "4", code=2)
    assert "no trained model to adapt" in err and "--from" in err
    odd = ["--model.intermediate_size", "72", "--training.quantise", "int4"]
    _, err = train(capsys, "--data", "cats", *odd, code=2)
    assert "model.intermediate_size 72 is no multiple of 32" in err
    for words in (["--from", "nothing"], ["--from", "cats"]):
        train(capsys, "--data", "cats", *words, code=1)
    assert not (here / "runs").exists()


# --- adapters ------------------------------------------------------------------------------------

LORA = ("--from", "base", "--data", "dogs", "--lora.rank", "4")


def test_an_adapter_alone_is_saved_taken_up_exactly_and_merged_on_export(
    here: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = train(capsys, *LORA, "--steps", "8", "--run", "whole")
    assert "rank 4 on 7 layers" in err
    train(capsys, *LORA, "--steps", "5", "--run", "parts", "--training.final_fraction", "1")
    train(capsys, *LORA, "--steps", "8", "--run", "parts", "--training.final_fraction", "1")
    train(capsys, *LORA, "--steps", "8", "--run", "flat", "--training.final_fraction", "1")
    assert losses(here, "parts") == losses(here, "flat")
    files = {path.name for path in newest(here, "whole").iterdir()}
    assert ADAPTER_WEIGHTS in files and "model.safetensors" not in files
    assert evaluated(capsys, "whole", "dogs") < evaluated(capsys, "base", "dogs")
    run(capsys, "export", "whole", "--to", "merged")
    assert (here / "merged" / "model.safetensors").is_file()
    assert evaluated(capsys, "merged", "dogs") == evaluated(capsys, "whole", "dogs")
    _, err = train(capsys, *LORA, "--lora.rank", "2", "--run", "whole", code=2)
    assert "lora.rank was 4, now 2" in err


def test_an_adapter_from_elsewhere_needs_to_be_told_its_model(
    here: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(capsys, *LORA, "--steps", "2", "--run", "tuned")
    newest(here, "tuned").rename(here / "adapter")
    _, err = run(capsys, "export", "adapter", "--to", "merged", code=1)
    assert "--base MODEL" in err
    run(capsys, "export", "adapter", "--base", "base", "--to", "merged")
    assert load_model(here / "merged").config == load_model(base).config


# --- rounded weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_exported_model_has_the_loss_of_the_trained_one(
    here: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "cats", *SHAPE, *LENGTH, "--training.quantise", kind]
    every = ["--training.validation_sequences", str(ALL_WINDOWS), "--training.final_fraction", "1"]
    out, _ = train(capsys, *words, *every, "--steps", "12", "--run", "q", "--json")
    trained = json.loads(out)["validation_bits_per_byte"]
    run(capsys, "export", "q", "--to", "exported")
    exported = load_model(here / "exported")
    for name, weight in exported.named_parameters():
        if name.endswith("_proj.weight"):
            assert torch.equal(rounded(weight, kind), weight), name
    held_out = Batches(open_shards(here / "runs/q/data/validation", verify=True), 32)
    lengths = load_tokenizer(here / "exported").byte_lengths_V()
    found = evaluate(exported, held_out, sequences=ALL_WINDOWS, byte_lengths_V=lengths)
    assert abs(found.bits_per_byte / trained - 1) < 1e-5, "1 % is what is promised"
    train(capsys, *words, *every, "--steps", "7", "--run", "parts")
    train(capsys, *words, *every, "--steps", "12", "--run", "parts")
    assert losses(here, "parts") == losses(here, "q"), "the weights behind the rounding are kept"


# --- checks of a training ------------------------------------------------------------------------


def test_one_batch_is_learned_by_heart_or_the_exit_code_says_that_it_is_not(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "cats", *SHAPE, *LENGTH, "--overfit"]
    out, err = train(capsys, *words, "--steps", "300", "--json")
    found = json.loads(out)
    assert found["learned"] and found["loss"] <= 0.1 < found["first_loss"]
    assert "known by heart" in err
    _, err = train(capsys, *words, "--steps", "3", code=1)
    assert "not learned by heart" in err and "find-rate" in err
    assert not (here / "runs").exists()


def test_a_rate_is_suggested_between_one_that_does_nothing_and_one_that_harms(
    here: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(here / "runs")
    words = ["find-rate", *QUICK, "--from", "base", "--data", "dogs", "--steps", "60"]
    sgd = ["--optimizer.name", "sgd", "--optimizer.clip_norm", "0", "--most", "1000"]
    out, _ = run(capsys, *words, *sgd, "--to", "rates.png", "--json")
    found = json.loads(out)
    points = [(point["rate"], point["smooth_loss"]) for point in found["points"]]
    least = min(points, key=lambda point: point[1])
    assert found["setting"] == "optimizer.learning_rate" and found["blew_up"]
    assert points[0][0] < found["suggested"] < least[0] < points[-1][0] < 1000
    assert (here / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert contents(here / "runs") == before
    plain, _ = run(capsys, *words, *sgd)
    assert "suggested   --optimizer.learning_rate" in plain
    _, err = run(capsys, *words, "--least", "1", "--most", "0.1", code=2)
    assert "from a smaller rate" in err


def test_folds_cover_all_documents_once_and_go_on_where_they_stopped(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cross-validate", *QUICK, "--data", "cats", *SHAPE, *LENGTH, "--steps", "4"]
    out, _ = run(capsys, *words, "--folds", "3", "--json")
    found = json.loads(out)
    rates = [fold["bits_per_byte"] for fold in found["folds"]]
    mean = sum(rates) / 3
    deviation = (sum((rate - mean) ** 2 for rate in rates) / 2) ** 0.5
    assert found["bits_per_byte"] == pytest.approx({"mean": mean, "deviation": deviation})
    folds = here / "runs" / "cross-validation"
    sizes = [
        json.loads((folds / f"fold-{n}/data/validation/index.json").read_text())["bytes"]
        for n in (1, 2, 3)
    ]
    assert sum(sizes) == sum(len(p.read_text()) for p in (here / "cats").iterdir())
    checkpoints = {path: path.stat().st_mtime_ns for path in folds.glob("*/checkpoints/*")}
    again, _ = run(capsys, *words, "--folds", "3")
    assert f"{mean:.4f}" in again and f"{deviation:.4f}" in again
    assert {path: path.stat().st_mtime_ns for path in folds.glob("*/checkpoints/*")} == checkpoints
    _, err = run(capsys, *words, "--folds", "20", "--run", "many", code=1)
    assert "too few for 20 folds" in err and not list((here / "runs/many").glob("*/latest"))


# --- hostile models ------------------------------------------------------------------------------


class Bomb:
    """What leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return exec, ("open('exploded', 'w').close()",)


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def renamed_pickle(model: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def huge_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{" * 64)


def outside(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../../secret.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def foreign(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": "mamba"}
    (model / "config.json").write_text(json.dumps(config))


def mute(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def other_vocabulary(model: Path) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    extra = dict(tokenizer["added_tokens"][0], id=5_000, content="<|more|>")
    path.write_text(json.dumps(tokenizer | {"added_tokens": [*tokenizer["added_tokens"], extra]}))


HARM = [pickled, renamed_pickle, cut, huge_header, outside, foreign, mute, other_vocabulary]


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_a_hostile_model_is_refused_and_nothing_of_it_runs_or_is_kept(
    harm: Callable[[Path], None], here: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", "base", "--to", "model")
    harm(here / "model")
    before = contents(here)
    words = ["--from", "model", "--data", "dogs", "--steps", "1"]
    train(capsys, *words, "--run", "bad", code=1)
    train(capsys, *words, "--lora.rank", "2", "--run", "worse", code=1)
    assert not (here / "exploded").exists()
    for name in ("bad", "worse"):
        assert not {"latest", "base"} & {path.name for path in (here / "runs" / name).glob("*")}
    after = contents(here)
    assert {name: after[name] for name in before} == before


def resealed(checkpoint: Path) -> None:
    """Make the digests of a checkpoint fit again, as anybody can."""
    path = checkpoint / STATE
    state = json.loads(path.read_text())
    state["files"] = {n: blake3((checkpoint / n).read_bytes()).hexdigest() for n in state["files"]}
    del state["digest"]
    canonical = json.dumps(state, sort_keys=True).encode()
    path.write_text(json.dumps(state | {"digest": blake3(canonical).hexdigest()}))


def as_a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def without_shape(path: Path) -> None:
    save_file({name: t.flatten() for name, t in load_file(path).items()}, path)


def strangers(path: Path) -> None:
    save_file({f"../{name}": tensor for name, tensor in load_file(path).items()}, path)


def nothing(path: Path) -> None:
    save_file({}, path)


@pytest.mark.parametrize("harm", [as_a_pickle, without_shape, strangers, nothing])
@pytest.mark.parametrize("name", [OPTIMIZER, ADAPTER_WEIGHTS])
def test_a_forged_file_of_a_run_is_refused_although_its_digest_fits(
    name: str,
    harm: Callable[[Path], None],
    here: Path,
    base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(capsys, *LORA, "--steps", "2", "--run", "tuned")
    checkpoint = newest(here, "tuned")
    harm(checkpoint / name)
    resealed(checkpoint)
    before = contents(checkpoint)
    harmless = harm is nothing and name == OPTIMIZER  # AdamW that has not stepped has no state
    _, err = train(capsys, "--run", "tuned", "--steps", "3", code=0 if harmless else 1)
    assert harmless or "cannot be used" in err
    assert not (here / "exploded").exists() and contents(checkpoint) == before


# --- in a swarm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--lora.rank", "4"], ["--training.quantise", "int8"]])
def test_a_swarm_refuses_what_only_one_machine_can_do(
    words: list[str], here: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(capsys, "up", "--from", "base", "--data", "dogs", *words, "--run", "s", code=2)
    assert words[0][2:] in err and "swarm" in err
