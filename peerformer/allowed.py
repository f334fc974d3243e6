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

from peerformer.config import Config
from peerformer.errors import ConfigError

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


@dataclass(frozen=True)
class Conflict:
    """Values that are allowed alone and impossible together."""

    fields: tuple[str, ...]
    what: str
    hint: str


def conflicts(config: Config) -> Iterator[Conflict]:
    """What no two settings of `config` may be at once.

    Warm-up longer than the run is not here: a short run shortens it (see `settings.resolve`).
    """
    model, training, swarm = config.model, config.training, config.swarm
    if model.num_heads % model.num_kv_heads:
        yield Conflict(
            ("model.num_kv_heads", "model.num_heads"),
            f"model.num_kv_heads ({model.num_kv_heads}) does not divide"
            f" model.num_heads ({model.num_heads})",
            f"choose one of: {_divisors(model.num_heads)}",
        )
    if model.head_dim % 2:
        yield Conflict(
            ("model.head_dim",),
            f"model.head_dim ({model.head_dim}) is odd, and rotary positions turn pairs",
            f"--set model.head_dim={model.head_dim + 1}",
        )
    if training.batch_size % training.accumulation:
        yield Conflict(
            ("training.accumulation", "training.batch_size"),
            f"training.accumulation ({training.accumulation}) does not divide"
            f" training.batch_size ({training.batch_size})",
            f"choose one of: {_divisors(training.batch_size)}",
        )
    if training.sequence_length > model.max_positions:
        yield Conflict(
            ("training.sequence_length", "model.max_positions"),
            f"training.sequence_length ({training.sequence_length}) is more than"
            f" model.max_positions ({model.max_positions})",
            f"--set model.max_positions={training.sequence_length}",
        )
    if config.data.tokenizer is None and 0 < model.vocab_size < config.data.vocab_size:
        yield Conflict(
            ("model.vocab_size", "data.vocab_size"),
            f"model.vocab_size ({model.vocab_size}) is less than"
            f" data.vocab_size ({config.data.vocab_size})",
            "--set model.vocab_size=0  (takes the tokenizer's)",
        )
    if swarm.contributions_min > swarm.contributions_max:
        yield Conflict(
            ("swarm.contributions_min", "swarm.contributions_max"),
            f"swarm.contributions_min ({swarm.contributions_min}) is more than"
            f" swarm.contributions_max ({swarm.contributions_max})",
            f"--set swarm.contributions_min={swarm.contributions_max}",
        )
    if swarm.vouchers > swarm.peers and swarm.admission == "open":
        yield Conflict(
            ("swarm.vouchers", "swarm.peers"),
            f"swarm.vouchers ({swarm.vouchers}) is more than swarm.peers ({swarm.peers}), so that"
            " nobody could ever join",
            f"--set swarm.vouchers={swarm.peers}",
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


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
