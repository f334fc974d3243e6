"""From defaults, presets, files, environment and command line to one checked `Config`.

Each source is a flat table of dotted field names and raw values; the tables are laid over each
other in the order defaults < `--size` < `--family` < JSON files < environment < command line, and
each field remembers which source had the last word. What is allowed stands in `config.py` and is
checked by `allowed.py`.

It reads files that it is handed, and the environment only as a mapping; it knows nothing about
what the settings do.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from peerformer.allowed import (
    SCHEMA_TYPES,
    SECTIONS,
    SETTINGS,
    Given,
    conflicts,
    parse,
    refuse_unknown,
    shown,
)
from peerformer.config import Config
from peerformer.errors import ConfigError
from peerformer.presets import CODECS, FAMILIES, OPTIMIZERS, SIZES, TEXTS, Times

ENVIRONMENT_PREFIX = "PEERFORMER_"
COMMAND_LINE = "command line"
DEFAULT = "default"
# Settings that derive others, the weaker first.
DERIVED = {
    "size": SIZES,
    "family": FAMILIES,
    "optimizer.name": OPTIMIZERS,
    "swarm.codec": CODECS,
    "swarm.texts": TEXTS,
}


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, and where the value of each dotted field came from."""

    config: Config
    origins: Mapping[str, str]


def resolve(
    *,
    size: str | None = None,
    family: str | None = None,
    files: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    derive: Callable[[Mapping[str, Given]], Mapping[str, Given]] | None = None,
) -> Resolved:
    """Combine all sources of settings into one checked configuration.

    Args:
        size: the preset named on the command line.
        family: the kind of model named there.
        files: JSON files, the later over the earlier.
        environment: variables such as `PEERFORMER_TRAINING__STEPS`; None looks at none.
        overrides: dotted field -> value; text is read as the field's type.
        derive: what follows from the values given, over the presets; it may refuse some of them.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed, with its source.
    """
    given: dict[str, Given] = {}
    for path in files:
        given |= {k: Given(v, str(path)) for k, v in _read_file(path).items()}
    given |= _from_environment(environment or {})
    for key, raw in (overrides or {}).items():
        if key not in SETTINGS:
            refuse_unknown(key, COMMAND_LINE)
        given[key] = Given(raw, COMMAND_LINE, is_text=True)
    for name, preset in (("size", size), ("family", family)):
        if preset is not None:
            given[name] = Given(preset, f"{COMMAND_LINE} (--{name})", is_text=True)
    return _layer({**derive(given), **given} if derive else given)


def to_json(config: Config) -> dict[str, Any]:
    """The configuration as nested JSON objects; the inverse of `from_json`."""
    return asdict(config)


def from_json(mapping: Mapping[str, Any], *, where: str) -> Config:
    """A configuration from nested JSON objects; what is absent is derived from its `size`.

    Raises:
        ConfigError: an unknown key or a value that is not allowed, named with `where`.
    """
    return _layer({k: Given(v, where) for k, v in _flatten(mapping, where).items()}).config


