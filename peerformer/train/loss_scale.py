"""Dynamic loss scaling, without which small gradients are zero in float16.

The loss is multiplied by a scale before its backward pass, and the gradients are divided by it.
A gradient that is not finite any more has overflowed: its step is left out and the scale halved;
after so many good steps in a row it is doubled (Micikevicius et al., arXiv 1710.03740, section
3.2; factors and interval are those of `torch.amp.GradScaler`). At a scale of 1 it is no overflow
of the scale's making. Knows nothing of tensors.
"""

from dataclasses import dataclass

FACTOR = 2.0
GOOD_STEPS = 2_000  # in a row, before the scale is doubled
SCALE_MAX = 2.0**32  # far beyond what any gradient needs


@dataclass(slots=True)
class LossScale:
    """The scale, and how many steps in a row were good."""

    scale: float
    good_steps: int = 0

    def update(self, *, is_finite: bool) -> bool:
        """Take in whether a step's gradient was finite; tells whether the scale is to blame."""
        if not is_finite:
            is_blamed = self.scale > 1.0
            self.scale, self.good_steps = max(1.0, self.scale / FACTOR), 0
            return is_blamed
        self.good_steps += 1
        if self.good_steps == GOOD_STEPS:
            self.scale, self.good_steps = min(SCALE_MAX, self.scale * FACTOR), 0
        return False
