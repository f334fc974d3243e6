"""How contributions are combined, by name: parts joined by `+`, in this order, each at most once.

| part | what it does |
|---|---|
| `equal-norms` | scales each to the median norm; refuses less than a quarter, more than 4 times |
| `norm-clipping` | scales down what is longer than the median norm |
| `bucketing` | averages pairs drawn at random (Karimireddy et al., arXiv 2006.09365) |
| `nearest-neighbour-mixing` | replaces each by the mean of the K - f nearest (arXiv 2302.01772) |
| `mean` | |
| `coordinate-median` | the middle of each coordinate (Yin et al., arXiv 1803.01498) |
| `trimmed-mean` | drops the f lowest and highest of each coordinate (arXiv 1803.01498) |
| `krum`, `multi-krum` | the one, or the K - f, nearest to others (Blanchard et al., 2017) |
| `geometric-median` | least sum of distances, smoothed Weiszfeld (arXiv 1912.13445) |
| `centred-clipping` | steps to the mean, each one's pull clipped (arXiv 2012.10333) |

One of the lower seven stands last. `robust` is short for the default, `cheap` for what costs less.
`f = (K - 1) // 3`: fewer than 4 contributions tolerate no liar.
"""

from dataclasses import dataclass

FACTOR_ONE = 1 << 16

NORMS = ("equal-norms", "norm-clipping")
FINALS = (
    "mean",
    "coordinate-median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "geometric-median",
    "centred-clipping",
)
BUCKETING, MIXING = "bucketing", "nearest-neighbour-mixing"
PARTS = (NORMS, (BUCKETING,), (MIXING,), FINALS)
SHORT = {
    "robust": f"equal-norms+{MIXING}+trimmed-mean",
    "cheap": f"norm-clipping+{MIXING}+mean",
}
BY_DISTANCE = ("krum", "multi-krum", "geometric-median", "centred-clipping")
CONTRIBUTIONS_LEAST = {
    "krum": 4,
    "multi-krum": 4,
    BUCKETING: 4,
}  # below, they choose or mix nothing


@dataclass(frozen=True)
class Rule:
    """How contributions are combined.

    Attributes:
        name: what genesis calls it.
        norms: what is done about lengths.
        bucketing: average random pairs first.
        mixing: replace each by the mean of its nearest neighbours.
        final: what makes one of many.
        clip_low_q16: smallest factor to the median norm, in units of 2^-16.
        clip_high_q16: largest factor to the median norm, in units of 2^-16; at most 4.
        norm_cap: largest norm of the result, in medians of the recent norms; None is no cap.
    """

    name: str
    norms: str = ""
    bucketing: bool = False
    mixing: bool = False
    final: str = "mean"
    clip_low_q16: int = FACTOR_ONE // 4
    clip_high_q16: int = FACTOR_ONE * 4
    norm_cap: int | None = 2

    @classmethod
    def named(cls, name: str) -> "Rule":
        """Return the rule of a name: a short one, or parts joined by `+`.

        Raises:
            ValueError: there is no such rule.
        """
        given = SHORT.get(name, name).split("+")
        order = [part for group in PARTS for part in group]
        groups = [next((i for i, group in enumerate(PARTS) if part in group), -1) for part in given]
        if -1 in groups or groups != sorted(set(groups)) or groups[-1] != len(PARTS) - 1:
            raise ValueError(
                f"unknown rule {name!r}; choose one of: {', '.join(SHORT)}, or parts joined by +,"
                f" in this order, the last one of the last seven: {', '.join(order)}"
            )
        norms = next((part for part in given if part in NORMS), "")
        return cls(
            name,
            norms,
            BUCKETING in given,
            MIXING in given,
            given[-1],
            norm_cap=None if given == ["mean"] else 2,
        )

    @property
    def contributions_least(self) -> int:
        """How many contributions the rule needs to be what its name says."""
        parts = (self.final, *((BUCKETING,) if self.bucketing else ()))
        return max((CONTRIBUTIONS_LEAST.get(part, 1) for part in parts), default=1)
