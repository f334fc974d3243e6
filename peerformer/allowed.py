"""What a setting may be: one table made of `config.py`, and the check of a value against it.

The fields of the dataclasses carry their bounds and choices as metadata; here they become a table
by dotted name. `parse` reads a raw value (JSON, or text from the environment and the command
line) as a field's type and refuses it in plain words; `conflicts` names the pairs of values that
are allowed alone and impossible together.

It knows nothing about where values come from but the name of the source.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from peerformer.config import Config, DataConfig, LoraConfig, OptimizerConfig, TrainingConfig
from peerformer.errors import ConfigError
from peerformer.model_conflicts import Conflict, divisors, model_conflicts

QUANTISE_GROUP = 32  # weights that share a scale: the group of GGUF's q8_0 and q4_0
SHOWN_CHARACTERS_MAX = 60  # of a refused value, so that an error stays a line
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
SCHEMA_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


@dataclass(frozen=True)
class Setting:
    """One field of `Config`, with its dotted name, its type and what is allowed."""

    name: str
    kind: type[Any]
    optional: bool
    default: Any
    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None

    @property
    def allowed(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return "one of: " + ", ".join(self.choices)
        text = _TYPE_WORDS[self.kind] + (" or null" if self.optional else "")
        bounds = [
            f"{word} {value:,}" if isinstance(value, int) else f"{word} {value:g}"
            for word, value in (("at least", self.least), ("at most", self.most))
            if value is not None
        ]
        return text + (" of " + " and ".join(bounds) if bounds else "")


@dataclass(frozen=True)
class Given:
    """A raw value, and the source that gave it.

    Environment and command line have only text, and so `is_text` lets it be read as a number or
    truth value; a JSON file must write `1`, not `"1"`.
    """

    raw: Any
    origin: str
    is_text: bool = False


def _collect(section: Any, prefix: str = "") -> Iterator[Setting]:
    hints = get_type_hints(section)
    for item in fields(section):
        kind, name = hints[item.name], prefix + item.name
        if is_dataclass(kind):
            yield from _collect(kind, f"{name}.")
            continue
        optional = get_origin(kind) is UnionType and NoneType in get_args(kind)
        if optional:
            kind = next(k for k in get_args(kind) if k is not NoneType)
        assert item.default is not MISSING, f"{name} has no default"
        yield Setting(name, kind, optional, item.default, **item.metadata)


SETTINGS: Mapping[str, Setting] = MappingProxyType({s.name: s for s in _collect(Config)})
SECTIONS = tuple(dict.fromkeys(n.split(".")[0] for n in SETTINGS if "." in n))


def parse(setting: Setting, given: Given) -> Any:
    """The value of a field, of the field's type.

    Raises:
        ConfigError: the value is of another type, out of bounds or no choice.
    """
    raw = given.raw
    if given.is_text and isinstance(raw, str):
        raw = _read_text(setting, raw)
    if raw is None and setting.optional:
        return None
    if setting.kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        raw = float(raw)
    fits = (
        type(raw) is setting.kind
        and (setting.kind is not float or math.isfinite(raw))
        and (setting.choices is None or raw in setting.choices)
        and (setting.least is None or raw >= setting.least)
        and (setting.most is None or raw <= setting.most)
    )
    if not fits:
        raise ConfigError(
            f"{setting.name} is {shown(given.raw)}, but must be {setting.allowed}",
            where=given.origin,
            hint=_nearest_hint(str(raw), setting.choices or ()),
        )
    return raw


def refuse_unknown(name: str, where: str) -> NoReturn:
    """Refuse a name that is no setting, with the nearest one that is.

    Raises:
        ConfigError: always.
    """
    near = difflib.get_close_matches(name, SETTINGS, n=1) or [
        full for full in SETTINGS if name.split(".")[-1] == full.split(".")[-1]
    ]
    hint = f"did you mean {near[0]}?" if near else "peerformer config show"
    raise ConfigError(f"there is no setting {name!r}", where=where, hint=hint)


def shown(value: object) -> str:
    """A refused value, as it is shown in an error."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…"


