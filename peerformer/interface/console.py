"""The prompt of a node: `stats peers train test log help quit`, live while it trains.

With a terminal there are a history, completion and a bar for what is being fetched; from a pipe
commands are read a line each. Whatever a command does, the event loop that votes goes on.
"""

import asyncio
import os
import shlex
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import NestedCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.patch_stdout import patch_stdout

from peerformer import events
from peerformer.errors import PeerformerError
from peerformer.interface import console_texts as texts
from peerformer.interface.sync_view import SyncView
from peerformer.interface.words import words_of
from peerformer.node.process import Running

HISTORY = "console-history"  # in the peer's directory, for its owner alone
LINES_SHOWN_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Order:
    """One command of the console: how it is typed, what it does, and who does it."""

    usage: str
    help: str
    answer: Callable[[list[str]], Awaitable[str]]
    arguments_max: int = 0


class WrongUsage(Exception):
    """A command with arguments that it does not understand; the message says which."""


class Console:
    """Commands in, words out; events are shown as they happen."""

    def __init__(self, running: Running, label: str = "peerformer") -> None:
        """Speak for a running peer."""
        self.running, self.label = running, label
        self.sync_view = SyncView()
        self._has_bar = False
        self._shown_at = 0.0
        self._train_until: int | None = None  # a round, after which to pause
        self.commands = {
            "stats": Order("stats", "how this peer and its swarm are doing", self.stats),
            "peers": Order("peers [NAME]", "who belongs, and their standing", self.peers, 1),
            "train": Order("train [N]", "train on; with N pause after N rounds", self.train, 1),
            "pause": Order("pause", "train no more; vote and serve as before", self.pause),
            "resume": Order("resume", "train again, at all hours", self.resume),
            "test": Order("test", texts.TEST_HELP, self.test),
            "log": Order("log [N]", "the last N events in words, 20 without N", self.log, 1),
            "state": Order("state", "write the protocol's whole state to a file", self.state),
            "help": Order("help", "this text", self.help),
            "quit": Order("quit", "leave the swarm politely and stop; twice: at once", self.quit),
        }

    # --- what happens --------------------------------------------------------------------------

    def on_event(self, event: events.Event) -> None:
        """Show what a person wants to know at once."""
        line_due = self.sync_view.on_event(event)
        if isinstance(event, events.ChunkFetched):
            if line_due and not self._has_bar:
                print(self.sync_view.text, flush=True)
            return
        if isinstance(event, events.RoundCommitted):
            self._pause_when_trained(event.round)
            behind = not self.running.peer.machine.sync.is_near
            if behind or time.monotonic() - self._shown_at < 1.0:
                return  # catching up, or rounds faster than anybody reads
            self._shown_at = time.monotonic()
        words = words_of(event)
        if words is not None:
            print(words, flush=True)

    def _pause_when_trained(self, number: int) -> None:
        if self._train_until is not None and number >= self._train_until:
            self._train_until = None
            self.running.pause()

    # --- commands ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read commands until the input ends."""
        if not sys.stdin.isatty():
            await self._read_lines()
            return
        session: PromptSession[str] = PromptSession(
            completer=self._completer(),
            history=FileHistory(str(private_file(self.running.directory.path / HISTORY))),
            bottom_toolbar=lambda: self.sync_view.text or None,
            refresh_interval=0.5,
        )
        self._has_bar = True
        with patch_stdout(raw=True):
            while not self.running.leaving:
                try:
                    line = await session.prompt_async(f"{self.label}> ")
                except (EOFError, KeyboardInterrupt):
                    line = "quit"
                session.completer = self._completer()
                await self.answer(line)

    def _completer(self) -> NestedCompleter:
        names: Iterable[str] = (row["name"] for row in self.running.status()["members"])
        nested: dict[str, set[str] | None] = dict.fromkeys(self.commands)
        nested["peers"] = set(names)
        return NestedCompleter.from_nested_dict(nested)

    async def _read_lines(self) -> None:
        """Take commands from a pipe, a line each; its end does not stop the node.

        The thread that reads ends with the process: a pipe on which nothing comes must not keep
        the node from stopping.
        """
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[str]()

        def read() -> None:
            for line in iter(sys.stdin.readline, ""):
                try:
                    loop.call_soon_threadsafe(lines.put_nowait, line)
                except RuntimeError:
                    return  # the loop has ended

        threading.Thread(target=read, name="console", daemon=True).start()
        while not self.running.leaving:
            await self.answer(await lines.get())

    async def answer(self, line: str) -> None:
        """Do what a line asks, and print the answer; a long one is printed when it is there."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            print(f"that cannot be read: {error}", flush=True)
            return
        if not words:
            return
        order = self.commands.get(words[0].lower())
        if order is None:
            print(texts.unknown(words[0], self.commands), flush=True)
        elif len(words) - 1 > order.arguments_max:
            print(f"it is typed so: {order.usage}", flush=True)
        else:
            await self._carry_out(order, words[1:])

    async def _carry_out(self, order: Order, arguments: list[str]) -> None:
        try:
            print(await order.answer(arguments), flush=True)
        except WrongUsage as error:
            print(f"{error}; it is typed so: {order.usage}", flush=True)
        except (PeerformerError, OSError) as error:
            print(error, flush=True)

    async def stats(self, _: list[str]) -> str:
        """How this peer and its swarm are doing."""
        return texts.stats(self.running.status(), self.running.swarm.path)

    async def peers(self, arguments: list[str]) -> str:
        """Who belongs to the swarm, or all about one of them."""
        status = self.running.status()
        if not arguments:
            return texts.peers(status)
        found = [row for row in status["members"] if row["name"] == arguments[0]]
        if not found:
            raise WrongUsage(f"no member is called {arguments[0]!r:.80}")
        links = self.running.peer.machine.neighbourhood.links
        link = links.get(bytes.fromhex(found[0]["peer_id"]))
        return texts.one_peer(found[0], link.address if link else None)

    async def train(self, arguments: list[str]) -> str:
        """Train on, perhaps for some rounds only."""
        if arguments:
            count = _whole(arguments[0], "rounds")
            self._train_until = self.running.peer.machine.chain.tip + count
        was = self.running.surroundings.paused_by
        if was:
            self.running.resume()
        elif not arguments:
            return "it is training; pause stops it, train 5 lets it train for 5 rounds"
        return f"training for {arguments[0]} rounds" if arguments else "training goes on"

    async def pause(self, _: list[str]) -> str:
        """Train no more."""
        self.running.pause()
        return "paused after the training in hand; resume goes on"

    async def resume(self, _: list[str]) -> str:
        """Train again."""
        self._train_until = None
        self.running.resume()
        return "it trains"

    async def test(self, _: list[str]) -> str:
        """Decide a round on a known gradient, and check the newest one of the swarm."""
        from peerformer.node.known_round import run_known_round

        live = texts.newest_round(self.running.peer.machine)
        config, genesis = self.running.parts.config, self.running.parts.genesis
        known = await asyncio.to_thread(run_known_round, config, genesis.limits)
        return f"{texts.known_round(known)}\n\n{live}"

    async def log(self, arguments: list[str]) -> str:
        """Tell the newest events."""
        count = _whole(arguments[0], "events") if arguments else 20
        return await asyncio.to_thread(texts.newest_events, self.running.directory.journal, count)

    async def state(self, _: list[str]) -> str:
        """Write the state of the protocol."""
        return f"the state is in {self.running.print_state()}"

    async def help(self, _: list[str]) -> str:
        """List the commands."""
        return "\n".join(f"{order.usage:<13} {order.help}" for order in self.commands.values())

    async def quit(self, _: list[str]) -> str:
        """Leave."""
        self.running.leave()
        return "leaving …"


def _whole(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= LINES_SHOWN_MAX:
        raise WrongUsage(f"{text!r:.40} is no number of {what} from 1 to {LINES_SHOWN_MAX}")
    return int(text)


def private_file(path: Path) -> Path:
    """Make a file that only its owner may read, if it is not there yet; returns it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)
    return path
