"""The progress line of a training run: rewritten on a terminal, a line now and then elsewhere."""

import json
import math
import sys
import time
from typing import TextIO

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
    """Shows how a run of so many steps goes."""

    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self.steps = steps
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self.bits_per_byte: float | None = None
        self._shown_at = NEVER_SHOWN
        self._width = 0

    def on_event(self, event: events.Event) -> None:
        """Take a record of the journal in."""
        if isinstance(event, events.Validated):
            self.bits_per_byte = event.bits_per_byte
        elif isinstance(event, events.Sampled):
            words = json.dumps(event.prompt + event.text, ensure_ascii=False)
            self._tell(f"sample      step {event.step}: {words}")
        elif isinstance(event, events.StepSkipped):
            self._tell(f"left out    step {event.step}: {event.why}")
        elif isinstance(event, events.StepDone):
            wait = TERMINAL_SECONDS if self.is_terminal else PLAIN_SECONDS
            now = time.monotonic()
            if now - self._shown_at >= wait or event.step >= self.steps:
                self._shown_at = now
                self._show(event)

    def _show(self, event: events.StepDone) -> None:
        parts = [f"step {event.step}/{self.steps}", f"loss {event.loss:.3f}"]
        if math.isfinite(event.bits_per_byte):
            parts.append(f"{event.bits_per_byte:.3f} bits/byte")
        if event.experts:  # the least and the most that one gets, in fair shares
            shares = dict(event.experts)
            least, most = shares["experts_least"], shares["experts_most"]
            parts.append(f"experts {least:.2f} to {most:.2f}")
        if self.bits_per_byte is not None:
            parts.append(f"val {self.bits_per_byte:.3f}")
        parts += [f"lr {event.learning_rate:.1e}", f"grad {event.gradient_norm:.2g}"]
        parts.append(f"{si(event.tokens_per_second)} tok/s")
        if math.isfinite(event.flop_utilisation):
            parts.append(f"{event.flop_utilisation:.1%} of peak")
        parts.append(f"mem {event.memory_bytes / 1e9:.2f} GB")
        if event.step > 1 and math.isfinite(event.seconds_left):
            parts.append(f"left {duration(event.seconds_left)}")
        line = "  ".join(parts)
        if self.is_terminal:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _tell(self, line: str) -> None:
        """Write a line that stays, above the progress line."""
        begin = "\r" if self.is_terminal else ""
        self.stream.write(begin + line.ljust(self._width) + "\n")
        self._width = 0
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self.is_terminal and self._width:
            self.stream.write("\n")
            self.stream.flush()


class StepProgress:
    """Shows how far a preparation of text is: the step, megabytes, speed and time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self._step, self._began, self._before = "", 0.0, 0
        self._shown_at = NEVER_SHOWN
        self._width = 0

    def tell(self, step: str, done_bytes: int, total_bytes: int) -> None:
        """Take in how far a step is; without a total it is not known how much there is."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._began, self._before = step, now, done_bytes
            self._shown_at = NEVER_SHOWN if self.is_terminal else now
        if now - self._shown_at < (TERMINAL_SECONDS if self.is_terminal else PLAIN_SECONDS):
            return
        self._shown_at = now
        parts = [f"{step:<11}"]
        if done_bytes:
            parts.append(f"{done_bytes / 1e6:,.0f} MB")
        speed = (done_bytes - self._before) / max(now - self._began, 1e-9)
        if speed > 0 and now - self._began > TERMINAL_SECONDS:
            parts.append(f"{speed / 1e6:.1f} MB/s")
            if total_bytes:
                parts.append(f"left {duration((total_bytes - done_bytes) / speed)}")
        self._write(" ".join(parts))

    def note(self, line: str) -> None:
        """Show a line that stays."""
        if self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self.stream.write(line + "\n")
        self.stream.flush()

    def _write(self, line: str) -> None:
        if self.is_terminal:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self._width:
            self.note("")
