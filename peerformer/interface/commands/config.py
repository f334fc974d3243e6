"""`peerformer config`: every setting and its origin, what training costs, a check, the schema."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.allowed import SETTINGS
from peerformer.interface.options import ConfigOptions, resolve_options
from peerformer.settings import resolve, to_json
from peerformer.settings import schema as settings_schema


def show(
    *,
    options: ConfigOptions = ConfigOptions(),
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Every setting, its value, where the value came from and what is allowed.

    Args:
        options: Where the settings come from.
        json_output: Print the configuration as JSON, fit for `--config`.
    """
    resolved = resolve_options(options)
    nested = to_json(resolved.config)
    if json_output:
        print(json.dumps(nested, indent=2))
        return
    rows = []
    for name in SETTINGS:
        section, _, field = name.rpartition(".")
        value = (nested[section] if section else nested)[field]
        rows.append((name, json.dumps(value), resolved.origins[name]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        columns = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        print("  ".join(columns), f" {SETTINGS[row[0]].help}")


def cost(
    *,
    options: ConfigOptions = ConfigOptions(),
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Parameters, operations and memory of training by these settings, without training.

    Args:
        options: Where the settings come from.
        json_output: Print one JSON object.
    """
    from peerformer.interface.cost import cost_of, cost_table

    config = resolve_options(options).config
    vocab_size = config.model.vocab_size or config.data.vocab_size
    dtype = "float32" if config.training.dtype == "auto" else config.training.dtype
    found = cost_of(config, vocab_size, dtype)
    print(json.dumps(asdict(found)) if json_output else cost_table(found))


def check(files: tuple[Path, ...], /) -> None:
    """Check configuration files, each over the ones before it.

    Args:
        files: JSON files.
    """
    resolve(files=files)
    for path in files:
        print(f"{path}: good")


def schema() -> None:
    """Print the JSON Schema of a configuration file."""
    print(json.dumps(settings_schema(), indent=2))
