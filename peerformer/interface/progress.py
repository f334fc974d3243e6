"""The progress line of a training run: rewritten on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import TextIO

import psutil

from peerformer import events

TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 10.0  # between two lines where nothing can be rewritten
NEVER_SHOWN = -1e9


def si(number: float) -> str:
    """Return a number with three digits and its SI prefix, such as 9.81k."""
    for prefix in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{prefix}"
        number /= 1_000
    return f"{number:.3g}T"


def duration(seconds: float) -> str:
    """Return a duration such as 1m31s."""
    whole = round(seconds)
    hours, minutes = whole // 3_600, whole % 3_600 // 60
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


class ProgressLine:
    """Shows how a run of so many steps of so many tokens goes."""

    def __init__(self, steps: int, tokens_a_step: int, stream: TextIO | None = None) -> None:
        self.steps, self.tokens_a_step = steps, tokens_a_step
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self.bits_per_byte: float | None = None
        self._shown_at = NEVER_SHOWN
        self._width = 0

    def on_event(self, event: events.Event) -> None:
        """Take a record of the journal in."""
        if isinstance(event, events.Validated):
            self.bits_per_byte = event.bits_per_byte
        elif isinstance(event, events.StepDone):
            wait = TERMINAL_SECONDS if self.is_terminal else PLAIN_SECONDS
            now = time.monotonic()
            if now - self._shown_at >= wait or event.step >= self.steps:
                self._shown_at = now
                self._show(event)

    def _show(self, event: events.StepDone) -> None:
        parts = [f"step {event.step}/{self.steps}", f"loss {event.loss:.3f}"]
        if self.bits_per_byte is not None:
            parts.append(f"val {self.bits_per_byte:.3f} bits/byte")
        parts += [f"lr {event.learning_rate:.1e}", f"{si(event.tokens_per_second)} tok/s"]
        parts.append(f"mem {psutil.Process().memory_info().rss / 1e9:.2f} GB")
        if event.step > 1 and event.tokens_per_second > 0:
            parts.append(f"left {self._left(event)}")
        line = "  ".join(parts)
        if self.is_terminal:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _left(self, event: events.StepDone) -> str:
        return duration((self.steps - event.step) * self.tokens_a_step / event.tokens_per_second)

    def close(self) -> None:
        """End the line."""
        if self.is_terminal and self._width:
            self.stream.write("\n")
            self.stream.flush()
