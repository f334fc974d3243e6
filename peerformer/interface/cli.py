"""The commands; a command's code is imported only when it runs.

The table below knows each command's module, function and one line of help, so that
`peerformer --help` imports neither torch nor any command. `main` turns every failure into a few
plain lines on stderr and an exit code: 0 done, 1 failed, 2 wrong usage or configuration,
3 diverged, 4 swarm unreachable or no quorum, 5 evicted, 130 interrupted.

It knows nothing about what the commands do.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, UnknownCommandError

from peerformer import __version__
from peerformer.errors import ConfigError, Interrupted, PeerformerError, ToldElsewhere
from peerformer.interface.doctor import doctor
from peerformer.interface.options import expand_settings

DEBUG_VARIABLE = "PEERFORMER_DEBUG"
_PACKAGE = "peerformer.interface.commands"

# Command -> module:function under commands/, and its line in `--help`.
COMMANDS = {
    "train": ("train:train", "Train a model on this machine; the same command resumes."),
    "find-rate": ("find_rate:find", "Try all learning rates once, and suggest one."),
    "cross-validate": (
        "cross_validate:validate",
        "Train and judge k models on k parts of a text: mean and deviation.",
    ),
    "generate": ("generate:generate", "Continue a text with a trained model."),
    "export": ("export:export", "Write a model in the field's formats, and check it."),
    "evaluate": ("evaluate:evaluate", "Loss, perplexity and bits per byte on a text."),
    "plot": ("plot:plot", "Draw and compare the metrics of runs."),
    "predict": ("predict:predict", "The most likely next tokens of a text."),
    "up": ("up:up", "Start a whole swarm on this machine."),
    "demo": ("demo:demo", "Watch a swarm train, lose a peer and resist an attacker."),
    "node": ("node:node", "Run one peer, with an interactive console."),
    "init": ("init:init", "Found a swarm for others to join."),
    "invite": ("invite:invite", "Print a ticket for a newcomer."),
    "join": ("join:join", "Run one peer that joins by a ticket."),
    "lan": ("lan:lan", "List the swarms that announce themselves on this network."),
    "status": ("status:status", "How a run or a swarm is doing."),
    "simulate": ("simulate:simulate", "The protocol in worlds full of trouble."),
    "log": ("log:log", "What happened in a run or a swarm, from its journal."),
    "recover": ("recover:recover", "Found a new chain where too many voters are gone for good."),
    "verify": (
        "verify:verify",
        "Check a swarm's run, a certificate or evidence against a genesis.",
    ),
}
GROUPS = {
    "authority": (
        "Keep the certificate authority of a private group.",
        {
            "new": ("authority:new", "Make an authority for a group."),
            "certify": ("authority:certify", "Issue the certificate of one peer."),
        },
    ),
    "bench": (
        "Measure, in a source tree.",
        {"robustness": ("bench:robustness", "Attacks against rules and codecs, as a table.")},
    ),
    "config": (
        "Show, check and describe settings.",
        {
            "show": ("config:show", "Every setting, its value and where it came from."),
            "cost": ("config:cost", "Parameters, operations and memory of training so."),
            "check": ("config:check", "Check configuration files."),
            "schema": ("config:schema", "The JSON Schema of a configuration file."),
        },
    ),
    "data": (
        "Look at text and prepare it.",
        {
            "look": ("data:look", "What is read of some text, what is left out, and why."),
            "prepare": ("data:prepare", "Turn text of any size into shards of tokens."),
        },
    ),
    "checkpoint": (
        "Turn a checkpoint into another form.",
        {"consolidate": ("checkpoint:consolidate", "One ordinary checkpoint of a sharded one.")},
    ),
    "doctor": (
        "Look at what this machine, or a cluster, can do, and say what to change.",
        {"cluster": ("doctor:cluster", "Ranks, devices, and how fast they add numbers up.")},
    ),
    "key": (
        "Make, show, back up and restore a peer's key.",
        {
            "new": ("key:new", "Make a key, under a passphrase if you like."),
            "show": ("key:show", "Whose key lies here; never the secret."),
            "backup": ("key:backup", "Copy a key to a safe place."),
            "restore": ("key:restore", "Put a key back from its copy."),
        },
    ),
    "peer": (
        "Add, kill, start and look into peers of a swarm on this machine.",
        {
            "add": ("peer:add", "Add a peer, or an adversary."),
            "kill": ("peer:kill", "Kill a peer without a goodbye."),
            "start": ("peer:start", "Start a killed peer again."),
            "pause": ("peer:pause", "Let a peer train no more, and vote as before."),
            "resume": ("peer:resume", "Let a paused peer train again."),
            "state": ("peer:state", "Print a peer's protocol state to a file."),
        },
    ),
    "tokenizer": (
        "Train, import, show, merge and trim vocabularies.",
        {
            "train": ("tokenizer:train", "Train a vocabulary on a text."),
            "import": ("tokenizer:import_tokenizer", "Read tiktoken ranks or SentencePiece."),
            "show": ("tokenizer:show", "What a vocabulary holds, and how it cuts a text."),
            "merge": ("tokenizer:merge", "Put two vocabularies of one kind together."),
            "trim": ("tokenizer:trim", "Keep the tokens that a text uses."),
        },
    ),
}
# What a group does without one of its commands.
DEFAULTS = {"doctor": doctor}


def build_app() -> App:
    """The command line, with every command registered by name only."""
    app = App(
        name="peerformer",
        help="Train small transformers alone, or peer to peer among strangers.",
        help_format="plaintext",
        help_epilogue=f"--debug or {DEBUG_VARIABLE}=1 shows the traceback of a failure.",
        version=__version__,
        suppress_keyboard_interrupt=False,
    )
    for order, (name, (target, line)) in enumerate(COMMANDS.items()):
        app.command(f"{_PACKAGE}.{target}", name=name, help=line, sort_key=order)
    for order, (name, (group_line, commands)) in enumerate(GROUPS.items(), len(COMMANDS)):
        group = App(name=name, help=group_line, help_format="plaintext", sort_key=order)
        for suborder, (subname, (target, line)) in enumerate(commands.items()):
            group.command(f"{_PACKAGE}.{target}", name=subname, help=line, sort_key=suborder)
        if name in DEFAULTS:
            group.default(DEFAULTS[name])
        app.command(group)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; None takes this process's.

    Returns:
        The exit code.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    if "--debug" in tokens:  # for every command alike, so no command declares it
        debug = True
        tokens.remove("--debug")
    try:
        exit_code = _run(tokens)
        sys.stdout.flush()  # here, where a closed pipe is expected, and not at exit
        return exit_code
    except ToldElsewhere as silent:
        return silent.exit_code
    except Interrupted as stop:
        # A normal way to stop: what was done is saved, so it is told without the word "error".
        print(str(stop).removeprefix("error: "), file=sys.stderr)
        return stop.exit_code
    except PeerformerError as error:
        if debug:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        failure = PeerformerError(
            f"{type(error).__name__}: {error}",
            hint=None if debug else "re-run with --debug for the traceback",
        )
        print(failure, file=sys.stderr)
        return 1


def _run(tokens: list[str]) -> int:
    try:
        result = build_app()(
            expand_settings(tokens),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except UnknownCommandError as error:
        raise _unknown_command(tokens, error) from error
    except CycloptsError as error:
        chain = " ".join(("peerformer", *(error.command_chain or ())))
        raise ConfigError(str(error), where="command line", hint=f"{chain} --help") from error
    return result if isinstance(result, int) else 0


def _unknown_command(tokens: Sequence[str], error: UnknownCommandError) -> ConfigError:
    """Name the nearest command; cyclopts would import every command to find it."""
    word = (error.unused_tokens or tokens)[0]
    group = next((t for t in tokens if t in GROUPS), None)
    known = list(GROUPS[group][1]) if group else [*COMMANDS, *GROUPS]
    near = difflib.get_close_matches(word, known, n=1)
    chain = " ".join(["peerformer", *([group] if group else [])])
    return ConfigError(
        f"there is no command {word!r}",
        where="command line",
        hint=f"{chain} {near[0]}" if near else f"{chain} --help",
    )
