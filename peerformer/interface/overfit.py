"""`peerformer train --overfit`: can this model learn one batch by heart? If not, exit code 1."""

import json
import sys
from dataclasses import asdict

from peerformer.config import Config
from peerformer.errors import Interrupted, PeerformerError
from peerformer.interface.progress import ProgressLine
from peerformer.interface.stop import Stop
from peerformer.train.overfit import NEAR_ZERO, Overfit, overfit


def check_overfit(config: Config, *, json_output: bool) -> None:
    """Learn one batch by heart, and say whether that went well.

    Raises:
        PeerformerError: it did not.
    """
    progress = ProgressLine(config.training.steps)
    stop = Stop()
    stop.listen()
    try:
        found = overfit(config, on_event=progress.on_event, report=_note, should_stop=stop)
    finally:
        progress.close()
        stop.close()
    if json_output:
        print(json.dumps({**asdict(found), "learned": found.learned}), flush=True)
    _conclude(found, stopped=stop.asked)


def _conclude(found: Overfit, *, stopped: bool) -> None:
    went = f"loss {found.first_loss:.3f} -> {found.loss:.3f} in {found.steps} steps"
    if found.learned:
        _note(f"overfit     one batch is known by heart: {went}")
        _note("            model, loss and optimizer work; nothing was kept")
        return
    if stopped:
        raise Interrupted(f"stopped before one batch was known by heart: {went}")
    raise PeerformerError(
        f"one batch was not learned by heart: {went}",
        why=f"a loss of {NEAR_ZERO} or less was expected: too few steps, a learning rate that does"
        " not suit, or an error",
        hint="more --steps, or peerformer find-rate with the same settings",
    )


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
