"""The progress line: what a person sees of a step, and what stays above it."""

import io
import math

from peerformer import events
from peerformer.interface.progress import ProgressLine

STEP = events.StepDone(
    step=100,
    loss=2.6149,
    learning_rate=1e-3,
    tokens_per_second=12_345.0,
    gradient_norm=0.812,
    bits_per_byte=1.2345,
    flop_utilisation=0.431,
    memory_bytes=912_000_000,
    seconds_left=91.0,
)


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_a_step_is_told_with_all_that_is_measured() -> None:
    stream = io.StringIO()
    line = ProgressLine(1_000, stream)
    line.on_event(events.Validated(step=100, loss=2.5, bits_per_byte=1.3))
    line.on_event(STEP)
    assert stream.getvalue() == (
        "step 100/1000  loss 2.615  1.234 bits/byte  val 1.300  lr 1.0e-03  grad 0.81  "
        "12.3k tok/s  43.1% of peak  mem 0.91 GB  left 1m31s\n"
    )


def test_what_is_not_known_is_not_shown() -> None:
    stream = io.StringIO()
    ProgressLine(1_000, stream).on_event(
        events.StepDone(
            step=1, loss=math.nan, learning_rate=0.0, tokens_per_second=1.0, gradient_norm=math.inf
        )
    )
    assert "peak" not in stream.getvalue() and "left" not in stream.getvalue()
    assert "loss nan" in stream.getvalue() and "grad inf" in stream.getvalue()


def test_samples_and_steps_left_out_stay_above_the_line() -> None:
    screen = Screen()
    line = ProgressLine(1_000, screen)
    line.on_event(STEP)
    line.on_event(events.Sampled(step=100, prompt="Once", text=' said "no"\n\x1b[2J'))
    line.on_event(events.StepSkipped(step=101, why="the gradient of norm.weight is not finite"))
    line.close()
    shown = screen.getvalue().split("\r")
    assert shown[2].rstrip() == 'sample      step 100: "Once said \\"no\\"\\n\\u001b[2J"'
    assert "\x1b" not in screen.getvalue(), "what a model writes moves no cursor"
    assert shown[3].startswith("left out    step 101: the gradient of norm.weight")
