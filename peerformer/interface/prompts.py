"""The prompts of `peerformer generate`: from the command line, a file, or standard input.

A file has a prompt a line; a `.jsonl` file has a JSON text or an object with a `prompt` a line, so
that a prompt may have lines of its own.

Knows nothing about models.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from peerformer.errors import ConfigError, DataError

FILE_BYTES_MAX = 64_000_000  # all prompts are held in memory
STANDARD_INPUT = "-"


def read_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """All prompts, those of the command line first.

    Raises:
        ConfigError: there is none.
        DataError: the file cannot be read, or a line of it is no prompt.
    """
    prompts = list(given)
    if file is not None:
        prompts += _read(file)
    if not prompts:
        where = None if file is None else str(file)
        raise ConfigError(
            "there is no prompt", where=where, hint='peerformer generate "Once upon a time"'
        )
    return prompts


def _read(file: Path) -> list[str]:
    try:
        if str(file) == STANDARD_INPUT:
            data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(FILE_BYTES_MAX + 1)
        text = data.decode()
    except OSError as error:
        raise DataError(
            "the prompts cannot be read", where=str(file), why=error.strerror
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            "the prompts are not UTF-8 text", where=f"{file}, byte {error.start}"
        ) from error
    if len(data) > FILE_BYTES_MAX:
        raise DataError(
            "the file of prompts is too large",
            where=str(file),
            why=f"it has more than {FILE_BYTES_MAX:,} bytes",
        )
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if file.suffix != ".jsonl":
        return [line.removesuffix("\r") for _, line in lines]
    return [_from_json(line, f"{file}, line {number}") for number, line in lines]


def _from_json(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("a line of the prompts is not JSON", where=where) from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise DataError(
            "a line of the prompts has no prompt",
            where=where,
            hint='{"prompt": "Once upon a time"}',
        )
    return prompt
