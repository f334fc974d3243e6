"""The prompt of a node: `stats peers train test state quit help`, live while it trains."""

import asyncio
import sys
import time
from collections.abc import Callable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.patch_stdout import patch_stdout

from peerformer import events
from peerformer.node.process import Running
from peerformer.node.status import WITHOUT_QUORUM
from peerformer.protocol.certificates import decided_fault
from peerformer.protocol.effects import Command
from peerformer.protocol.identity import name_of
from peerformer.protocol.membership import peers_of

SHOWN = (
    events.RoundCommitted,
    events.ContributionRefused,
    events.PeerJoined,
    events.PeerLeft,
    events.PeerSuspended,
    events.PeerReturned,
    events.PeerStruck,
    events.PeerAudited,
    events.ContributionsAlike,
    events.WorkDoubted,
    events.PeerEvicted,
    events.PeerQuarantined,
    events.PeerConnected,
    events.PeerDisconnected,
    events.SyncStarted,
    events.SyncFinished,
    events.ViewChanged,
    events.ForkSeen,
)
HELP = """stats    how this peer and its swarm are doing
peers    who belongs to the swarm, and their standing
train    pause or resume this peer's training
test     check the newest decided round: header, certificate, signatures, my own state root
state    print the whole state of the protocol to a file; no secret is in it
quit     leave the swarm politely and stop
help     this text"""


class Console:
    """Commands in, words out; events are shown as they happen."""

    def __init__(self, running: Running) -> None:
        """Speak for a running peer."""
        self.running = running
        self._shown_at = 0.0
        self.commands: dict[str, Callable[[], str]] = {
            "stats": self.stats,
            "peers": self.peers,
            "train": self.train,
            "test": self.test,
            "state": lambda: f"the state is in {self.running.print_state()}",
            "quit": self.quit,
            "help": lambda: HELP,
        }

    def on_event(self, event: events.Event) -> None:
        """Show what a person wants to know at once."""
        if isinstance(event, events.RoundCommitted):
            behind = not self.running.peer.machine.sync.is_near
            if behind or time.monotonic() - self._shown_at < 1.0:
                return  # catching up, or rounds faster than anybody reads
            self._shown_at = time.monotonic()
        if isinstance(event, SHOWN):
            print(_words(event), flush=True)

    async def run(self) -> None:
        """Read commands until the input ends."""
        if not sys.stdin.isatty():
            await self._read_lines()
            return
        session: PromptSession[str] = PromptSession(completer=WordCompleter(list(self.commands)))
        with patch_stdout(raw=True):
            while not self.running.leaving:
                try:
                    line = await session.prompt_async("peerformer> ")
                except (EOFError, KeyboardInterrupt):
                    line = "quit"
                self.answer(line)

    async def _read_lines(self) -> None:
        """Take commands from a pipe, a line each; its end does not stop the node."""
        loop = asyncio.get_running_loop()
        while not self.running.leaving:
            line = await loop.run_in_executor(None, sys.stdin.readline)
            if not line:
                return
            self.answer(line)

    def answer(self, line: str) -> None:
        """Do what a line asks, and print the answer."""
        word = line.strip().lower()
        if word:
            command = self.commands.get(word)
            text = command() if command else f"no command is called {word}; help lists them"
            print(text, flush=True)

    def stats(self) -> str:
        """How this peer and its swarm are doing."""
        status = self.running.status()
        bits = list(status["bits_per_byte"].values())
        busy = status["utilisation"]
        rows = [
            ("peer", f"{status['name']}  {status['address']}"),
            (
                "swarm",
                f"{len(status['members'])} members, quorum {status['quorum']}, "
                f"tolerates {status['tolerates']}",
            ),
            ("round", f"{status['round']}, {status['state']}"),
            *(("", text) for text in self._advice(status["state"])),
            ("loss", "–" if status["loss"] is None else f"{status['loss']:.3f}"),
            ("training", "–" if busy is None else f"{100 * busy:.0f} % of the time"),
            ("held out", f"{bits[-1]:.3f} bits per byte" if bits else "–"),
            (
                "traffic",
                f"{status['bytes_sent'] / 1e6:.1f} MB sent, "
                f"{status['bytes_received'] / 1e6:.1f} MB received",
            ),
            ("state root", status["state_root"]),
        ]
        if status["epsilon"] is not None:
            rows.append(("privacy", f"epsilon {status['epsilon']:.3g} spent (docs/privacy.md)"))
        return "\n".join(f"{name:<11} {value}" for name, value in rows)

    def _advice(self, state: str) -> list[str]:
        if state != WITHOUT_QUORUM:
            return []
        path = self.running.swarm.path
        return ["if too many are gone for good: quit, then", f"peerformer recover {path}"]

    def peers(self) -> str:
        """Who belongs to the swarm."""
        status = self.running.status()
        lines = []
        for row in status["members"]:
            link = (
                "me"
                if row["peer_id"] == status["peer_id"]
                else "connected"
                if row["connected"]
                else "away"
            )
            lines.append(
                f"{row['name']:<18} {row['role']:<9} {link:<10} "
                f"accepted {row['accepted']}/{row['contributed']}"
                f"  reputation {row['reputation']}"
            )
        lines += [f"{row['name']:<18} evicted" for row in status["banned"]]
        return "\n".join(lines) or "none yet"

    def train(self) -> str:
        """Pause or resume training."""
        paused = self.running.peer.machine.paused
        self.running.node.post(Command("resume" if paused else "pause"))
        return "training goes on" if paused else "paused after this round's training; train resumes"

    def test(self) -> str:
        """Check the newest decided round from its bytes."""
        chain = self.running.peer.machine.chain
        item = chain.item(chain.tip)
        if item is None:
            return "no round is decided yet"
        voters = chain.past_members[chain.tip].voters
        fault = decided_fault(item, voters, chain.chain_id)
        signers = peers_of(voters, item.certificate.signers) or ()
        names = ", ".join(name_of(peer) for peer in signers)
        mine = self.running.peer.machine.sync.state_round == chain.tip
        lines = [
            f"round {chain.tip}, view {item.certificate.view}: {fault or 'the certificate holds'}",
            f"signed by {len(signers)} of {len(voters)}: {names}",
            f"state root {item.header.state_root.hex()}"
            + ("  computed here too" if mine else "  not installed here yet"),
        ]
        return "\n".join(lines)

    def quit(self) -> str:
        """Leave."""
        self.running.leave()
        return "leaving …"


