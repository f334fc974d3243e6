"""What a person sees of a running swarm: a live table, or a line a round without a screen."""

import sys
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peerformer.node.status import WITHOUT_QUORUM

NUMERIC = ("round", "made", "accepted", "reputation", "busy")
AWAY = ("down", "elsewhere")
COLUMNS = ("peer", "role", *NUMERIC, "state")


def table_of(overview: dict[str, Any]) -> Table:
    """Return the table of a swarm's peers: 80 columns hold all but long words on their state.

    `made`: contributions; `busy`: the share of the time that is spent in training steps.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        justify: Literal["left", "right"] = "right" if column in NUMERIC else "left"
        table.add_column(column, justify=justify, no_wrap=column != "state")
    for row in overview["peers"]:
        share = f"{100 * row['accepted'] // row['contributed']} %" if row["contributed"] else "–"
        state = row["state"] + (f"  ({row['adversary']})" if row["adversary"] else "")
        reputation = "–" if row["reputation"] is None else str(row["reputation"])
        busy = "–" if row["utilisation"] is None else f"{100 * row['utilisation']:.0f} %"
        cells = (row["name"], row["role"], str(row["round"]), str(row["contributed"]), share)
        table.add_row(*cells, reputation, busy, state, style=_style(row["state"]))
    return table


def _style(state: str) -> str:
    if state.startswith(("evicted", "quarantined")):
        return "red"
    return "dim" if state in AWAY or state.startswith("stopped") else ""


def headline(overview: dict[str, Any]) -> str:
    """Return one line on the swarm as a whole."""
    bits = overview["bits_per_byte"]
    learned = f"   {list(bits.values())[-1]:.3f} bits per byte" if bits else ""
    losses = [row["loss"] for row in overview["peers"] if row["loss"]]
    loss = f"   loss {sum(losses) / len(losses):.2f}" if losses else ""
    sent = [row["bytes_sent"] for row in overview["peers"] if row["bytes_sent"]]
    bytes_sent = f"   {sum(sent) / len(sent) / 1e6:.1f} MB sent per peer" if sent else ""
    spent = [row["epsilon"] for row in overview["peers"] if row["epsilon"] is not None]
    privacy = f"   epsilon {max(spent):.3g} spent" if spent else ""
    return (
        f"round {overview['round']}   {overview['running']} running, quorum {overview['quorum']}, "
        f"tolerates {overview['tolerates']}{loss}{learned}{bytes_sent}{privacy}"
    )


def by_source(overview: dict[str, Any]) -> str | None:
    """Return how good the model is on each source of the held-out text, the worst first."""
    found = sorted(overview["bits_per_byte_by_source"].items(), key=lambda pair: -pair[1])
    words = ", ".join(f"{name} {bits:.3f}" for name, bits in found)
    return f"held out by source: {words} bits per byte" if words else None


def advice(overview: dict[str, Any]) -> str | None:
    """Return what to do about a swarm of which no peer here reaches a quorum, or None."""
    states = {row["state"] for row in overview["peers"] if row["state"] not in AWAY}
    states = {state for state in states if not state.startswith(("stopped", "evicted"))}
    if states != {WITHOUT_QUORUM}:
        return None
    return (
        f"Nothing is decided while fewer than {overview['quorum']} voters are connected.\n"
        "If too many are gone for good, stop; the rest can found a new chain:  "
        f"peerformer recover {overview['path']}"
    )


class SwarmView:
    """Shows overviews on stderr as they come, and notes above them."""

    def __init__(self, *, live: bool | None = None) -> None:
        """Use a live table on a terminal, plain lines elsewhere."""
        self.console = Console(stderr=True, highlight=False)
        self.is_live = sys.stderr.isatty() if live is None else live
        self._live = Live(console=self.console, auto_refresh=False, transient=False)
        self._round = -1

    def __enter__(self) -> "SwarmView":
        """Begin."""
        if self.is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last table standing."""
        if self.is_live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Say something that stays."""
        self.console.print(Text(text), soft_wrap=True)

    def show(self, overview: dict[str, Any]) -> None:
        """Show how the swarm is doing now."""
        if self.is_live:
            told = (headline(overview), by_source(overview), advice(overview))
            lines = [text for text in told if text]
            self._live.update(Group(table_of(overview), *map(Text, lines)), refresh=True)
        elif overview["round"] != self._round:
            self._round = overview["round"]
            self.note(headline(overview))
