"""The outer step of a round: its rate by the schedule of the genesis, in whole numbers.

A schedule is a list of factors, such as `1,0.65,0.4` (SparseLoCo, arXiv 2603.08163): each holds for
an equal part of the run's rounds (steps / inner steps), and the last one for whatever comes after.
"""

from peerformer.config import Config
from peerformer.errors import ConfigError

FACTORS_MAX = 64


def outer_rate_q16(config: Config, round_number: int) -> int:
    """Return the outer learning rate of a round, in units of 2^-16."""
    factors = factors_of(config)
    rounds = max(1, config.training.steps // config.swarm.inner_steps)
    part = min(len(factors) - 1, (round_number - 1) * len(factors) // rounds)
    return round(config.swarm.outer_learning_rate * factors[part] * 65_536)


def factors_of(config: Config) -> tuple[float, ...]:
    """Return the factors of a schedule.

    Raises:
        ConfigError: if it is not a list of numbers from 0 to 2.
    """
    words = config.swarm.outer_schedule.split(",")
    try:
        factors = tuple(float(word) for word in words)
    except ValueError:
        factors = ()
    if not 0 < len(factors) <= FACTORS_MAX or not all(0 <= factor <= 2 for factor in factors):
        raise ConfigError(
            f"{config.swarm.outer_schedule!r} is no schedule of the outer step",
            where="swarm.outer_schedule",
            why=f"it is a list of up to {FACTORS_MAX} factors from 0 to 2",
            hint="--swarm.outer_schedule 1,0.65,0.4",
        )
    return factors
