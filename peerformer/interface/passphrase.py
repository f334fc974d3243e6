"""Passphrases: from a file, the environment, or the terminal without echo; never a command line."""

import getpass
import os
import stat
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from peerformer.errors import IdentityError
from peerformer.node.keyring import (
    PASSPHRASE_VARIABLE,
    load_or_create_key,
    passphrase_of_environment,
)

LENGTH_MAX = 1_024

PassphraseFile = Annotated[
    Path | None, Parameter(help="File whose first line opens a protected key.")
]


def seed_of(key: Path, file: Path | None) -> bytes:
    """Return the secret of an identity file, made if there is none, asking for its passphrase once.

    Raises:
        IdentityError: if the key cannot be used.
    """
    return load_or_create_key(key, lambda: ask(file, f"passphrase of {key}: "))


def ask(file: Path | None, prompt: str) -> str:
    """Return the passphrase that opens a key.

    Raises:
        IdentityError: if none can be had.
    """
    if file is not None:
        return _first_line(file)
    if os.environ.get(PASSPHRASE_VARIABLE) or not sys.stdin.isatty():
        return passphrase_of_environment()
    return getpass.getpass(prompt)


def new(file: Path | None) -> str:
    """Return a passphrase for a new key; at a terminal it is typed twice.

    Raises:
        IdentityError: if none can be had, it is empty, or typed in two ways.
    """
    passphrase = ask(file, "new passphrase: ")
    typed = file is None and not os.environ.get(PASSPHRASE_VARIABLE)
    if not passphrase:
        raise IdentityError("an empty passphrase protects nothing", hint="leave --protect out")
    if typed and getpass.getpass("the same again: ") != passphrase:
        raise IdentityError("the two passphrases are not the same", hint="type it again")
    return passphrase


def is_given(file: Path | None) -> bool:
    """Tell whether a passphrase was given without a question."""
    return file is not None or bool(os.environ.get(PASSPHRASE_VARIABLE))


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            line = opened.readline(LENGTH_MAX).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise IdentityError("the passphrase cannot be read", where=str(file), why=why) from error
    if os.name == "posix" and mode & 0o077:
        raise IdentityError(
            "the file of the passphrase may be read by others",
            where=str(file),
            why=f"its permissions are {mode:04o}",
            hint=f"chmod 600 {file}",
        )
    return line