def conflicts(config: Config) -> Iterator[Conflict]:
    """What no two settings of `config` may be at once.

    Warm-up longer than the run is not here: a short run shortens it (see `settings.resolve`).
    """
    model, training, swarm = config.model, config.training, config.swarm
    yield from model_conflicts(model)
    if training.batch_size % training.accumulation:
        yield Conflict(
            ("training.accumulation", "training.batch_size"),
            f"training.accumulation ({training.accumulation}) does not divide"
            f" training.batch_size ({training.batch_size})",
            f"choose one of: {divisors(training.batch_size)}",
        )
    if training.sequence_length > model.max_positions:
        yield Conflict(
            ("training.sequence_length", "model.max_positions"),
            f"training.sequence_length ({training.sequence_length}) is more than"
            f" model.max_positions ({model.max_positions})",
            f"--set model.max_positions={training.sequence_length}",
        )
    yield from _optimizer_conflicts(config.optimizer)
    yield from _schedule_conflicts(training)
    brings_tokenizer = config.data.tokenizer is not None or training.base is not None
    if not brings_tokenizer and 0 < model.vocab_size < config.data.vocab_size:
        yield Conflict(
            ("model.vocab_size", "data.vocab_size"),
            f"model.vocab_size ({model.vocab_size}) is less than"
            f" data.vocab_size ({config.data.vocab_size})",
            "--set model.vocab_size=0  (takes the tokenizer's)",
        )
    yield from _data_conflicts(config.data)
    yield from _tuning_conflicts(config)
    yield from _rank_conflicts(config)
    if swarm.contributions_min > swarm.contributions_max:
        yield Conflict(
            ("swarm.contributions_min", "swarm.contributions_max"),
            f"swarm.contributions_min ({swarm.contributions_min}) is more than"
            f" swarm.contributions_max ({swarm.contributions_max})",
            f"--set swarm.contributions_min={swarm.contributions_max}",
        )
    dropouts = ("attention_dropout", "residual_dropout", "embedding_dropout")
    if swarm.audits and (dropped := [name for name in dropouts if getattr(model, name)]):
        yield Conflict(
            (f"model.{dropped[0]}", "swarm.audits"),
            f"model.{dropped[0]} ({getattr(model, dropped[0]):g}) draws at random what to drop, so"
            " that nobody can repeat a training, which swarm.audits asks for",
            f"--set model.{dropped[0]}=0  or  --set swarm.audits=0",
        )
    if swarm.vouchers > swarm.peers and swarm.admission != "closed":
        yield Conflict(
            ("swarm.vouchers", "swarm.peers"),
            f"swarm.vouchers ({swarm.vouchers}) is more than swarm.peers ({swarm.peers}), so that"
            " nobody could ever join",
            f"--set swarm.vouchers={swarm.peers}",
        )


def _rank_conflicts(config: Config) -> Iterator[Conflict]:
    """What ranks that train together cannot do."""
    training = config.training
    if training.engine == "mpi" and training.backend != "auto":
        yield Conflict(
            ("training.engine", "training.backend"),
            f"training.engine is mpi, which sends over MPI and not over {training.backend}",
            "--set training.backend=auto",
        )
    if training.engine == "fsdp" and (config.lora.rank or training.quantise != "none"):
        other = "lora.rank" if config.lora.rank else "training.quantise"
        yield Conflict(
            ("training.engine", other),
            f"training.engine is fsdp, which does not divide what {other} makes",
            "--set training.engine=ddp",
        )


def _tuning_conflicts(config: Config) -> Iterator[Conflict]:
    """Of adapters and rounded weights."""
    model, training, lora = config.model, config.training, config.lora
    if lora.rank and training.base is None:
        yield Conflict(
            ("lora.rank", "training.base"),
            f"lora.rank is {lora.rank}, but there is no trained model to adapt",
            "--from RUN_OR_CHECKPOINT, or --lora.rank 0  (trains all weights)",
        )
    if not lora.rank and lora != LoraConfig():
        yield Conflict(
            ("lora.rank", "lora.alpha", "lora.dropout", "lora.targets"),
            "settings of adapters are given, and lora.rank is 0",
            "--lora.rank 8",
        )
    if training.quantise == "none" and training.quantise_layers != "all":
        yield Conflict(
            ("training.quantise_layers", "training.quantise"),
            f"training.quantise_layers is {training.quantise_layers}, and training.quantise none",
            "--training.quantise int8",
        )
    if lora.rank and training.quantise != "none":
        yield Conflict(
            ("lora.rank", "training.quantise"),
            f"training.quantise is {training.quantise}, but with lora.rank {lora.rank} the weights"
            " that it would round are frozen",
            "--training.quantise none, or --lora.rank 0",
        )
    widths = {
        "model.hidden_size": model.hidden_size,
        "model.intermediate_size": model.intermediate_size,
        "model.head_dim": model.num_heads * model.head_dim,
    }
    for name, width in widths.items():
        if training.quantise != "none" and width % QUANTISE_GROUP:
            heads = " (times model.num_heads)" if name == "model.head_dim" else ""
            yield Conflict(
                (name, "training.quantise"),
                f"{name} {width}{heads} is no multiple of {QUANTISE_GROUP}, and weights are rounded"
                f" in groups of {QUANTISE_GROUP}",
                f"choose a multiple of {QUANTISE_GROUP}, or --training.quantise none",
            )


