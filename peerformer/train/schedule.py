"""The learning rate as a pure function of the step, so that resuming needs no state."""


def learning_rate_scale(
    step: int, *, steps: int, warmup_steps: int, final_fraction: float
) -> float:
    """Return the share of the peak learning rate at a step, counted from 0.

    Rises linearly over `warmup_steps`, then falls linearly to `final_fraction` at the last step;
    steps beyond the last stay there. Linear decay to a fraction is as good as cosine for short runs
    (Defazio et al., arXiv 2310.07831).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    return 1.0 - (1.0 - final_fraction) * share
