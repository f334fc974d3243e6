"""The settings that every command takes alike: `--size`, `--family`, `--config`, `--set`.

A command has one parameter `options: ConfigOptions = ConfigOptions()` and calls
`resolve_options(options, {"training.steps": steps})` with the settings that it gives flags of
their own. `--section.field VALUE` is short for `--set section.field=VALUE`; `expand_settings`
rewrites it before the command line is parsed, so that no command lists the fields again.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.allowed import Given
from peerformer.errors import ConfigError
from peerformer.settings import Resolved, resolve

_SETTING_FLAG = re.compile(r"--([a-z_]+\.[a-z0-9_]+)(?:=(.*))?", re.DOTALL)


@Parameter(name="*")
@dataclass(frozen=True)
class ConfigOptions:
    """Where the settings of a run come from, as flags."""

    size: Annotated[
        str | None, Parameter(help="Preset that derives width, depth and schedule: nano, tiny, …")
    ] = None
    files: Annotated[
        tuple[Path, ...],
        Parameter(name="--config", negative=(), show_default=False, help="JSON file of settings."),
    ] = ()
    settings: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            negative=(),
            show_default=False,
            help="One setting, as section.field=value; see `peerformer config show`.",
        ),
    ] = ()
    family: Annotated[
        str | None, Parameter(help="Kind of model: qwen3, qwen3-moe, llama, gpt2-classic.")
    ] = None


def resolve_options(
    options: ConfigOptions,
    overrides: Mapping[str, object] | None = None,
    derive: Callable[[Mapping[str, Given]], Mapping[str, Given]] | None = None,
) -> Resolved:
    """The settings of a command: defaults, preset, files, environment, `--set`, its own flags.

    Args:
        options: the shared flags.
        overrides: dotted field -> value of the command's own flags; None means not given.
        derive: what follows from the values given; see `peerformer.settings.resolve`.

    Raises:
        ConfigError: a setting that does not exist or is not allowed.
    """
    given: dict[str, object] = {}
    for text in options.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {text} has no value", where="command line", hint=f"--set {text}=VALUE"
            )
        given[name.strip()] = value
    given |= {name: value for name, value in (overrides or {}).items() if value is not None}
    return resolve(
        size=options.size,
        family=options.family,
        files=options.files,
        environment=os.environ,
        overrides=given,
        derive=derive,
    )


def expand_settings(tokens: Sequence[str]) -> list[str]:
    """`--training.steps 5` -> `--set=training.steps=5`; everything after `--` stays as it is.

    Raises:
        ConfigError: such a flag without a value.
    """
    expanded: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if token == "--":
            return [*expanded, token, *rest]
        match = _SETTING_FLAG.fullmatch(token)
        if match is None:
            expanded.append(token)
            continue
        name, value = match[1], match[2]
        if value is None:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(
                    f"--{name} has no value", where="command line", hint=f"--{name} VALUE"
                )
            value = rest.pop(0)
        expanded.append(f"--set={name}={value}")
    return expanded
