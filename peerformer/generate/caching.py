"""Which cache a generation uses: contiguous or paged, in full precision or eight bits.

A contiguous cache is made for each batch. The pages of a paged one, and the prefixes in them, stay
from batch to batch: that is what they are for.

Knows nothing about tokens.
"""

from dataclasses import dataclass

from peerformer.errors import ConfigError
from peerformer.model.cache import Cache, KeyValueCache
from peerformer.model.paged_cache import PagedCache, PagePool, PoolStatistics
from peerformer.model.prefix_cache import PrefixCache, PrefixStatistics
from peerformer.model.replacement import POLICIES
from peerformer.model.transformer import Transformer

KINDS = ("contiguous", "int8", "paged", "paged-int8")


@dataclass(frozen=True)
class CacheOptions:
    """Which cache, and how large.

    Args:
        kind: one of `KINDS`; with `int8` keys and values are rounded to eight bits.
        page_size: tokens of a page.
        pages: of the pool; None: as many as a full batch of the longest texts and the kept
            prefixes need.
        policy: which pages of shared beginnings are kept: `lru`, `arc` or `s3-fifo`; None shares
            nothing.
        prefix_pages: the most pages that are kept for that.

    Raises:
        ConfigError: a value that is not allowed, or one that needs pages where there are none.
    """

    kind: str = "contiguous"
    page_size: int = 16
    pages: int | None = None
    policy: str | None = None
    prefix_pages: int = 256

    def __post_init__(self) -> None:
        _choose("--cache", self.kind, KINDS)
        if self.policy is not None:
            _choose("--prefix-cache", self.policy, tuple(POLICIES))
        for name, value in (
            ("page-size", self.page_size),
            ("cache-pages", self.pages),
            ("prefix-pages", self.prefix_pages),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}, but must be at least 1")
        if not self.is_paged and (self.policy or self.pages is not None):
            name = "prefix-cache" if self.policy else "cache-pages"
            raise ConfigError(
                f"--{name} needs a cache of pages, and the cache is {self.kind}",
                hint=f"--cache paged --{name} {self.policy or self.pages}",
            )

    @property
    def is_paged(self) -> bool:
        """Whether the cache is one of pages."""
        return self.kind.startswith("paged")

    @property
    def is_rounded(self) -> bool:
        """Whether keys and values are kept in eight bits."""
        return self.kind.endswith("int8")


class CacheMaker:
    """Makes the cache of each batch; holds what stays from one to the next.

    Args:
        model: whose keys and values they are.
        options: which cache.
        batch_size: the most texts at once, for which a pool is made large enough.
        length_max: the most tokens of such a text; None: as many as the model has positions.
    """

    def __init__(
        self,
        model: Transformer,
        options: CacheOptions | None = None,
        batch_size: int = 1,
        length_max: int | None = None,
    ) -> None:
        self._options = options = options or CacheOptions()
        self._config, weight = model.config, model.embed_tokens.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._pool: PagePool | None = None
        self._prefixes: PrefixCache | None = None
        if not options.is_paged:
            return
        kept = options.prefix_pages if options.policy is not None else 0
        pages = options.pages
        if pages is None:
            positions = model.config.max_positions
            longest = positions if length_max is None else min(positions, length_max)
            pages = kept + batch_size * -(-longest // options.page_size)
        self._pool = PagePool(
            self._config,
            pages,
            options.page_size,
            self._dtype,
            self._device,
            rounded=options.is_rounded,
        )
        if options.policy is not None:
            policy = POLICIES[options.policy](min(kept, max(1, pages // 2)))
            self._prefixes = PrefixCache(self._pool, policy)

    def make(self, batch_size: int, length_max: int, *, sharing: bool = True) -> Cache:
        """A cache for so many texts of at most so many tokens.

        Args:
            batch_size: texts.
            length_max: tokens of the longest.
            sharing: whether their beginnings are worth keeping for others.
        """
        if self._pool is not None:
            return PagedCache(self._pool, batch_size, self._prefixes if sharing else None)
        return KeyValueCache(
            self._config,
            batch_size,
            length_max,
            self._dtype,
            self._device,
            rounded=self._options.is_rounded,
        )

    def pool_statistics(self) -> PoolStatistics | None:
        """How the pool of pages stands between two batches; None where there is none."""
        return self._pool.statistics() if self._pool is not None else None

    def prefix_statistics(self) -> PrefixStatistics | None:
        """How often beginnings were found; None where none are kept."""
        return self._prefixes.statistics() if self._prefixes is not None else None


def _choose(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{flag} is {value!r}, but must be one of: {', '.join(choices)}",
            hint=f"{flag} {choices[0]}",
        )
