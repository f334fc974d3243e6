"""Checkpoints: whole or not at all, verified, and an older one is named when one is damaged."""

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from peerformer.config import ModelConfig, OptimizerConfig
from peerformer.data.tokenizer import train_tokenizer
from peerformer.errors import CheckpointError
from peerformer.model.convert import load_model
from peerformer.model.transformer import Transformer, initialise
from peerformer.train.checkpoint import checkpoints, latest, load_checkpoint, save_checkpoint
from peerformer.train.optimizer import build_optimizer
from peerformer.train.replica import Replica

TOKENIZER = train_tokenizer(["a few words to learn from"] * 3, 260)


def shape(width: int = 16) -> ModelConfig:
    return ModelConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=width,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=16,
    )


def replica(step: int = 0, seed: int = 0, width: int = 16) -> Replica:
    model = Transformer(shape(width))
    initialise(model, seed)
    made = Replica(model, build_optimizer(model, OptimizerConfig()), clip_norm=1.0)
    made.step = step
    return made


def save(run: Path, one: Replica, keep: int = 3) -> Path:
    return save_checkpoint(
        run,
        replica=one,
        tokenizer_bytes=TOKENIZER.to_bytes(),
        position={"tokens": one.step},
        keep=keep,
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    one, two = replica(7, seed=1), replica(seed=2)
    path = save(tmp_path, one)
    assert latest(tmp_path) == path and path.name == "step-00000007"
    assert load_checkpoint(path, two) == {"tokens": 7}
    assert two.step == 7 and two.digest() == one.digest()
    assert load_model(path).config == one.model.config


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, replica(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005", "step-00000004"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json")


@pytest.mark.parametrize("file", [*FILES, "state.json"])
@pytest.mark.parametrize("damage", ["one bit flipped", "cut short", "missing"])
def test_damage_is_found_named_and_the_older_one_offered(
    file: str, damage: str, tmp_path: Path
) -> None:
    save(tmp_path, replica(1))
    path = save(tmp_path, replica(2))
    data = bytearray((path / file).read_bytes())
    if damage == "missing":
        (path / file).unlink()
    elif damage == "cut short":
        (path / file).write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0x10
        (path / file).write_bytes(data)
    one = replica(seed=3)
    before = one.digest()
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(path, one)
    assert "step-00000002" in str(refused.value) and "step-00000001" in str(refused.value)
    assert one.digest() == before
    assert load_checkpoint(checkpoints(tmp_path)[1], one) == {"tokens": 1}


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, replica(1, width=32))
    one = replica()
    before = one.digest()
    with pytest.raises(CheckpointError, match=r"must be \(260, 16\)"):
        load_checkpoint(path, one)
    assert one.digest() == before


def test_a_disk_that_fills_up_while_saving_costs_nothing_that_was_saved(tmp_path: Path) -> None:
    first = save(tmp_path, replica(1))
    program = textwrap.dedent(f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_checkpoint as here
        from pathlib import Path
        one = here.replica(2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096))
        try:
            here.save(Path({str(tmp_path)!r}), one)
        except here.CheckpointError as error:
            print(error)
        else:
            raise SystemExit("it was saved all the same")
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "could not be saved" in done.stdout and "make room" in done.stdout
    assert latest(tmp_path) == first and checkpoints(tmp_path) == [first]
    one = replica(seed=4)
    assert load_checkpoint(first, one) == {"tokens": 1}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4_096
