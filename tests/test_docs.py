"""Every command in README.md and docs/ is real.

Each `peerformer` command must parse against the program as it is, flags and all; each `make`
target must exist. A block under `<!-- run -->` is executed from top to bottom in an empty folder.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from peerformer.interface.cli import build_app
from peerformer.interface.options import expand_settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"(<!-- run -->\s*\n)?^```(console|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN_SECONDS_MAX = 60
LAUNCHERS = {"torchrun", "mpirun", "srun"}  # they start several of a program


@dataclass(frozen=True)
class Block:
    """One fenced block of commands."""

    place: str
    commands: tuple[str, ...]
    is_run: bool


def commands_in(language, body):
    """The command lines of a block; in `console` they follow a prompt, and output is skipped."""
    lines = body.replace("\\\n", " ").splitlines()
    if language == "console":
        lines = [m[1] for line in lines if (m := re.match(r"\w*\$ (.*)", line))]
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def blocks_of(page):
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        place = f"{page.relative_to(ROOT).as_posix()}:{line}"
        yield Block(place, commands_in(match[2], match[3]), match[1] is not None)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [(block.place, command) for block in BLOCKS for command in block.commands]


def calls_in(line):
    """The simple commands of a line, as lists of words, without variables set before them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;<>()"):
            if call:
                yield call
            call = []
        elif call or not re.match(r"[A-Z_]+=", word):
            call.append(word)


def arguments_for_peerformer(call):
    """What `peerformer` is given in a command, or None if the command is another program's."""
    if Path(call[0]).name == "peerformer":
        return call[1:]
    call = [word for word in call if word != "--"]  # torchrun's, before the program's words
    if Path(call[0]).name in LAUNCHERS and "peerformer" in call:
        return call[call.index("peerformer") + 1 :]
    if call[1:] and "-m" in call and call[call.index("-m") + 1] == "peerformer":
        return call[call.index("-m") + 2 :]
    return None


def test_the_documentation_has_commands_and_some_of_them_are_run():
    assert any("peerformer" in command for _, command in COMMANDS)
    assert any(block.is_run for block in BLOCKS)


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=lambda value: value.replace("/", "."))
def test_a_documented_command_is_one_that_the_program_understands(place, line):
    for call in calls_in(line):
        arguments = arguments_for_peerformer(call)
        if arguments is not None:
            build_app().parse_args(
                expand_settings(arguments), exit_on_error=False, print_error=False
            )
        elif call[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            wanted = [word for word in call[1:] if "=" not in word and not word.startswith("-")]
            assert set(wanted) <= set(targets), f"{place}: no such target"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.is_run], ids=lambda b: b.place)
def test_a_block_marked_to_run_does_run(block, tmp_path):
    program = tmp_path / ".venv" / "bin" / "peerformer"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m peerformer "$@"\n')
    program.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PEERFORMER_")}
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(block.commands)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
    )
    assert done.returncode == 0, f"{block.place}\n{done.stdout}\n{done.stderr}"