def _data_conflicts(data: DataConfig) -> Iterator[Conflict]:
    if 0 < data.characters_max < data.characters_min:
        yield Conflict(
            ("data.characters_min", "data.characters_max"),
            f"data.characters_min ({data.characters_min}) is more than"
            f" data.characters_max ({data.characters_max}), so that no document is left",
            f"--set data.characters_max={10 * data.characters_min}",
        )
    if data.folds == 1 or data.fold >= max(data.folds, 1):
        yield Conflict(
            ("data.folds", "data.fold"),
            f"there is no fold {data.fold} of {data.folds}",
            "--data.folds 5 --data.fold 0, or peerformer cross-validate --folds 5",
        )
    if data.folds and data.held_out is not None:
        yield Conflict(
            ("data.folds", "data.held_out"),
            f"data.folds is {data.folds}, and data.held_out names text that is held out instead",
            "leave one of them out",
        )


def _optimizer_conflicts(optimizer: OptimizerConfig) -> Iterator[Conflict]:
    if optimizer.nesterov and not (optimizer.name == "sgd" and optimizer.momentum):
        of = "has no momentum" if optimizer.name == "sgd" else f"is for sgd, not {optimizer.name}"
        yield Conflict(
            ("optimizer.nesterov", "optimizer.name", "optimizer.momentum"),
            f"optimizer.nesterov {of}",
            "--set optimizer.nesterov=false",
        )
    if optimizer.sharpness_rho and optimizer.sharpness == "none":
        yield Conflict(
            ("optimizer.sharpness_rho", "optimizer.sharpness"),
            "optimizer.sharpness_rho is given, and optimizer.sharpness is none",
            "--set optimizer.sharpness=sam",
        )


def _schedule_conflicts(training: TrainingConfig) -> Iterator[Conflict]:
    if training.schedule == "inverse-sqrt" and not training.warmup_steps:
        yield Conflict(
            ("training.schedule", "training.warmup_steps"),
            "training.schedule is inverse-sqrt, which begins where the warm-up ends, and"
            " training.warmup_steps is 0",
            "--set training.warmup_steps=1",
        )
    decay = max(1, round(training.decay_fraction * training.steps))
    if training.schedule == "wsd" and training.warmup_steps + decay > training.steps:
        yield Conflict(
            ("training.schedule", "training.warmup_steps", "training.decay_fraction"),
            f"the warm-up ({training.warmup_steps} steps) and the decay ({decay}) of wsd do not"
            f" fit into {training.steps} steps",
            f"--set training.warmup_steps={training.steps - decay}",
        )
    for name, wanted in (
        ("training.schedule", training.schedule == "plateau"),
        ("training.patience", training.patience > 0),
    ):
        if wanted and training.validate_every >= training.steps:
            yield Conflict(
                (name, "training.validate_every", "training.steps"),
                f"{name} goes by validations, and training.validate_every"
                f" ({training.validate_every}) comes but once in training.steps"
                f" ({training.steps})",
                f"--set training.validate_every={max(1, training.steps // 10)}",
            )


def _read_text(setting: Setting, text: str) -> Any:
    """Text as the field's type, or the text itself where it cannot be read so."""
    word = text.strip().lower()
    if setting.optional and word in ("", "none", "null"):
        return None
    try:
        match setting.kind:
            case kind if kind is int:
                return int(word)
            case kind if kind is float:
                return float(word)
            case kind if kind is bool and word in _TRUE + _FALSE:
                return word in _TRUE
    except ValueError:
        pass  # refused by the caller, which knows what is allowed
    return text


def _nearest_hint(word: str, choices: tuple[str, ...]) -> str | None:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {near[0]}?" if near else None