def _words(event: events.Event) -> str:
    match event:
        case events.RoundCommitted():
            return (
                f"round {event.round} decided: {event.accepted} of {event.contributions} "
                f"contributions, {event.seconds:.1f} s"
            )
        case events.ContributionRefused():
            words = f"round {event.round}: {event.name} refused: {event.reason}"
            return f"{words} {event.evidence}".rstrip()
        case events.PeerEvicted():
            return f"{event.name} is evicted: {event.evidence}"
        case events.PeerQuarantined():
            return f"{event.name} is quarantined to round {event.until_round}"
        case events.PeerJoined():
            return f"{event.name} has joined as a {event.role}"
        case events.PeerLeft():
            return f"{event.name} has left"
        case events.PeerSuspended():
            return f"{event.name} is suspended: away for {event.idle_rounds} rounds"
        case events.PeerReturned():
            return f"{event.name} is back and votes again"
        case events.PeerStruck():
            return f"{event.name} gets a strike: {event.reason}"
        case events.WorkDoubted():
            return f"{event.name} does its own data no more good than other data"
        case events.ContributionsAlike():
            return f"round {event.round}: {event.name} sends what {event.other_name} sends"
        case events.PeerAudited():
            able = "could" if event.passed else "could not"
            return f"round {event.round}: {able} repeat the training of {event.name}: {event.why}"
        case events.PeerConnected():
            return f"{event.name} is connected"
        case events.PeerDisconnected():
            return f"{event.name} is gone"
        case events.SyncStarted():
            return f"behind: fetching the state of round {event.to_round}"
        case events.SyncFinished():
            return f"state of round {event.round} is here and verified, {event.seconds:.1f} s"
        case events.ViewChanged():
            return (
                f"round {event.round}: no decision under {event.leader}, view {event.view} begins"
            )
        case _:
            return f"{type(event).__name__}: two certificates for one round; this peer has stopped"
