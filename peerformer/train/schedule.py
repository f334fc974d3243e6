"""The learning rate as a pure function of the step, so that resuming needs no state.

Each schedule rises linearly over the warm-up to the peak. What comes then:

- *linear* to a fraction of the peak: as good as cosine for short runs (Defazio et al., arXiv
  2310.07831);
- *cosine* (Loshchilov and Hutter, arXiv 1608.03983), half a period, to that fraction;
- *wsd*, warm-up, stable, decay: the peak, and over the last part of the run 1 - sqrt, which ends
  lower than a line (Hägele et al., arXiv 2405.18392, section 4.2);
- *constant*;
- *inverse-sqrt* (Vaswani et al., arXiv 1706.03762): the root of warm-up by step, without an end;
- *plateau*: the peak, cut by a factor whenever validations stop getting better. It is a function
  of the losses validated so far, which a checkpoint keeps.

Knows nothing of optimizers.
"""

import math
from collections.abc import Sequence

from peerformer.config import TrainingConfig

BETTER = 1e-4  # a loss is better if it is lower by this share, as in PyTorch's ReduceLROnPlateau


def learning_rate_scale(step: int, settings: TrainingConfig) -> float:
    """Return the share of the peak learning rate at a step, counted from 0.

    Steps beyond the last stay where that is. Of *plateau* it is the part that depends on the step
    alone; see `plateau_scale`.
    """
    warmup, steps, final = settings.warmup_steps, settings.steps, settings.final_fraction
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    match settings.schedule:
        case "linear":
            return 1.0 - (1.0 - final) * share
        case "cosine":
            return final + (1.0 - final) * (1.0 + math.cos(math.pi * share)) / 2
        case "wsd":
            decay = decay_steps(settings)
            share = min(1.0, max(0, step - (steps - 1 - decay)) / decay)
            return 1.0 - (1.0 - final) * math.sqrt(share)
        case "inverse-sqrt":
            return math.sqrt(warmup / (step + 1))
    return 1.0


def decay_steps(settings: TrainingConfig) -> int:
    """Return how many steps at the end of a run decay under *wsd*."""
    return max(1, round(settings.decay_fraction * settings.steps))


def plateau_scale(losses: Sequence[float], settings: TrainingConfig) -> float:
    """Return by what the rate is cut after these validated losses, oldest first."""
    scale, best, worse = 1.0, math.inf, 0
    for loss in losses:
        if is_better(loss, best):
            best, worse = loss, 0
            continue
        worse += 1
        if worse > settings.plateau_patience:
            scale, worse = max(scale * settings.plateau_factor, settings.final_fraction), 0
    return scale


def validations_since_best(losses: Sequence[float]) -> int:
    """Return how many validations ago the best one was; 0 if it was the last, or there is none."""
    best, since = math.inf, 0
    for loss in losses:
        best, since = (loss, 0) if is_better(loss, best) else (best, since + 1)
    return since


def is_better(loss: float, best: float) -> bool:
    """Tell whether a loss is clearly lower than the best so far; one that is no number is not."""
    return loss < best * (1.0 - BETTER) if math.isfinite(best) else loss < best