def validate(config: Config, *, where: str) -> None:
    """Check every field and the conditions between fields.

    Raises:
        ConfigError: the first value that is not allowed, named with `where`.
    """
    for name, raw in _flatten(to_json(config), where).items():
        parse(SETTINGS[name], Given(raw, where))
    for conflict in conflicts(config):
        raise ConfigError(conflict.what, where=where, hint=conflict.hint)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a configuration file, for editors."""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Peerformer configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for setting in SETTINGS.values():
        section, _, name = setting.name.rpartition(".")
        target = root
        if section:
            target = root["properties"].setdefault(
                section, {"type": "object", "additionalProperties": False, "properties": {}}
            )
        kind = SCHEMA_TYPES[setting.kind]
        entry = {
            "type": [kind, "null"] if setting.optional else kind,
            "description": setting.help,
            "default": setting.default,
            "minimum": setting.least,
            "maximum": setting.most,
            "enum": list(setting.choices) if setting.choices else None,
        }
        target["properties"][name] = {
            k: v for k, v in entry.items() if v is not None or k == "default"
        }
    return root


def _layer(given: Mapping[str, Given]) -> Resolved:
    values: dict[str, Any] = {name: s.default for name, s in SETTINGS.items()}
    origins = dict.fromkeys(SETTINGS, DEFAULT)
    for setting_name, derived in DERIVED.items():
        setting = SETTINGS[setting_name]
        chosen = parse(setting, given.get(setting_name, Given(setting.default, DEFAULT)))
        for name, value in derived.get(chosen, {}).items():
            values[name], origins[name] = value, f"{setting_name.split('.')[-1]} {chosen}"
    for name, value in given.items():
        values[name], origins[name] = parse(SETTINGS[name], value), value.origin
    for name, value in values.items():
        if isinstance(value, Times):
            values[name] = value.factor * values[value.setting]
    if values["training.warmup_steps"] > values["training.steps"]:
        if {"training.warmup_steps", "training.steps"} <= given.keys():
            raise ConfigError(
                f"training.warmup_steps ({values['training.warmup_steps']}) is more than"
                f" training.steps ({values['training.steps']})",
                where=_where(("training.warmup_steps", "training.steps"), origins),
                hint="warm up for a part of the run only, or train for more steps",
            )
        values["training.warmup_steps"] = values["training.steps"]
        origins["training.warmup_steps"] += ", shortened to training.steps"
    config = _build(values)
    for conflict in conflicts(config):
        raise ConfigError(conflict.what, where=_where(conflict.fields, origins), hint=conflict.hint)
    return Resolved(config, MappingProxyType(origins))


def _build(values: Mapping[str, Any]) -> Config:
    hints = get_type_hints(Config)
    sections = {
        section: hints[section](
            **{n.split(".")[1]: v for n, v in values.items() if n.startswith(f"{section}.")}
        )
        for section in SECTIONS
    }
    return Config(**{n: v for n, v in values.items() if "." not in n}, **sections)


def _read_file(path: Path) -> dict[str, object]:
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the configuration file cannot be read", where=where, why=error.strerror
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the configuration file is not UTF-8 text", where=where, why=str(error)
        ) from error

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"the key {name!r} is given twice", where=where)
        return dict(pairs)

    try:
        mapping = json.loads(text, object_pairs_hook=without_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            "the configuration file is not JSON", where=where, why=str(error)
        ) from error
    return _flatten(mapping, where)


def _flatten(mapping: object, where: str) -> dict[str, object]:
    """Nested objects -> dotted names, refusing what is no setting."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"a configuration is a JSON object, not {shown(mapping)}",
            where=where,
            hint="peerformer config show --json",
        )
    flat: dict[str, object] = {}
    for key, value in mapping.items():
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{key} is {shown(value)}, but must be a JSON object", where=where
                )
            for name, raw in value.items():
                if f"{key}.{name}" not in SETTINGS:
                    refuse_unknown(f"{key}.{name}", where)
                flat[f"{key}.{name}"] = raw
        elif key in SETTINGS and "." not in key:
            flat[key] = value
        elif key in SETTINGS:
            section, _, name = key.partition(".")
            raise ConfigError(
                f"the key {key!r} must be nested",
                where=where,
                hint=f'write {{"{section}": {{"{name}": …}}}}',
            )
        else:
            refuse_unknown(str(key), where)
    return flat


def _from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    """Variables with a section's double underscore, and those of the presets, are settings.

    Others are left alone: Kubernetes puts `PEERFORMER_PORT_8080_TCP` and the like into each pod
    beside a service of that name. One that is a setting but for an underscore is refused.
    """
    names = {ENVIRONMENT_PREFIX + n.replace(".", "__").upper(): n for n in SETTINGS}
    slips = {name.replace("__", "_"): name for name in names}
    found = {}
    for variable, raw in environment.items():
        if variable in names:
            found[names[variable]] = Given(raw, f"environment {variable}", is_text=True)
        elif variable.startswith(ENVIRONMENT_PREFIX) and variable in slips:
            raise ConfigError(
                f"the variable {variable} is no setting",
                where="environment",
                hint=f"did you mean {slips[variable]} (two underscores)?",
            )
        elif variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            refuse_unknown(key, f"environment {variable}")
    return found


def _where(names: Sequence[str], origins: Mapping[str, str]) -> str:
    """`training.steps: run.json, training.warmup_steps: command line`."""
    return ", ".join(f"{name}: {origins[name]}" for name in names)
