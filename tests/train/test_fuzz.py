"""Whatever a recipe or a checkpoint from somebody else holds, it is used whole or told as an error.

One slice of the deep test alone:

    PEERFORMER_SEEDS=17:18 python -m pytest -m deep tests/train/test_fuzz.py
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from peerformer.config import ModelConfig, OptimizerConfig
from peerformer.data.tokenizer import train_tokenizer
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.transformer import Transformer, initialise
from peerformer.model.weights import WEIGHTS_FILE
from peerformer.settings import resolve
from peerformer.train.checkpoint import OPTIMIZER, STATE, load_checkpoint, save_checkpoint
from peerformer.train.optimizer import build_optimizer
from peerformer.train.recipe import recipe_bytes, recipe_config
from peerformer.train.replica import Replica
from tests.mutations import mutate, seeds

TOKENIZER = train_tokenizer(["a few words to learn from"] * 3, 260)
RECIPE = recipe_bytes(resolve(size="nano").config)
NAMES = ("", "x", "step", "model.hidden_size", "\0", "a" * 300, "../x", "\ud800")
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 0.5, -1e308, float("inf"), float("nan"),
    "", "x", "\0", "7", [], {}, [[]], {"a": {}}, [1, "x"],
)  # fmt: skip
NESTED = (b"[" * 60_000, b'{"a":' * 12_000, b"1" * 60_000)


def misshaped(value: Any, random: Random) -> Any:
    """The same JSON with something missing, renamed, or of another kind somewhere in it."""
    if not value or random.random() < 0.2 or not isinstance(value, dict | list):
        return random.choice(VALUES)
    place = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    match random.randrange(8):
        case 0:
            del changed[place]
        case 1 if isinstance(changed, dict):
            changed[random.choice(NAMES)] = changed.pop(place)
        case _:
            changed[place] = misshaped(value[place], random)
    return changed


# --- recipes -------------------------------------------------------------------------------------


def try_recipes(seed: int, count: int) -> None:
    print(f"seed {seed}")
    random, read = Random(seed), 0
    for _ in range(count):
        data = mutate(RECIPE, RECIPE, random)
        if random.random() < 0.7:
            data = json.dumps(misshaped(json.loads(RECIPE), random)).encode()
        try:
            config = recipe_config(data)
        except ConfigError:
            continue
        assert recipe_config(recipe_bytes(config)) == config, (seed, data)
        read += 1
    assert read


def test_a_damaged_recipe_is_a_configuration_or_a_told_error() -> None:
    try_recipes(1_000_000, 500)


@pytest.mark.parametrize("recipe", [*NESTED, b"[]", b"1", b"null", b'"\\ud800"', b"\xff"])
def test_a_recipe_that_is_no_object_or_nested_without_end_is_a_told_error(recipe: bytes) -> None:
    with pytest.raises(ConfigError):
        recipe_config(recipe)


# --- checkpoints ---------------------------------------------------------------------------------


def replica(seed: int) -> Replica:
    """A replica of a very small model."""
    shape = ModelConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        max_positions=8,
    )
    model = Transformer(shape)
    initialise(model, seed)
    return Replica(model, build_optimizer(model, OptimizerConfig()), clip_norm=1.0)


def sealed(state: Any) -> bytes:
    """A checkpoint's state with the digest that belongs to it: anybody can make one."""
    if isinstance(state, dict):
        rest = {key: value for key, value in state.items() if key != "digest"}
        digest = blake3(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        state = {**rest, "digest": digest}
    return json.dumps(state).encode()


class Workshop:
    """A whole checkpoint, of which damaged ones are made."""

    def __init__(self, run: Path) -> None:
        one = replica(1)
        one.norms.extend((1.5, 2.5))
        self.path = save_checkpoint(
            run, replica=one, tokenizer_bytes=TOKENIZER.to_bytes(), position={"tokens": 3}, keep=1
        )
        self.good = {path.name: path.read_bytes() for path in self.path.iterdir()}
        self.into = replica(2)
        load_checkpoint(self.path, self.into)

    @contextmanager
    def changed(self, name: str, data: bytes) -> Iterator[None]:
        """Another content of one file, for a moment."""
        (self.path / name).write_bytes(data)
        try:
            yield
        finally:
            (self.path / name).write_bytes(self.good[name])

    def state(self) -> dict[str, Any]:
        """The state as it was written."""
        return dict(json.loads(self.good[STATE]))

    def is_loaded(self) -> bool:
        """Whether the checkpoint loads; if not, nothing has changed."""
        before = self.fingerprint()
        try:
            load_checkpoint(self.path, self.into)
        except CheckpointError:
            assert self.fingerprint() == before
            return False
        return True

    def fingerprint(self) -> tuple[object, ...]:
        """What loading changes."""
        into = self.into
        return into.digest(), into.step, into.skipped, tuple(into.norms)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def try_checkpoints(workshop: Workshop, seed: int, count: int) -> None:
    print(f"seed {seed}")
    random, state, loaded = Random(seed), workshop.good[STATE], 0
    for _ in range(count):
        kind = random.randrange(4)
        if kind == 0:
            made = mutate(state, state, random)
        elif kind < 3:
            made = sealed(misshaped(workshop.state(), random))
        else:
            loaded += workshop_with_tensors(workshop, random)
            continue
        with workshop.changed(STATE, made):
            loaded += workshop.is_loaded()
    assert loaded


def workshop_with_tensors(workshop: Workshop, random: Random) -> bool:
    """Damage the header of a tensor file, and seal it; whether the checkpoint still loads."""
    name = random.choice((WEIGHTS_FILE, OPTIMIZER))
    data = workshop.good[name]
    end = 8 + int.from_bytes(data[:8], "little")
    head = mutate(data[:end], data[:end], random)
    if random.random() < 0.7:
        text = json.dumps(misshaped(json.loads(data[8:end]), random)).encode()
        head = len(text).to_bytes(8, "little") + text
    state = workshop.state()
    state["files"][name] = blake3(head + data[end:]).hexdigest()
    with workshop.changed(name, head + data[end:]), workshop.changed(STATE, sealed(state)):
        return workshop.is_loaded()


def test_a_damaged_checkpoint_is_loaded_whole_or_not_at_all(workshop: Workshop) -> None:
    try_checkpoints(workshop, 1_000_000, 100)


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", seeds("0:100"))
def test_a_slice_of_damaged_recipes_and_checkpoints(workshop: Workshop, seed: int) -> None:
    try_recipes(seed, 1_000)
    try_checkpoints(workshop, seed, 200)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("no step", {"step": None}),
        ("norms that are none", {"replica": {"norms": 3, "skipped": 0}}),
        ("norms of text", {"replica": {"norms": ["x"], "skipped": 0}}),
        ("a position that is none", {"position": []}),
        ("a list of files that is none", {"files": []}),
        ("no word of the model's digest", {"files": {}}),
    ],
)
def test_a_sealed_state_of_another_shape_is_a_told_error(
    workshop: Workshop, what: str, change: dict[str, Any]
) -> None:
    with workshop.changed(STATE, sealed({**workshop.state(), **change})):
        assert not workshop.is_loaded(), what


@pytest.mark.parametrize("state", [*NESTED, b"[]", b"1", b"null"])
def test_a_state_that_is_no_object_or_nested_without_end_is_a_told_error(
    workshop: Workshop, state: bytes
) -> None:
    with workshop.changed(STATE, state):
        assert not workshop.is_loaded()


def test_a_file_that_cannot_be_read_is_a_told_error(workshop: Workshop) -> None:
    state = workshop.state()
    state["files"]["a" * 300] = ""  # longer than any file system allows
    with workshop.changed(STATE, sealed(state)):
        assert not workshop.is_loaded()
    shutil.rmtree(workshop.path)
    assert not workshop.is_loaded()
