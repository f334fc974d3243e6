"""Where training starts: from nothing, or from the weights and the tokenizer of a model there is.

A run that starts from a model (`--from`) keeps a copy of it in its folder `base`, once, so that it
can be taken up again wherever the model has gone. The model's shape and its tokenizer are facts,
not settings: what contradicts them is refused by name. Then whatever a training does to a model is
done: adapters, rounded weights, activations that are computed again.

Knows nothing about steps or optimizers.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from blake3 import blake3

from peerformer.allowed import SETTINGS, Given, parse
from peerformer.config import Config, DataConfig, ModelConfig
from peerformer.data.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from peerformer.errors import CheckpointError, ConfigError
from peerformer.model.convert import load_config, load_model, save_model
from peerformer.model.find import BASE, resolve_checkpoint
from peerformer.model.lora import adapted_layers, add_adapters
from peerformer.model.quantise import quantise_layers
from peerformer.model.recompute import recompute
from peerformer.model.transformer import Transformer, initialise
from peerformer.model.weights import STATE_FILE
from peerformer.presets import SIZES
from peerformer.settings import DERIVED

LENGTH = "training.sequence_length"


def settings_of_base(given: Mapping[str, Given]) -> dict[str, Given]:
    """The settings that follow from the model to start from; none where training starts anew.

    Args:
        given: the values that were given, by dotted names, with their sources.

    Raises:
        ConfigError: a given value contradicts the model or its tokenizer.
        CheckpointError: there is no such model.
    """
    setting = SETTINGS["training.base"]
    base = parse(setting, given.get(setting.name, Given(None, "")))
    if base is None:
        return {}
    shape, origin = load_config(base), f"the model {base}"
    size = given.get("size")
    asked = {name: parse(SETTINGS[name], value) for name, value in given.items() if name in _SHAPE}
    for preset, names in (("size", SIZED), ("family", FAMILIAR)):
        if preset in given:
            values = DERIVED[preset][parse(SETTINGS[preset], given[preset])]
            asked = {n: values.get(n, SETTINGS[n].default) for n in names} | asked
    _refuse_contradictions(shape, asked, base)
    _tokenizer_of(base, given)
    length = SETTINGS[LENGTH].default
    if size is not None:
        length = SIZES[parse(SETTINGS["size"], size)].get(LENGTH, length)
    derived = {f"model.{field.name}": getattr(shape, field.name) for field in fields(shape)}
    derived[LENGTH] = min(length, shape.max_positions)
    rank = SETTINGS["lora.rank"]
    if parse(rank, given.get(rank.name, Given(rank.default, ""))):
        derived["optimizer.name"] = "adamw"  # Muon's steps are too long for two thin factors
    return {name: Given(value, origin) for name, value in derived.items()}


_SHAPE = frozenset(f"model.{field.name}" for field in fields(ModelConfig))
# What tells a preset's models from others.
SIZED = ("model.hidden_size", "model.num_layers")
FAMILIAR = ("model.qk_norm", "model.norm", "model.positions", "model.feed_forward")


def _refuse_contradictions(shape: ModelConfig, asked: Mapping[str, object], base: str) -> None:
    wrong = [
        f"{name} is {value}, and the model's is {getattr(shape, name.partition('.')[2])}"
        for name, value in asked.items()
        if value != getattr(shape, name.partition(".")[2])
        and not (name == "model.vocab_size" and value == 0)
    ]
    if wrong:
        raise ConfigError(
            f"settings contradict the model to start from: {wrong[0]}",
            where=base,
            why="; ".join(wrong[1:]) or None,
            hint="leave model.…, --size and --family out: with --from they are the model's",
        )


def _tokenizer_of(base: str, given: Mapping[str, Given]) -> None:
    """Refuse a tokenizer, or a size of its vocabulary, that is not the model's."""
    own = _base_tokenizer(resolve_checkpoint(base))
    name = "data.tokenizer"
    other = parse(SETTINGS[name], given[name]) if name in given else None
    if other is not None and load_tokenizer(other).digest() != own.digest():
        raise ConfigError(
            f"data.tokenizer ({other}) is not the tokenizer of the model to start from",
            where=base,
            why="with another one the embeddings would stand for other tokens",
            hint="leave data.tokenizer out, or train anew without --from",
        )
    name = "data.vocab_size"
    if name in given and parse(SETTINGS[name], given[name]) != own.vocab_size:
        raise ConfigError(
            f"data.vocab_size is {given[name].raw}, and the tokenizer of the model to start from"
            f" has {own.vocab_size} tokens",
            where=base,
            hint="leave data.vocab_size out, or train anew without --from",
        )


def _base_tokenizer(directory: Path) -> Tokenizer:
    if not (directory / FILE_NAME).is_file():
        raise CheckpointError(
            f"the model to start from has no {FILE_NAME}",
            where=str(directory),
            why="its weights are of no use without the tokenizer that they were trained with",
            hint="put the model's tokenizer.json beside its weights",
        )
    return load_tokenizer(directory / FILE_NAME)


@dataclass(frozen=True, slots=True)
class Start:
    """What a training starts from.

    Attributes:
        config: the settings of the run.
        base: the copy of the model in the run's directory; None starts anew.
        report: called with lines for a person.
    """

    config: Config
    base: Path | None
    report: Callable[[str], None] = lambda _: None

    @property
    def data(self) -> DataConfig:
        """The settings of the text: those of the run, with the tokenizer of the model."""
        if self.base is None:
            return self.config.data
        return replace(self.config.data, tokenizer=str(self.base / FILE_NAME))

    def model(self, vocab_size: int) -> Transformer:
        """The model at the first step, in train mode.

        Args:
            vocab_size: the tokenizer's, which is the model's where it starts anew.

        Raises:
            ConfigError: adapters or rounding are asked for on layers that it does not have.
        """
        training, lora = self.config.training, self.config.lora
        if self.base is None:
            model = Transformer(replace(self.config.model, vocab_size=vocab_size))
            initialise(model, training.seed)
        else:
            model = load_model(self.base)
        if training.quantise != "none":
            quantise_layers(model, training.quantise, training.quantise_layers)
        if lora.rank:
            add_adapters(model, lora, training.seed)
            sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
            trained = sum(size for size, is_trained in sizes if is_trained)
            self.report(
                f"adapters    rank {lora.rank} on {len(adapted_layers(model))} layers:"
                f" {trained:,} of {sum(size for size, _ in sizes):,} weights are trained"
            )
        recompute(model, training.checkpoint_activations)
        return model.train()


def start_of(config: Config, run: Path, report: Callable[[str], None] = lambda _: None) -> Start:
    """Get ready what a run starts from: a copy of the model, made once.

    Raises:
        CheckpointError: the model is missing, damaged, hostile or has no tokenizer.
        ConfigError: the settings contradict the model.
    """
    if config.training.base is None:
        return Start(config, None, report)
    kept = run / BASE
    if not (kept / STATE_FILE).is_file():
        report(f"from        {config.training.base}")
        _keep(config.training.base, kept)
    shape = {f"model.{f.name}": getattr(config.model, f.name) for f in fields(config.model)}
    _refuse_contradictions(load_config(kept), shape, str(config.training.base))
    return Start(config, kept, report)


def _keep(base: str, kept: Path) -> None:
    """Copy a model and its tokenizer, whole or not at all."""
    source = resolve_checkpoint(base)
    tokenizer, model = _base_tokenizer(source), load_model(source)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the model knows"
            f" {model.config.vocab_size}",
            where=str(source),
            hint="put the tokenizer.json that the model was trained with beside its weights",
        )
    part = kept.with_name(f".{BASE}.{os.getpid()}")
    try:
        for left in kept.parent.glob(f".{BASE}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        save_model(part, model, tokenizer.to_bytes())
        digests = {p.name: blake3(p.read_bytes()).hexdigest() for p in sorted(part.iterdir())}
        (part / STATE_FILE).write_text(json.dumps({"files": digests}, indent=1))
        if kept.exists():
            shutil.rmtree(kept)
        part.replace(kept)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            "the model to start from could not be copied into the run",
            where=str(kept),
            why=error.strerror or str(error),
            hint="make room on the disk",
        ) from error
